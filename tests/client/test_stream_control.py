"""A stream that is closed or begun anew from elsewhere, whatever its reader is at: connecting, reading, pausing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Backoff, Event, EventStream, Retry, Timeout
from penstock.client.notices import Connected, Notice, Reconnecting
from penstock.testing import reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import NDJSON, SSE, Counted, chunk, chunked, counting, fields_of, once, until

pytestmark = pytest.mark.anyio

LONG = 60.0
PATIENT = Retry(retries=5, backoff=Backoff(initial=LONG, maximum=LONG, jitter="none"))
FOREVER = Timeout(None, None, None, None)

PHASES = ["connecting", "reading", "pausing", "busy"]
READERS = ["iterating", "batches", "collecting"]


class Phased:
    """A server at which a reader comes to stand in the phase that is asked for, the first time; then all goes well."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.heads: list[bytes] = []

    async def __call__(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        self.heads.append(head)
        first = len(self.heads) == 1
        if first and self.phase == "connecting":
            await asyncio.sleep(LONG)
        begun = b"last-event-id" in head.lower()
        events = [b"id: %d\ndata: %d\n\n" % (number, number) for number in range(3 if begun else 1, 5)]
        if not first:
            writer.write(chunked(*events, type=SSE))
            return
        writer.write(chunked(*events[:2], type=SSE, end=False))
        await writer.drain()
        if self.phase == "pausing":
            raise ConnectionAbortedError
        await asyncio.sleep(LONG)


@asynccontextmanager
async def standing(
    phase: str, reader: str
) -> AsyncIterator[tuple[EventStream, asyncio.Task[list[str]], Counted, Phased]]:
    """A stream whose reader stands in a phase, and the task that reads it to its end."""
    serving, busy = Phased(phase), asyncio.Event()
    async with counting(serving) as server, AsyncClient(server.url, retry=PATIENT, timeout=FOREVER) as client:
        before = asyncio.all_tasks()
        stream = client.get("/").events()
        task = asyncio.create_task(read(stream, reader, None if phase != "busy" else busy))
        if phase == "connecting":
            await until(lambda: server.served == 1)
        elif phase == "pausing":
            await until(lambda: stream.metrics.retries == 1)
        else:
            await until(lambda: stream.metrics.total == 2 or (phase == "busy" and stream.metrics.total == 1))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.02, busy.set)
        yield stream, task, server, serving
        await until(lambda: server.answering == 0)
        await until(
            lambda: (
                not [
                    each for each in asyncio.all_tasks() - before if each is not task and "connected" not in repr(each)
                ]
            )
        )
    await until(lambda: server.open == 0)


async def read(stream: EventStream, how: str, busy: asyncio.Event | None) -> list[str]:
    got: list[str] = []

    async def take(event: Event) -> None:
        got.append(event.id)
        if busy is not None:
            await busy.wait()

    if how == "collecting":
        return [event.id for event in (await stream.collect()).events]
    if how == "iterating":
        async with stream:
            async for event in stream:
                await take(event)
    else:
        async with stream:
            while batch := await stream.next_batch():
                for event in batch:
                    await take(event)
    return got


async def quick(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(LONG / 3):
        return await work


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("phase", PHASES[:3])
async def test_a_reader_that_waits_is_told_that_the_stream_was_closed(phase: str, reader: str) -> None:
    async with standing(phase, reader) as (stream, task, server, _):
        await quick(stream.aclose())
        with pytest.raises(penstock.StreamError, match="the stream was closed while it was being read") as caught:
            await quick(task)
        assert caught.value.url == f"{server.url}/"
        assert len(caught.value.collected) == (2 if reader == "collecting" and phase != "connecting" else 0)
        await quick(stream.aclose())
        assert server.served == 1, "and no other attempt is made"
        assert stream.metrics.reason in ("failed", "cancelled")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("phase", PHASES[:3])
async def test_two_may_close_it_at_once(phase: str, reader: str) -> None:
    async with standing(phase, reader) as (stream, task, _, _):
        await quick(asyncio.gather(*(stream.aclose() for _ in range(3))))
        with pytest.raises(penstock.StreamError, match="was closed"):
            await quick(task)


@pytest.mark.parametrize(
    ("phase", "reader"),
    [(phase, reader) for phase in PHASES for reader in READERS if (phase, reader) != ("busy", "collecting")],
)
async def test_a_restart_goes_on_where_the_stream_stands(phase: str, reader: str) -> None:
    async with standing(phase, reader) as (stream, task, server, serving):
        await quick(stream.restart())
        assert await quick(task) == ["1", "2", "3", "4"]
        assert server.served == 2
        metrics = stream.metrics
        assert (metrics.reason, metrics.total, metrics.failed) == ("complete", 4, 0)
        assert (b"ast-event-id: 2" in serving.heads[1].lower()) == (phase != "connecting")


@pytest.mark.parametrize("phase", PHASES[:3])
async def test_cancelling_the_reader_leaves_nothing(phase: str) -> None:
    async with standing(phase, "iterating") as (stream, task, server, _):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await quick(task)
        assert stream.metrics.reason == "cancelled"
        assert server.served == 1


async def test_a_restart_is_no_failure_and_costs_no_retry_of_the_policy() -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(type=SSE, end=False))
        await asyncio.sleep(LONG)

    told: list[Notice] = []
    async with counting(answering) as server, AsyncClient(server.url, retry=0, timeout=FOREVER) as client:
        stream = client.get("/").events(on_notice=told.append)
        task = asyncio.create_task(stream.collect())
        for number in range(1, 6):
            await until(lambda number=number: sum(isinstance(each, Connected) for each in told) == number)  # type: ignore[misc]
            await quick(stream.restart())
        await until(lambda: server.served == 6)
        assert [(each.pause, each.failure) for each in told if isinstance(each, Reconnecting)] == [(0.0, None)] * 5
        await quick(stream.aclose())
        with pytest.raises(penstock.StreamError, match="was closed"):
            await quick(task)


