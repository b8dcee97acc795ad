"""Seeded rounds over several relays on one Redis: readers go from one to another, and all of those die now and then.

A round is one stream and its readers. Each comes back to whichever relay it happens on, until it has the whole stream
or is told that it was lost; and what it has then is compared with what the origin sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.wire import sse
from tests.e2e.process import Server
from tests.e2e.replicas import LEASE, Replica, Replicas
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, chunk, dial, request
from tests.relay.readers import EVENTS, NDJSON, OUR_ID, fetch, plain, since

AT_A_TIME = 8
LOST_LINE = b'{"error":{"type":"producer_lost",'
LOST_EVENT = b"event: penstock.error\ndata: " + LOST_LINE
ROUND_SECONDS = 30.0


@dataclass
class Tale:
    """What one origin sends, and how fast."""

    name: str
    records: list[bytes]
    pauses: list[float]
    lines: bool
    sent: int = 0
    calls: int = 0

    @classmethod
    def drawn(cls, name: str, chance: random.Random) -> Tale:
        lines = chance.random() < 0.25
        count = chance.choice((1, 40, 200, 600))
        records = []
        for number in range(count):
            text = "".join(chance.choices("abc{}: ä", k=chance.choice((0, 3, 20, 300, 2000))))
            said = json.dumps([name, number, text])
            records.append(f"{said}\n".encode() if lines else f"data: {said}\n\n".encode())
        pauses = [chance.choice((0, 0, 0.002, 0.01, 0.03)) for _ in records]
        return cls(name, records, pauses, lines)

    @property
    def body(self) -> bytes:
        return b"".join(self.records)

    def count_in(self, kept: bytes) -> int:
        """How many of the records a body is, to the byte; fails where it is anything else."""
        for number in range(len(self.records) + 1):
            if len(kept) == 0:
                return number
            assert number < len(self.records), f"{self.name}: {kept[:200]!r} comes after the end"
            assert kept.startswith(self.records[number]), f"{self.name}: record {number} is {kept[:200]!r}"
            kept = kept[len(self.records[number]) :]
        raise AssertionError


class Origin:
    """Tells a tale to whoever asks for ``/<name>``."""

    def __init__(self) -> None:
        self.tales: dict[str, Tale] = {}

    async def play(self, peer: Peer) -> None:
        while True:
            tale = self.tales[(await peer.take_head()).split(b" ")[1].decode()[1:]]
            tale.calls += 1
            await peer.send(NDJSON if tale.lines else CHUNKED)
            for record, pause in zip(tale.records, tale.pauses, strict=True):
                tale.sent += 1
                await peer.send(chunk(record))
                await asyncio.sleep(pause)
            await peer.send(LAST_CHUNK)


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
        self.asked = ""
        self.server: Server  # which it read from last
        self._cuts = chance.choice((0, 0, 1, 3, 6))

    def __str__(self) -> str:
        state = "has all" if self.whole else "has been told" if self.lost_at is not None else "waits"
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
                        self.lost_at = time.monotonic()
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
            self.lost_at = time.monotonic()
        elif record.strip():
            assert self.lost_at is None, "something came after the end"
            assert b"penstock.error" not in record, record
            self.kept += record


async def play_rounds(
    cluster: Replicas, origin: Origin, *, rounds: int, seed: int, durable: bool, chaos: int
) -> Summary:
    """Play them, some at a time, while relays and Redis die and come back.

    Args:
        chaos: Rounds between two deaths, on average.
    """
    summary = Summary()
    limit = asyncio.Semaphore(AT_A_TIME)
    died: dict[Server, float] = {}  # by process, when it was killed or frozen
    reading: dict[int, list[Reader]] = {}
    played = 0

    async def one(number: int) -> None:
        nonlocal played
        async with limit:
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await _play(
                        cluster, origin, number, random.Random(seed * 1_000_003 + number), durable, summary, died, reading
                    )
            except TimeoutError:
                who = "; ".join(map(str, reading[number]))
                raise AssertionError(f"round {number} of seed {seed}: a reader hangs: {who}") from None
            played += 1

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch_lag(summary))
        playing = [group.create_task(one(number)) for number in range(rounds)]
        dying = group.create_task(_deaths(cluster, random.Random(seed), summary, died, chaos, lambda: played, rounds))
        await asyncio.wait(playing)
        await dying
        watching.cancel()
    return summary


async def _watch_lag(summary: Summary) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.05)
        summary.lag = max(summary.lag, time.monotonic() - before - 0.05)


async def _deaths(
    cluster: Replicas,
    chance: random.Random,
    summary: Summary,
    died: dict[Server, float],
    every: int,
    played: Callable[[], int],
    rounds: int,
) -> None:
    """One thing after the other dies, is frozen, and comes back, as long as rounds are played."""
    then = 0
    kinds = ["replica", "redis killed", "replica", "redis paused", "replica", "redis ended", "replica frozen"]
    for kind in itertools.cycle(kinds):
        then += chance.randint(1, 2 * every - 1)
        while played() < min(then, rounds):  # noqa: ASYNC110 – rounds take as long as they take
            await asyncio.sleep(0.01)
        if played() >= rounds - AT_A_TIME:
            return
        summary.counts[f"{kind}, times"] += 1
        victim = chance.choice(cluster.all)
        match kind:
            case "replica":
                cluster.kill(victim)
                assert victim.died_at is not None
                died[victim.server] = victim.died_at
                await asyncio.sleep(chance.choice((0, 0.3)))
                await cluster.again(victim)
            case "replica frozen":
                async with cluster.frozen(victim):
                    assert victim.died_at is not None
                    died[victim.server] = victim.died_at
                    await asyncio.sleep(LEASE * chance.choice((0.2, 1.5)))
                await asyncio.sleep(LEASE)
                died.pop(victim.server)  # it goes on, with streams of its own
            case "redis paused":
                async with cluster.without_redis(signal.SIGSTOP):
                    await asyncio.sleep(LEASE * chance.choice((0.1, 0.4, 1.5)))
            case _:
                async with cluster.without_redis(signal.SIGKILL if kind == "redis killed" else signal.SIGTERM):
                    await asyncio.sleep(LEASE * chance.choice((0, 0.2, 1.2)))


async def _play(
    cluster: Replicas,
    origin: Origin,
    number: int,
    chance: random.Random,
    durable: bool,
    summary: Summary,
    died: dict[Server, float],
    reading: dict[int, list[Reader]],
) -> None:
    for attempt in itertools.count():
        tale = Tale.drawn(f"{number}-{attempt}", chance)
        origin.tales[tale.name] = tale
        readers = reading[number] = [Reader(cluster, chance, summary) for _ in range(chance.choice((1, 2, 3)))]
        started = await _read_all(tale, readers, chance)
        if started is not None:
            summary.counts["streams"] += 1
            summary.counts["readers"] += len(readers)
            await _compare(cluster, started, readers, durable, summary, died)
            return
        await asyncio.sleep(0.05)


async def _read_all(tale: Tale, readers: list[Reader], chance: random.Random) -> Started | None:
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


async def _compare(
    cluster: Replicas,
    started: Started,
    readers: list[Reader],
    durable: bool,
    summary: Summary,
    died: dict[Server, float],
) -> None:
    """See that what readers have is what the origin sent, and that what is left is what they were told."""
    tale = started.tale
    assert tale.calls == 1, tale.calls
    had = [tale.count_in(reader.kept) for reader in readers]
    assert max(had) <= tale.sent
    lost = [reader for reader in readers if reader.lost_at is not None]
    for reader, count in zip(readers, had, strict=True):
        assert not reader.whole or count == len(tale.records), "a clean end of what is not whole"
    left, is_lost = await _left(cluster, started)
    if durable:
        assert max(had) <= left, f"{max(had)} records were sent, and {left} are stored"
        assert not (is_lost and any(reader.whole for reader in readers))
    if not is_lost:
        assert not lost
        assert left == len(tale.records)
        return
    summary.counts["lost streams"] += 1
    assert left <= tale.sent
    summary.counts["lost tails"] += sum(count > left for count in had)
    killed_at = died.get(started.server)
    if killed_at is None:
        return
    summary.counts["lost by a death"] += 1
    for reader in lost:
        assert reader.lost_at is not None
        away = cluster.away.within(killed_at, reader.lost_at)
        took = reader.lost_at - killed_at - away
        if reader.server is started.server:
            pass  # it was frozen, and its readers with it
        elif away:
            summary.worst_away = max(summary.worst_away, took)
        else:
            summary.worst_lost = max(summary.worst_lost, took)


async def _left(cluster: Replicas, started: Started) -> tuple[int, bool]:
    """How many records are stored, and whether the rest was lost; asked of any relay that answers."""
    target = f"/_penstock/streams/{started.id}"
    while True:
        for replica in list(cluster.all):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                answer = await fetch(replica.url, target)
                if answer.status == 410 and "ended before it began" in answer.problem["detail"]:
                    return 0, True
                if answer.status == 503:
                    continue
                assert answer.status == 200, answer.peer.head
                if answer.whole:
                    return started.tale.count_in(answer.plain), False
                body = answer.plain
                mark = LOST_LINE if started.tale.lines else LOST_EVENT
                if mark in body:
                    assert body.count(mark) == 1
                    return started.tale.count_in(body[: body.index(mark)]), True
        await asyncio.sleep(0.05)
