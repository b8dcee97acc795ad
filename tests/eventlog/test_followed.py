"""Those who follow: many of them, those who leave while they are told, and those who fail."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from penstock.eventlog.base import Producer, Stream
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.reader import Reader

pytestmark = pytest.mark.anyio


async def opened(log: MemoryLog) -> tuple[Stream, Producer]:
    stream, producer = await log.open(None, "", b"head")
    assert producer is not None
    producer.start()
    return stream, producer


async def test_an_append_that_overtakes_them_all_costs_little_more_than_one_that_all_take() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        readers = [stream.reader() for _ in range(4_000)]
        leave = False
        told = 0

        def follow(reader: Reader) -> None:
            def on_data(data: bytes) -> None:
                nonlocal told
                told += 1
                if leave:
                    reader.unfollow()

            assert reader.follow(on_data)

        def seconds() -> float:
            began = time.thread_time()
            producer.append([b"x"])
            return time.thread_time() - began

        taken, overtaken = [], []
        for _ in range(3):
            leave = False
            for reader in readers:
                follow(reader)
            taken.append(seconds())
            leave = True
            overtaken.append(seconds())
        assert told == 6 * len(readers)
        assert min(overtaken) < 15 * min(taken), "leaving costs more the more they are"
        for reader in readers:
            reader.close()


async def test_those_who_came_and_went_are_not_held() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        with stream.reader() as steady:
            assert steady.follow(lambda data: None)

            def pass_by(number: int) -> None:
                with stream.reader(stream.sequence) as passing:
                    assert passing.follow(lambda data: None)
                    if number % 2:
                        producer.append([b"x"])

            for number in range(500):
                pass_by(number)
            held = [each for each in gc.get_objects() if isinstance(each, Reader) and each.stream is stream]
            assert held == [steady]


async def test_one_that_fails_reads_on_and_lacks_nothing() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        got: list[bytes] = []
        woken = asyncio.Event()

        async def follow() -> None:
            with stream.reader() as reader:

                def take(data: bytes) -> None:
                    if reader.cursor % 3 == 0:
                        raise RuntimeError(reader.cursor)
                    got.append(data)

                while True:
                    if reader.follow(take, lambda end: woken.set()):
                        await woken.wait()
                        woken.clear()
                    page = await reader.read()
                    got.extend(page.records)
                    if page.end is not None:
                        return

        following = asyncio.create_task(follow())
        for number in range(10):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            producer.append([b"%d" % (2 * number), b"%d" % (2 * number + 1)])
        producer.end("done")
        async with asyncio.timeout(10):
            await following
        assert b"".join(got) == b"".join(b"%d" % number for number in range(20))
        assert complaints


async def test_one_that_leaves_and_fails_is_not_told_to_read_on() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        ends: list[object] = []
        with stream.reader() as reader:

            def leave(data: bytes) -> None:
                reader.unfollow()
                raise RuntimeError("broken")

            assert reader.follow(leave, ends.append)
            producer.append([b"one", b"two"])
            assert (ends, reader.following, reader.cursor) == ([], False, 0)
