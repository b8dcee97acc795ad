"""The timers of a stream, on the engine and on httpx2's own transport: what they wait for, when they stand still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest

import penstock
from penstock import AsyncClient, Timeout
from penstock.testing import script, wait_request
from tests.client.peers import NDJSON, SSE, chunk, chunked, counting, until

pytestmark = pytest.mark.anyio

Make = Callable[..., AsyncClient]


@pytest.fixture(params=["engine", "httpx2"])
async def make(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[Make]:
    """A client on the engine, or on httpx2's own transport."""
    async with httpx2.AsyncClient() as http:
        carried = None if request.param == "engine" else http
        yield lambda url, **settings: AsyncClient(url, retry=0, http_client=carried, **settings)


def alive(
    sign: bytes, *, before: bytes = b"", type: str = SSE
) -> Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]:
    """A server that says something, and then nothing but that it is there."""

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(type=type, end=False) + (chunk(before) if before else b""))
        while True:
            await asyncio.sleep(0.02)
            writer.write(chunk(sign))

    return answering


PING = b"event: ping\ndata: {}\n\n"


# -- content only


@pytest.mark.parametrize("sign", [b": keep-alive\n", b": keep-alive\n\n", b"\n\n", b"retry: 10\n\n", b"id: 7\n\n"])
@pytest.mark.parametrize("before", [b"", b"data: 1\n\n"], ids=["first", "between"])
async def test_signs_of_life_are_no_content(make: Make, sign: bytes, before: bytes) -> None:
    timeout = Timeout(first_event=60, between_events=0.3, content_only=True)
    if not before:
        timeout = Timeout(first_event=0.3, between_events=60, content_only=True)
    async with counting(alive(sign, before=before)) as server:
        async with make(server.url, timeout=timeout) as client:
            with pytest.raises(penstock.StreamStalled, match=r"nothing but signs of life for 0\.3 s") as caught:
                await client.get("/").collect()
        await until(lambda: server.open == 0)
    assert [event.data for event in caught.value.collected] == ["1"] * bool(before)
    assert (caught.value.category, caught.value.url) == ("stream", f"{server.url}/")


async def test_pings_are_signs_of_life_where_the_profile_knows_them(make: Make) -> None:
    timeout = Timeout(between_events=0.3, content_only=True)
    async with (
        counting(alive(PING, before=b"event: message_start\ndata: {}\n\n")) as server,
        make(server.url, timeout=timeout) as client,
    ):
        stream = client.get("/").events(terminator="anthropic")
        with pytest.raises(penstock.StreamStalled, match="nothing but signs of life") as caught:
            await stream.collect()
    assert {event.type for event in caught.value.collected} == {"message_start", "ping"}, (
        "they are given out all the same"
    )


async def test_without_it_every_byte_is_a_sign_of_life(make: Make) -> None:
    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(type=SSE, end=False))
        for _ in range(8):
            await asyncio.sleep(0.2)
            writer.write(chunk(b": ping\n"))
        writer.write(chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    async with (
        counting(slow) as server,
        make(server.url, timeout=Timeout(first_event=1.2, between_events=1.2)) as client,
    ):
        assert [event.data for event in (await client.get("/").collect()).events] == ["1"]


async def test_content_begins_the_wait_anew(make: Make) -> None:
    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(type=SSE, end=False))
        for number in range(8):
            await asyncio.sleep(0.2)
            writer.write(chunk(b": ping\n\n") + chunk(b"data: %d\n\n" % number))
        writer.write(b"0\r\n\r\n")

    timeout = Timeout(first_event=1.2, between_events=1.2, content_only=True)
    async with counting(slow) as server, make(server.url, timeout=timeout) as client:
        assert len((await client.get("/").collect()).events) == 8


