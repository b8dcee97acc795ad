"""What every event log must do: one suite for all backends, yours too.

A backend is checked through a *bench*: logs that share one store, and a way to let time pass for them. ::

    @contextlib.asynccontextmanager
    async def bench():
        clock = FakeClock()

        async def advance(seconds):
            clock.advance(seconds)

        with tempfile.TemporaryDirectory() as folder:
            yield LogBench(lambda **options: SqliteLog(f"{folder}/log", clock=clock, **options), advance, lease=15)


    await check_event_log(bench)  # or one by one: for check in EVENT_LOG_CHECKS: await check(bench)

Each check opens a bench of its own. What a log cannot do by its kind, as `persistent` and `shared` tell, is not
asked of it. A check raises `AssertionError` and says what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from penstock.errors import LimitExceeded, ProducerLost, ReplayGap
from penstock.eventlog.base import End, EventLog, Page, Producer, Promise, Retention, State, Stream

PATIENCE = 30.0  # seconds that a check may take, for machines that are slow


class MakeLog(Protocol):
    """Makes a log on the bench's store, not started yet."""

    def __call__(self, *, retention: Retention = ...) -> EventLog: ...


@dataclass(frozen=True)
class LogBench:
    """Logs on one store.

    Attributes:
        make: Makes a log on the store; each is a process of its own, where the backend has such.
        advance: Lets seconds pass for all of them.
        lease: Seconds after which a producer that does nothing is lost, where the backend has leases.
    """

    make: MakeLog
    advance: Callable[[float], Awaitable[None]]
    lease: float = 15.0


Benches = Callable[[], AbstractAsyncContextManager[LogBench]]
Check = Callable[[Benches], Awaitable[None]]


async def check_event_log(benches: Benches) -> None:
    """Check all that the contract in `penstock.eventlog.base` says.

    Args:
        benches: Makes a bench with an empty store, as a context.
    Raises:
        AssertionError: The log does otherwise.
    """
    for check in EVENT_LOG_CHECKS:
        await check(benches)


async def check_replay(benches: Benches, batches: Sequence[Sequence[bytes]], *, promise: Promise = "fast") -> None:
    """Check that what was appended is read back byte for byte, from every cursor and offset, on any page size.

    Args:
        benches: Makes a bench with an empty store, as a context.
        batches: What each call of `append` gets.
        promise: How it is appended.
    """
    records = [record for batch in batches for record in batch]
    body = b"".join(records)
    async with _one(benches) as (bench, log), _more(bench, log) as other:
        stream, producer = await _open(log, promise=promise)
        for batch in batches:
            cursor = producer.append(batch)
            assert cursor == producer.appended
        assert (producer.appended, producer.appended_offset) == (len(records), len(body))
        if promise == "fast":
            assert await _all(stream, 0) == records, "what is not stored yet cannot be read"
        producer.end("done", b"fin")
        end = End("done", b"fin", len(records) + 1, len(body))
        await producer.stored(end.sequence)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None, "a stream cannot be found by another log on the store"
        for reader in (stream, elsewhere):
            for after in range(len(records) + 2):
                for size in (1, 3, 1 << 20):
                    assert await _all(reader, after, max_records=size) == records[after:]
                assert await _all(reader, after, max_bytes=7) == records[after:]
            for offset in range(len(body) + 2):
                page = await reader.read(offset=offset, max_bytes=5)
                rest = await _all(reader, page.after) if page.records else []
                assert b"".join([*page.records, *rest]) == body[offset:]
            assert (await reader.read(len(records))).end == end
            assert list((await reader.read(-1)).records[:1]) == [stream.head]


# -- opening and joining -----------------------------------------------------------------------------------------------


async def _creates_once_and_joins(bench: LogBench, log: EventLog) -> None:
    """Of all who open a key, one produces."""
    async with _more(bench, log) as other:
        opened = await asyncio.gather(*(each.open("chat", "ann", b"head") for each in [log, other] * 4))
        producers = [producer for _, producer in opened if producer is not None]
        assert len(producers) == 1, f"{len(producers)} producers of one key"
        assert len({stream.id for stream, _ in opened}) == 1
        assert {stream.head for stream, _ in opened} == {b"head"}
        found = await other.find("chat", "ann")
        assert found is not None
        assert found.id == opened[0][0].id
        assert found.epoch == opened[0][0].epoch


async def _keys_are_apart(bench: LogBench, log: EventLog) -> None:
    """A key is its owner's own, and no key joins nothing."""
    opened = [
        await log.open(key, owner, b"") for key, owner in [("a", "ann"), ("a", "bob"), ("b", "ann"), (None, "ann")] * 2
    ]
    created = [stream.id for stream, producer in opened if producer is not None]
    assert len(set(created)) == len(created) == 5
    assert opened[4][0].id == opened[0][0].id
    assert await log.find("a", "eve") is None
    assert await log.get("nobody's") is None
    assert all(len(stream.id) >= 22 for stream, _ in opened), "too short to be hard to guess"
    for taken in created:
        with _raises(ValueError):
            await log.open(None, "", b"", id=taken)


