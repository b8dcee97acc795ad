"""What the producing side is told, and that its callbacks cannot harm the stream."""

from __future__ import annotations

import asyncio

import pytest

from penstock.eventlog.base import Producer, Retention, Stream
from penstock.eventlog.live import LiveStream, Pause
from penstock.eventlog.memory import MemoryLog

pytestmark = pytest.mark.anyio


async def opened(log: MemoryLog) -> tuple[Stream, Producer]:
    stream, producer = await log.open(None, "", b"head")
    assert producer is not None
    producer.start()
    return stream, producer


async def test_what_holds_already_is_told_at_once() -> None:
    async with MemoryLog(retention=Retention(max_stream_bytes=10_000)) as log:
        stream, producer = await opened(log)
        with stream.reader():
            while not producer.paused:
                producer.append([b"x" * 1_000])
            await stream.request_stop()
            told: list[str] = []
            producer.watch(on_stop=lambda: told.append("stop"), on_pause=lambda: told.append("pause"))
            assert told == ["stop", "pause"]
        producer.watch(on_pause=lambda: told.append("pause again"))
        assert told == ["stop", "pause"]


async def test_two_reasons_to_pause_are_one_pause() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        assert isinstance(stream, LiveStream)
        flow: list[str] = []
        producer.watch(on_pause=lambda: flow.append("pause"), on_resume=lambda: flow.append("resume"))
        stream._pause(Pause.BACKLOG)  # noqa: SLF001 - what a store that is slow does
        stream._pause(Pause.READERS)  # noqa: SLF001
        stream._resume(Pause.BACKLOG)  # noqa: SLF001
        assert (flow, producer.paused) == (["pause"], True)
        stream._resume(Pause.READERS)  # noqa: SLF001
        stream._resume(Pause.READERS)  # noqa: SLF001
        assert (flow, producer.paused) == (["pause", "resume"], False)


async def test_a_callback_that_fails_is_reported_and_harms_nothing() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
    error = RuntimeError("broken")

    def fail(*arguments: object) -> None:
        raise error

    async with MemoryLog() as log:
        stream, producer = await opened(log)
        producer.watch(on_stored=fail, on_stop=fail)
        with stream.reader() as reader:
            assert reader.follow(lambda data: None, fail)
            assert producer.append([b"x"]) == 1
            assert await stream.request_stop()
            assert producer.end("cancelled")
    assert complaints == [error] * 4  # a record stored, the stop, the end told, the end stored


async def test_an_end_is_told_before_its_waiters_wake() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        told: list[str] = []

        async def wait() -> None:
            await stream.wait(0)
            told.append("woken")

        waiting = asyncio.create_task(wait())
        with stream.reader() as reader:
            assert reader.follow(lambda data: None, lambda end: told.append(end.reason if end else "let go"))
            await asyncio.sleep(0)
            producer.end("done")
            await waiting
        assert told == ["done", "woken"]


async def test_a_producer_that_has_ended_is_not_asked_to_stop() -> None:
    async with MemoryLog() as log:
        stream, producer = await opened(log)
        producer.end("done")
        assert not await stream.request_stop()
        assert not producer.stop_requested
