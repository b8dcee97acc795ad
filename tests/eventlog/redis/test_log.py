"""The log in Redis on real servers: what it does when they are away, have lost something, are full, or refuse."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import LimitExceeded, ProducerLost, StoreError, StreamGone
from penstock.eventlog.base import EventLog, Producer, Promise, Retention, State, Stream
from penstock.eventlog.redis.log import RedisLog
from tests.eventlog.redis_server import PATIENCE, RedisServer, linked, needs_redis, running

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that nobody kills or changes for good."""
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisServer]:
    """One of the test's own."""
    with running(tmp_path / "redis") as server:
        yield server


@asynccontextmanager
async def two_logs(url: str, **options: Any) -> AsyncIterator[tuple[RedisLog, RedisLog]]:
    """Two on one store, as two processes have them."""
    options = {"prefix": secrets.token_hex(4), **options}
    async with RedisLog(url, **options) as log, RedisLog(url, **options) as other:
        yield log, other


async def opened(log: EventLog, *, key: str | None = None, promise: Promise = "fast") -> tuple[Stream, Producer]:
    stream, producer = await log.open(key, "", b"head", promise=promise)
    assert producer is not None
    producer.start()
    return stream, producer


async def elsewhere(log: EventLog, stream: Stream) -> Stream:
    found = await log.get(stream.id)
    assert found is not None
    return found


async def whole(stream: Stream, after: int = 0) -> list[bytes]:
    """All of it up to its end."""
    records: list[bytes] = []
    while True:
        page = await stream.read(after)
        records += page.records
        after = page.after
        if page.end is not None:
            return records
        if not page.records:
            await stream.wait(after)


