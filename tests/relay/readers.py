"""An upstream that says what a test tells it to, when it tells it to; and readers of what a relay makes of that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.relay.app import Relay
from penstock.relay.streams.streams import Streams
from tests.relay.peers import CHUNKED, LAST_CHUNK, PATIENCE, Peer, chunk, dial, request, until, upstream

NDJSON = CHUNKED.replace(b"text/event-stream", b"application/x-ndjson")
EVENTS = "Accept: text/event-stream\r\n"
OUR_ID = re.compile(rb"id: (1[\w-]{22}\.\d+-\d+)\n")


@dataclass
class Call:
    """One request to the upstream."""

    peer: Peer
    body: bytes = b""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def head(self, head: bytes = CHUNKED) -> None:
        await self.peer.send(head)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.peer.send(chunk(piece))

    async def end(self) -> None:
        await self.peer.send(LAST_CHUNK)
        self.over.set()

    def reset(self) -> None:
        self.peer.reset()
        self.gone.set()
        self.over.set()

    async def cancelled(self) -> None:
        """Return when the relay has left."""
        async with asyncio.timeout(PATIENCE):
            await self.gone.wait()


class Origin:
    """What the relay asks; a call waits for what the test makes of it."""

    def __init__(self, *, reads_body: bool = True) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self._reads_body = reads_body

    async def play(self, peer: Peer) -> None:
        await peer.take_head()
        call = Call(peer, await peer.body() if self._reads_body else b"")
        self.calls.append(call)
        leaving = asyncio.create_task(self._watch(call))
        try:
            await call.over.wait()
        finally:
            leaving.cancel()

    async def _watch(self, call: Call) -> None:
        with contextlib.suppress(OSError):
            while await call.peer.reader.read(1 << 16):
                pass
        call.gone.set()
        call.over.set()

    async def call(self, number: int = 0) -> Call:
        await until(lambda: len(self.calls) > number)
        return self.calls[number]


@contextlib.asynccontextmanager
async def origin(*, reads_body: bool = True) -> AsyncIterator[Origin]:
    played = Origin(reads_body=reads_body)
    async with upstream(played.play) as up:
        played.url = up.url
        yield played


def saying(*pieces: bytes, head: bytes = CHUNKED) -> Callable[[Peer], Any]:
    """A play: answer each request with these pieces, whole."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            await peer.body()
            await peer.send(head)
            for piece in pieces:
                await peer.send(chunk(piece))
            await peer.send(LAST_CHUNK)

    return play


@dataclass
class Answer:
    """An answer, read to the end of its connection.

    Attributes:
        whole: Whether the last chunk came, or all of a known length.
    """

    peer: Peer
    body: bytes
    whole: bool

    @property
    def status(self) -> int:
        return self.peer.status

    def field(self, name: str) -> str | None:
        values = self.peer.all(name)
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def stream(self) -> str:
        stream = self.field("penstock-stream")
        assert stream is not None, self.peer.head
        return stream

    @property
    def ids(self) -> list[str]:
        return [found.decode() for found in OUR_ID.findall(self.body)]

    @property
    def plain(self) -> bytes:
        """The body as the upstream sent it, less our ids and keep-alives."""
        return plain(self.body)

    @property
    def problem(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


def plain(body: bytes) -> bytes:
    return OUR_ID.sub(b"", body).replace(b": keep-alive\n", b"")


def dechunked(raw: bytes) -> tuple[bytes, bool]:
    """A chunked body, and whether it has its last chunk; one that breaks off in the middle gives what came."""
    body = bytearray()
    while raw:
        size, mark, raw = raw.partition(b"\r\n")
        if not mark or not size:
            return bytes(body), False
        length = int(size, 16)
        if not length:
            return bytes(body), raw.startswith(b"\r\n")
        body += raw[:length]
        raw = raw[length + 2 :]
    return bytes(body), False


async def rest_of(reader: Peer) -> Answer:
    """All that still comes of an answer whose head was taken."""
    raw = await reader.rest()
    if "chunked" in reader.all("transfer-encoding"):
        return Answer(reader, *dechunked(raw))
    length = reader.all("content-length")
    return Answer(reader, raw, not length or len(raw) == int(length[0]))


async def fetch(url: str, target: str = "/", method: str = "GET", more: str = "", body: bytes = b"") -> Answer:
    """One request on a connection of its own, and its answer to the end."""
    async with dial(url) as reader:
        await reader.send(request(target, method, more, body))
        await reader.take_head()
        return await rest_of(reader)


@contextlib.asynccontextmanager
async def asking(
    url: str,
    target: str = "/",
    method: str = "GET",
    more: str = "",
    body: bytes = b"",
    *,
    receive_buffer: int | None = None,
) -> AsyncIterator[Peer]:
    """A reader whose request has been sent."""
    async with dial(url, receive_buffer=receive_buffer) as reader:
        await reader.send(request(target, method, more, body))
        yield reader


def since(id: str) -> str:
    return f"Last-Event-ID: {id}\r\n"


def streams_of(relay: Relay) -> Streams:
    kept = relay.kept
    assert kept is not None
    return kept


async def settled(relay: Relay) -> None:
    """Wait until nothing runs and no reader is left: one whose answer is broken off has a moment to read it."""
    streams = streams_of(relay)
    await until(lambda: streams.running == 0)
    async with asyncio.timeout(PATIENCE):
        while any(info.readers for info in await streams.log.streams()):  # noqa: ASYNC110 – the log is asked
            await asyncio.sleep(0.005)
