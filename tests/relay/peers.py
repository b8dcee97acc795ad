"""Both ends of a relay, in bytes: an upstream that plays what a test says, a reader that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import uvicorn

from penstock.testing import serve

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; only a failure takes that long."""

Serve = Callable[[Any], contextlib.AbstractAsyncContextManager[str]]


@dataclass
class Peer:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes = b""

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def fields(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def has(self, name: str) -> bool:
        return bool(self.all(name))

    async def send(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def take_head(self) -> bytes:
        """Read a request's or a response's head."""
        async with asyncio.timeout(PATIENCE):
            self.head = await self.reader.readuntil(b"\r\n\r\n")
        return self.head

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def chunk(self) -> bytes:
        """The next HTTP chunk; b"" is the last."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def body(self) -> bytes:
        """The whole body, by the head's framing."""
        if "chunked" in self.all("transfer-encoding"):
            pieces = []
            while piece := await self.chunk():
                pieces.append(piece)
            return b"".join(pieces)
        return await self.exactly(int((self.all("content-length") or ["0"])[0]))

    async def rest(self) -> bytes:
        """All that still comes, to the connection's end, whichever it is."""
        raw = bytearray()
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(OSError):
                while data := await self.reader.read(1 << 20):
                    raw += data
        return bytes(raw)

    async def gone(self) -> None:
        """Return when the other side has closed or reset the connection; what it still sends is dropped."""
        await self.rest()

    def reset(self) -> None:
        sock = cast("socket.socket", self.writer.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def problem(self, body: bytes) -> dict[str, Any]:
        assert self.all("content-type") == ["application/problem+json"]
        return cast("dict[str, Any]", json.loads(body))


@dataclass
class Upstream:
    url: str
    port: int
    peers: list[Peer] = field(default_factory=list)


@contextlib.asynccontextmanager
async def upstream(play: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[Upstream]:
    """Play to each connection; a failed assertion in the play fails the test."""
    failures: list[BaseException] = []
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        running.add(task)
        peer = Peer(reader, writer)
        seen.peers.append(peer)
        try:
            await play(peer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    port = server.sockets[0].getsockname()[1]
    seen = Upstream(f"http://127.0.0.1:{port}", port)
    try:
        yield seen
    finally:
        server.close()
        for task in (left := set(running)):
            task.cancel()
        if left:
            await asyncio.wait(left)
        await asyncio.sleep(0)
    if failures:
        raise failures[0]


def answering(answer: bytes, *, close: bool = False) -> Callable[[Peer], Awaitable[None]]:
    """A play: read requests whole, and answer each with these bytes."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            await peer.body()
            await peer.send(answer)
            if close:
                return

    return play


@contextlib.asynccontextmanager
async def dial(url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Peer]:
    """Connect as a reader."""
    host, _, port = url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    url: str, target: str = "/", method: str = "GET", more: str = "", body: bytes = b""
) -> tuple[Peer, bytes]:
    """One request on a connection of its own: the answer's head, and all that followed it."""
    async with dial(url) as reader:
        await reader.send(request(target, method, more, body))
        await reader.take_head()
        return reader, await reader.rest()


def request(target: str = "/", method: str = "GET", more: str = "", body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: reader.test\r\nConnection: close\r\n{length}{more}\r\n".encode() + body


def response(body: bytes = b"ok", more: str = "", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 – a condition of any kind
            await asyncio.sleep(0.005)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def plain_uvicorn(app: Any) -> AsyncIterator[str]:
    """uvicorn as it comes."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=0)
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


SERVERS: dict[str, Serve] = {"penstock": serve, "uvicorn": plain_uvicorn}