async def _a_key_names_the_latest(bench: LogBench, log: EventLog) -> None:
    """A stream that has ended gives its key to the next."""
    first, producer = await _open(log, key="a")
    producer.end("done")
    second, another = await log.open("a", "", b"")
    assert another is not None, "joined a stream that has ended"
    assert second.id != first.id
    found = await log.find("a", "")
    assert found is not None
    assert found.id == second.id
    assert (await log.get(first.id)) is not None


async def _replaces_by_compare_and_set(bench: LogBench, log: EventLog) -> None:
    """A key is taken only from the stream that is named, and that one is asked to stop."""
    async with _more(bench, log) as other:
        first, producer = await _open(log, key="a")
        stopped = asyncio.Event()
        producer.watch(on_stop=stopped.set)
        taken = await asyncio.gather(*(other.open("a", "", b"", replacing=first.id) for _ in range(4)))
        assert sum(created is not None for _, created in taken) == 1, "more than one took the key"
        assert {stream.id for stream, _ in taken} != {first.id}
        await stopped.wait()
        assert producer.stop_requested
        producer.append([b"the last word"])  # it has not ended by that
        producer.end("cancelled")
        await producer.stored(2)
        found = await log.find("a", "")
        assert found is not None
        assert found.id == taken[0][0].id


async def _the_head_comes_first(bench: LogBench, log: EventLog) -> None:
    """The head is record 0, final from the start on, wherever it is read."""
    async with _more(bench, log) as other:
        stream, producer = await log.open(None, "", b"asked")
        assert producer is not None
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        for each in (stream, elsewhere):
            assert each.head == b"asked"
            page = await each.read(-1)
            assert (page.records, page.after) == ((), -1), "a head that is not final was read"
        with _raises(RuntimeError):
            producer.append([b"too early"])
        waits = [asyncio.create_task(each.wait(-1)) for each in (stream, elsewhere)]
        assert producer.start(b"answered")
        assert not producer.start(b"again")
        producer.append([b"one"])
        await asyncio.gather(*waits)
        await producer.stored(1)
        for each in (stream, elsewhere):
            page = await each.read(-1)
            assert list(page.records) == [b"answered", b"one"]
            assert (page.after, page.offset) == (1, 3)
            assert each.head == b"answered"
            assert each.state is State.RUNNING


# -- reading and ending ------------------------------------------------------------------------------------------------


async def _replays_what_was_appended(benches: Benches) -> None:
    """Bytes in are bytes out, by sequence and offset."""
    draw = random.Random(7)
    batches = [[draw.randbytes(draw.choice([0, 1, 2, 9])) for _ in range(draw.randrange(4))] for _ in range(9)]
    for promise in ("fast", "durable"):
        await check_replay(benches, batches, promise=promise)


async def _replays_what_is_large(bench: LogBench, log: EventLog) -> None:
    """Pages hold no more than was asked for, but one record always."""
    async with _more(bench, log) as other:
        stream, producer = await _open(log)
        records = [bytes([number]) * 40_000 for number in range(20)]
        producer.append(records)
        await producer.stored(20)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        for each in (stream, elsewhere):
            assert await _all(each, 0) == records
            page = await each.read(0, max_bytes=100_000)
            assert list(page.records) == records[:2]
            page = await each.read(0, max_bytes=10)
            assert list(page.records) == records[:1]
            page = await each.read(offset=39_999, max_records=2)
            assert list(page.records) == [records[0][-1:], records[1]]


async def _ends_once(bench: LogBench, log: EventLog) -> None:
    """The first end stays, with its reason and detail, and nothing comes after it."""
    async with _more(bench, log) as other:
        for reason in ("done", "error", "cancelled"):
            stream, producer = await _open(log)
            told: list[End | None] = []
            with stream.reader() as reader:
                assert reader.follow(lambda data: None, told.append)
                producer.append([b"a", b"bc"])
                assert producer.end(reason, b"why")
                assert not producer.end("done")
                with _raises(RuntimeError):
                    producer.append([b"more"])
                assert not producer.start()
                await producer.stored(3)
                end = End(reason, b"why", 3, 3)
                assert told == [end], "a follower is told of the end once"
                assert not reader.follow(lambda data: None)
            elsewhere = await other.get(stream.id)
            assert elsewhere is not None
            for each in (stream, elsewhere):
                assert (await each.read(0)).end == end
                assert (await each.read(0, max_records=1)).end is None
                assert each.state is State.ENDED
                await each.wait(99)  # there is nothing to wait for
                assert not await each.request_stop()


