from __future__ import annotations

import asyncio
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Breaker, Event, PenstockError, Timeout
from penstock.client.notices import Notice, Reconnecting
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import NDJSON, SSE, answer, body_of, chunk, chunked, counting, fields_of, once, retries, until

pytestmark = pytest.mark.anyio


def sse(*data: str, end: bool = True) -> bytes:
    return chunked(*(f"data: {each}\n\n".encode() for each in data), type=SSE, end=end)


def numbered(first: int, last: int, *, end: bool = True) -> bytes:
    """Events with ids."""
    events = (f"id: {n}\ndata: {n}\n\n".encode() for n in range(first, last + 1))
    return chunked(*events, type=SSE, end=end)


# -- before the first item


async def test_a_refusal_is_retried_and_the_stream_is_whole(origin: str) -> None:
    told: list[tuple[int, int]] = []

    def on_notice(notice: Notice) -> None:
        if isinstance(notice, Reconnecting):
            assert isinstance(notice.failure, penstock.StatusError)
            told.append((notice.failure.status, notice.attempt))

    async with AsyncClient(origin, retry=retries(5)) as client:
        request = client.post("/trigger_invocation?status=503&times=2&interval=0").json({"query": "x"})
        async with request.events(on_notice=on_notice) as events:
            got = [event.json() async for event in events]
    assert got == [*({"Count": n, "Data": f"Event {n}"} for n in range(1, 5)), {"Data": "Stream completed"}]
    assert told == [(503, 2), (503, 3)]
    assert (events.metrics.retries, events.metrics.reconnects, events.metrics.reason) == (2, 0, "complete")


async def test_a_status_is_an_error_with_its_explanation(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(5)) as client:
        with pytest.raises(
            penstock.StatusError, match=r"answered 404 Not Found: .*nowhere.*; check the path"
        ) as caught:
            await client.get("/nowhere").collect()
        assert caught.value.status == 404
        with pytest.raises(penstock.StatusError, match=r"422 .*query"):
            await client.post("/trigger_invocation").json({"question": "x"}).collect()


async def test_refusals_to_the_end_tell_the_last_one(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(2)) as client:
        with pytest.raises(penstock.RetriesExhausted, match=r"gave up after 3 attempts: .*503 on purpose") as caught:
            await client.get("/events?status=503&retry_after=0").collect()
    assert isinstance(caught.value.last, penstock.StatusError)
    assert (caught.value.last.retry_after, caught.value.category) == ("0", "server")


async def test_another_content_type_is_not_the_stream(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(5), breaker=Breaker(1, 600)) as client:
        stream = client.get("/generate?chunks=1000").events()
        with pytest.raises(
            penstock.ContentTypeError, match=r"this is text/plain.* not a stream of text/event-stream"
        ) as caught:
            await stream.collect()
        assert caught.value.content_type.startswith("text/plain")
        assert caught.value.category == "server"
        assert stream.metrics.retries == 0
        assert client.circuit_state() is penstock.State.CLOSED
    async with script(*once(answer(b"data: 1\n\n"))) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.ContentTypeError, match="this is no content type"):
            await client.get("/").collect()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "steps", [[reset()], [close()], [sse(end=False), close()], [sse(end=False) + b"5\r\n: hi\n\r\n", reset()]]
)
async def test_a_break_before_the_first_item_is_retried_if_the_request_may_be_repeated(
    method: str, steps: list[Step]
) -> None:
    async with (
        script([wait_request(), *steps], once(sse("1", "2"))) as server,
        AsyncClient(server.url, retry=retries(3)) as client,
    ):
        request = client.request(method, "/").content(b"body")
        if method == "GET":
            assert [event.data for event in (await request.collect()).events] == ["1", "2"]
            assert [body_of(each) for each in server.requests] == [b"body"] * 2
        else:
            with pytest.raises(PenstockError):
                await request.collect()
            assert server.connections == 1


