"""What a stream's and a client's metrics say at every kind of end, and while it lasts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Backoff, Metrics, Retry, Timeout
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import NDJSON, SSE, answer, chunk, chunked, counting, free_port, once, retries, until

pytestmark = pytest.mark.anyio


def plain(*data: str, end: bool = True) -> bytes:
    return chunked(*(f"data: {each}\n\n".encode() for each in data), type=SSE, end=end)


async def measured(stream: Any) -> Metrics:
    """A stream's metrics once it has ended, however it did."""
    try:
        await stream.collect()
    except penstock.PenstockError:
        pass
    metrics: Metrics = stream.metrics
    return metrics


# -- the end


@pytest.mark.parametrize(
    ("steps", "reason", "cause"),
    [
        ([plain("1")], "complete", ""),
        ([answer(b"", "204 No Content")], "complete", ""),
        ([plain("1", end=False), reset()], "failed", "truncated"),
        ([plain("1", end=False), close()], "failed", "truncated"),
        ([plain("1", end=False)], "failed", "stalled"),
        ([plain("1", end=False) + b"junk\r\n"], "failed", "protocol"),
        ([plain("1", '{"error": {"type": "server_error"}}')], "failed", "in_band_server"),
        ([plain("1", '{"error": {"type": "rate_limit_error"}}')], "failed", "in_band_throttled"),
        ([plain("1", '{"error": {"type": "invalid_request_error"}}')], "failed", "in_band"),
        ([reset()], "failed", "lost"),
        ([answer(b"", "503 Busy")], "failed", "unavailable"),
        ([answer(b"", "429 Slow")], "failed", "throttled"),
        ([answer(b"", "500 No")], "failed", "server_error"),
        ([answer(b"", "404 No")], "failed", "status"),
        ([answer(b"<p>", "200 OK", "Content-Type: text/html")], "failed", "content_type"),
        ([chunked(b"data: " + b"x" * 3000, type=SSE, end=False)], "failed", "limit"),
    ],
)
async def test_every_end_has_its_reason_and_its_cause(steps: list[Step], reason: str, cause: str) -> None:
    class Small(penstock.EventStream):
        max_event_bytes = 1000

    async with (
        script([wait_request(), *steps]) as server,
        AsyncClient(server.url, retry=0, timeout=Timeout(between_events=0.3)) as client,
    ):
        terminator = penstock.Terminator(payload="error")
        metrics = await measured(client.get("/").items(Small, terminator=terminator))
        assert (metrics.reason, metrics.cause, metrics.streams) == (reason, cause, 1)
        assert client.metrics.streams == 1
        assert (client.metrics.reason, client.metrics.cause) == ("", "")


async def test_no_connection_has_its_cause_too() -> None:
    with free_port() as port:
        async with AsyncClient(f"http://127.0.0.1:{port}", retry=0) as client:
            metrics = await measured(client.get("/").events())
    assert (metrics.reason, metrics.cause, metrics.success_rate) == ("failed", "refused", 0.0)


async def test_of_retries_that_run_out_it_is_the_last_ones() -> None:
    async with (
        script([wait_request(), reset()], once(answer(b"", "503 Busy", "Retry-After: 0"))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        metrics = await measured(client.get("/").events())
    assert (metrics.cause, metrics.retries) == ("unavailable", 1)


async def test_while_it_runs_it_says_so_and_cancelled_has_no_cause() -> None:
    async with script(wait_request(), plain("1", "2", end=False)) as server, AsyncClient(server.url) as client:
        async with client.get("/").events() as events:
            assert events.metrics == Metrics()
            async for _ in events:
                running = events.metrics
                assert (running.reason, running.streams) == ("running", 0)
                break
        metrics = events.metrics
    assert (metrics.reason, metrics.cause, metrics.streams) == ("cancelled", "", 1)


# -- counts


async def test_retries_reconnects_and_replays_are_told_apart() -> None:
    def numbered(first: int, last: int, *, end: bool = False) -> bytes:
        events = (b"id: %d\ndata: x\n\n" % number for number in range(first, last + 1))
        return chunked(*events, type=SSE, end=end)

    busy = once(answer(b"", "503 Busy", "Retry-After: 0"))
    first: list[Step] = [wait_request(), numbered(1, 3), reset()]
    again: list[Step] = [wait_request(), numbered(1, 2), reset()]
    async with (
        script(busy, first, busy, again, once(numbered(4, 5, end=True))) as server,
        AsyncClient(server.url, retry=retries(5)) as client,
    ):
        metrics = await measured(client.get("/").events())
        total = client.metrics
    assert (metrics.total, metrics.successful, metrics.failed, metrics.replayed) == (5, 5, 0, 2)
    assert (metrics.retries, metrics.reconnects, metrics.restarts) == (4, 3, 0)
    assert metrics.bytes == sum(len(b"id: 1\ndata: x\n\n") for _ in range(3 + 2 + 2))
    assert (total.total, total.replayed, total.retries, total.reconnects) == (5, 2, 4, 3)


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        (b'{"a":1}\n{oops}\n3\n', (2, 1, 1)),
        (b'{"a":1}\n{oops}\n', (2, 1, 1)),
        (b"{oops}\n", (1, 0, 1)),
        (b'{"a":1}\n{"a":', (2, 1, 1)),
        (b"1\n2\n" + b"3" * 20_000_000, (3, 2, 1)),
    ],
    ids=["in the middle", "as the last", "alone", "cut", "too long"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "one by one"])