async def _ends_before_it_starts(bench: LogBench, log: EventLog) -> None:
    """A stream may end with nothing in it."""
    stream, producer = await log.open("a", "", b"head")
    assert producer is not None
    assert producer.end("error", b"no answer")
    await producer.stored(1)
    page = await stream.read(-1)
    assert list(page.records) == [b"head"]
    assert page.end == End("error", b"no answer", 1, 0)


async def _cursors_from_outside(bench: LogBench, log: EventLog) -> None:
    """A cursor that is ahead gets the end; one of another epoch is told so."""
    stream, producer = await _open(log)
    producer.append([b"a"])
    page = await stream.read(5, epoch=stream.epoch)
    assert (page.records, page.after, page.end) == ((), 5, None)
    for ahead in (-1, 0, 1, 5):
        with _raises(ReplayGap) as raised:
            await stream.read(ahead, epoch=stream.epoch + 1)
        assert (raised.error.requested, raised.error.earliest) == (ahead, 0)
    waiting = asyncio.create_task(stream.wait(5))
    producer.end("done")
    await waiting
    for ahead in (1, 2, 5):
        page = await stream.read(ahead, epoch=stream.epoch)
        assert (page.records, page.after) == ((), ahead)
        assert page.end == End("done", b"", 2, 1)
    page = await stream.read(offset=99)
    assert page.end is not None


# -- retention ---------------------------------------------------------------------------------------------------------


async def _evicts_the_oldest_of_a_stream(benches: Benches) -> None:
    """A stream keeps its latest records; what is gone is told, and never skipped in silence."""
    async with _one(benches, Retention(max_stream_bytes=20_000)) as (bench, log), _more(bench, log) as other:
        stream, producer = await _open(log)
        records = [number.to_bytes(4, "big") * 50 for number in range(500)]
        for record in records:
            producer.append([record])
            if producer.appended % 10 == 0:
                await producer.stored(producer.appended)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        for each in (stream, elsewhere):
            with _raises(ReplayGap) as raised:
                await each.read(0)
            gap = raised.error
            assert gap.requested == 0
            assert 400 <= gap.earliest < 500, "a stream must keep close to what it may, and no more"
            assert await _all(each, gap.earliest) == records[gap.earliest :]
            with _raises(ReplayGap) as raised:
                await each.read(gap.earliest - 1)
            assert each.earliest == gap.earliest
            with _raises(ReplayGap) as raised:
                await each.read(offset=7)
            assert raised.error.requested == 7
            offset = raised.error.earliest
            assert offset == 200 * gap.earliest
            page = await each.read(offset=offset + 1)
            assert page.records[0] == records[gap.earliest][1:]
            assert each.head == b"head"


async def _evicts_the_first_that_ended(benches: Benches) -> None:
    """Beyond the bound of all, those that ended first lose their records before the others; their ends stay."""
    async with _one(benches, Retention(max_stream_bytes=100_000, max_bytes=200_000)) as (bench, log):
        streams = []
        running, still = await _open(log)
        still.append([b"r" * 10_000])
        for _ in range(4):
            stream, producer = await _open(log)
            for _ in range(6):
                producer.append([b"x" * 10_000])
            producer.end("done")
            await producer.stored(7)
            streams.append(stream)
            await bench.advance(1)
        await _eventually(lambda: _has_gap(streams[0]))
        for stream, gone in zip(streams, [True, True, False, False], strict=True):
            if await _has_gap(stream) != gone:
                assert gone, "a later stream was evicted before an earlier one"
        assert await _has_gap(streams[0])
        assert not await _has_gap(streams[3])
        page = await streams[0].read(streams[0].earliest)
        assert page.end == End("done", b"", 7, 60_000)
        assert len((await running.read(0)).records) == 1, "a running stream was evicted before a finished one"


async def _forgets_by_age(benches: Benches) -> None:
    """Age counts from the end; a stream that runs is never too old, nor one that is being read."""
    async with benches() as bench, bench.make(retention=Retention(age=2 * bench.lease)) as log:
        running, _ = await log.open("running", "", b"")
        ended, producer = await _open(log, key="ended")
        read, another = await _open(log)
        for each in (producer, another):
            each.append([b"a"])
            each.end("done")
            await each.stored(2)
        await bench.advance(1.5 * bench.lease)
        assert await log.get(ended.id) is not None
        with read.reader() as reader:
            await bench.advance(bench.lease)
            assert await log.get(ended.id) is None
            assert await log.find("ended", "") is None
            assert await log.get(running.id) is not None
            assert (await reader.read()).end is not None
        assert ended.id not in [info.id for info in await log.streams()]