@pytest.mark.parametrize("status", [204, 205])
async def test_nothing_to_come_is_a_complete_stream(status: int) -> None:
    async with (
        script(*once(f"HTTP/1.1 {status} Nothing\r\nContent-Length: 0\r\n\r\n".encode())) as server,
        AsyncClient(server.url) as client,
    ):
        result = await client.get("/").collect()
    assert (result.items, result.metrics.reason) == ([], "complete")


# -- after the first item


@pytest.mark.parametrize("cut", ["cut_after", "truncate_after"])
@pytest.mark.parametrize("after", [1, 2, 3, 7])
async def test_a_stream_with_ids_goes_on_where_it_broke(origin: str, cut: str, after: int) -> None:
    async with AsyncClient(origin, retry=retries(20)) as client:
        result = await client.get(f"/events?count=10&interval=0&{cut}={after}").collect()
    assert [event.id for event in result.events] == [str(n) for n in range(1, 11)]
    assert [event.json()["n"] for event in result.events] == list(range(1, 11))
    assert result.metrics.reconnects == result.metrics.retries == 10 // after
    assert (result.metrics.total, result.metrics.failed) == (10, 0)


async def test_a_stalled_stream_goes_on_where_it_fell_silent(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(20), timeout=Timeout(between_events=0.3)) as client:
        result = await client.get("/events?count=5&interval=0&stall_after=2").collect()
    assert [event.id for event in result.events] == ["1", "2", "3", "4", "5"]
    assert result.metrics.reconnects == 2


async def test_a_cut_in_the_middle_of_an_event_neither_doubles_nor_loses_it() -> None:
    torn = numbered(1, 2, end=False) + chunk(b"id: 3\ndata: 3")
    async with script([wait_request(), torn, close()], once(numbered(3, 4))) as server:
        async with AsyncClient(server.url, retry=retries(1), headers={"Last-Event-ID": "0"}) as client:
            result = await client.get("/").collect()
        assert [event.data for event in result.events] == ["1", "2", "3", "4"]
        assert [fields_of(request).get("last-event-id") for request in server.requests] == ["0", "2"]
    assert (result.metrics.total, result.metrics.successful, result.metrics.failed) == (5, 4, 1)


async def test_a_resume_carries_the_same_request_but_for_the_place() -> None:
    async with script([wait_request(), numbered(1, 1, end=False), reset()], once(numbered(2, 2))) as server:
        async with AsyncClient(server.url, retry=retries(1)) as client:
            request = client.get("/s").param("q", "é&").header("X-Mine", "1").header("last-event-id", "0")
            result = await request.content(b"body").collect()
        assert [event.id for event in result.events] == ["1", "2"]
        first, second = server.requests
        assert fields_of(first) | {"last-event-id": "1"} == fields_of(second)
        assert body_of(second) == b"body"
        assert second.startswith(b"GET /s?q=%C3%A9%26 HTTP/1.1")
        assert second.lower().count(b"last-event-id") == 1


@pytest.mark.parametrize("id", ["é", "日本", " padded ", "a:b/c=", "x" * 3000])
async def test_any_id_can_be_resumed_from(id: str) -> None:
    first = chunked(f"id: {id}\ndata: 1\n\n".encode(), type=SSE, end=False)
    async with script([wait_request(), first, reset()], once(answer(b"", "204 Done"))) as server:
        async with AsyncClient(server.url, retry=retries(1)) as client:
            result = await client.get("/").collect()
        assert [event.id for event in result.events] == [id]
        assert fields_of(server.requests[1])["last-event-id"] == id.strip()


@pytest.mark.parametrize("break_", [reset(), close()])
async def test_without_ids_nothing_is_played_twice(break_: Step) -> None:
    async with script([wait_request(), sse("1", "2", end=False), break_], once(sse("1"))) as server:
        async with AsyncClient(server.url, retry=retries(5)) as client:
            with pytest.raises(penstock.StreamTruncated) as caught:
                await client.get("/").collect()
        assert [event.data for event in caught.value.collected] == ["1", "2"]
        assert server.connections == 1


