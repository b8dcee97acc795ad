"""One stream, many readers, and one of them stops reading: what that is to the others, and to the relay."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from penstock.wire import sse
from tests.relay.peers import CHUNKED, LAST_CHUNK, PATIENCE, Peer, chunk, dial, request, until, upstream
from tests.relay.readers import dechunked, plain

GAP = b"event: penstock.gap\ndata: "
OVERFLOW = 8 << 20  # bytes: more than the kernel keeps of a connection
_EVENT = re.compile(rb"\ndata: (\d+) (\d+) ")


@dataclass
class Source:
    """Sends numbered events with the instant of their sending, so many a second, until told to stop.

    Attributes:
        bytes: Of an event's padding.
        url: Where it is.
        sent: How many it has sent.
        over: Set to end the stream.
    """

    rate: float
    bytes: int
    url: str = ""
    sent: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)
        padding = b"x" * self.bytes
        due = time.monotonic()
        while not self.over.is_set():
            self.sent += 1
            await peer.send(chunk(b"data: %d %d %b\n\n" % (self.sent, time.monotonic_ns(), padding)))
            due += 1 / self.rate
            await asyncio.sleep(due - time.monotonic())
        await peer.send(LAST_CHUNK)


@asynccontextmanager
async def source(rate: float, size: int) -> AsyncIterator[Source]:
    played = Source(rate, size)
    async with upstream(played.play) as up:
        played.url = up.url
        yield played


class Reader(asyncio.Protocol):
    """Reads as fast as it can, and notes of each event when it came.

    Attributes:
        stream: The stream's id, once the answer has begun.
        delays: Of each event, in order: its number, when it came, and how long it took [s].
        over: Set at the connection's end.
        whole: Whether the answer came to its end.
    """

    def __init__(self, target: str) -> None:
        self.stream = ""
        self.delays: list[tuple[int, float, float]] = []
        self.over = asyncio.Event()
        self.whole = False
        self._target = target
        self._rest = b""

    @classmethod
    async def at(cls, url: str, target: str) -> Reader:
        """A reader whose answer has begun."""
        host, _, port = url.removeprefix("http://").partition(":")
        _, reader = await asyncio.get_running_loop().create_connection(lambda: cls(target), host, int(port))
        await until(lambda: reader.stream != "" or reader.over.is_set())
        assert reader.stream, "the answer has no id, or never began"
        return reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(request(self._target, more="Accept: text/event-stream\r\n"))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        if not self.stream:
            found = re.search(rb"\r\npenstock-stream: (\S+)\r\n", data)
            if found is None:
                self._rest = data
                return
            self.stream = found[1].decode()
        end = 0
        for event in _EVENT.finditer(data):
            self.delays.append((int(event[1]), now, now - int(event[2]) / 1e9))
            end = event.end()
        self.whole = data.endswith(b"\r\n0\r\n\r\n")
        self._rest = data[max(end, len(data) - 64) :]

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set()

    def close(self) -> None:
        self._transport.close()


@dataclass
class Seen:
    """What came of a round.

    Attributes:
        before: Seconds that the 99th of 100 events took, by slices of time, while all were reading.
        stalled: The same, while one did not.
        grown: Bytes that the relay's memory grew by in the meantime, at the most.
        sent: Bytes of all events.
        gaps: How many events the one was told that it had missed, each time.
    """

    before: list[float]
    stalled: list[float]
    grown: int
    sent: int
    gaps: list[int]

    @property
    def p99(self) -> tuple[float, float]:
        """Before and after, of slices the one in the middle."""
        return statistics.median(self.before), statistics.median(self.stalled)

    def __str__(self) -> str:
        before, after = (f"{each * 1000:.2f} ms" for each in self.p99)
        return (
            f"p99 {before}, then {after}; memory grew by {self.grown >> 10:,} KiB, {self.sent >> 10:,} KiB were sent; "
            f"gaps {self.gaps}"
        )


async def stall(
    relay_url: str, relay_pid: int, source: Source, *, readers: int, before: float, stalled: float, slices: int
) -> Seen:
    """Have readers read, and one of them stop for a while; those that read on get everything, and in time."""
    first = await Reader.at(relay_url, "/stream")
    path = f"/_penstock/streams/{first.stream}"
    others = [first, *[await Reader.at(relay_url, path) for _ in range(readers - 2)]]
    try:
        async with dial(relay_url, receive_buffer=1 << 16) as slow:
            await slow.send(request(path, more="Accept: text/event-stream\r\n"))
            await slow.take_head()
            head = await slow.exactly(1)
            reading = asyncio.create_task(_some(slow, before))
            forget_peak(relay_pid)
            memory = memory_of(relay_pid, "VmRSS")
            started = time.monotonic()
            early = head + await reading
            fell_silent = time.monotonic()
            sent = source.sent
            await asyncio.sleep(stalled)
            await until(lambda: (source.sent - sent) * source.bytes > OVERFLOW)
            woke = time.monotonic()
            source.over.set()
            body, whole = dechunked(early + await slow.rest())
            assert whole, body[-200:]
            for reader in others:
                async with asyncio.timeout(PATIENCE):
                    await reader.over.wait()
                assert reader.whole
                numbers = [number for number, _, _ in reader.delays]
                assert numbers == list(range(numbers[0], source.sent + 1)), "a reader missed an event"
            grown = memory_of(relay_pid, "VmHWM") - memory
    finally:
        for reader in others:
            reader.close()
    return Seen(
        _slices(others, started, fell_silent, slices),
        _slices(others, fell_silent, woke, slices),
        grown,
        source.sent * source.bytes,
        gaps_of(body, source.sent),
    )


async def _some(peer: Peer, seconds: float) -> bytes:
    """What comes in so many seconds."""
    raw = b""
    try:
        async with asyncio.timeout(seconds):
            while data := await peer.reader.read(1 << 16):
                raw += data
    except TimeoutError:
        return raw
    raise AssertionError("it has ended")


def _slices(readers: list[Reader], begin: float, end: float, slices: int) -> list[float]:
    """How long the 99th of 100 events took, in each part of a time."""
    found = []
    for number in range(slices):
        lower = begin + (end - begin) * number / slices
        upper = begin + (end - begin) * (number + 1) / slices
        delays = sorted(delay for reader in readers for _, at, delay in reader.delays if lower <= at < upper)
        found.append(delays[int(len(delays) * 0.99)] if delays else upper - lower)
    return found


def gaps_of(body: bytes, sent: int) -> list[int]:
    """How many events a body says it lacks, each time; fails where one is missing and it does not say so."""
    place, gaps = 0, []
    for block in map(plain, sse.BlockCutter().feed(body)):
        if block.startswith(GAP):
            gap = json.loads(block.removeprefix(GAP))
            assert gap["requested"] == place
            assert gap["earliest"] > place
            gaps.append(gap["earliest"] - place)
            place = gap["earliest"]
        elif found := _EVENT.match(b"\n" + block):
            assert int(found[1]) == place + 1, f"after {place} came {int(found[1])}"
            place += 1
    assert place == sent
    return gaps


def memory_of(pid: int, what: str) -> int:
    """Bytes of a process: VmRSS now, VmHWM at the most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


def forget_peak(pid: int) -> None:
    """Have VmHWM begin at what is held now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
