"""A reader that leaves, or stops its stream: how soon the upstream hears of it, in every phase and on every server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.relay.app import Relay
from penstock.relay.settings.policy import OnDisconnect, Policy
from tests.e2e.conftest import Serve
from tests.e2e.process import needs_proc, open_files
from tests.relay.peers import CHUNKED, Peer, chunk, dial, request, until, upstream
from tests.relay.readers import fetch
from tests.relay.servers import EVERY_SERVER

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

SOON, SURELY = 0.1, 2.0
"""Seconds: the best of some tries, for the machine may be busy; and every one of them."""

TRIES = 5
KEEP_ALIVE = 0.05
MOST = 1 << 20  # bytes that are kept of a stream
PHASES = ("headers", "first byte", "mid-stream", "silence", "full buffers")

CONFIG = """
store = "{store}"
retention.max_stream_bytes = "{most}"

[defaults]
upstream = "{upstream}"
owner = "none"
on_disconnect = "cancel"
keep_alive = {keep_alive}
timeout.connect = "30s"
limits.max_event_bytes = "64K"
"""

Leave = Callable[[str, Peer], Awaitable[object]]


async def finish(url: str, reader: Peer) -> None:
    reader.writer.close()


async def half_close(url: str, reader: Peer) -> None:
    reader.writer.write_eof()


async def reset(url: str, reader: Peer) -> None:
    reader.reset()


async def stop(url: str, reader: Peer) -> None:
    stopped = await fetch(url, f"/_penstock/streams/{reader.all('penstock-stream')[0]}", "DELETE")
    assert stopped.status == 204


LEAVING: list[tuple[Leave, bytes]] = [(finish, b""), (half_close, b"a question"), (reset, b"a question")]
"""How a reader leaves, and the body of its request."""


class Calls:
    """What the upstream is asked, each for a target of its own: it answers as far as the target's phase.

    Attributes:
        url: Where it is.
        waiting: The targets of calls that have come so far.
        gone: When the relay closed the call's connection, by target.
        flooded: How many events the relay has taken that nobody reads.
    """

    def __init__(self) -> None:
        self.url = ""
        self.waiting: set[str] = set()
        self.gone: dict[str, float] = {}
        self.flooded = 0

    async def play(self, peer: Peer) -> None:
        target = (await peer.take_head()).split(b" ")[1].decode()
        await peer.body()
        phase = PHASES[int(target.rpartition("/")[2])]
        if phase != "headers":
            await peer.send(CHUNKED)
        if phase in ("mid-stream", "silence"):
            await peer.send(chunk(b"data: 1\n\n"))
        flood = asyncio.create_task(self._flood(peer) if phase == "full buffers" else asyncio.sleep(0))
        self.waiting.add(target)
        with contextlib.suppress(OSError):
            assert await peer.reader.read(1) == b""
        self.gone[target] = time.monotonic()
        flood.cancel()
        await asyncio.wait({flood})

    async def _flood(self, peer: Peer) -> None:
        event = chunk(b"data: %b\n\n" % (b"x" * 10_000))
        while True:
            self.flooded += 1
            await peer.send(event)


@contextlib.asynccontextmanager
async def calls() -> AsyncIterator[Calls]:
    played = Calls()
    async with upstream(played.play) as up:
        played.url = up.url
        yield played


NAMES = itertools.count()


@dataclass
class Relayed:
    """A relay before an upstream: `penstock relay`, or the app on a server of this process.

    Attributes:
        pid: The process that it is in.
    """

    run: Any
    store: str
    serve: Serve
    folder: Path
    pid: int = field(default_factory=os.getpid)

    @contextlib.asynccontextmanager
    async def before(self, upstream: str) -> AsyncIterator[str]:
        if self.run is not None:
            policy = Policy(upstream=upstream, on_disconnect=OnDisconnect("cancel"), keep_alive=KEEP_ALIVE)
            log = MemoryLog(retention=Retention(max_stream_bytes=MOST)) if self.store != "none" else None
            async with self.run(Relay(upstream, store=log, policy=policy)) as url:
                yield url
            return
        file = self.folder / "relay.toml"
        file.write_text(CONFIG.format(store=self.store, most=MOST, upstream=upstream, keep_alive=KEEP_ALIVE))
        server = await asyncio.to_thread(self.serve, "relay", "--config", file)
        self.pid = server.pid
        yield server.url
        assert "Traceback" not in server.err


@pytest.fixture(params=["memory://", "none"], ids=["kept", "passed-on"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[pytest.param(None, id="command"), *EVERY_SERVER])
def relayed(request: pytest.FixtureRequest, serve: Serve, store: str, tmp_path: Path) -> Relayed:
    return Relayed(request.param, store, serve, tmp_path)


@contextlib.asynccontextmanager
async def reading(url: str, up: Calls, phase: str, body: bytes, *, kept: bool) -> AsyncIterator[tuple[Peer, str]]:
    """A reader whose stream has come so far, and its target."""
    target = f"/{next(NAMES)}/{PHASES.index(phase)}"
    async with dial(url) as reader:
        await reader.send(request(target, "POST" if body else "GET", body=body))
        await until(lambda: target in up.waiting)
        if phase != "headers":
            await reader.take_head()
            assert reader.status == 200
        if phase in ("mid-stream", "silence"):
            assert b"data: 1\n\n" in await reader.chunk()
        if phase == "silence" and kept:
            assert await reader.chunk() == b": keep-alive\n"
        if phase == "full buffers":
            before = -1
            while before < up.flooded:
                before = up.flooded
                await asyncio.sleep(0.05)
        yield reader, target


async def soon(attempt: Callable[[], Awaitable[float]], what: str) -> None:
    """Fail unless the best of some tries is good, and all of them are bearable."""
    took: list[float] = []
    for _ in range(TRIES):
        took.append(await attempt())
        assert took[-1] <= SURELY, f"{what}: {took}"
        if took[-1] <= SOON:
            return
    raise AssertionError(f"{what}: {took}")


async def test_a_reader_that_leaves_is_heard_of_by_the_upstream(relayed: Relayed, store: str) -> None:
    kept = store != "none"
    async with calls() as up, relayed.before(up.url) as url:
        for phase, (leave, body) in itertools.product(PHASES, [*LEAVING, (stop, b"")]):

            async def attempt(phase: str = phase, leave: Leave = leave, body: bytes = body) -> float:
                async with reading(url, up, phase, body, kept=kept) as (reader, target):
                    left = time.monotonic()
                    await leave(url, reader)
                    await until(lambda: target in up.gone)
                    if leave is stop and phase != "full buffers":
                        while b'"type":"cancelled"' not in await reader.chunk():
                            pass
                return up.gone[target] - left

            if leave is half_close and phase == "full buffers":
                continue  # who closes on what is unread resets
            if leave is stop and (not kept or phase == "headers"):
                continue  # there is no stream, or nobody knows its id yet
            await soon(attempt, f"{phase}, {leave.__name__}")


# -- before there is a connection


@contextlib.contextmanager
def deaf() -> Iterator[tuple[str, socket.socket]]:
    """A listener whose queue is full: whoever connects from now on is not answered."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
            if not select.select([], [filler], [], 0.05)[1]:
                filler.close()
                break
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


def connecting(listener: socket.socket) -> set[str]:
    """The sockets that try to connect to a listener and are not answered, as /proc names them."""
    port = f":{listener.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    return {f"socket:[{row[9]}]" for row in rows if row[2].endswith(port) and row[3] == "02"}


@needs_proc
async def test_a_reader_that_leaves_before_there_is_a_connection(relayed: Relayed) -> None:
    with deaf() as (upstream, listener):
        async with relayed.before(upstream) as url:
            for leave, body in (LEAVING[0], LEAVING[-1]):  # looking at sockets is slow

                async def attempt(leave: Leave = leave, body: bytes = body) -> float:
                    async with dial(url) as reader:
                        await reader.send(request("/", "POST" if body else "GET", body=body))
                        await until(lambda: bool(connecting(listener)))
                        (waiting,) = connecting(listener)
                        left = time.monotonic()
                        await leave(url, reader)
                        await until(lambda: waiting not in open_files(relayed.pid))
                    return time.monotonic() - left

                await soon(attempt, f"connecting, {leave.__name__}")
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()  # the fillers: there is room now, for whoever should still try
            await asyncio.sleep(0.1)
            assert not connecting(listener)
            with pytest.raises(BlockingIOError):
                listener.accept()