async def test_a_post_is_not_resumed_unless_it_is_safe() -> None:
    broken: list[Step] = [wait_request(), numbered(1, 1, end=False), reset()]
    async with (
        script(broken, broken, once(numbered(2, 2))) as server,
        AsyncClient(server.url, retry=retries(5)) as client,
    ):
        with pytest.raises(penstock.StreamTruncated):
            await client.post("/").json({}).collect()
        assert server.connections == 1
        result = await client.post("/").json({}).header("Idempotency-Key", "k").collect()
        assert [event.id for event in result.events] == ["1", "2"]


async def test_what_was_collected_is_there_when_the_retries_run_out() -> None:
    async with (
        script(
            [wait_request(), numbered(1, 2, end=False), reset()], [wait_request(), numbered(3, 3, end=False), reset()]
        ) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        with pytest.raises(penstock.RetriesExhausted, match="gave up after 3 attempts") as caught:
            await client.get("/").collect()
    assert isinstance(caught.value.last, penstock.ReadError), "two in a row: an event came before the first"
    assert [event.id for event in caught.value.collected] == ["1", "2", "3"]
    assert caught.value.category == "network"


async def test_what_was_collected_is_there_when_the_breaker_opens() -> None:
    async with (
        script([wait_request(), numbered(1, 2, end=False), reset()]) as server,
        AsyncClient(server.url, retry=retries(5), breaker=Breaker(1, 600)) as client,
    ):
        with pytest.raises(penstock.CircuitOpenError) as caught:
            await client.get("/").collect()
    assert isinstance(caught.value.__cause__, penstock.ReadError), "the cut was to be gone on with, and counted nothing"
    assert [event.id for event in caught.value.collected] == ["1", "2"]


async def test_the_total_covers_retries_and_resumes() -> None:
    async def failing(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(numbered(1, 1, end=False))
        await writer.drain()
        await asyncio.sleep(0.05)
        raise ConnectionAbortedError

    async with counting(failing) as server, AsyncClient(server.url, retry=retries(10_000), timeout=0.5) as client:
        with pytest.raises((penstock.StreamError, penstock.RetriesExhausted, penstock.ReadTimeout)):
            await client.get("/").collect()
        assert 1 < server.served < 12
        await until(lambda: server.open == 0)


# -- limits


async def test_collect_is_bounded_by_items_and_bytes(origin: str) -> None:
    async with AsyncClient(origin.replace("//", "//me:secret@")) as client:
        with pytest.raises(penstock.LimitExceeded, match="more than max_events=3 to collect") as caught:
            await client.get("/events?interval=0").collect(max_events=3)
        assert caught.value.limit == "max_events"
        assert [event.id for event in caught.value.collected][:3] == ["1", "2", "3"]
        assert "secret" not in f"{caught.value} {caught.value.url}"
        with pytest.raises(penstock.LimitExceeded, match="max_bytes=50") as caught:
            await client.get("/events?interval=0").collect(max_bytes=50)
        assert caught.value.limit == "max_bytes"
        assert caught.value.collected
        assert len((await client.get("/events?interval=0").collect(max_events=10)).items) == 10


async def test_an_endless_event_is_a_limit_and_leaves_no_connection() -> None:
    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sse("1", end=False) + chunk(b"data: "))
        while True:
            writer.write(chunk(b"x" * 10_000))
            await writer.drain()

    class Small(penstock.EventStream):
        max_event_bytes = 50_000

    async with counting(endless) as server, AsyncClient(server.url, retry=retries(3)) as client:
        stream = client.get("/").items(Small)
        got: list[Event] = []
        with pytest.raises(penstock.LimitExceeded, match="max_event_bytes") as caught:
            async with stream:
                async for event in stream:
                    got += [event]
        assert caught.value.limit == "max_event_bytes"
        assert [event.data for event in got] == ["1"]
        assert stream.metrics.reason == "failed"
        await until(lambda: server.open == 0)


# -- leaving


@pytest.mark.parametrize("how", ["break", "raise", "cancel", "aclose", "collect cancelled"])
async def test_leaving_early_is_a_cancelled_stream_that_is_counted_once(origin: str, how: str) -> None:
    async with AsyncClient(origin) as client:
        stream = client.get("/events?count=1000&interval=0.001").events()

        async def read() -> None:
            if how == "collect cancelled":
                await stream.collect()
            async with stream:
                async for event in stream:
                    if event.id == "3":
                        match how:
                            case "break":
                                break
                            case "raise":
                                raise ZeroDivisionError
                            case "aclose":
                                await stream.aclose()
                            case _:
                                await asyncio.sleep(60)

        task = asyncio.create_task(read())
        await until(lambda: stream.metrics.total >= 3)
        task.cancel()
        await asyncio.wait({task})
        await stream.aclose()
        assert task.cancelled() or task.exception() is None or isinstance(task.exception(), ZeroDivisionError)
        assert stream.metrics.reason == "cancelled"
        assert client.metrics.total == stream.metrics.total


async def test_a_stream_that_is_never_read_sends_nothing() -> None:
    async with script(once(answer())) as server, AsyncClient(server.url) as client:
        async with client.get("/").events() as events:
            pass
        await events.aclose()
        assert (events.metrics, client.metrics, server.connections) == (penstock.Metrics(), penstock.Metrics(), 0)


async def test_iterating_twice_goes_on() -> None:
    async with (
        script(*once(sse("1", "2", "3"))) as server,
        AsyncClient(server.url) as client,
        client.get("/").events() as events,
    ):
        first = await anext(aiter(events))
        assert [first.data, *[event.data async for event in events]] == ["1", "2", "3"]


async def test_a_failure_of_the_callers_own_ends_the_stream_as_failed(origin: str) -> None:
    def broken(value: Any) -> int:
        raise KeyError("mine")

    async with AsyncClient(origin, retry=retries(3)) as client:
        stream = client.get("/events?interval=0").events(model=broken)
        with pytest.raises(KeyError):
            await stream.collect()
        assert stream.metrics.reason == "failed"
        assert stream.metrics.retries == 0


# -- NDJSON


async def test_a_cut_record_is_told_with_what_came_before() -> None:
    async with script(*once(chunked(b'{"a":1}\n{"a":', type=NDJSON))) as server, AsyncClient(server.url) as client:
        stream = client.get("/").records()
        got: list[Any] = []
        with pytest.raises(penstock.DecodeError, match="the stream ended inside record 2"):
            async with stream:
                async for record in stream:
                    got += [record]
        assert got == [{"a": 1}]
        metrics = stream.metrics
        assert (metrics.total, metrics.successful, metrics.failed, metrics.reason) == (2, 1, 1, "failed")


# -- timers and backpressure


async def test_the_timers_stand_still_while_the_caller_is_slow() -> None:
    async with (
        script(wait_request(), sse("1", end=False), chunk(b"data: 2\n\n"), b"0\r\n\r\n") as server,
        AsyncClient(server.url, retry=0, timeout=Timeout(first_event=0.4, between_events=0.4)) as client,
    ):
        got = []
        async with client.get("/").events() as events:
            async for event in events:
                got.append(event.data)
                await asyncio.sleep(0.6)
        assert got == ["1", "2"]


async def test_comments_keep_a_stream_alive() -> None:
    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(type=SSE, end=False))
        for _ in range(6):
            await asyncio.sleep(0.2)
            writer.write(chunk(b": ping\n"))
        writer.write(chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    async with (
        counting(slow) as server,
        AsyncClient(server.url, retry=0, timeout=Timeout(first_event=1, between_events=1)) as client,
    ):
        assert [event.data for event in (await client.get("/").collect()).events] == ["1"]
