from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.resilience.window import SLOTS, SlidingCount

WINDOW = 10.0  # a slot is a second
QUARTERS = st.integers(0, 160).map(lambda quarters: quarters / 4)


def counted(*instants: float) -> SlidingCount:
    count = SlidingCount(WINDOW)
    for now in instants:
        count.add(now)
    return count


def test_what_happened_counts_and_falls_out_of_the_window() -> None:
    count = counted(0.0, 0.5, 3.0)
    assert [count.total(now) for now in (3.0, 9.9, 10.0, 12.9, 13.0)] == [3, 3, 1, 1, 0]


@given(st.lists(QUARTERS).map(sorted), QUARTERS)
def test_an_occurrence_counts_for_nine_tenths_of_the_window_and_never_longer(past: list[float], later: float) -> None:
    now = (past[-1] if past else 0.0) + later
    total = counted(*past).total(now)
    assert sum(now - then <= 9 for then in past) <= total <= sum(now - then < 10 for then in past)


@given(st.lists(QUARTERS).map(sorted), st.floats(WINDOW, 1e300))
def test_a_jump_of_a_window_and_more_forgets_everything(past: list[float], jump: float) -> None:
    count = counted(*past)
    now = (past[-1] if past else 0.0) + jump
    assert count.total(now) == 0
    count.add(now)
    assert count.total(now) == 1


def test_a_clock_that_goes_back_a_little_counts_into_the_present_slot() -> None:
    count = counted(20.0, 15.0)
    assert count.total(11.5) == 2
    assert count.total(29.9) == 2
    assert count.total(30.0) == 0


def test_a_clock_that_goes_back_far_is_a_new_clock() -> None:
    count = counted(1e9, 1e9)
    assert count.total(1e9 - WINDOW) == 0
    count.add(-50.0)
    assert [count.total(now) for now in (-50.0, -41.0, -40.0)] == [1, 1, 0]


def test_clear_forgets_and_goes_on() -> None:
    count = counted(1.0, 2.0)
    count.clear()
    assert count.total(2.0) == 0
    count.add(2.0)
    assert count.total(2.0) == 1


@pytest.mark.parametrize("window", [0.001, 1.0, 60.0, 86_400.0])
def test_any_window_has_as_many_slots(window: float) -> None:
    count = SlidingCount(window)
    for slot in range(3 * SLOTS):
        count.add((slot + 0.5) * window / SLOTS)
    assert count.total((3 * SLOTS - 0.5) * window / SLOTS) == SLOTS