async def test_a_restart_of_what_is_over_or_has_not_begun_does_nothing() -> None:
    async with script(*once(chunked(b"data: 1\n\n", type=SSE))) as server, AsyncClient(server.url) as client:
        stream = client.get("/").events()
        await stream.restart()
        assert [event.data async for event in stream] == ["1"]
        await stream.restart()
        assert [event async for event in stream] == []
        assert (stream.metrics.retries, server.connections) == (0, 1)


# -- in batches


async def test_batches_are_what_the_reads_brought() -> None:
    gate = asyncio.Event()

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"1\n2\n3\n", b"\n", type=NDJSON, end=False))
        await gate.wait()
        writer.write(chunk(b"4\n5") + b"0\r\n\r\n")

    async with counting(answering) as server, AsyncClient(server.url) as client, client.get("/").records() as records:
        assert await records.next_batch() == [1, 2, 3]
        assert records.metrics.total == 3
        gate.set()
        assert await records.next_batch() == [4]
        assert await records.next_batch() == [5]
        assert [await records.next_batch() for _ in range(3)] == [[], [], []]
        assert (records.metrics.total, records.metrics.reason) == (5, "complete")
        assert client.metrics.total == 5


async def test_batches_raise_as_iterating_does_and_resume_too() -> None:
    def numbered(*numbers: int, end: bool = False) -> bytes:
        return chunked(*(b"id: %d\ndata: x\n\n" % number for number in numbers), type=SSE, end=end)

    again = Retry(retries=1, backoff=Backoff(initial=0))
    cut: list[Step] = [wait_request(), numbered(1, 2), reset()]
    async with script(cut, cut, [reset()], [reset()]) as server, AsyncClient(server.url, retry=again) as client:
        got: list[str] = []
        async with client.get("/").events() as events:
            with pytest.raises(penstock.RetriesExhausted):
                while batch := await events.next_batch():
                    got += [event.id for event in batch]
            assert await events.next_batch() == []
        assert got == ["1", "2"], "the second time they are a replay"
        assert fields_of(server.requests[1])["last-event-id"] == "2"


# -- after the end


async def test_a_stream_that_was_closed_before_it_was_read_says_so() -> None:
    async with script(*once(chunked(b"data: 1\n\n", type=SSE))) as server, AsyncClient(server.url) as client:
        readings: list[Callable[[EventStream], Awaitable[Any]]]
        readings = [lambda stream: anext(aiter(stream)), lambda stream: stream.next_batch()]
        for reading in readings:
            stream = client.get("/").events()
            await stream.aclose()
            with pytest.raises(RuntimeError, match="the stream was closed before it was read"):
                await reading(stream)
        assert server.connections == 0


@pytest.mark.parametrize("how", ["iterating", "batches"])
async def test_a_stream_that_was_closed_in_the_middle_does_not_look_whole(how: str) -> None:
    async with counting(Phased("reading")) as server, AsyncClient(server.url, retry=0) as client:
        stream = client.get("/").events()
        async for event in stream:
            assert event.id == "1"
            break
        await stream.aclose()
        with pytest.raises(RuntimeError, match="the stream was closed before its end"):
            if how == "iterating":
                async for _ in stream:
                    pass
            else:
                await stream.next_batch()
        await until(lambda: server.open == 0)
        assert stream.metrics.reason == "cancelled"


async def test_a_stream_that_came_whole_stays_so_once_it_is_closed() -> None:
    async with script(*once(chunked(b"data: 1\n\n", type=SSE))) as server, AsyncClient(server.url) as client:
        async with client.get("/").events() as stream:
            assert len([event async for event in stream]) == 1
        assert [event async for event in stream] == []
        assert await stream.next_batch() == []
