"""The log in a file: what it does with files that are none, with stores that fail, and with clocks that jump."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.errors import LimitExceeded, PenstockError, StoreError, StreamGone
from penstock.eventlog.base import Producer, Retention, Stream
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.eventlog.sqlite.store import Flush, Store, told
from penstock.eventlog.sqlite.stream import SqliteStream
from penstock.testing import FakeClock
from tests.raw import until

pytestmark = pytest.mark.anyio


async def opened(log: SqliteLog, **options: str) -> tuple[Stream, Producer]:
    stream, producer = await log.open(options.get("key"), "", b"head", promise="fast")
    assert producer is not None
    producer.start()
    return stream, producer


async def refused(path: Path) -> StoreError:
    """Why a file is not taken."""
    with pytest.raises(StoreError) as raised:
        async with SqliteLog(path, timeout=0.05):
            pass
    assert isinstance(raised.value, PenstockError)
    assert str(path) in str(raised.value)
    return raised.value


# -- files that are none -----------------------------------------------------------------------------------------------


async def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are notes, and many of them" * 200)
    assert (await refused(path)).reason == "not-a-log"
    assert path.read_bytes() == b"these are notes, and many of them" * 200


async def test_a_database_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
    db.close()
    assert (await refused(path)).reason == "not-a-log"
    with sqlite3.connect(path) as db:
        assert [name for (name,) in db.execute("SELECT name FROM sqlite_master")] == ["customers"]
    db.close()


async def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    error = await refused(path)
    assert error.reason == "newer"
    assert "99" in str(error)


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path) as log:
        _, producer = await opened(log)
        producer.append([b"x" * 200] * 500)
        await producer.stored(500)
    assert [each.name for each in tmp_path.iterdir()] == ["log"], "what belongs to a log that is closed is one file"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert (await refused(path)).reason == "corrupt"


async def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    assert (await refused(tmp_path / "nowhere" / "log")).reason == "unavailable"
    assert (await refused(tmp_path)).reason == "unavailable"


async def test_a_file_that_another_keeps_locked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path):
        pass
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    assert (await refused(path)).reason == "locked"
    db.close()
    async with SqliteLog(path):
        pass


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sqlite3.connect(path).close()
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.Error) as raised:
        db.execute("CREATE TABLE a (b)")
    db.close()
    error = told(raised.value, path)
    assert error.reason == "read-only"
    assert "permissions" in str(error)


@pytest.mark.parametrize("wrong", [{"lease": 0}, {"max_backlog": 0}, {"synchronous": "OFF"}, {"timeout": -1}])
def test_settings_are_checked(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\d|OFF"):
        SqliteLog(tmp_path / "log", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# -- stores that fail --------------------------------------------------------------------------------------------------


async def test_a_full_disk_acknowledges_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path, max_file_bytes=200_000) as log:
        stream, producer = await opened(log)
        troubles: list[StoreError] = []
        acknowledged = [0]
        producer.watch(on_trouble=troubles.append, on_stored=acknowledged.append)
        with pytest.raises(StoreError) as raised:
            for _ in range(100):
                producer.append([b"x" * 10_000])
                await producer.stored(producer.appended)
        assert raised.value.reason == "full"
        assert troubles
        assert log.trouble is troubles[-1]
        # Readers of a fast stream have it all; the file has what was acknowledged, and no more.
        stored = await stream.read(0, max_bytes=10_000_000)
        unstored = await stream.read(stored.after)
        assert (stored.after, unstored.after) == (producer.stored_sequence, producer.appended)
        assert acknowledged[-1] == producer.stored_sequence == producer.appended - 1
        assert rows_of(path) == acknowledged[-1]
        with pytest.raises(StoreError):
            while True:
                await log.open(None, "", b"h" * 5_000)
    async with SqliteLog(path) as again:  # a larger file is allowed now
        back = await again.get(stream.id)
        assert back is not None
        page = await back.read(0, max_bytes=10_000_000)
        assert len(page.records) == acknowledged[-1]
        assert page.end is not None
        assert page.end.reason == "producer_lost"


def rows_of(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT max(position) & 0xffffffff FROM batches").fetchone()[0])
    finally:
        db.close()


async def test_a_store_that_comes_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path, timeout=0.01) as log:
        _, producer = await opened(log)
        producer.append([b"one"])
        await producer.stored(1)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        producer.append([b"two"])
        with pytest.raises(StoreError) as raised:
            await producer.stored(2)
        assert raised.value.reason == "locked"
        producer.append([b"three"])
        assert producer.stored_sequence == 1
        db.close()
        while producer.stored_sequence < 3:
            try:
                await producer.stored(3)
            except StoreError:
                continue  # an attempt that was under way
        assert log.trouble is None
        producer.end("done")
        await producer.stored(4)


async def test_a_source_that_is_faster_than_the_store_is_paused(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log", max_backlog=10_000) as log:
        _, producer = await opened(log)
        flow: list[str] = []
        resumed = asyncio.Event()
        producer.watch(on_pause=lambda: flow.append("pause"), on_resume=resumed.set)
        for turn in range(1, 3):
            for _ in range(9):
                producer.append([b"x" * 1000])
            assert not producer.paused
            producer.append([b"x" * 2000])
            producer.append([b"x" * 2000])
            assert (flow, producer.paused) == (["pause"] * turn, True)
            await resumed.wait()
            resumed.clear()
            assert not producer.paused
            assert producer.stored_sequence == 11 * turn


async def test_a_stream_with_more_records_than_can_be_numbered_ends(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log:
        stream, producer = await opened(log)
        assert isinstance(stream, SqliteStream)
        producer.append([b"one"])
        await producer.stored(1)
        stream.appended = (1 << 32) - 1  # as it would be after four billion more
        producer.append([b"one too many"])
        await stream.wait(1 << 32)
        page = await stream.read(0)
        assert list(page.records) == [b"one"]
        assert page.end is not None
        assert (page.end.reason, page.end.sequence) == ("producer_lost", 2)


async def test_many_streams_share_a_flush(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log:
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


async def test_a_key_is_taken_again_as_soon_as_the_end_is_stored(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log:
        for _ in range(5):
            _, before = await opened(log, key="key")
            before.append([b"x"])
            before.end("done")
        stream, producer = await opened(log, key="key")
        producer.end("done")
        assert log._ending == {stream}  # noqa: SLF001 - those before are not looked at any more
        await producer.stored(1)
        assert not log._ending  # noqa: SLF001


async def test_many_readers_elsewhere_share_what_they_read(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log, SqliteLog(tmp_path / "log") as other:
        stream, producer = await opened(log)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        assert await other.get(stream.id) is elsewhere

        async def follow(leave_after: int | None) -> list[bytes]:
            records: list[bytes] = []
            while True:
                page = await elsewhere.read(len(records))
                records += page.records
                if page.end is not None or (leave_after is not None and len(records) >= leave_after):
                    return records
                if not page.records:
                    await elsewhere.wait(len(records))

        reads = [asyncio.create_task(follow(None if number % 3 else number)) for number in range(100)]
        for number in range(100):
            producer.append([b"%d" % number])
            if number % 10 == 0:
                await producer.stored(producer.appended)
                reads[number + 1].cancel()
        producer.end("done")
        ends = await asyncio.gather(*reads, return_exceptions=True)
        whole = [b"%d" % number for number in range(100)]
        for number, end in enumerate(ends):
            if isinstance(end, asyncio.CancelledError):
                assert number % 10 == 1
            else:
                assert isinstance(end, list)
                assert end == whole[: len(end)]
                assert len(end) >= (100 if number % 3 else number)


async def test_a_page_that_nobody_waited_for_any_more_is_not_given_to_the_next(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log, SqliteLog(tmp_path / "log") as other:
        stream, producer = await opened(log)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        leaving = asyncio.create_task(elsewhere.read(0))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        producer.append([b"x"])
        await producer.stored(1)
        await elsewhere.wait(0)
        assert list((await elsewhere.read(0)).records) == [b"x"]


async def test_what_was_asked_of_a_closed_log_is_refused(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log:
        stream, producer = await opened(log)
        producer.append([b"x"])
        await producer.stored(1)
        other = SqliteLog(tmp_path / "log")
        await other.start()
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        waiting = asyncio.create_task(elsewhere.wait(1))
        await asyncio.sleep(0)
        other.abort()
        other.abort()
        with pytest.raises(StoreError, match="closed"):
            await waiting
        with pytest.raises(StoreError, match="closed"):
            await elsewhere.read(0)
        with pytest.raises(StoreError, match="closed"):
            await other.open(None, "", b"")
        await other.aclose()


async def test_a_process_that_lost_its_lease_takes_another_and_its_readers_count_again(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    async with SqliteLog(tmp_path / "log", clock=clock) as log, SqliteLog(tmp_path / "log", clock=clock) as other:
        clock.advance(100)
        stream, producer = await opened(log)  # under a lease that it had to take anew
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        counted = asyncio.Event()
        producer.watch(on_readers=lambda count: counted.set() if count else counted.clear())
        with elsewhere.reader():
            _, another = await opened(other)  # which tells the other that its lease is gone
            async with asyncio.timeout(20):
                await counted.wait()
            assert producer.readers == 1
            another.end("done")


@pytest.mark.parametrize(("promise", "level"), [("fast", 1), ("durable", 2)])
def test_what_is_durable_is_on_the_disk(tmp_path: Path, promise: str, level: int) -> None:
    store = Store(
        tmp_path / "log", timeout=1, max_file_bytes=None, synchronous="NORMAL", clock=lambda: 1.0, wall=lambda: 1.0
    )
    store.connect()
    epoch, _ = store.register(15)
    for full in (True, False, promise == "durable"):
        store.write(epoch, Flush(full=full))
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == level  # noqa: SLF001 - SQLite's own word for it
    store.close()


async def test_a_reader_that_leaves_while_the_file_is_locked_is_not_counted_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with SqliteLog(path) as log, SqliteLog(path, timeout=0.01) as other:
        stream, producer = await opened(log)
        await producer.stored(0)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        with elsewhere.reader():
            await until(lambda: producer.readers)
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.2)  # it tries in vain
        db.close()
        await until(lambda: not producer.readers)


async def test_what_was_told_of_readers_is_not_kept_when_they_have_left(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log") as log, SqliteLog(tmp_path / "log") as other:
        for _ in range(3):
            stream, producer = await opened(log)
            elsewhere = await other.get(stream.id)
            assert elsewhere is not None
            with stream.reader(), elsewhere.reader():
                await until(lambda: producer.readers == 2 and log._reported)  # noqa: SLF001, B023 - nobody else sees it
            await until(lambda: not producer.readers)  # noqa: B023
            producer.end("done")
        await until(lambda: not (log._reported or other._reported))  # noqa: SLF001


# -- retention and clocks ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_clocks(path: Path, clock: FakeClock, noon: float) -> AsyncIterator[SqliteLog]:
    async with SqliteLog(path, clock=clock, wall=lambda: noon, retention=Retention(age=60)) as log:
        yield log


async def test_a_wall_clock_that_jumps_while_it_runs_ages_nothing(tmp_path: Path) -> None:
    clock = FakeClock(10.0)
    walls = [1_000_000.0]
    log = SqliteLog(tmp_path / "log", clock=clock, wall=lambda: walls[-1], retention=Retention(age=60))
    async with log:
        stream, producer = await opened(log)
        producer.end("done")
        await producer.stored(1)
        walls.append(2_000_000.0)
        assert await log.get(stream.id) is not None
        clock.advance(61)
        assert await log.get(stream.id) is None


async def test_a_wall_clock_that_went_back_does_not_keep_for_ever(tmp_path: Path) -> None:
    clock = FakeClock(10.0)
    async with on_clocks(tmp_path / "log", clock, 2_000_000.0) as log:
        stream, producer = await opened(log)
        producer.end("done")
        await producer.stored(1)
    async with on_clocks(tmp_path / "log", clock, 1_000_000.0) as log:
        back = await log.get(stream.id)
        assert back is not None
        await log.streams()  # behind the sweep that every start makes
        clock.advance(61)
        assert await log.get(stream.id) is None


@pytest.mark.parametrize("how", ["leaves", "dies"])
async def test_what_has_ended_is_kept_while_another_process_reads_it(tmp_path: Path, how: str) -> None:
    path, clock = tmp_path / "log", FakeClock(10.0)

    def on_clock() -> SqliteLog:
        return SqliteLog(
            path, clock=clock, wall=lambda: 1_000_000.0 + clock(), lease=1_000, retention=Retention(age=60)
        )

    async def is_kept() -> bool:
        async with on_clock() as starting:
            await starting.streams()  # behind the sweep that every start makes
        with contextlib.closing(sqlite3.connect(path)) as db:
            return bool(db.execute("SELECT count(*) FROM streams").fetchone()[0])

    async with on_clock() as log, on_clock() as other:
        stream, producer = await opened(log)
        producer.append([b"%d" % number for number in range(20)])
        producer.end("done")
        await producer.stored(21)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        async with asyncio.timeout(20):
            with elsewhere.reader() as reader:
                assert len((await reader.read(max_records=10)).records) == 10
                while not (await log.streams())[0].readers:
                    pass
                clock.advance(61)
                assert await is_kept()
                page = await reader.read()
                assert list(page.records) == [b"%d" % number for number in range(10, 20)]
                assert page.end is not None
                if how == "dies":
                    other.abort()
            while await is_kept():
                pass


async def test_a_lease_from_before_the_machine_started_anew_does_not_hold(tmp_path: Path) -> None:
    before = SqliteLog(tmp_path / "log", clock=FakeClock(900_000.0))
    await before.start()
    stream, _ = await opened(before)
    await before.streams()
    before.abort()
    for lock in tmp_path.glob("log-producer-*"):
        lock.unlink()  # so that the lease alone tells
    async with SqliteLog(tmp_path / "log", clock=FakeClock(10.0)) as log:
        back = await log.get(stream.id)
        assert back is not None
        assert back.ended is not None
        assert back.ended.reason == "producer_lost"


async def test_running_streams_share_what_is_left(tmp_path: Path) -> None:
    retention = Retention(max_stream_bytes=100_000, max_bytes=160_000)
    async with SqliteLog(tmp_path / "log", retention=retention) as log:
        streams = [await opened(log) for _ in range(4)]
        for _ in range(20):
            for _, producer in streams:
                producer.append([b"x" * 4_000])
            await asyncio.gather(*(producer.stored(producer.appended) for _, producer in streams))
        assert min(stream.earliest for stream, _ in streams) > 0
        infos = await log.streams()
        assert sum(info.offset - info.earliest * 4_000 for info in infos) <= 200_000
        with pytest.raises(LimitExceeded):
            while True:
                await log.open(None, "", b"")
                for _, producer in streams:
                    producer.append([b"x" * 4_000])
                    await producer.stored(producer.appended)


async def test_a_stream_that_was_forgotten_is_gone_for_whoever_holds_it(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log", retention=Retention(max_streams=2)) as log:
        stream, producer = await opened(log)
        producer.append([b"x"])
        producer.end("done")
        await producer.stored(2)
        stored = await log.get(stream.id)
        assert stored is not None
        await opened(log)
        await opened(log)
        assert await log.get(stream.id) is None
        for each in (stream, stored):
            with pytest.raises(StreamGone):
                await each.read(0)


async def test_many_streams_are_stored_less_often_unless_somebody_waits_for_it(tmp_path: Path) -> None:
    def moments(producer: Producer) -> list[int]:
        told: list[int] = []
        producer.watch(on_stored=told.append)
        return told

    async def stored(producers: list[Producer]) -> int:
        """How many flushes stored 100 appends."""
        told = moments(producers[-1])
        for _ in range(100):
            for producer in producers:
                producer.append([b"x"])
            await asyncio.sleep(0.005)
        await producers[-1].stored(producers[-1].appended)
        return len(set(told))

    async with SqliteLog(tmp_path / "log") as log, SqliteLog(tmp_path / "log") as other:
        streams, producers = zip(*[await opened(log) for _ in range(200)], strict=True)
        alone = await stored(list(producers))
        elsewhere = await other.get(streams[0].id)
        assert elsewhere is not None
        with elsewhere.reader():
            await until(lambda: producers[0].readers == 1)
            read = await stored(list(producers))
        _, durable = await log.open(None, "", b"", promise="durable")
        assert durable is not None
        durable.start()
        kept = await stored([*producers, durable])
        assert alone * 1.3 < min(read, kept), (alone, read, kept)
