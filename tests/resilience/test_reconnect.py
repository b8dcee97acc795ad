from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.resilience.backoff import Backoff
from penstock.resilience.reconnect import reconnect_pause
from penstock.wire.sse import MAX_RETRY_MS

DOUBLING = Backoff(jitter="none")


@pytest.mark.parametrize(
    ("failures", "retry_ms", "pause"),
    [
        (0, None, 3),
        (0, 0, 0),
        (0, 200, 0.2),
        (0, 10_000, 10),
        (0, MAX_RETRY_MS, 60),
        (1, None, 1),
        (2, None, 2),
        (1, 200, 1),
        (1, 5000, 5),
        (3, 5000, 5),
        (4, 5000, 8),
        (4, 0, 8),
        (9, 5000, 30),
        (1, MAX_RETRY_MS, 60),
    ],
)
def test_the_servers_time_is_the_least_and_the_backoff_is_for_failures(
    failures: int, retry_ms: int | None, pause: float
) -> None:
    assert reconnect_pause(DOUBLING, failures, retry_ms, 0.5, 60) == pause


def test_the_draw_is_the_backoffs_jitter_and_leaves_the_servers_time_alone() -> None:
    pauses = [reconnect_pause(Backoff(), 3, 1000, draw, 60) for draw in (0.0, 0.2, 0.5, 0.75)]
    assert pauses == [1, 1, 2, 3]
    assert {reconnect_pause(Backoff(), 0, 1000, draw, 60) for draw in (0.0, 0.5)} == {1}


@given(
    st.integers(0, 100), st.none() | st.integers(0, MAX_RETRY_MS), st.floats(0, 1, exclude_max=True), st.floats(0, 9)
)
def test_nothing_waits_longer_than_the_maximum(
    failures: int, retry_ms: int | None, draw: float, maximum: float
) -> None:
    pause = reconnect_pause(Backoff(), failures, retry_ms, draw, maximum)
    assert 0 <= pause <= maximum
    if retry_ms is not None:
        assert pause >= min(maximum, retry_ms / 1000)