async def _bounds_the_number_of_streams(benches: Benches) -> None:
    """The first that ended make room; where all run, none is opened."""
    async with _one(benches, Retention(max_streams=3)) as (_, log):
        first, producer = await _open(log)
        producer.end("done")
        await producer.stored(1)
        for _ in range(3):
            await log.open(None, "", b"")
        assert await log.get(first.id) is None
        with _raises(LimitExceeded) as raised:
            await log.open(None, "", b"")
        assert raised.error.limit == "max_streams"


async def _pauses_for_the_fastest_reader(benches: Benches) -> None:
    """While somebody reads, a full log stops its source; only readers slower than the fastest are let go."""
    async with _one(benches, Retention(max_stream_bytes=20_000)) as (_, log):
        stream, producer = await _open(log)
        flow: list[str] = []
        producer.watch(on_pause=lambda: flow.append("pause"), on_resume=lambda: flow.append("resume"))
        sent: list[bytes] = []
        got: list[bytes] = []

        async def fill() -> None:
            while not producer.paused:
                assert len(sent) < 10_000, "a full log did not pause its source"
                batch = [number.to_bytes(4, "big") * 50 for number in range(len(sent), len(sent) + 5)]
                sent.extend(batch)
                producer.append(batch)
                await producer.stored(producer.appended)

        with stream.reader() as slow:
            with stream.reader() as fast:
                for _ in range(5):
                    await fill()
                    while producer.paused:
                        got += (await fast.read(max_records=10)).records
                        await asyncio.sleep(0)
                    assert flow[-1] == "resume"
                await fill()
                assert got == sent[: len(got)]
                assert len(got) >= 50
                with _raises(ReplayGap):
                    await slow.read()
                slow.seek(len(sent))
            # The fast one has left; the slow one is at the tail, and holds nothing back.
            await _eventually(lambda: _value(not producer.paused))
            for _ in range(10):
                producer.append([b"x" * 200] * 20)
                await slow.read()
                await producer.stored(producer.appended)
        for _ in range(10):
            producer.append([b"x" * 200] * 20)
            await producer.stored(producer.appended)
        assert not producer.paused, "a log that nobody reads paused its source"
        assert flow == ["pause", "resume"] * (len(flow) // 2)


async def _holds_what_comes_at_once(benches: Benches) -> None:
    """However much comes at once, and still comes of a source that was paused, the fastest reader misses nothing."""
    async with _one(benches, Retention(max_stream_bytes=20_000)) as (_, log):
        stream, producer = await _open(log)
        sent: list[bytes] = []
        got: list[bytes] = []
        with stream.reader() as fast, stream.reader():
            for round_ in range(3):
                for records in ([b"%d %d %b" % (round_, number, b"x" * 1000) for number in range(100)], [b"late"]):
                    producer.append(records)
                    sent += records
                    await producer.stored(producer.appended)
                assert producer.paused
                while producer.paused:
                    got += (await fast.read(max_records=10)).records
                    await asyncio.sleep(0)
            while len(got) < len(sent):
                got += (await fast.read()).records
        assert got == sent


async def _counts_its_readers(bench: LogBench, log: EventLog) -> None:
    """A producer knows how many read, in whatever process."""
    async with _more(bench, log) as other:
        stream, producer = await _open(log)
        counts: list[int] = []
        producer.watch(on_readers=counts.append)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        with stream.reader():
            with elsewhere.reader(), elsewhere.reader() as third:
                await _eventually(lambda: _value(producer.readers == 3))
                for each in (log, other):
                    assert [info.readers for info in await each.streams()] == [3]
                third.close()
                await _eventually(lambda: _value(producer.readers == 2))
            await _eventually(lambda: _value(producer.readers == 1))
        assert producer.readers == 0
        assert counts[-1] == 0
        assert max(counts) == 3


async def _does_not_pause_for_whoever_has_it_all(benches: Benches) -> None:
    """More at once than a stream may keep stops its source only as long as a reader lacks some of it."""
    async with _one(benches, Retention(max_stream_bytes=20_000)) as (_, log):
        for promise in ("fast", "durable"):
            stream, producer = await _open(log, promise=promise)
            got: list[bytes] = []
            with stream.reader() as reader:
                assert reader.follow(got.append)
                producer.append([b"x" * 6_000] * 5)
                await producer.stored(5)
                await _eventually(lambda: _value(len(b"".join(got)) == 30_000))  # noqa: B023
                await _eventually(lambda: _value(not producer.paused))  # noqa: B023
                assert reader.following
            producer.end("done")


async def _pauses_for_a_reader_elsewhere(benches: Benches) -> None:
    """A full log waits for a reader in another process as it does for one here."""
    async with _one(benches, Retention(max_stream_bytes=20_000)) as (bench, log), _more(bench, log) as other:
        stream, producer = await _open(log)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        sent: list[bytes] = []
        got: list[bytes] = []
        with elsewhere.reader() as reader:
            await _eventually(lambda: _value(producer.readers == 1))
            for _ in range(5):
                while not producer.paused:
                    assert len(sent) < 10_000, "a full log did not pause its source"
                    sent += (batch := [number.to_bytes(4, "big") * 50 for number in range(len(sent), len(sent) + 5)])
                    producer.append(batch)
                    await producer.stored(producer.appended)
                while producer.paused:
                    got += (await reader.read()).records
                    await asyncio.sleep(0)
            assert got == sent[: len(got)]
            assert len(got) > 100
            while not producer.paused:
                producer.append([b"x" * 500])
                await producer.stored(producer.appended)
        await _eventually(lambda: _value(not producer.paused))


# -- waiting and following ---------------------------------------------------------------------------------------------


async def _never_misses(bench: LogBench, log: EventLog) -> None:
    """Read, then wait with the cursor: nothing is lost or doubled, whoever reads and from wherever."""
    draw = random.Random(11)
    async with _more(bench, log) as other:
        stream, producer = await _open(log)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        reads = [
            asyncio.create_task(_follow_by_reading(each, draw.randrange(1, 9))) for each in (stream, elsewhere) * 3
        ]
        records = []
        for number in range(300):
            batch = [b"%d" % number] * draw.randrange(3)
            records += batch
            producer.append(batch)
            if draw.random() < 0.3:
                await asyncio.sleep(0)
            if number % 50 == 0:
                await producer.stored(producer.appended)
        producer.end("done")
        for got in await asyncio.gather(*reads):
            assert got == records


async def _hands_over_to_the_tail(bench: LogBench, log: EventLog) -> None:
    """From the log to the tail and back, here and in another process: nothing is lost or doubled."""
    async with _more(bench, log) as other:
        for promise in ("fast", "durable"):
            assert await _hand_over(*await _open(log, promise=promise)), "the tail was never reached"
            stream, producer = await _open(log, promise=promise)
            elsewhere = await other.get(stream.id)
            assert elsewhere is not None
            await _hand_over(elsewhere, producer)  # where its tail can be followed


async def _hand_over(stream: Stream, producer: Producer) -> int:
    """How often the reader followed."""
    given: list[bytes] = []
    got = bytearray()
    told: list[End | None] = []
    followed = 0
    left = asyncio.Event()

    async def write() -> None:
        for number in range(200):
            batch = [b"%d" % (2 * number), b"%d" % (2 * number + 1)]
            given.extend(batch)
            producer.append(batch)
            await asyncio.sleep(0)
            if number % 10 == 0:
                await producer.stored(producer.appended)
        producer.end("done", b"fin")

    def take(data: bytes) -> None:
        got.extend(data)
        assert got == b"".join(given[: reader.cursor])
        if reader.cursor % 7 == 0:
            reader.unfollow()
            left.set()

    def finish(end: End | None) -> None:
        if end is not None:
            told.append(end)
        left.set()

    writing = asyncio.create_task(write())
    with stream.reader() as reader:
        while True:
            if reader.follow(take, finish):
                followed += 1
                await left.wait()
                left.clear()
            page = await reader.read(max_records=5)
            got += b"".join(page.records)
            if page.end is not None:
                break
            if not page.records:
                await reader.wait()
    await writing
    assert got == b"".join(given)
    assert told in ([], [page.end])
    return followed


async def _tells_what_was_appended(bench: LogBench, log: EventLog) -> None:
    """A follower gets a record as it is, and several joined; one that fails has to read on, and harms no other."""
    stream, producer = await _open(log)
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
    error = RuntimeError("a broken follower")
    seen: list[tuple[bytes, int]] = []
    to_read_on: list[object] = []

    def fail(data: bytes) -> None:
        raise error

    def dismiss(data: bytes) -> None:
        dismissed.unfollow()

    try:
        broken, dismissing, dismissed, good = (stream.reader() for _ in range(4))
        assert broken.follow(fail, to_read_on.append)
        assert dismissing.follow(dismiss)
        assert dismissed.follow(lambda data: seen.append((b"to one that has left", dismissed.cursor)))
        assert good.follow(lambda data: seen.append((data, good.cursor)))
        one, two = [b"one"], [b"two", b"three"]
        producer.append(one)
        producer.append(two)
    finally:
        loop.set_exception_handler(before)
    assert complaints == [error]
    assert seen == [(b"one", 1), (b"twothree", 3)]
    assert seen[0][0] is one[0], "a record was copied"
    assert to_read_on == [None]
    assert (broken.cursor, dismissed.cursor, good.cursor) == (0, 0, 3)
    for reader in (broken, dismissed):
        assert list((await reader.read()).records) == one + two
    for reader in (broken, dismissing, dismissed, good):
        reader.close()


async def _leaves_nothing_behind(bench: LogBench, log: EventLog) -> None:
    """A wait, a read and an open that are cancelled leave no task and no stream without an end."""
    async with _more(bench, log) as other:
        stream, _ = await _open(log)
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        tasks = asyncio.all_tasks()
        waits = [asyncio.create_task(each.wait(0)) for each in (stream, elsewhere) * 10]
        await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        opening = asyncio.create_task(log.open("cancelled", "", b""))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert asyncio.all_tasks() == tasks

        async def ended() -> bool:
            infos = [info for info in await other.streams() if info.key == "cancelled"]
            return all(info.ended is not None or not opening.cancelled() for info in infos)

        await _eventually(ended)


# -- storing -----------------------------------------------------------------------------------------------------------


async def _reports_what_is_stored(bench: LogBench, log: EventLog) -> None:
    """`on_stored` only ever goes forward, to the end's own sequence, and tells the truth."""
    async with _more(bench, log) as other:
        stream, producer = await _open(log)
        cursors: list[int] = []
        producer.watch(on_stored=cursors.append)
        for number in range(50):
            producer.append([b"%d" % number])
            if number % 9 == 0:
                await producer.stored(producer.appended)
                elsewhere = await other.get(stream.id)
                assert elsewhere is not None
                assert (await elsewhere.read(number)).records == [b"%d" % number]
                assert cursors[-1] == producer.stored_sequence == number + 1
        producer.end("done")
        await producer.stored(51)
        assert cursors == sorted(cursors)
        assert cursors[-1] == 51


async def _shows_durable_records_once_stored(bench: LogBench, log: EventLog) -> None:
    """Of a durable stream nobody sees what is not stored, nor its end."""
    async with _more(bench, log) as other:
        stream, producer = await _open(log, promise="durable")
        elsewhere = await other.get(stream.id)
        assert elsewhere is not None
        seen: list[bytes] = []
        ends: list[End | None] = []

        with stream.reader() as reader:
            assert reader.follow(seen.append, ends.append)
            for number in range(20):
                producer.append([b"%d" % number])
                assert stream.sequence == len(seen) == producer.stored_sequence
                here = await stream.read(0)
                assert len((await elsewhere.read(0)).records) >= len(here.records), "read before it was stored"
                await producer.stored(producer.appended)
                assert len(seen) == number + 1
            producer.end("done")
            assert len(ends) == (producer.stored_sequence == 21)
            await producer.stored(21)
            assert len(ends) == 1
            assert seen == [b"%d" % number for number in range(20)]


# -- stopping, leases, crashes -----------------------------------------------------------------------------------------


async def _stops(bench: LogBench, log: EventLog) -> None:
    """A stop reaches the producer, from wherever it is asked for, once."""
    async with _more(bench, log) as other:
        for asking in (log, other):
            stream, producer = await log.open(None, "", b"")
            assert producer is not None
            asked: list[str] = []
            stopped = asyncio.Event()
            producer.watch(on_stop=_both(partial(asked.append, "stop"), stopped.set))
            target = await asking.get(stream.id)
            assert target is not None
            assert not target.stopping
            assert await target.request_stop()
            assert await target.request_stop()
            target = await asking.get(stream.id)
            assert target is not None
            assert target.stopping, "who has asked for a stop, and looks again, must see it"
            await stopped.wait()
            assert producer.stop_requested
            late: list[str] = []
            producer.watch(on_stop=partial(late.append, "stop"))
            assert (asked, late) == (["stop"], ["stop"]), "what was asked before must be told at once"
            producer.end("cancelled")
            await producer.stored(1)
            target = await asking.get(stream.id)
            assert target is not None
            assert not await target.request_stop()


async def _a_lease_that_runs_out(bench: LogBench, log: EventLog) -> None:
    """Readers end the stream of a producer that was silent for too long, once, and it can append nothing more."""
    if not log.shared:
        return
    async with _more(bench, log) as other:
        stream, producer = await _open(log, key="a")
        idle, another = await _open(log)
        lost = [asyncio.Event(), asyncio.Event()]
        for each, event in zip((producer, another), lost, strict=True):
            each.watch(on_lost=event.set)
        producer.append([b"kept"])
        await producer.stored(1)
        elsewhere = [await other.get(stream.id), await other.get(stream.id), await other.get(idle.id)]
        waits = [asyncio.create_task(each.wait(1)) for each in elsewhere if each is not None]
        await bench.advance(bench.lease + 1)
        await asyncio.gather(*waits)
        for found, size in zip(elsewhere, (1, 1, 0), strict=True):
            assert found is not None
            page = await found.read(0)
            assert len(page.records) == size
            assert page.end is not None
            assert page.end.reason == "producer_lost"
        with contextlib.suppress(ProducerLost):
            producer.append([b"fenced"])
        await asyncio.gather(*(event.wait() for event in lost))
        with _raises(ProducerLost):
            producer.append([b"fenced"])
        with _raises(ProducerLost):
            await producer.stored(2)
        assert not producer.end("done")
        # Its cursor may be ahead of what was stored: it gets the end.
        assert elsewhere[0] is not None
        assert (await elsewhere[0].read(2, epoch=stream.epoch)).end == (await elsewhere[0].read(0)).end
        # The one that was fenced may go on with other streams, under another lease.
        again, new = await log.open("a", "", b"")
        assert new is not None
        assert again.epoch != stream.epoch
        new.start()
        new.append([b"x"])
        await new.stored(1)


async def _a_lease_that_is_renewed(bench: LogBench, log: EventLog) -> None:
    """Who comes or looks while a producer lives does not end its streams."""
    if not log.shared:
        return
    stream, producer = await _open(log)
    for _ in range(3):
        await bench.advance(bench.lease / 4)
        async with _more(bench, log) as other:
            elsewhere = await other.get(stream.id)
            assert elsewhere is not None
            assert (await elsewhere.read(0)).end is None
            assert [info.state for info in await other.streams()] == [State.RUNNING]
            producer.append([b"x"])
            await producer.stored(producer.appended)


async def _a_crash(benches: Benches) -> None:
    """After a crash there is all that was reported as stored, a prefix of the rest, and never a clean end."""
    async with benches() as bench:
        log = bench.make()
        if not log.persistent:
            return
        async with asyncio.timeout(PATIENCE):
            await log.start()
            stream, producer = await _open(log, key="a")
            ended, finished = await _open(log)
            finished.append([b"all"])
            finished.end("done", b"fin")
            await finished.stored(2)
            records = [b"%d" % number for number in range(100)]
            producer.append(records[:50])
            await producer.stored(50)
            for record in records[50:]:
                producer.append([record])
            producer.end("done")
            stored = producer.stored_sequence
            log.abort()
            async with bench.make() as again:
                back = await again.get(stream.id)
                assert back is not None
                await back.wait(len(records) + 1)
                page = await back.read(-1)
                assert page.records[0] == b"head"
                got = list(page.records[1:])
                assert len(got) >= stored >= 50
                assert got == records[: len(got)], "not a prefix"
                assert page.end is not None
                assert page.end.reason == "producer_lost"
                assert (page.end.sequence, page.end.offset) == (len(got) + 1, sum(map(len, got)))
                kept = await again.get(ended.id)
                assert kept is not None
                assert (await kept.read(0)).end == End("done", b"fin", 2, 3)
                _, new = await again.open("a", "", b"")
                assert new is not None, "an orphan holds its key"


async def _closing_ends_what_runs(benches: Benches) -> None:
    """A log that is closed stores what it has; what still runs on it has lost its producer."""
    async with benches() as bench, asyncio.timeout(PATIENCE):
        async with bench.make() as log:
            stream, producer = await _open(log)
            waiting = asyncio.create_task(stream.wait(3))
            producer.append([b"a", b"b"])
        await waiting
        assert stream.ended == End("producer_lost", b"", 3, 2)
        if log.persistent:
            async with bench.make() as again:
                back = await again.get(stream.id)
                assert back is not None
                page = await back.read(0)
                assert list(page.records) == [b"a", b"b"]
                assert page.end == End("producer_lost", b"", 3, 2)


async def _lists(bench: LogBench, log: EventLog) -> None:
    """Streams are listed with their counts, the latest first, all or one owner's."""
    async with _more(bench, log) as other:
        first, producer = await _open(log, key="a", owner="ann")
        second, another = await log.open(None, "bob", b"")
        assert another is not None
        producer.append([b"abc", b"de"])
        producer.end("error", b"why")
        await producer.stored(3)
        for each in (log, other):
            infos = await each.streams()
            assert [info.id for info in infos] == [second.id, first.id]
            assert [info.id for info in await each.streams("ann")] == [first.id]
            assert await each.streams("eve") == []
            info = infos[1]
            assert (info.owner, info.key, info.epoch) == ("ann", "a", first.epoch)
            assert (info.state, info.sequence, info.offset, info.earliest) == (State.ENDED, 2, 5, 0)
            assert info.ended == End("error", b"why", 3, 5)
            assert info.ended_at is not None
            assert info.ended_at >= info.opened_at
            assert (infos[0].state, infos[0].sequence, infos[0].ended) == (State.STARTING, 0, None)
        with second.reader(), second.reader():
            assert [info.readers for info in await log.streams()] == [2, 0]
        assert [info.readers for info in await log.streams()] == [0, 0]


# -- what the checks stand on ------------------------------------------------------------------------------------------


def _on_a_log(check: Callable[[LogBench, EventLog], Awaitable[None]]) -> Check:
    async def run(benches: Benches) -> None:
        async with _one(benches) as (bench, log):
            await check(bench, log)

    run.__name__, run.__doc__ = check.__name__.lstrip("_"), check.__doc__
    return run


def _on_benches(check: Check) -> Check:
    async def run(benches: Benches) -> None:
        async with asyncio.timeout(PATIENCE):
            await check(benches)

    run.__name__, run.__doc__ = check.__name__.lstrip("_"), check.__doc__
    return run


@contextlib.asynccontextmanager
async def _one(benches: Benches, retention: Retention | None = None) -> AsyncIterator[tuple[LogBench, EventLog]]:
    async with (
        asyncio.timeout(PATIENCE),
        benches() as bench,
        bench.make() if retention is None else bench.make(retention=retention) as log,
    ):
        yield bench, log


@contextlib.asynccontextmanager
async def _more(bench: LogBench, log: EventLog) -> AsyncIterator[EventLog]:
    """Another log on the same store; the same one, where a store is not shared."""
    if not log.shared:
        yield log
        return
    async with bench.make(retention=log.retention) as other:
        yield other


async def _open(
    log: EventLog, *, key: str | None = None, owner: str = "", promise: Promise = "fast"
) -> tuple[Stream, Producer]:
    stream, producer = await log.open(key, owner, b"head", promise=promise)
    assert producer is not None
    producer.start()
    return stream, producer


async def _all(stream: Stream, after: int, *, max_records: int = 1024, max_bytes: int = 1 << 20) -> list[bytes]:
    """All that is there now, page by page."""
    records: list[bytes] = []
    while True:
        page = await stream.read(after, max_records=max_records, max_bytes=max_bytes)
        _check_page(page, after, max_records, max_bytes)
        if not page.records:
            return records
        records += page.records
        after = page.after


def _check_page(page: Page, after: int, max_records: int, max_bytes: int) -> None:
    size = sum(map(len, page.records))
    assert len(page.records) <= max_records, "a page of more records than were asked for"
    assert size <= max_bytes or len(page.records) == 1, "a page of more bytes than were asked for"
    assert page.after == after + len(page.records), "a page that does not follow on its cursor"


async def _follow_by_reading(stream: Stream, max_records: int) -> list[bytes]:
    records: list[bytes] = []
    after = 0
    while True:
        page = await stream.read(after, max_records=max_records)
        _check_page(page, after, max_records, 1 << 30)
        records += page.records
        after = page.after
        if page.end is not None:
            assert page.end.sequence == after + 1
            return records
        if not page.records:
            await stream.wait(after)


async def _has_gap(stream: Stream) -> bool:
    try:
        await stream.read(0)
    except ReplayGap:
        return True
    return False


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


async def _value(value: bool) -> bool:
    return value


async def _eventually(look: Callable[[], Awaitable[bool]]) -> None:
    while not await look():  # noqa: ASYNC110 - there is nobody who could tell
        await asyncio.sleep(0.002)


E = TypeVar("E", bound=BaseException)


class _Raised(Generic[E]):
    """What a block raised."""

    error: E


@contextlib.contextmanager
def _raises(kind: type[E]) -> Iterator[_Raised[E]]:
    raised: _Raised[E] = _Raised()
    try:
        yield raised
    except kind as error:
        raised.error = error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


EVENT_LOG_CHECKS: tuple[Check, ...] = (
    *map(
        _on_a_log,
        (
            _creates_once_and_joins,
            _keys_are_apart,
            _a_key_names_the_latest,
            _replaces_by_compare_and_set,
            _the_head_comes_first,
            _replays_what_is_large,
            _ends_once,
            _ends_before_it_starts,
            _cursors_from_outside,
            _counts_its_readers,
            _never_misses,
            _hands_over_to_the_tail,
            _tells_what_was_appended,
            _leaves_nothing_behind,
            _reports_what_is_stored,
            _shows_durable_records_once_stored,
            _stops,
            _a_lease_that_runs_out,
            _a_lease_that_is_renewed,
            _lists,
        ),
    ),
    *map(
        _on_benches,
        (
            _replays_what_was_appended,
            _evicts_the_oldest_of_a_stream,
            _evicts_the_first_that_ended,
            _forgets_by_age,
            _bounds_the_number_of_streams,
            _pauses_for_the_fastest_reader,
            _holds_what_comes_at_once,
            _does_not_pause_for_whoever_has_it_all,
            _pauses_for_a_reader_elsewhere,
            _a_crash,
            _closing_ends_what_runs,
        ),
    ),
)
"""Every check by itself, each named for what it checks: for a parametrized test."""