async def test_records_have_it_too(make: Make) -> None:
    timeout = Timeout(between_events=0.3, content_only=True)
    async with (
        counting(alive(b"\n", before=b"1\n", type=NDJSON)) as server,
        make(server.url, timeout=timeout) as client,
    ):
        with pytest.raises(penstock.StreamStalled, match="nothing but signs of life") as caught:
            await client.get("/").records().collect()
    assert caught.value.collected == [1]


# -- standing still


@pytest.mark.parametrize("content_only", [False, True])
async def test_the_timers_stand_still_while_the_reader_is_busy(make: Make, content_only: bool) -> None:
    gate = asyncio.Event()

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\n", type=SSE, end=False))
        await gate.wait()  # what follows comes only when the reader is back from twice its patience
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    timeout = Timeout(first_event=5, between_events=0.5, content_only=content_only)
    async with counting(answering) as server, make(server.url, timeout=timeout) as client:
        got = []
        async with client.get("/").events() as events:
            async for event in events:
                got.append(event.data)
                if event.data == "1":
                    await asyncio.sleep(1)
                    gate.set()
    assert got == ["1", "2"]


async def test_the_total_does_not_stand_still(make: Make) -> None:
    """For a reader so busy that it never waits: what came in time it gets, and nothing more comes."""
    async with counting(alive(b"data: 1\n\n")) as server, make(server.url, timeout=0.3) as client:
        stream = client.get("/").events()
        with pytest.raises(penstock.StreamStalled, match=r"not finished within the total timeout of 0\.3 s"):
            async with stream:
                async for _ in stream:
                    await asyncio.sleep(0.06)
        assert 1 < stream.metrics.total < 40, "0.3 s of one in 0.02 s"
        await until(lambda: server.open == 0)


# -- each by itself


@pytest.mark.parametrize("content_only", [False, True])
async def test_the_total_ends_a_stream_that_has_content(make: Make, content_only: bool) -> None:
    timeout = Timeout(total=0.3, content_only=content_only)
    async with counting(alive(b"data: 1\n\n")) as server, make(server.url, timeout=timeout) as client:
        with pytest.raises(penstock.StreamStalled, match=r"within the total timeout of 0\.3 s") as caught:
            await client.get("/").collect()
        assert caught.value.collected
        await until(lambda: server.open == 0)


@pytest.mark.parametrize("content_only", [False, True])
async def test_the_first_event_is_waited_for_so_long(make: Make, content_only: bool) -> None:
    timeout = Timeout(first_event=0.3, between_events=60, content_only=content_only)
    async with (
        script(wait_request(), chunked(type=SSE, end=False)) as server,
        make(server.url, timeout=timeout) as client,
    ):
        with pytest.raises(penstock.StreamStalled, match=r"0\.3 s after 0 bytes"):
            await client.get("/").collect()


async def test_the_headers_are_waited_for_so_long(make: Make) -> None:
    async with script(wait_request()) as server, make(server.url, timeout=Timeout(first_event=0.3)) as client:
        with pytest.raises(penstock.ReadTimeout) as caught:
            await client.get("/").collect()
    assert (caught.value.category, caught.value.url) == ("network", f"{server.url}/")


@pytest.mark.parametrize("content_only", [False, True])
async def test_silence_between_events(make: Make, content_only: bool) -> None:
    timeout = Timeout(first_event=60, between_events=0.3, content_only=content_only)
    async with (
        script(wait_request(), chunked(b"data: 1\n\n", type=SSE, end=False)) as server,
        make(server.url, timeout=timeout) as client,
    ):
        with pytest.raises(penstock.StreamStalled, match=r"for 0\.3 s after 9 bytes") as caught:
            await client.get("/").collect()
    assert len(caught.value.collected) == 1


async def test_a_stall_is_a_timeout_error_and_says_what_to_do(make: Make) -> None:
    async with (
        script(wait_request(), chunked(type=SSE, end=False)) as server,
        make(server.url, timeout=Timeout(first_event=0.2)) as client,
    ):
        with pytest.raises(TimeoutError, match="allow more with a longer timeout"):
            await client.get("/").collect()
