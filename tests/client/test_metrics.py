from __future__ import annotations

import threading

import pytest

from penstock import AsyncClient, Metrics, StreamTruncated
from penstock.client.metrics import Tally, combine
from penstock.testing import FakeClock, reset, script, wait_request
from tests.client.peers import SSE, chunked, once, retries

pytestmark = pytest.mark.anyio


def test_a_tally_counts_and_its_snapshot_stands_still() -> None:
    clock = FakeClock(100)
    tally = Tally(clock())
    before = tally.snapshot(clock())
    assert before == Metrics(reason="running")
    clock.advance(2)
    tally.first_at = clock()
    tally.total, tally.failed, tally.retries, tally.reconnects, tally.bytes = 5, 1, 2, 1, 99
    clock.advance(1)
    assert tally.snapshot(clock()) == Metrics(5, 4, 1, 2, 1, 99, 3.0, 2.0, "running")
    assert before.total == 0


def test_a_stream_stops_once() -> None:
    clock = FakeClock()
    tally = Tally(clock())
    clock.advance(1)
    tally.stop(clock(), "complete")
    clock.advance(1)
    tally.stop(clock(), "cancelled")
    clock.advance(1)
    metrics = tally.snapshot(clock())
    assert (metrics.duration, metrics.reason) == (1, "complete")


@pytest.mark.parametrize(
    ("metrics", "rate"),
    [
        (Metrics(total=4, successful=3, failed=1), 75.0),
        (Metrics(), 100.0),
        (Metrics(reason="complete"), 100.0),
        (Metrics(reason="failed"), 0.0),
        (Metrics(total=1, successful=1, reason="failed"), 100.0),
    ],
)
def test_success_rate(metrics: Metrics, rate: float) -> None:
    assert metrics.success_rate == rate


def test_plain_values() -> None:
    metrics = Metrics(3, 2, 1, 4, 1, 10, 1.23456789, 0.5, "complete")
    assert metrics.to_dict() == {
        "duration": 1.234568,
        "total": 3,
        "successful": 2,
        "failed": 1,
        "retries": 4,
        "success_rate": 66.667,
        "reconnects": 1,
        "bytes": 10,
        "first_event": 0.5,
        "reason": "complete",
    }
    assert Metrics().to_dict()["first_event"] is None


def test_the_sum_of_two() -> None:
    left = Metrics(3, 2, 1, 4, 1, 10, 1.5, 0.5, "complete")
    assert combine(left, left) == Metrics(6, 4, 2, 8, 2, 20, 3.0, None, "")
    assert combine(left, Metrics()) == combine(Metrics(), left)


async def test_a_streams_metrics_add_up(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(9)) as client:
        result = await client.get("/events?count=5&interval=0.01&cut_after=2").collect()
    metrics = result.metrics
    assert (metrics.total, metrics.successful, metrics.failed) == (5, 5, 0)
    assert (metrics.retries, metrics.reconnects, metrics.reason) == (2, 2, "complete")
    assert metrics.bytes >= sum(len(event.data) for event in result.events)
    assert metrics.first_event is not None
    assert 0 < metrics.first_event <= metrics.duration


async def test_a_running_stream_can_be_looked_at(origin: str) -> None:
    async with AsyncClient(origin) as client, client.get("/events?count=3&interval=0").events() as events:
        seen = [(events.metrics.total, events.metrics.reason) async for _ in events]
        assert seen == [(1, "running"), (2, "running"), (3, "running")]
        assert client.metrics.total == 3


async def test_the_clients_metrics_are_the_sum_of_its_streams_however_they_ended(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(1)) as client:
        streams = [client.get(f"/events?interval=0&count={count}").events() for count in (1, 2, 3)]
        for each in streams:
            await each.collect()
        cancelled = client.get("/events?interval=0&count=9").events()
        async with cancelled:
            async for _ in cancelled:
                break
        failed = client.get("/generate?interval=0&chunks=9&cut_after=2").lines()
        with pytest.raises(StreamTruncated):
            await failed.collect()
        every = [*(each.metrics for each in (*streams, cancelled)), failed.metrics]
        assert [each.reason for each in every] == ["complete"] * 3 + ["cancelled", "failed"]
        total = client.metrics
        for name in ("total", "successful", "failed", "retries", "reconnects", "bytes"):
            assert getattr(total, name) == sum(getattr(each, name) for each in every), name
        assert total.duration == pytest.approx(sum(each.duration for each in every))
        assert (total.first_event, total.reason) == (None, "")


async def test_a_stream_that_never_began_counts_as_failed() -> None:
    async with (
        script([wait_request(), reset()], [wait_request(), reset()]) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        stream = client.get("/").events()
        with pytest.raises(Exception, match="gave up after 2 attempts"):
            await stream.collect()
        metrics = stream.metrics
        assert (metrics.total, metrics.retries, metrics.reason, metrics.success_rate) == (0, 1, "failed", 0.0)
        assert metrics.first_event is None
        assert client.metrics.retries == 1


async def test_metrics_can_be_read_from_any_thread() -> None:
    async with script(*once(chunked(b"data: 1\n\n", type=SSE))) as server, AsyncClient(server.url) as client:
        await client.get("/").collect()
        seen: list[Metrics] = []
        thread = threading.Thread(target=lambda: seen.append(client.metrics))
        thread.start()
        thread.join()
        assert seen == [client.metrics]
        assert seen[0].total == 1
