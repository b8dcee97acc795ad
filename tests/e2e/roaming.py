"""Readers that go from one relay to another until they have a whole stream, or are told that it was lost."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.wire import sse
from tests.e2e.process import Server
from tests.e2e.replicas import Replica, Replicas
from tests.e2e.tales import Tale
from tests.relay.peers import Peer, dial, request
from tests.relay.readers import EVENTS, OUR_ID, plain, since

LOST_LINE = b'{"error":{"type":"producer_lost",'
LOST_EVENT = b"event: penstock.error\ndata: " + LOST_LINE


@dataclass
class Summary:
    """What was seen in all rounds."""

    counts: Counter[str] = field(default_factory=Counter)
    worst_lost: float = 0.0  # from an owner's death to a reader's being told, where Redis was there all the time
    worst_away: float = 0.0  # the same, where it was not, less the time that it was away
    lag: float = 0.0  # the longest that this process itself was not served

    def __str__(self) -> str:
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return (
            f"{told}; told of a lost producer within {self.worst_lost:.2f} s, {self.worst_away:.2f} s more than Redis "
            f"was away (lag {self.lag:.2f} s)"
        )


@dataclass
class Started:
    """A stream, as far as its first reader has brought it."""

    tale: Tale
    id: str
    server: Server  # the very process that produces it


class Reader:
    """Comes back until it has all, or is told that the rest was lost."""

    def __init__(self, cluster: Replicas, chance: random.Random, summary: Summary) -> None:
        self._cluster = cluster
        self._chance = chance
        self._summary = summary
        self.kept = b""
        self.last = ""
        self.whole = False
        self.lost_at: float | None = None
        self._told = b""  # how it was told of the loss
        self.asked = ""
        self.server: Server  # which it read from last
        self.left: dict[Server, float] = {}  # when it was done with each
        self._cuts = chance.choice((0, 0, 1, 3, 6))

    def __str__(self) -> str:
        state = "has all" if self.whole else f"has been told {self._told!r}" if self.lost_at is not None else "waits"
        return f"{self.asked} at {self.server.url} {state}, {len(self.kept)} bytes up to {self.last}"

    async def begin(self, tale: Tale, has_begun: Callable[[Started], None]) -> None:
        """Ask for a stream somewhere, and read it until the connection ends."""
        self._tale = tale
        at = self._choose()
        await self._read(at.url, f"/{tale.name}", lambda id_: has_begun(Started(tale, id_, at.server)))

    async def go_on(self, started: Started) -> None:
        """Read to the end, from one relay after the other."""
        self._tale = started.tale
        by_id = f"/_penstock/streams/{started.id}"
        while not (self.whole or self.lost_at is not None):
            target = f"{by_id}?offset={len(self.kept)}" if self._tale.lines else by_id
            if self.last and self._chance.random() < 0.3:
                target = f"/{self._tale.name}"
            before = len(self.kept)
            if not await self._read(self._choose().url, target) or len(self.kept) == before:
                await asyncio.sleep(0.02)  # as a browser would, if for longer

    def _choose(self) -> Replica:
        at = self._chance.choice(self._cluster.all)
        self.server = at.server
        return at

    async def _read(self, url: str, target: str, has_begun: Callable[[str], None] | None = None) -> bool:
        """Read once; whether there was an answer with a part of the stream."""
        cut = None
        if self._cuts:
            self._cuts -= 1
            cut = self._chance.randrange(1 + len(self._tale.records) // 2)
        self.asked = target
        more = (EVENTS if not self._tale.lines else "") + (since(self.last) if self.last else "")
        try:
            async with dial(url) as peer:
                try:
                    await peer.send(request(target, more=more))
                    await peer.take_head()
                    if peer.status == 204:
                        assert self.kept, "a stream with nothing in it"
                        self.whole = True
                        self._summary.counts["resumed at the end"] += 1
                        return True
                    if peer.status in (410, 503):
                        body = await peer.rest()
                        if peer.status == 410:
                            assert b"ended before it began" in body, body
                            self.lost_at, self._told = time.monotonic(), body
                        self._summary.counts[f"answered {peer.status}"] += 1
                        return False
                    assert peer.status in (200, 206), (peer.head, await peer.rest())
                    ids = peer.all("penstock-stream")
                    if not ids:  # an EventSource is told to come back
                        self._summary.counts["put off"] += 1
                        assert b"retry: " in await peer.rest()
                        return False
                    if has_begun is not None:
                        has_begun(ids[0])
                    else:
                        self._summary.counts["resumed"] += 1
                    await self._take(peer, cut)
                finally:
                    self.left[self.server] = time.monotonic()
        except (OSError, asyncio.IncompleteReadError):
            self._summary.counts["broken off"] += 1
        return True

    async def _take(self, peer: Peer, cut: int | None) -> None:
        """Keep the whole records that come, up to the end, the cut, or the connection's end."""
        cutter = sse.BlockCutter()
        rest = b""
        for number in itertools.count():
            if cut is not None and number >= cut:
                self._summary.counts["cut"] += 1
                if self._chance.random() < 0.5:
                    peer.reset()
                return
            data = await peer.chunk()
            if not data:
                self.whole = True
                return
            if self._tale.lines:
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self._keep(line + b"\n", LOST_LINE)
            else:
                for block in cutter.feed(data):
                    if (found := OUR_ID.search(block)) is not None:
                        self.last = found[1].decode()
                    self._keep(plain(block), LOST_EVENT)

    def _keep(self, record: bytes, lost: bytes) -> None:
        if record.startswith(lost):
            self.lost_at, self._told = time.monotonic(), record
        elif record.strip():
            assert self.lost_at is None, "something came after the end"
            assert b"penstock.error" not in record, record
            self.kept += record


async def read_all(tale: Tale, readers: list[Reader], chance: random.Random) -> Started | None:
    """Have the first begin the stream, and the others join it, each to its end; None if it has not begun."""
    started: list[Started] = []
    begun = asyncio.Event()

    def has_begun(stream: Started) -> None:
        started.append(stream)
        begun.set()

    async def lead(first: Reader) -> None:
        await first.begin(tale, has_begun)
        begun.set()
        if started:
            await first.go_on(started[0])

    async def join(other: Reader) -> None:
        await begun.wait()
        if started:
            await asyncio.sleep(chance.choice((0, 0.05)))
            await other.go_on(started[0])

    async with asyncio.TaskGroup() as group:
        group.create_task(lead(readers[0]))
        for other in readers[1:]:
            group.create_task(join(other))
    return started[0] if started else None
