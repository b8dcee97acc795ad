"""Closing a client with a grace: what runs comes to its end, or breaks; nothing new begins; nothing stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

import penstock
from penstock import AsyncClient, Backoff, ConcurrencyLimit, Retry, Timeout
from penstock.testing import reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import SSE, answer, chunk, chunked, counting, once, until

pytestmark = pytest.mark.anyio

LONG = 60.0
Make = Callable[..., AsyncClient]


@pytest.fixture(params=["its own engine", "the caller's httpx2"])
async def make(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[Make]:
    async with httpx2.AsyncClient(timeout=None) as http:
        carried = None if request.param == "its own engine" else http
        yield lambda url, **settings: AsyncClient(url, http_client=carried, **settings)


class Gated:
    """A server of streams: two events, and a third when the gate opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"id: 1\ndata: 1\n\n", b"id: 2\ndata: 2\n\n", type=SSE, end=False))
        await self.gate.wait()
        writer.write(chunk(b"id: 3\ndata: 3\n\n") + b"0\r\n\r\n")


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(LONG)


async def quick(work: Awaitable[Any]) -> Any:
    """What is done at once, or as good as: long before any of the long times here."""
    async with asyncio.timeout(LONG / 3):
        return await work


async def nothing_left(server: Any, before: set[asyncio.Task[Any]]) -> None:
    await until(lambda: server.open == 0)
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "connected" not in repr(task)])


# -- within the grace


async def test_what_runs_comes_to_its_end_within_the_grace(make: Make) -> None:
    serving = Gated()
    async with counting(serving) as server:
        before = asyncio.all_tasks()
        client = make(server.url)
        response = await client.get("/").send()
        streams = [asyncio.create_task(client.get("/").collect()) for _ in range(3)]
        read = asyncio.create_task(client.get("/").read())
        await until(lambda: server.served == 5)
        closing = asyncio.create_task(client.aclose(grace=LONG))
        await asyncio.sleep(0)
        for refused in (client.get("/").read(), client.get("/").collect(), client.get("/").send()):
            with pytest.raises(RuntimeError, match="the client was closed"):
                await refused
        assert not closing.done()
        serving.gate.set()
        for stream in streams:
            assert [event.id for event in (await quick(stream)).events] == ["1", "2", "3"]
        assert b"data: 3" in (await quick(read)).content
        assert not closing.done(), "the response is still to be read"
        assert b"data: 3" in await response.read()
        await quick(closing)
        assert server.served == 5
        if not client._owns_http:  # noqa: SLF001 – the connections of a caller's stay the caller's
            return
        await nothing_left(server, before)