async def stored(producer: Producer, cursor: int) -> None:
    """Wait until it is stored, however often that fails before."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await producer.stored(cursor)
            except StoreError:
                await asyncio.sleep(0.01)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - there is nobody who could tell
            await asyncio.sleep(0.005)


# -- a server that goes away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promise", ["fast", "durable"])
async def test_a_server_that_comes_back_has_everything_once(mortal: RedisServer, promise: Promise) -> None:
    async with two_logs(mortal.url, lease=60, max_backlog=20_000) as (log, other):
        stream, producer = await opened(log, promise=promise)
        flow: list[str] = []
        troubles: list[StoreError] = []
        producer.watch(
            on_pause=lambda: flow.append("pause"), on_resume=lambda: flow.append("resume"), on_trouble=troubles.append
        )
        producer.append([b"before"])
        await producer.stored(1)
        reading = asyncio.create_task(whole(await elsewhere(other, stream)))
        records = [b"before"]
        mortal.end()
        while not producer.paused:
            records.append(b"%d:" % len(records) + b"x" * 1000)
            producer.append(records[-1:])
            assert len(records) < 100, "the backlog has no bound"
        await until(lambda: log.trouble is not None and bool(troubles))
        assert troubles[0].reason == "unavailable"
        assert producer.stored_sequence == 1
        assert (await stream.read(1)).after == (len(records) if promise == "fast" else 1)
        with pytest.raises(StoreError, match=str(mortal.port)):
            await log.open(None, "", b"")
        mortal.start()
        await stored(producer, len(records))
        await until(lambda: flow == ["pause", "resume"])
        assert log.trouble is None
        producer.end("done")
        assert await reading == records, "who waited elsewhere has missed something"
        assert await whole(stream) == records
        assert [info.ended is not None for info in await other.streams()] == [True]


async def test_a_server_that_comes_back_empty_ends_what_ran(mortal: RedisServer) -> None:
    async with two_logs(mortal.url, lease=3) as (log, other):
        stream, producer = await opened(log, key="a")
        _, idle = await opened(log)
        lost: list[str] = []
        producer.watch(on_lost=lambda: lost.append("busy"))
        idle.watch(on_lost=lambda: lost.append("idle"))
        producer.append([b"one", b"two"])
        await producer.stored(2)
        there = await elsewhere(other, stream)
        waiting = asyncio.create_task(there.wait(2))
        mortal.end()
        shutil.rmtree(mortal.folder / "appendonlydir")
        mortal.start()
        producer.append([b"three"])
        async with asyncio.timeout(PATIENCE):
            await waiting
        await until(lambda: sorted(lost) == ["busy", "idle"])
        assert there.ended is not None
        assert there.ended.reason == "producer_lost"
        assert (await there.read(2)).end == there.ended
        for each in (stream, there):
            with pytest.raises(StreamGone):
                await each.read(0)
        assert await other.get(stream.id) is None
        again, new = await opened(log, key="a")
        new.append([b"x"])
        new.end("done")
        await stored(new, 2)
        assert await whole(await elsewhere(other, again)) == [b"x"]


async def test_a_server_that_lost_the_last_of_it_ends_what_ran(tmp_path: Path) -> None:
    """As after a failover, or a crash without an append-only file."""
    with running(tmp_path / "redis", "--appendonly", "no") as server:
        async with two_logs(server.url, lease=60) as (log, other):
            (stream, producer), (still, idle) = await opened(log), await opened(log)
            lost: list[str] = []
            producer.watch(on_lost=lambda: lost.append("busy"))
            producer.append([b"kept"])
            idle.append([b"kept too"])
            await asyncio.gather(producer.stored(1), idle.stored(1))
            assert server.ask("SAVE") == "+OK"
            for each in (producer, idle):
                each.append([b"gone"])
                await each.stored(2)
            there = await elsewhere(other, stream)
            assert (await there.read(0)).after == 2
            waiting = asyncio.create_task(there.wait(2))
            server.end()
            server.start()
            producer.append([b"and no more"])
            await until(lambda: lost == ["busy"])
            async with asyncio.timeout(PATIENCE):
                await waiting
            page = await there.read(2)  # its cursor is ahead of the end
            assert page.end is not None
            assert (page.end.reason, page.end.sequence) == ("producer_lost", 2)
            assert await whole(there) == [b"kept"]
            # The producer that says nothing more is found out by whoever reads with it.
            idle.watch(on_lost=lambda: lost.append("idle"))
            assert (await still.read(0)).records == [b"kept too"]
            assert lost == ["busy", "idle"]
            with pytest.raises(ProducerLost):
                idle.append([b"x"])
            assert await whole(await elsewhere(other, still)) == [b"kept too"]


async def test_answers_that_are_lost_double_nothing(server: RedisServer) -> None:
    prefix = secrets.token_hex(4)
    async with (
        linked(server) as link,
        RedisLog(link.url, prefix=prefix, lease=60) as log,
        RedisLog(server.url, prefix=prefix) as other,
    ):
        stream, producer = await opened(log, key="a")
        producer.append([b"1"])
        await producer.stored(1)
        opening: list[asyncio.Task[tuple[Stream, Producer | None]]] = []
        for number in range(2, 12):
            link.deaf, lost = True, link.lost
            producer.append([b"%d" % number, b"x" * number])
            if number == 2:
                opening.append(asyncio.create_task(log.open("b", "", b"")))
            await until(lambda lost=lost: link.lost > lost)  # type: ignore[misc]
            link.deaf = False
            link.cut()
            await stored(producer, producer.appended)
        producer.end("done")
        await stored(producer, producer.appended + 1)
        expected = [b"1"]
        for number in range(2, 12):
            expected += [b"%d" % number, b"x" * number]
        assert await whole(await elsewhere(other, stream)) == expected
        _, created = await opening[0]
        assert created is not None, "a stream was created, and nobody produces it"
        assert [info.key for info in await other.streams() if info.ended is None] == ["b"]


async def test_what_comes_after_a_lost_answer_begins_where_that_ended(server: RedisServer) -> None:
    """What was stored without our knowing is in one batch, and what has come since in another."""
    prefix = secrets.token_hex(4)
    async with (
        linked(server) as link,
        RedisLog(link.url, prefix=prefix, lease=60, timeout=0.3) as log,
        RedisLog(server.url, prefix=prefix) as other,
    ):
        stream, producer = await opened(log)
        troubled = asyncio.Event()
        producer.watch(on_trouble=lambda error: troubled.set())
        there = await elsewhere(other, stream)
        reading = asyncio.create_task(whole(there))
        expected: list[bytes] = []
        for number in range(4):
            link.deaf = True
            troubled.clear()
            for each in range(1 + number % 2):
                expected += (records := [b"%d %d" % (number, each)] * 3)
                producer.append(records)
                await troubled.wait()
            expected.append(b"since then")
            producer.append(expected[-1:])
            link.deaf = False
            await stored(producer, producer.appended)
            assert producer.appended_offset == sum(map(len, expected))
        producer.end("done")
        assert await reading == expected
        assert await whole(stream) == expected
        for offset in range(0, producer.appended_offset, 7):
            page = await there.read(offset=offset)
            assert b"".join(page.records) == b"".join(expected)[offset:]


async def test_what_nobody_knows_of_is_ended(server: RedisServer) -> None:
    """An open that fails may have created a stream all the same."""
    prefix = secrets.token_hex(4)
    async with (
        linked(server) as link,
        RedisLog(link.url, prefix=prefix, lease=60, timeout=0.3) as log,
        RedisLog(server.url, prefix=prefix) as other,
    ):
        await log.open("a", "", b"")  # which has a lease by that
        _, producer = await opened(log, key="a bit more")
        link.deaf = True
        opening = asyncio.create_task(log.open("a", "", b"", replacing=(await find(other, "a")).id))
        with pytest.raises(StoreError):
            await opening
        link.deaf = False
        link.cut()
        producer.append([b"x"])
        await stored(producer, 1)

        async with asyncio.timeout(PATIENCE):
            found = await find(other, "a")
            while found.ended is None:
                await asyncio.sleep(0.01)
                found = await find(other, "a")
        assert found.ended.reason == "cancelled"


async def find(log: EventLog, key: str) -> Stream:
    found = await log.find(key, "")
    assert found is not None
    return found


async def test_what_a_server_that_stood_still_does_late_changes_nothing(mortal: RedisServer) -> None:
    """It still carries out what was given up, beside what was sent in its place."""
    async with two_logs(mortal.url, lease=6, timeout=0.3) as (log, other):
        stream, producer = await opened(log)
        records: list[bytes] = []
        for number in range(3):
            mortal.kill(signal.SIGSTOP)
            troubled = asyncio.Event()
            producer.watch(on_trouble=lambda error, troubled=troubled: troubled.set())  # type: ignore[misc]
            opening = asyncio.create_task(log.open(f"{number}", "", b""))
            for _ in range(3):
                records.append(b"%d" % len(records))
                producer.append(records[-1:])
                await asyncio.sleep(0.05)
            await troubled.wait()
            with pytest.raises(StoreError):
                await opening
            mortal.kill(signal.SIGCONT)
            await stored(producer, len(records))
        producer.end("done")
        await stored(producer, len(records) + 1)
        assert await whole(await elsewhere(other, stream)) == records
        async with asyncio.timeout(PATIENCE):
            while any(info.ended is None for info in await other.streams()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_who_waits_while_the_server_is_away_for_long_is_told(mortal: RedisServer) -> None:
    async with two_logs(mortal.url, lease=1.0, timeout=0.3) as (log, other):
        stream, producer = await opened(log)
        lost = asyncio.Event()
        producer.watch(on_lost=lost.set)
        there = await elsewhere(other, stream)
        waiting = asyncio.create_task(there.wait(0))
        mortal.end()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(StoreError, match="cannot be used"):
                await waiting
            await lost.wait()  # the lease cannot be renewed: whoever else there is may think so too
        assert stream.ended is not None
        assert stream.ended.reason == "producer_lost"
        mortal.start()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    assert await whole(there) == []
                    break
                except StoreError:
                    await asyncio.sleep(0.01)
        assert there.ended is not None
        assert there.ended.reason == "producer_lost"


# -- a server that refuses ---------------------------------------------------------------------------------------------


async def test_what_is_not_on_the_disk_is_not_durable(mortal: RedisServer) -> None:
    async with RedisLog(mortal.url) as log:
        _, producer = await opened(log, promise="durable")
        producer.append([b"x"])
        await producer.stored(1)
    assert mortal.ask("CONFIG", "SET", "appendfsync", "everysec") == "+OK"
    async with RedisLog(mortal.url) as log:
        with pytest.raises(StoreError, match="appendfsync everysec") as raised:
            await log.open(None, "", b"", promise="durable")
        assert "appendfsync always" in str(raised.value)
        assert await log.streams() is not None
        await opened(log)


async def test_a_server_that_may_evict_is_warned_of(mortal: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with RedisLog(mortal.url):
        pass
    assert not caplog.records
    assert mortal.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru") == "+OK"
    with caplog.at_level(logging.WARNING, "penstock.eventlog"):
        async with RedisLog(mortal.url):
            pass
    assert [record.getMessage() for record in caplog.records if "allkeys-lru" in record.getMessage()]


async def test_a_server_without_memory_acknowledges_nothing_and_ends_nothing(mortal: RedisServer) -> None:
    async with two_logs(mortal.url, lease=1.5) as (log, other):
        stream, producer = await opened(log)
        troubles: list[StoreError] = []
        producer.watch(on_trouble=troubles.append)
        producer.append([b"one"])
        await producer.stored(1)
        assert mortal.ask("CONFIG", "SET", "maxmemory", "1000000") == "+OK"
        producer.append([b"two"])
        with pytest.raises(StoreError, match="maxmemory") as raised:
            await producer.stored(2)
        assert raised.value.reason == "full"
        with pytest.raises(StoreError, match="maxmemory"):
            await log.open(None, "", b"")
        await asyncio.sleep(2)  # longer than the lease, which is renewed all the same
        assert producer.stored_sequence == 1
        assert mortal.ask("CONFIG", "SET", "maxmemory", "0") == "+OK"
        await stored(producer, 2)
        producer.end("done")
        assert await whole(await elsewhere(other, stream)) == [b"one", b"two"]


async def test_scripts_that_the_server_has_dropped_are_sent_again(mortal: RedisServer) -> None:
    async with two_logs(mortal.url) as (log, other):
        stream, producer = await opened(log)
        for number in range(5):
            assert mortal.ask("SCRIPT", "FLUSH") == "+OK"
            producer.append([b"%d" % number])
            await producer.stored(number + 1)
            assert (await (await elsewhere(other, stream)).read(number)).records == [b"%d" % number]


async def test_a_user_needs_no_more_than_the_docs_say(mortal: RedisServer) -> None:
    told = Path(__file__).parents[3].joinpath("docs", "eventlog.md").read_text()
    line = next(line for line in told.splitlines() if line.startswith("ACL SETUSER penstock "))
    assert mortal.ask(*line.replace("PASSWORD", "s3cret").split()) == "+OK"
    assert mortal.ask("ACL", "SETUSER", "default", "off") == "+OK"
    url = f"redis://penstock:s3cret@127.0.0.1:{mortal.port}/0"
    async with RedisLog(url, lease=3, retention=Retention(max_streams=3)) as log, RedisLog(url, lease=3) as other:
        for number in range(5):
            stream, producer = await opened(log, key="a", promise="durable")
            there = await elsewhere(other, stream)
            with there.reader() as reader:
                waiting = asyncio.create_task(reader.wait())
                producer.append([b"x"])
                await waiting
                assert await there.request_stop()
                await until(lambda producer=producer: producer.stop_requested)  # type: ignore[misc]
                producer.end("done")
                await producer.stored(2)
            assert len(await other.streams()) <= 3, number
        assert log.trouble is None
    for wrong in ("redis://penstock:wr0ng@", "redis://"):
        with pytest.raises(StoreError, match="password") as raised:
            async with RedisLog(f"{wrong}127.0.0.1:{mortal.port}"):
                pass
        assert "wr0ng" not in str(raised.value)


async def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    for url in ("redis://:s3cret@127.0.0.1:1", "redis+cluster://:s3cret@127.0.0.1:1", "redis+unix:///nowhere"):
        with pytest.raises(StoreError) as raised:
            async with RedisLog(url):
                pass
        assert raised.value.reason == "unavailable"
        assert "s3cret" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert url.rpartition("@")[2] in str(raised.value)


@pytest.mark.parametrize("wrong", [{"lease": 0}, {"max_backlog": 0}, {"timeout": 0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RedisLog("redis://localhost", **wrong)  # type: ignore[arg-type]


# -- many streams, in many processes -----------------------------------------------------------------------------------


async def test_to_follow_one_more_waits_for_no_block_to_time_out(server: RedisServer) -> None:
    """Nor does a stop: each of these would take seconds otherwise, and there are many."""
    async with two_logs(server.url) as (log, other):
        began = time.monotonic()
        producers = []
        for number in range(40):
            stream, producer = await opened(log)
            producers.append(producer)
            there = await elsewhere(other, stream)
            waiting = asyncio.create_task(there.wait(0))
            await asyncio.sleep(0.01)  # the bucket's tail blocks by now
            producer.append([b"%d" % number])
            await waiting
            assert await there.request_stop()
            await until(lambda producer=producer: producer.stop_requested)  # type: ignore[misc]
        assert time.monotonic() - began < PATIENCE


async def test_many_streams_share_a_flush(server: RedisServer) -> None:
    async with RedisLog(server.url, prefix=secrets.token_hex(4)) as log:
        producers = [(await opened(log))[1] for _ in range(50)]
        for producer in producers:
            producer.append([b"first"])
        await asyncio.gather(*(producer.stored(1) for producer in producers))
        flushes: list[int] = []
        for producer in producers:
            producer.watch(on_stored=flushes.append)
        for _ in range(20):
            for producer in producers:
                producer.append([b"x"])
        await asyncio.gather(*(producer.stored(21) for producer in producers))
        assert len(flushes) == len(producers), "twenty appends in a row are one batch"


async def test_who_was_woken_need_not_ask_redis(server: RedisServer) -> None:
    async with two_logs(server.url) as (log, other):
        stream, producer = await opened(log)
        there = await elsewhere(other, stream)

        async def read() -> list[bytes]:
            return await whole(there)

        reads = [asyncio.create_task(read()) for _ in range(50)]
        await asyncio.gather(*(asyncio.wait_for(asyncio.shield(read), 0.05) for read in reads), return_exceptions=True)
        before = calls_of(server)
        for number in range(100):
            producer.append([b"%d" % number])
            await asyncio.sleep(0.002)
        asked = calls_of(server) - before
        producer.end("done")
        for got in await asyncio.gather(*reads):
            assert got == [b"%d" % number for number in range(100)]
        assert asked < 1000, f"{asked} scripts for 100 events to 50 readers"


def calls_of(server: RedisServer) -> int:
    """Scripts that were run so far."""
    stats = [line for line in server.info("commandstats") if line.startswith("cmdstat_evalsha:")]
    return int(stats[0].partition("calls=")[2].partition(",")[0])


async def test_readers_of_a_process_that_dies_are_not_counted_for_ever(server: RedisServer) -> None:
    async with two_logs(server.url, lease=1.0) as (log, _):
        stream, producer = await opened(log)
        dying = RedisLog(server.url, prefix=log._prefix, lease=1.0)  # noqa: SLF001 - the same store
        await dying.start()
        reader = (await elsewhere(dying, stream)).reader()
        await until(lambda: producer.readers == 1)
        dying.abort()
        reader.close()
        await until(lambda: producer.readers == 0)
        assert [info.readers for info in await log.streams()] == [0]


async def test_a_stream_that_was_forgotten_is_gone_for_whoever_holds_it(server: RedisServer) -> None:
    async with two_logs(server.url, retention=Retention(max_streams=2)) as (log, other):
        stream, producer = await opened(log)
        producer.append([b"x"])
        producer.end("done")
        await producer.stored(2)
        there = await elsewhere(other, stream)
        await opened(log)
        await opened(log)
        assert await log.get(stream.id) is None
        for each in (stream, there):
            with pytest.raises(StreamGone):
                await each.read(0)


async def test_running_streams_share_what_is_left(server: RedisServer) -> None:
    retention = Retention(max_stream_bytes=100_000, max_bytes=160_000)
    async with RedisLog(server.url, retention=retention, prefix=secrets.token_hex(4)) as log:
        streams = [await opened(log) for _ in range(4)]

        async def grow() -> None:
            for _, producer in streams:
                producer.append([b"x" * 4_000])
            await asyncio.gather(*(producer.stored(producer.appended) for _, producer in streams))

        for _ in range(20):
            await grow()
        async with asyncio.timeout(PATIENCE):
            while sum(info.offset - info.earliest * 4_000 for info in await log.streams()) > 200_000:
                await grow()
            with ExitStack() as readers:
                for stream, _ in streams:  # so that nothing of them can go
                    readers.enter_context(stream.reader(stream.sequence))
                with pytest.raises(LimitExceeded) as raised:
                    while True:
                        await log.open(None, "", b"")
                        await grow()
                assert raised.value.limit == "max_bytes"


async def test_a_name_of_ones_own_goes_with_a_key(server: RedisServer) -> None:
    """Though they are in different buckets."""
    async with two_logs(server.url) as (log, other):
        for number in range(20):
            stream, producer = await log.open("key", "ann", b"", id=f"stream {number}")
            assert producer is not None
            for each in (log, other):
                for found in (await each.get(f"stream {number}"), await each.find("key", "ann")):
                    assert found is not None
                    assert found.id == stream.id
                with pytest.raises(ValueError, match="already"):
                    await each.open(f"key {number}", "", b"", id=stream.id)
            producer.end("done")
        assert {info.id for info in await other.streams()} == {f"stream {number}" for number in range(20)}


async def test_what_was_asked_of_a_closed_log_is_refused(server: RedisServer) -> None:
    async with RedisLog(server.url, prefix=(prefix := secrets.token_hex(4))) as log:
        stream, producer = await opened(log)
        producer.append([b"x"])
        await producer.stored(1)
        other = RedisLog(server.url, prefix=prefix)
        await other.start()
        there = await elsewhere(other, stream)
        waiting = asyncio.create_task(there.wait(1))
        await asyncio.sleep(0)
        other.abort()
        other.abort()
        with pytest.raises(StoreError, match="closed"):
            await waiting
        with pytest.raises(StoreError, match="closed"):
            await there.read(0)
        with pytest.raises(StoreError, match="closed"):
            await other.open(None, "", b"")
        await other.aclose()
        assert stream.state is State.RUNNING
