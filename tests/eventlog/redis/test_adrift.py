"""A stream that outlives its place in Redis: what those who read it here get, and what all others are told."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from penstock.errors import ProducerLost, ReplayGap
from penstock.eventlog.base import End, Producer, State, Stream
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.redis.stream import ADRIFT_BYTES, RedisStream
from tests.eventlog.redis_server import RedisServer, needs_redis, running
from tests.relay.peers import until

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


DROP = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"


class Here:
    """A log whose leases can be lost, and another's."""

    def __init__(self, server: RedisServer, prefix: str, log: RedisLog, other: RedisLog) -> None:
        self._server = server
        self._prefix = prefix
        self.log = log
        self.other = other

    async def opened(self, lost: Callable[[], None], **watched: Any) -> tuple[Stream, Producer]:
        """A stream with two records that are stored."""
        stream, producer = await self.log.open("key", "ann", b"")
        assert producer is not None
        producer.watch(outlive=True, on_lost=lost, **watched)
        producer.start()
        producer.append([b"1", b"2"])
        await producer.stored(2)
        return stream, producer

    def drop_leases(self) -> None:
        """As when Redis was away for longer than they last; it is found out with the next flush."""
        self._server.ask("EVAL", DROP, "0", f"{self._prefix}:*:lease:*")


@pytest.fixture
async def here(server: RedisServer) -> AsyncIterator[Here]:
    prefix = secrets.token_hex(4)
    async with (
        RedisLog(server.url, prefix=prefix, lease=60) as log,
        RedisLog(server.url, prefix=prefix, lease=60) as other,
    ):
        yield Here(server, prefix, log, other)


async def test_it_goes_on_here_and_is_lost_elsewhere(here: Here) -> None:
    told: list[object] = []
    stream, producer = await here.opened(lambda: told.append("lost"), on_stop=lambda: told.append("stop"))
    with stream.reader(2) as tail, stream.reader(2) as behind, stream.reader(0) as first:
        assert tail.follow(lambda data: told.append((data, tail.cursor)), told.append)
        here.drop_leases()
        producer.append([b"3"])
        await until(lambda: "lost" in told)
        assert producer.append([b"4", b"5"]) == 5
        assert told == [(b"3", 3), "lost", (b"45", 5)]
        assert (await behind.read()).records == [b"3", b"4", b"5"]
        with pytest.raises(ReplayGap) as gap:  # what was stored is not read from there any more
            await first.read()
        assert gap.value.earliest == 2
        with pytest.raises(ReplayGap):
            await stream.read(offset=1)
        assert (await stream.read(offset=3)).records == [b"4", b"5"]
        with pytest.raises(ProducerLost):
            await producer.stored(5)
        waiting = asyncio.create_task(behind.wait())
        await asyncio.sleep(0)
        assert producer.end("done")
        await waiting
        end = End("done", b"", 6, 5)
        assert told[3:] == [end]
        assert ((await behind.read()).end, stream.state) == (end, State.ENDED)
    for log in (here.log, here.other):
        found = await log.get(stream.id)
        assert found is not None
        assert found is not stream
        page = await found.read(0)
        assert page.end is not None
        assert (page.records, page.end.reason) == ([b"1", b"2"], "producer_lost")
    assert (await here.log.open("key", "ann", b""))[1] is not None  # its key is free


async def test_what_is_held_for_who_reads_it_here_has_a_bound(here: Here) -> None:
    told: list[str] = []
    stream, producer = await here.opened(
        lambda: told.append("lost"), on_pause=lambda: told.append("pause"), on_resume=lambda: told.append("resume")
    )
    here.drop_leases()
    producer.append([b"3"])
    await until(lambda: told == ["lost"])
    piece = b"x" * 65536
    most = ADRIFT_BYTES // len(piece)
    with stream.reader(3) as fastest, stream.reader(3) as slow:
        while told == ["lost"]:
            producer.append([piece])
        assert producer.appended - 3 == most + 1
        while told == ["lost", "pause"]:
            await fastest.read(max_bytes=len(piece))
        assert told == ["lost", "pause", "resume"]
        while stream.earliest == slow.cursor:  # who lags is not waited for, and is told
            producer.append([piece])
            while fastest.cursor < stream.sequence:
                await fastest.read()
        with pytest.raises(ReplayGap):
            await slow.read()
        assert stream.sequence - stream.earliest <= most + 1
    producer.end("done")


async def test_what_is_durable_or_is_to_end_is_lost_all_the_same(here: Here) -> None:
    lost: list[str] = []
    ending, producer = await here.opened(lambda: lost.append("ending"))
    stream, durable = await here.log.open(None, "", b"", promise="durable")
    assert durable is not None
    durable.watch(outlive=True, on_lost=lambda: lost.append("durable"))
    here.drop_leases()
    durable.start()
    producer.append([b"3"])
    producer.end("done")
    await until(lambda: len(lost) == 2)
    for each in (ending, stream):
        assert each.ended is not None
        assert each.ended.reason == "producer_lost"


async def test_a_backlog_that_is_lost_with_its_bucket_lets_the_others_go_on(server: RedisServer) -> None:
    async with RedisLog(server.url, prefix=secrets.token_hex(4), lease=60, max_backlog=100_000) as log:
        opened: list[RedisStream] = []
        while len(opened) < 2:
            stream, producer = await log.open(None, "", b"")
            assert isinstance(stream, RedisStream)
            assert producer is not None
            if all(stream._bucket is not other._bucket for other in opened):  # noqa: SLF001
                producer.start()
                await producer.stored(0)
                opened.append(stream)
        held, paused = opened
        held._bucket._pausing = True  # noqa: SLF001 - as after a failure of its server, of several
        held.append([b"x" * 90_000])
        paused.append([b"x" * 20_000])
        assert paused.paused
        await paused.stored(1)
        assert paused.paused, "what it was paused for still waits"
        held._bucket.lose(held._bucket.token)  # noqa: SLF001
        await until(lambda: not paused.paused)
        assert paused.append([b"more"]) == 2


async def test_a_full_backlog_gives_a_stream_up_while_the_lease_lives(server: RedisServer) -> None:
    prefix = secrets.token_hex(4)
    lost: list[str] = []
    async with (
        RedisLog(server.url, prefix=prefix, lease=60, max_backlog=1000) as log,
        RedisLog(server.url, prefix=prefix) as other,
    ):
        here = Here(server, prefix, log, other)
        stream, producer = await here.opened(lambda: lost.append("lost"))
        _, held = await log.open(None, "", b"")
        assert held is not None
        held.start()
        await held.stored(0)
        server.end()
        producer.append([b"x"])
        await until(lambda: log.trouble is not None)
        producer.append([b"x" * 1000])
        assert (lost, producer.paused) == (["lost"], False)
        held.append([b"x" * 1001])  # which does not outlive anything, and has all the room again
        assert held.paused
        server.start()
        await until(lambda: not held.paused)
        assert producer.append([b"more"]) == 5
        found = await other.get(stream.id)
        assert found is not None
        async with asyncio.timeout(20):
            while found.ended is None:
                await found.read(2)
                await asyncio.sleep(0.02)
        assert (found.ended.reason, found.sequence) == ("producer_lost", 2)