async def test_a_request_that_still_waits_for_its_headers_runs_too(make: Make) -> None:
    gate = asyncio.Event()

    async def late(head: bytes, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(answer())

    async with counting(late) as server:
        client = make(server.url)
        read = asyncio.create_task(client.get("/").read())
        await until(lambda: server.served == 1)
        closing = asyncio.create_task(client.aclose(grace=LONG))
        await asyncio.sleep(0.05)
        assert not closing.done()
        gate.set()
        assert (await quick(read)).content == b"ok"
        await quick(closing)


async def test_one_that_waits_for_its_turn_gets_it(make: Make) -> None:
    gate = asyncio.Event()

    async def late(head: bytes, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(answer())

    async with counting(late) as server:
        client = make(server.url)
        client.use(ConcurrencyLimit(1))
        reads = [asyncio.create_task(client.get("/").read()) for _ in range(3)]
        await until(lambda: server.served == 1)
        closing = asyncio.create_task(client.aclose(grace=LONG))
        gate.set()
        assert [each.content for each in await quick(asyncio.gather(*reads))] == [b"ok"] * 3
        await quick(closing)


async def test_with_nothing_under_way_the_grace_is_not_waited_for(make: Make) -> None:
    async with script(*once(answer())) as server:
        client = make(server.url)
        await client.get("/").read()
        await quick(client.aclose(grace=LONG))
        await quick(client.aclose(grace=LONG))


async def test_a_pause_before_a_retry_is_not_waited_for(make: Make) -> None:
    """There will be no retry: whoever waits for one is told at once what the failure was."""
    patient = Retry(retries=3, backoff=Backoff(initial=LONG, maximum=LONG, jitter="none"))
    cut: list[Step] = [wait_request(), chunked(b"id: 1\ndata: 1\n\n", type=SSE, end=False), reset()]
    async with script([wait_request(), reset()], cut) as server:
        client = make(server.url, retry=patient)
        read = asyncio.create_task(client.get("/").read())
        await until(lambda: server.connections == 1)
        stream = client.get("/").events()
        collected = asyncio.create_task(stream.collect())
        await until(lambda: stream.metrics.retries == 1)
        await asyncio.sleep(0.05)
        await quick(client.aclose(grace=LONG))
        with pytest.raises(penstock.RetriesExhausted, match="after 1 attempt, for the client was closed") as of_read:
            await quick(read)
        with pytest.raises(penstock.RetriesExhausted, match="after 1 attempt, for the client was closed") as of_stream:
            await quick(collected)
        assert isinstance(of_read.value.last, penstock.ReadError)
        assert isinstance(of_stream.value.last, penstock.StreamTruncated)
        assert [event.id for event in of_stream.value.collected] == ["1"]
        assert server.connections == 2


# -- beyond it


@pytest.mark.parametrize("grace", [0.0, 0.2])
async def test_what_outlasts_the_grace_breaks_with_an_error(make: Make, grace: float) -> None:
    async with counting(Gated()) as server:
        before = asyncio.all_tasks()
        client = make(server.url, retry=3)
        stream = client.get("/").events()
        collected = asyncio.create_task(stream.collect())
        read = asyncio.create_task(client.get("/").read())
        response = await client.get("/").send()
        body = aiter(response)
        await anext(body)
        await until(lambda: stream.metrics.total == 2 and server.served == 3)
        started_at = time.monotonic()
        await quick(client.aclose(grace=grace))
        assert time.monotonic() - started_at >= grace
        with pytest.raises(penstock.StreamTruncated) as caught:
            await quick(collected)
        assert [event.id for event in caught.value.collected] == ["1", "2"]
        with pytest.raises(penstock.StreamTruncated):
            await quick(read)
        with pytest.raises(penstock.StreamTruncated):  # this one read nothing while it was closed
            await quick(anext(body))
        assert response.end is not None
        assert response.end.reason == "failed"
        assert stream.metrics.reason == "failed"
        assert server.served == 3, "no resume after the end"
        await nothing_left(server, before)


async def test_so_does_what_waits_for_its_headers(make: Make) -> None:
    async with counting(silent) as server:
        before = asyncio.all_tasks()
        client = make(server.url, timeout=Timeout(first_event=None))
        waiting = [asyncio.create_task(client.get("/").read()), asyncio.create_task(client.get("/").collect())]
        await until(lambda: server.served == 2)
        await quick(client.aclose())
        for each in waiting:
            with pytest.raises(penstock.ReadError) as caught:
                await quick(each)
            assert caught.value.category == "network"
        await nothing_left(server, before)


async def test_what_waits_for_its_turn_is_not_sent_any_more(make: Make) -> None:
    async with counting(silent) as server:
        client = make(server.url, retry=0)
        client.use(ConcurrencyLimit(1))
        waiting = [asyncio.create_task(client.get("/").read()) for _ in range(3)]
        await until(lambda: server.served == 1)
        await quick(client.aclose(grace=0.05))
        for each in waiting:
            with pytest.raises(penstock.ReadError):
                await quick(each)
        assert server.served == 1


# -- two closers, and one that is cancelled


async def test_two_may_close_at_once(make: Make) -> None:
    serving = Gated()
    async with counting(serving) as server:
        client = make(server.url)
        collected = asyncio.create_task(client.get("/").collect())
        await until(lambda: server.served == 1)
        closers = [asyncio.create_task(client.aclose(grace=LONG)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not any(closer.done() for closer in closers)
        serving.gate.set()
        assert len((await quick(collected)).events) == 3
        await quick(asyncio.gather(*closers))


async def test_the_more_impatient_closer_decides(make: Make) -> None:
    async with counting(Gated()) as server:
        client = make(server.url, retry=0)
        collected = asyncio.create_task(client.get("/").collect())
        await until(lambda: server.served == 1)
        patient = asyncio.create_task(client.aclose(grace=LONG))
        await asyncio.sleep(0.02)
        await quick(client.aclose(grace=0.05))
        with pytest.raises(penstock.StreamTruncated):
            await quick(collected)
        await quick(patient)


async def test_a_cancelled_close_closes_at_once(make: Make) -> None:
    async with counting(Gated()) as server:
        before = asyncio.all_tasks()
        client = make(server.url, retry=3)
        collected = asyncio.create_task(client.get("/").collect())
        await until(lambda: server.served == 1)
        closing = asyncio.create_task(client.aclose(grace=LONG))
        await asyncio.sleep(0.02)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await quick(closing)
        with pytest.raises(penstock.StreamTruncated):
            await quick(collected)
        with pytest.raises(RuntimeError, match="the client was closed"):
            await client.get("/").read()
        await nothing_left(server, before)


async def test_a_stream_may_be_closed_while_its_client_closes(make: Make) -> None:
    async with counting(Gated()) as server:
        before = asyncio.all_tasks()
        client = make(server.url)
        stream = client.get("/").events()
        collected = asyncio.create_task(stream.collect())
        await until(lambda: stream.metrics.total == 2)
        closing = asyncio.create_task(client.aclose(grace=LONG))
        await asyncio.sleep(0.02)
        await stream.aclose()
        with pytest.raises(penstock.StreamError, match="was closed while it was being read"):
            await quick(collected)
        await quick(closing)
        await nothing_left(server, before)
