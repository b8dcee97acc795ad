"""The log in memory keeps within its bounds, whatever comes, and gives back what it took."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import LimitExceeded
from penstock.eventlog.base import Producer, Retention, Stream
from penstock.eventlog.live import BURST
from penstock.eventlog.memory import OVERHEAD, STREAM_OVERHEAD, MemoryLog
from penstock.testing import FakeClock

pytestmark = pytest.mark.anyio


async def opened(log: MemoryLog) -> tuple[Stream, Producer]:
    stream, producer = await log.open(None, "", b"head")
    assert producer is not None
    producer.start()
    return stream, producer


@pytest.mark.parametrize("size", [1, 100, 10_000])
async def test_many_running_streams_keep_within_the_bound_of_all(size: int) -> None:
    retention = Retention(max_stream_bytes=200_000, max_bytes=1_000_000)
    async with MemoryLog(retention=retention) as log:
        streams = [await opened(log) for _ in range(20)]
        for _ in range(2_000_000 // (size + OVERHEAD) // 20):
            for _, producer in streams:
                producer.append([b"x" * size])
        assert log.held <= retention.max_bytes + 20 * (size + OVERHEAD)
        assert log.held >= retention.max_bytes // 2
        for stream, _ in streams:
            page = await stream.read(stream.earliest)
            assert page.records, "a running stream lost even its last record"


async def test_one_stream_keeps_within_its_bound_overhead_included() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=50_000)) as log:
        stream, producer = await opened(log)
        before = log.held
        for _ in range(5_000):
            producer.append([b"x"])
            assert log.held - before <= 50_000
        assert (stream.sequence - stream.earliest) * OVERHEAD >= 40_000


async def test_a_source_that_does_not_pause_is_bounded_all_the_same() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=50_000)) as log:
        stream, producer = await opened(log)
        with stream.reader():
            for _ in range(5_000):
                producer.append([b"x" * 100])
            assert producer.paused
            assert log.held <= 50_000 + BURST + STREAM_OVERHEAD + 5_000
            assert stream.earliest > 0


@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
async def test_whatever_comes_at_once_the_fastest_reader_misses_nothing(size: int) -> None:
    """A log may be smaller than one read of the source's socket, or than one event."""
    async with MemoryLog(retention=Retention(max_stream_bytes=20_000)) as log:
        stream, producer = await opened(log)
        sent: list[bytes] = []
        got: list[bytes] = []
        with stream.reader() as reader, stream.reader():
            for turn in range(5):
                at_once = [b"%d %d %b" % (turn, number, b"x" * size) for number in range(max(2, 100_000 // size))]
                producer.append(at_once)
                sent += at_once
                assert producer.paused
                late = b"%d late" % turn  # had been read of the socket
                producer.append([late])
                sent.append(late)
                while producer.paused:
                    got += (await reader.read()).records
            got += (await reader.read()).records
            assert got == sent


async def test_what_is_forgotten_is_given_back() -> None:
    clock = FakeClock()
    async with MemoryLog(retention=Retention(age=10), clock=clock) as log:
        streams = [await opened(log) for _ in range(10)]
        for number, (_, producer) in enumerate(streams):
            producer.append([b"x" * 1_000] * number)
            producer.end("done")
        assert log.held == 10 * (STREAM_OVERHEAD + len(b"head")) + 45 * (1_000 + OVERHEAD)
        clock.advance(11)
        assert await log.get(streams[0][0].id) is None
        assert log.held == 0


async def test_finished_streams_are_forgotten_though_nobody_asks() -> None:
    async with MemoryLog(retention=Retention(age=0)) as log:
        _, producer = await opened(log)
        producer.end("done")
        async with asyncio.timeout(20):
            while log.held:  # noqa: ASYNC110 - the timer is the log's own
                await asyncio.sleep(0.01)


async def test_a_log_full_of_running_streams_opens_no_more() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=50_000, max_bytes=100_000)) as log:
        stream, producer = await opened(log)
        with pytest.raises(LimitExceeded) as raised:
            while True:
                await opened(log)
        assert raised.value.limit == "max_bytes"
        assert log.held <= 100_000
        producer.append([b"x" * 30_000])
        producer.end("done")
        await opened(log)  # what has ended makes room
        assert stream.earliest == 1
        assert log.held <= 100_000


def has_room(log: MemoryLog) -> bool:
    return not log.full


async def test_a_log_that_is_full_says_so_before_it_is_asked() -> None:
    for retention in (
        Retention(max_streams=2),
        Retention(max_stream_bytes=10_000, max_bytes=STREAM_OVERHEAD + 10_000),
    ):
        async with MemoryLog(retention=retention) as log:
            producers = []
            while has_room(log):
                producers.append((await opened(log))[1])
            assert producers
            with pytest.raises(LimitExceeded):
                await log.open(None, "", b"head")
            producers[0].end("done")
            assert has_room(log)
            await opened(log)


async def test_a_head_that_grows_is_counted() -> None:
    async with MemoryLog() as log:
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        before = log.held
        producer.start(b"h" * 500)
        assert log.held == before + 500
        assert stream.head == b"h" * 500


async def test_a_follower_costs_no_wait_and_no_task() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        got: list[bytes] = []
        with stream.reader() as reader:
            assert reader.follow(got.append)
            tasks = asyncio.all_tasks()
            for number in range(1_000):
                producer.append([b"%d" % number])
                assert len(got) == number + 1
            assert asyncio.all_tasks() == tasks
