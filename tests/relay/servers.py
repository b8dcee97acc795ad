"""The servers that the relay's suite runs on: ours, on both of its ways, and others as they come."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.testing import serve
from tests.relay.peers import PATIENCE, Serve, plain_uvicorn, until


class Watched:
    """A server's direct writer, with an eye on who uses it."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.is_behind, self.close = writer.is_behind, writer.close
        self.opened = 0
        self.written = 0
        self.chunks = 0
        self.pauses = 0
        self.resumes = 0

    def write(self, piece: bytes) -> None:
        self.written += 1
        self._writer.write(piece)

    @property
    def write_chunk(self) -> Callable[[bytes], None] | None:
        send = self._writer.write_chunk
        if send is None:
            return None

        def write(chunk: bytes) -> None:
            self.written += 1
            self.chunks += 1
            send(chunk)

        return write

    def open(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None:
        self.opened += 1

        def pause() -> None:
            self.pauses += 1
            on_pause()

        def resume() -> None:
            self.resumes += 1
            on_resume()

        self._writer.open(pause, resume)


def watching(app: ASGIApp, seen: list[Watched]) -> ASGIApp:
    """The same application, with the direct writers of its requests in `seen`."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            writer = Watched(scope["extensions"]["penstock.direct"])
            seen.append(writer)
            scope = {**scope, "extensions": {**scope["extensions"], "penstock.direct": writer}}
        await app(scope, receive, send)

    return watched


def wrapped(app: ASGIApp) -> ASGIApp:
    """The same application behind a middleware that wraps `send`."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            await send(message)

        await app(scope, receive, sending)

    return middleware


@contextlib.asynccontextmanager
async def behind_middleware(app: Any) -> AsyncIterator[str]:
    """Our server, on the way of ASGI's messages."""
    seen: list[Watched] = []
    async with serve(watching(wrapped(app), seen)) as url:
        yield url
    assert not any(writer.opened or writer.written for writer in seen), "the bytes passed a middleware by"


@contextlib.asynccontextmanager
async def on_hypercorn(app: Any) -> AsyncIterator[str]:
    from hypercorn.asyncio import serve as run
    from hypercorn.config import Config

    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    config = Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = config.shutdown_timeout = 0.2
    config.errorlog = None
    stopped = asyncio.Event()
    task = asyncio.create_task(run(app, config, shutdown_trigger=stopped.wait))
    try:
        yield url
    finally:
        stopped.set()
        await asyncio.wait({task}, timeout=PATIENCE)


@contextlib.asynccontextmanager
async def on_granian(app: Any) -> AsyncIterator[str]:
    from granian.constants import Interfaces
    from granian.server.embed import Server

    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    server = Server(app, port=port, interface=Interfaces.ASGI, websockets=False, log_enabled=False)
    task = asyncio.create_task(server.serve())

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await until(listening)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait({task}, timeout=PATIENCE)
        logging.getLogger("granian").disabled = False


def _if_installed(name: str, run: Serve) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.param(run, id=name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


EVERY_SERVER = [
    pytest.param(serve, id="direct"),
    pytest.param(behind_middleware, id="middleware"),
    pytest.param(plain_uvicorn, id="uvicorn"),
    _if_installed("hypercorn", on_hypercorn),
    _if_installed("granian", on_granian),
]
