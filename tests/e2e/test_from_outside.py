"""What one meets who uses the client against servers of the wild."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

import penstock
from penstock import AsyncClient, Breaker
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import SSE, answer, chunked, once, retries

pytestmark = pytest.mark.anyio


def events(*pairs: tuple[int, str], end: bool = True) -> bytes:
    return chunked(*(f"id: {id_}\ndata: {data}\n\n".encode() for id_, data in pairs), type=SSE, end=end)


async def test_a_bomb_of_small_events_leaves_the_loop_its_turn() -> None:
    body = gzip.compress(b"data\n\n" * 300_000, 9)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {SSE}\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    async with script(wait_request(), head.encode() + body, close()) as server, AsyncClient(server.url) as client:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        count = 0
        async with client.get("/").events() as stream:
            async for _ in stream:
                count += 1
        ticking.cancel()
    assert count == 300_000
    assert turns > 1_800_000 // (256 * 1024)


async def test_another_stream_under_the_same_ids_is_not_passed_on() -> None:
    """An answer that is generated anew would be taken for the end of the one that broke."""
    again = events((1, "new one"), (2, "new two"), (3, "new three"))
    async with (
        script(
            [wait_request(), events((1, "one"), (2, "two"), end=False), reset()], once(again), once(again)
        ) as server,
        AsyncClient(server.url, retry=retries(5)) as client,
    ):
        with pytest.raises(penstock.RetriesExhausted, match="its event '1' is another than before") as caught:
            await client.get("/").collect()
        assert caught.value.category == "stream"
        assert [event.data for event in caught.value.collected] == ["one", "two"]
        assert server.connections == 2, "asking again would not mend it"


async def test_a_browser_takes_it_as_it_comes() -> None:
    again = events((1, "new one"), (2, "new two"))
    ended = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with (
        script(
            [wait_request(), chunked(b"retry: 0\n\n", b"id: 1\ndata: one\n\n", type=SSE, end=False), reset()],
            once(again),
            once(ended),
        ) as server,
        AsyncClient(server.url, retry=retries(5)) as client,
    ):
        stream = client.get("/").header("Cache-Control", "no-cache").events(reconnect="strict")
        async with asyncio.timeout(20):
            got = [event.data async for event in stream]
    assert got == ["one", "new one", "new two"]


async def test_an_id_that_is_set_again_and_again_loses_nothing() -> None:
    first = events((7, "a"), (7, "b"), end=False)
    async with (
        script([wait_request(), first, reset()], once(events((7, "c"), (7, "d")))) as server,
        AsyncClient(server.url, retry=retries(5)) as client,
    ):
        result = await client.get("/").collect()
    assert [event.data for event in result.events] == ["a", "b", "c", "d"]


async def test_a_stream_that_is_cut_and_gets_on_does_not_open_the_breaker() -> None:
    cuts: list[list[Step]] = [[wait_request(), events((n, str(n)), end=False), reset()] for n in range(1, 7)]
    async with (
        script(*cuts, once(events((7, "7")))) as server,
        AsyncClient(server.url, retry=retries(2), breaker=Breaker(failure_threshold=3)) as client,
    ):
        result = await client.get("/").collect()
        assert client.circuit_state() is penstock.State.CLOSED
    assert [event.id for event in result.events] == [str(n) for n in range(1, 8)]
    assert result.metrics.reconnects == 6


async def test_cuts_without_a_way_on_still_open_it() -> None:
    cut: list[Step] = [wait_request(), chunked(b"data: 1\n\n", type=SSE, end=False), reset()]
    async with script(cut, cut, cut) as server, AsyncClient(server.url, breaker=Breaker(3)) as client:
        for _ in range(3):
            with pytest.raises(penstock.StreamTruncated):
                await client.get("/").collect()
        assert client.circuit_state() is penstock.State.OPEN


async def test_what_came_before_a_broken_coding_is_delivered() -> None:
    squeezed = zlib.compressobj(9, zlib.DEFLATED, 31)
    good = squeezed.compress(b"data: 1\n\ndata: 2\n\n") + squeezed.flush(zlib.Z_SYNC_FLUSH)
    body = answer(good + b"\xff\xfe garbage", "200 OK", f"Content-Type: {SSE}\r\nContent-Encoding: gzip")
    async with script(*once(body)) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.DecodeError, match="not gzip") as caught:
            await client.get("/").collect()
    assert [event.data for event in caught.value.collected] == ["1", "2"]


@pytest.mark.parametrize("framed", [True, False])
async def test_an_event_cut_off_by_the_close_that_alone_ends_the_body(framed: bool) -> None:
    body = b"data: 1\n\ndata: 2"
    length = f"Content-Length: {len(body)}\r\n" if framed else ""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {SSE}\r\n{length}Connection: close\r\n\r\n".encode()
    async with script(wait_request(), head + body, close()) as server, AsyncClient(server.url, retry=0) as client:
        if framed:
            result = await client.get("/").collect()
            assert (len(result.events), result.metrics.failed) == (1, 1)
        else:
            with pytest.raises(penstock.StreamTruncated, match="in the middle of an event") as caught:
                await client.get("/").collect()
            assert [event.data for event in caught.value.collected] == ["1"]


async def test_an_error_behind_a_redirect_names_where_it_happened() -> None:
    async with (
        script(*once(answer(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/there"))) as server,
        AsyncClient(server.url, retry=0) as client,
    ):
        with pytest.raises(penstock.ConnectError) as caught:
            await client.get("/").collect()
    assert caught.value.url == "http://127.0.0.1:9/there"


async def test_a_post_that_is_answered_with_a_redirect_says_what_to_do() -> None:
    async with (
        script(*once(answer(b"", "307 Temporary Redirect", "Location: /there"))) as server,
        AsyncClient(server.url, retry=0) as client,
    ):
        with pytest.raises(penstock.StatusError, match="a POST is not redirected: send it to /there"):
            await client.post("/").content(b"x").collect()
