from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.resilience.backoff import Backoff

DRAWS = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("retry", "ceiling"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10_000, 30)]
)
def test_the_default_ceilings_double_from_one_second_up_to_thirty(retry: int, ceiling: float) -> None:
    assert Backoff().delay(retry, 0.0) == 0.0
    assert Backoff().delay(retry, 0.5) == ceiling / 2
    assert Backoff(jitter="none").delay(retry, 0.123) == ceiling


@pytest.mark.parametrize(("retry", "pause"), [(1, 1.5), (2, 5), (3, 10.5), (4, 18), (5, 27.5), (6, 30), (1000, 30)])
def test_the_quadratic_curve_is_the_one_it_tells(retry: int, pause: float) -> None:
    assert Backoff.quadratic().delay(retry, 0.0) == Backoff.quadratic().delay(retry, 0.9) == pause


def test_the_quadratic_curve_has_a_maximum_of_its_own() -> None:
    assert Backoff.quadratic(maximum=7).delay(3, 0.0) == 7


def test_initial_factor_and_maximum_shape_the_curve() -> None:
    curve = Backoff(initial=0.5, maximum=20, factor=3, jitter="none")
    assert [curve.delay(retry, 0) for retry in (1, 2, 3, 4, 5)] == [0.5, 1.5, 4.5, 13.5, 20]


@given(
    st.builds(
        Backoff,
        initial=st.floats(0, 1e6),
        maximum=st.floats(0, 1e6),
        factor=st.floats(1, 1e300),
        jitter=st.sampled_from(["full", "none"]),
        curve=st.sampled_from(["exponential", "quadratic"]),
    ),
    st.integers(1, 10**6),
    DRAWS,
)
def test_no_pause_is_negative_or_over_the_maximum(backoff: Backoff, retry: int, draw: float) -> None:
    pause = backoff.delay(retry, draw)
    assert 0 <= pause <= backoff.maximum
    assert math.isfinite(pause)


@given(st.integers(1, 200))
def test_without_jitter_no_pause_is_shorter_than_the_one_before(retry: int) -> None:
    for curve in (Backoff(jitter="none"), Backoff.quadratic()):
        assert curve.delay(retry, 0) <= curve.delay(retry + 1, 0)


def test_an_initial_of_zero_never_waits() -> None:
    assert {Backoff(initial=0, factor=1e300).delay(retry, 0.9) for retry in (1, 2, 5, 1000)} == {0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": -1},
        {"maximum": -0.1},
        {"factor": 0.9},
        {"initial": math.nan},
        {"jitter": "half"},
        {"curve": "linear"},
    ],
)
def test_what_is_no_curve_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a backoff needs"):
        Backoff(**wrong)
