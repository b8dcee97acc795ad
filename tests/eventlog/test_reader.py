"""A reader's cursor: where it begins, where it goes, and who it holds back."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import ReplayGap
from penstock.eventlog.base import Producer, Retention, Stream
from penstock.eventlog.memory import MemoryLog

pytestmark = pytest.mark.anyio


async def opened(log: MemoryLog, *records: bytes) -> tuple[Stream, Producer]:
    stream, producer = await log.open(None, "", b"head")
    assert producer is not None
    producer.start()
    producer.append(records)
    return stream, producer


async def test_it_begins_with_the_head_at_a_cursor_or_at_an_offset() -> None:
    async with MemoryLog() as log:
        stream, _ = await opened(log, b"one", b"two")
        with stream.reader(-1) as head, stream.reader(1) as cursor, stream.reader(offset=4) as offset:
            assert list((await head.read()).records) == [b"head", b"one", b"two"]
            assert list((await cursor.read()).records) == [b"two"]
            assert not offset.follow(lambda data: None), "its place is not known yet"
            assert list((await offset.read()).records) == [b"wo"]
            assert head.cursor == cursor.cursor == offset.cursor == 2
            assert offset.follow(lambda data: None)


async def test_an_offset_ahead_of_the_end_is_waited_for() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log, b"one")
        with stream.reader(offset=5) as ahead, stream.reader(offset=3) as end:
            assert (await ahead.read()).records == (await end.read()).records == ()
            assert not ahead.follow(lambda data: None)
            assert end.follow(lambda data: None), "it is at the tail"
            waiting = asyncio.create_task(ahead.wait())
            producer.append([b"t"])
            await waiting
            assert (await ahead.read()).records == ()
            producer.append([b"wo", b"three"])
            assert list((await ahead.read()).records) == [b"o", b"three"]
            assert ahead.follow(lambda data: None)


async def test_a_cursor_of_another_epoch_has_to_be_moved() -> None:
    async with MemoryLog() as log:
        stream, _ = await opened(log, b"one")
        with stream.reader(1, epoch=stream.epoch + 1) as reader:
            assert not reader.follow(lambda data: None)
            with pytest.raises(ReplayGap) as raised:
                await reader.read()
            reader.seek(raised.value.earliest)
            assert list((await reader.read()).records) == [b"one"]


async def test_a_read_that_fails_or_is_cancelled_moves_nothing() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=1_000)) as log:
        stream, producer = await opened(log)
        for _ in range(50):
            producer.append([b"x" * 100])
        with stream.reader() as reader:
            with pytest.raises(ReplayGap):
                await reader.read()
            assert reader.cursor == 0
            reader.seek(stream.earliest)
            assert (await reader.read()).after == reader.cursor == 50
            waiting = asyncio.create_task(reader.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert reader.cursor == 50


async def test_a_follower_holds_nobody_back() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=10_000)) as log:
        stream, producer = await opened(log)
        with stream.reader() as slow, stream.reader() as fast:
            got: list[bytes] = []
            assert fast.follow(got.append)
            for _ in range(500):
                producer.append([b"x" * 100])
            assert not producer.paused
            assert len(got) == fast.cursor == 500
            with pytest.raises(ReplayGap):
                await slow.read()


async def test_a_reader_that_has_left_is_told_nothing() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        got: list[bytes] = []
        with stream.reader() as reader:
            assert reader.follow(got.append)
            assert reader.follow(got.append), "it follows already"
            producer.append([b"one"])
        producer.append([b"two"])
        producer.end("done")
        assert got == [b"one"]
        reader.close()
