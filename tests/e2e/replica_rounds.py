"""Seeded rounds over several relays on one Redis, all of which die now and then.

A round is one stream and its readers. Each comes back to whichever relay it happens on, until it has the whole stream
or is told that it was lost; and what it has then is compared with what the origin sent, and with what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections.abc import Iterable

from tests.e2e.process import Server
from tests.e2e.replicas import Replica, Replicas
from tests.e2e.roaming import LOST_EVENT, LOST_LINE, Reader, Started, Summary, read_all
from tests.e2e.tales import Origin, Tale
from tests.relay.readers import fetch

AT_A_TIME = 8
ROUND_SECONDS = 60.0
DEATHS = ("relay", "Redis killed", "relay", "Redis frozen", "relay", "Redis ended", "relay frozen")


class Rounds:
    """The rounds of one seed.

    Args:
        cluster: The relays.
        origin: What they relay to.
        seed: What all is drawn from.
        durable: What they promise.
        lease: Seconds after which the streams of a relay that died are lost.
    """

    def __init__(self, cluster: Replicas, origin: Origin, *, seed: int, durable: bool, lease: float) -> None:
        self.summary = Summary()
        self._cluster = cluster
        self._origin = origin
        self._seed = seed
        self._durable = durable
        self._lease = lease
        self._limit = asyncio.Semaphore(AT_A_TIME)
        self._died: dict[Server, float] = {}  # by process, when it was killed or frozen
        self._reading: dict[int, list[Reader]] = {}
        self._played = 0

    async def play(self, rounds: int, deaths: Iterable[str], every: int) -> Summary:
        """Play them, some at a time, while relays and Redis die and come back.

        Args:
            rounds: How many.
            deaths: Who dies, one after the other, as long as there are rounds to be played.
            every: Rounds between two deaths, on average; 0 for no more than a moment.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_lag())
            playing = [group.create_task(self._one(number)) for number in range(rounds)]
            dying = group.create_task(self._die(deaths, every, rounds))
            await asyncio.wait(playing)
            await dying
            watching.cancel()
        return self.summary

    async def _watch_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            self.summary.lag = max(self.summary.lag, time.monotonic() - before - 0.05)

    # -- deaths --------------------------------------------------------------------------------------------------

    async def _die(self, deaths: Iterable[str], every: int, rounds: int) -> None:
        chance = random.Random(self._seed)
        then = 0
        for kind in deaths:
            if every:
                then += chance.randint(1, 2 * every - 1)
                while self._played < min(then, rounds):  # noqa: ASYNC110 – rounds take as long as they take
                    await asyncio.sleep(0.01)
                if self._played >= rounds - AT_A_TIME:
                    return
            else:
                await asyncio.sleep(0.3)
            self.summary.counts[f"times: {kind}"] += 1
            await self._has_died(kind, chance)

    async def _has_died(self, kind: str, chance: random.Random) -> None:
        """Have somebody die, and come back."""
        victim = chance.choice(self._cluster.all)
        match kind:
            case "relay":
                self._cluster.kill(victim)
                self._note(victim)
                await asyncio.sleep(chance.choice((0, 0.3)))
                await self._cluster.again(victim)
            case "relay frozen":
                async with self._cluster.frozen(victim):
                    self._note(victim)
                    await asyncio.sleep(self._lease * chance.choice((0.2, 1.5)))
                await asyncio.sleep(self._lease)
                del self._died[victim.server]  # it goes on, with streams of its own
            case "Redis frozen":
                async with self._cluster.without_redis(signal.SIGSTOP):
                    await asyncio.sleep(self._lease * chance.choice((0.1, 0.4, 1.5)))
            case "Redis blinks":
                async with self._cluster.without_redis():
                    pass
            case _:
                async with self._cluster.without_redis(signal.SIGKILL if kind == "Redis killed" else signal.SIGTERM):
                    await asyncio.sleep(self._lease * chance.choice((0, 0.2, 1.2)))

    def _note(self, victim: Replica) -> None:
        assert victim.died_at is not None
        self._died[victim.server] = victim.died_at

    # -- rounds --------------------------------------------------------------------------------------------------

    async def _one(self, number: int) -> None:
        async with self._limit:
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._play(number)
            except TimeoutError:
                who = "; ".join(map(str, self._reading[number]))
                raise AssertionError(f"round {number} of seed {self._seed}: a reader hangs: {who}") from None
            self._played += 1

    async def _play(self, number: int) -> None:
        chance = random.Random(self._seed * 1_000_003 + number)
        for attempt in itertools.count():
            tale = Tale.drawn(f"{number}-{attempt}", chance)
            self._origin.tales[tale.name] = tale
            readers = [Reader(self._cluster, chance, self.summary) for _ in range(chance.choice((1, 2, 3)))]
            self._reading[number] = readers
            started = await read_all(tale, readers, chance)
            if started is not None:
                self.summary.counts["streams"] += 1
                self.summary.counts["readers"] += len(readers)
                await self._compare(started, readers)
                return
            await asyncio.sleep(0.05)

    async def _compare(self, started: Started, readers: list[Reader]) -> None:
        """See that what readers have is what the origin sent, and that what is left is what they were told."""
        tale = started.tale
        assert tale.calls == 1
        had = [tale.count_in(reader.kept) for reader in readers]
        for reader, count in zip(readers, had, strict=True):
            assert not reader.whole or count == len(tale.records), "a clean end of what is not whole"
        left, is_lost = await self._left(started)
        assert max(*had, left) <= tale.sent
        if self._durable:
            assert max(had) <= left, f"{max(had)} records were sent, and {left} are stored"
        if not is_lost:
            assert left == len(tale.records)
            assert all(reader.whole for reader in readers), "; ".join(map(str, readers))
            return
        assert not (self._durable and any(reader.whole for reader in readers))
        self.summary.counts["lost streams"] += 1
        self.summary.counts["lost tails"] += sum(count > left for count in had)
        if started.server in self._died:
            self.summary.counts["lost by a relay's death"] += 1
            for reader in readers:
                self._time(started, reader, self._died[started.server])

    def _time(self, started: Started, reader: Reader, died_at: float) -> None:
        """How long it took until a reader was told, from when it could be: whoever reads at a frozen relay cannot.

        That may be the one that died, or another that stood still in the meantime.
        """
        if reader.lost_at is None or reader.server is started.server:
            return
        since = max(died_at, reader.left.get(started.server, died_at))
        away = self._cluster.away.within(since, reader.lost_at)
        away += self._cluster.stood[reader.server].within(since, reader.lost_at)
        took = reader.lost_at - since - away
        if away:
            self.summary.worst_away = max(self.summary.worst_away, took)
        else:
            self.summary.worst_lost = max(self.summary.worst_lost, took)

    async def _left(self, started: Started) -> tuple[int, bool]:
        """How many records are stored, and whether the rest was lost; asked of any relay that answers."""
        tale, mark = started.tale, LOST_LINE if started.tale.lines else LOST_EVENT
        while True:
            for replica in list(self._cluster.all):
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    answer = await fetch(replica.url, f"/_penstock/streams/{started.id}")
                    if answer.status == 410:
                        assert "ended before it began" in answer.problem["detail"]
                        return 0, True
                    if answer.status == 200 and answer.whole:
                        return tale.count_in(answer.plain), False
                    assert answer.status in (200, 503), answer.peer.head
                    stored, lost, rest = answer.plain.partition(mark)
                    if lost:
                        assert mark not in rest
                        return tale.count_in(stored), True
            await asyncio.sleep(0.05)
