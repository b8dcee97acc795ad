from __future__ import annotations

import random
import threading
from dataclasses import FrozenInstanceError

import pytest

from penstock.client.metrics import Gaps, Metrics, Tally, Totals


def test_a_tally_counts_and_its_snapshot_stands_still() -> None:
    tally = Tally(10.0)
    before = tally.snapshot(10.5)
    assert before == Metrics(reason="running", duration=0.5)
    tally.total, tally.failed, tally.retries, tally.bytes = 5, 1, 2, 99
    tally.arrived(11.0)
    tally.stop(14.0, "failed", "truncated")
    tally.stop(20.0, "cancelled")
    after = tally.snapshot(99.0)
    assert (after.total, after.successful, after.failed, after.retries, after.bytes) == (5, 4, 1, 2, 99)
    assert (after.duration, after.first_event, after.reason, after.cause, after.streams) == (
        4.0,
        1.0,
        "failed",
        "truncated",
        1,
    )
    assert before.total == 0
    with pytest.raises(FrozenInstanceError):
        after.total = 0  # type: ignore[misc]


def test_gaps_lie_between_the_reads() -> None:
    tally = Tally(0.0)
    assert tally.snapshot(0.0).gap_max is None
    for instant in (1.0, 1.5, 4.5, 5.0):
        tally.arrived(instant)
    metrics = tally.snapshot(5.0)
    assert metrics.first_event == 1.0
    assert metrics.gap_max == 3.0
    assert metrics.gap_p50 == pytest.approx(0.5, rel=0.05)
    assert metrics.gap_p99 == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1000.0])
def test_quantiles_are_close_whatever_the_scale(scale: float) -> None:
    chance = random.Random(7)
    seconds = sorted(chance.expovariate(1.0) * scale for _ in range(5000))
    gaps = Gaps()
    for each in seconds:
        gaps.add(each)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert gaps.quantile(share) == pytest.approx(seconds[int(share * 5000)], rel=0.05)
    assert gaps.longest == seconds[-1]


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-12, 1e9])
def test_no_gap_is_too_odd_to_be_counted(seconds: float) -> None:
    gaps = Gaps()
    assert gaps.quantile(0.5) is None
    assert not gaps
    gaps.add(seconds)
    assert gaps
    assert gaps.quantile(0.5) == pytest.approx(max(0.0, seconds), rel=0.05, abs=1e-9)


def test_totals_are_the_sum_of_what_ended() -> None:
    totals = Totals()
    assert totals.snapshot() == Metrics()
    for number in (1, 2):
        tally = Tally(0.0)
        tally.total, tally.failed, tally.bytes = 10 * number, number, 100
        tally.arrived(1.0)
        tally.arrived(1.0 + number)
        tally.stop(3.0, "complete")
        totals.add(tally)
    total = totals.snapshot()
    assert (total.total, total.successful, total.failed, total.bytes, total.streams) == (30, 27, 3, 200, 2)
    assert (total.duration, total.first_event, total.reason) == (6.0, None, "")
    assert total.gap_max == 2.0
    assert total.success_rate == pytest.approx(90.0)


def test_totals_lose_nothing_between_threads() -> None:
    totals = Totals()

    def count() -> None:
        for _ in range(500):
            tally = Tally(0.0)
            tally.total = 1
            tally.stop(1.0, "complete")
            totals.add(tally)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (totals.snapshot().streams, totals.snapshot().total) == (4000, 4000)


@pytest.mark.parametrize(("reason", "rate"), [("complete", 100.0), ("failed", 0.0), ("running", 0.0), ("", 100.0)])
def test_the_success_rate_of_nothing_goes_by_the_end(reason: str, rate: float) -> None:
    assert Metrics(reason=reason).success_rate == rate


def test_plain_values_name_every_field() -> None:
    plain = Metrics(total=3, successful=2, failed=1, gap_p50=0.1234567891).to_dict()
    assert plain.keys() == {*Metrics.__slots__, "success_rate"}
    assert (plain["success_rate"], plain["gap_p50"]) == (66.667, 0.123457)