async def test_a_record_that_is_none_counts_as_failed(body: bytes, counts: tuple[int, int, int], apart: bool) -> None:
    pieces = body.splitlines(keepends=True) if apart else [body]
    steps: list[Step] = [chunk(piece) for piece in pieces]
    async with (
        script(*once(chunked(type=NDJSON, end=False), *steps, b"0\r\n\r\n")) as server,
        AsyncClient(server.url, retry=retries(3)) as client,
    ):
        metrics = await measured(client.get("/").records())
        assert (metrics.total, metrics.successful, metrics.failed) == counts
        assert metrics.reason == "failed"
        assert server.connections == 1


@pytest.mark.parametrize("last", ["[DONE]", "x"])
async def test_what_a_model_refuses_counts_as_failed_whatever_ends_the_stream(last: str) -> None:
    terminator = None if last == "x" else "openai"
    payloads = ["1", "{", "2", last] if last != "x" else ["1", "{", "2"]
    async with script(*once(plain(*payloads))) as server, AsyncClient(server.url) as client:
        stream = client.get("/").events(model=lambda value: value, terminator=terminator)
        assert (await stream.collect()).items == [1, 2]
        metrics = stream.metrics
    assert (metrics.total, metrics.successful, metrics.failed, metrics.reason) == (3, 2, 1, "complete")
    assert metrics.success_rate == pytest.approx(66.7, abs=0.1)


async def test_a_coding_that_is_broken_is_no_failed_item() -> None:
    raw = answer(b"no gzip", "200 OK", f"Content-Type: {SSE}", "Content-Encoding: gzip")
    async with script(*once(raw)) as server, AsyncClient(server.url, retry=0) as client:
        metrics = await measured(client.get("/").events())
    assert (metrics.total, metrics.failed, metrics.reason, metrics.cause) == (0, 0, "failed", "decode")


# -- times


async def test_gaps_lie_between_the_reads_and_the_first_event_before_them() -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(chunked(type=SSE, end=False))
        for pause in (0.0, 0.05, 0.6, 0.05, 0.05):
            await asyncio.sleep(pause)
            writer.write(chunk(b"data: x\n\n"))
        writer.write(b"0\r\n\r\n")

    async with counting(answering) as server, AsyncClient(server.url) as client:
        metrics = await measured(client.get("/").events())
        total = client.metrics
    assert metrics.first_event is not None
    assert metrics.gap_max is not None
    assert metrics.gap_p50 is not None
    assert metrics.gap_p99 is not None
    assert 0.29 <= metrics.first_event < metrics.duration
    assert metrics.gap_p50 < 0.58 <= metrics.gap_max < metrics.duration
    assert metrics.gap_p99 == pytest.approx(metrics.gap_max, rel=0.05)
    assert metrics.duration >= 1.0
    assert (total.gap_max, total.duration, total.first_event) == (metrics.gap_max, metrics.duration, None)


async def test_the_duration_of_what_has_ended_stands_still() -> None:
    async with script(*once(plain("1"))) as server, AsyncClient(server.url) as client:
        stream = client.get("/").events()
        before = await measured(stream)
        await asyncio.sleep(0.02)
        assert stream.metrics == before


# -- the client's, from any thread


async def test_totals_add_up_while_other_threads_read_them() -> None:
    streams, events = 60, 20

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        cut = b"/cut" in head
        writer.write(chunked(type=SSE, end=False))
        for number in range(events):
            writer.write(chunk(b"data: %d\n\n" % number))
            await asyncio.sleep(0)
        if cut:
            raise ConnectionAbortedError
        writer.write(b"0\r\n\r\n")

    stop, seen, wrong = threading.Event(), [0] * 4, list[str]()
    running: list[Any] = []

    async with counting(answering) as server, AsyncClient(server.url, retry=0) as client:

        def watch(place: int) -> None:
            last = Metrics()
            while not stop.is_set():
                now = client.metrics
                if not (last.total <= now.total <= streams * events and last.streams <= now.streams <= streams):
                    wrong.append(f"{last} then {now}")
                if now.total != now.successful + now.failed:
                    wrong.append(f"does not add up: {now}")
                for stream in running:
                    each = stream.metrics
                    if not 0 <= each.successful <= each.total <= events:
                        wrong.append(f"of a stream: {each}")
                client.circuits  # noqa: B018 – it may be read from here too
                last = now
                seen[place] += 1

        threads = [threading.Thread(target=watch, args=(place,)) for place in range(len(seen))]
        for thread in threads:
            thread.start()
        try:
            for batch in range(0, streams, 20):
                made = [client.get("/cut" if number % 4 == 3 else "/").events() for number in range(batch, batch + 20)]
                running[:] = made
                results = await asyncio.gather(*map(measured, made))
                assert [result.reason for result in results].count("failed") == 5
            await until(lambda: min(seen) > 3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        total = client.metrics
    assert wrong == []
    assert (total.streams, total.total, total.successful) == (streams, streams * events, streams * events)
    assert total.bytes == sum(len(b"data: %d\n\n" % number) for number in range(events)) * streams


async def test_streams_that_were_never_read_are_none() -> None:
    async with script(once(plain("1"))) as server, AsyncClient(server.url) as client:
        async with client.get("/").events():
            pass
        assert client.metrics == Metrics()
        assert server.connections == 0


async def test_retries_that_the_caller_leaves_are_counted() -> None:
    patient = Retry(retries=3, backoff=Backoff(initial=60, maximum=60, jitter="none"))
    async with script([wait_request(), reset()]) as server, AsyncClient(server.url, retry=patient) as client:
        stream = client.get("/").events()
        task = asyncio.create_task(stream.collect())
        await until(lambda: stream.metrics.retries == 1)
        task.cancel()
        await asyncio.wait({task})
        assert (stream.metrics.reason, stream.metrics.retries, client.metrics.retries) == ("cancelled", 1, 1)
