"""The notices of a stream: what is told, in which order, and what with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Backoff, Retry
from penstock.client.notices import Comment, Connected, Interrupted, Malformed, Notice, Reconnecting, Replayed
from penstock.testing import reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import NDJSON, SSE, answer, chunked, counting, once, retries, until

pytestmark = pytest.mark.anyio


def stream(*blocks: bytes, end: bool = True) -> bytes:
    return chunked(*blocks, type=SSE, end=end)


def kinds(notices: list[Notice | Any]) -> list[str]:
    return [type(notice).__name__ if not isinstance(notice, str) else notice for notice in notices]


async def test_a_stream_that_goes_well_is_connected_once() -> None:
    told: list[Notice] = []
    async with script(*once(stream(b"data: 1\n\n"))) as server, AsyncClient(server.url) as client:
        await client.get("/").events(on_notice=told.append).collect()
    assert kinds(told) == ["Connected"]
    assert isinstance(told[0], Connected)
    assert (told[0].attempt, told[0].response.status, told[0].response.url) == (1, 200, f"{server.url}/")


async def test_what_breaks_is_told_in_its_order_among_the_events() -> None:
    told: list[Any] = []
    cut: list[Step] = [wait_request(), stream(b"id: 1\ndata: 1\n\n", end=False), reset()]
    busy = once(answer(b"later", "503 Busy", "Retry-After: 0"))
    async with (
        script(busy, cut, busy, once(stream(b"id: 1\ndata: 1\n\n", b"id: 2\ndata: 2\n\n"))) as server,
        AsyncClient(server.url, retry=retries(3)) as client,
        client.get("/").events(on_notice=told.append) as events,
    ):
        async for event in events:
            told.append(event.id)  # noqa: PERF401 – the notices come in between
    assert kinds(told) == [
        *("Interrupted", "Reconnecting", "Connected", "1"),
        *("Interrupted", "Reconnecting", "Interrupted", "Reconnecting", "Connected", "Replayed", "2"),
    ]
    interrupted = [notice.failure for notice in told if isinstance(notice, Interrupted)]
    assert list(map(type, interrupted)) == [penstock.StatusError, penstock.StreamTruncated, penstock.StatusError]
    again = [notice for notice in told if isinstance(notice, Reconnecting)]
    assert [(each.attempt, each.last_event_id) for each in again] == [(2, ""), (3, "1"), (4, "1")]
    assert [each.failure for each in again] == interrupted
    assert [notice.attempt for notice in told if isinstance(notice, Connected)] == [2, 4]
    assert [notice.events for notice in told if isinstance(notice, Replayed)] == [1]


async def test_what_ends_the_stream_is_told_and_raised() -> None:
    told: list[Notice] = []
    async with (
        script([wait_request(), stream(b"data: 1\n\n", end=False), reset()]) as server,
        AsyncClient(server.url, retry=retries(3)) as client,
    ):
        with pytest.raises(penstock.StreamTruncated) as caught:
            await client.get("/").events(on_notice=told.append).collect()
    assert kinds(told) == ["Connected", "Interrupted"]
    assert isinstance(told[1], Interrupted)
    assert told[1].failure is caught.value


async def test_the_pause_is_told_before_it_begins() -> None:
    told: list[Notice] = []
    patient = Retry(retries=2, backoff=Backoff(initial=60, maximum=60, jitter="none"))
    async with script([wait_request(), reset()]) as server, AsyncClient(server.url, retry=patient) as client:
        task = asyncio.create_task(client.get("/").events(on_notice=told.append).collect())
        await until(lambda: len(told) == 2)
        assert isinstance(told[1], Reconnecting)
        assert (told[1].attempt, told[1].pause) == (2, 60)
        task.cancel()
        await asyncio.wait({task})
    assert kinds(told) == ["Interrupted", "Reconnecting"], "a cancel is no notice"


async def test_a_clean_end_that_is_reconnected_has_no_failure() -> None:
    told: list[Notice] = []
    ends = once(stream(b"retry: 0\n\n", b"id: 1\ndata: 1\n\n"))
    async with script(ends, once(answer(b"", "204 No Content"))) as server, AsyncClient(server.url) as client:
        await client.get("/").events(reconnect="strict", on_notice=told.append).collect()
    assert kinds(told)[:2] == ["Connected", "Reconnecting"]
    assert isinstance(told[1], Reconnecting)
    assert (told[1].failure, told[1].last_event_id, told[1].pause) == (None, "1", 0.0)


async def test_comments_are_told_to_who_asks() -> None:
    told: list[Notice] = []
    body = stream(b": hello\n", b":\n\ndata: 1\n\n", b":  two spaces\n\n")
    async with script(once(body), once(body)) as server, AsyncClient(server.url) as client:
        await client.get("/").events(on_notice=told.append).collect()
        await client.get("/").collect()
    assert [notice.text for notice in told if isinstance(notice, Comment)] == ["hello", "", " two spaces"]


async def test_a_payload_that_does_not_fit_is_told_with_its_event() -> None:
    told: list[Notice] = []
    body = stream(b"id: 1\ndata: 1\n\n", b"event: odd\nid: 2\ndata: {\n\n", b"id: 3\ndata: 3\n\n")
    async with script(*once(body)) as server, AsyncClient(server.url) as client:
        values = client.get("/").events(model=lambda value: value, on_notice=told.append)
        assert (await values.collect()).items == [1, 3]
    (malformed,) = (notice for notice in told if isinstance(notice, Malformed))
    assert malformed.event == penstock.Event("odd", "{", "2")
    assert "the data of the 'odd' event is not JSON" in malformed.reason
    assert "\n" not in malformed.reason


@pytest.mark.parametrize("kind", ["records", "lines"])
async def test_other_streams_tell_too(kind: str) -> None:
    told: list[Notice] = []
    busy = once(answer(b"", "503 Busy", "Retry-After: 0"))
    async with (
        script(busy, once(chunked(b"1\n2\n", type=NDJSON))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        result = await getattr(client.get("/"), kind)(on_notice=told.append).collect()
    assert len(result.items) == 2
    assert kinds(told) == ["Interrupted", "Reconnecting", "Connected"]


async def test_a_listener_that_raises_ends_the_stream_and_leaves_nothing() -> None:
    def listener(notice: Notice) -> None:
        raise ZeroDivisionError("the listener's own")

    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(stream(b"data: 1\n\n", end=False))
        await asyncio.sleep(60)

    async with counting(endless) as server, AsyncClient(server.url, retry=retries(3)) as client:
        events = client.get("/").events(on_notice=listener)
        with pytest.raises(ZeroDivisionError):
            await events.collect()
        assert (events.metrics.reason, server.served) == ("failed", 1)
        await until(lambda: server.open == 0)
