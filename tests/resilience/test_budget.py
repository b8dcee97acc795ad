from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.resilience.budget import Budget, RetryBudget


def granted(budget: Budget, now: float) -> int:
    """How many retries it gives before it refuses."""
    count = 0
    while budget.withdraw(now):
        count += 1
    return count


def after(requests: int, now: float = 0.0, **settings: float) -> Budget:
    budget = Budget(RetryBudget(**settings))
    for _ in range(requests):
        budget.request(now)
    return budget


@pytest.mark.parametrize(("requests", "retries"), [(0, 100), (1, 100), (500, 100), (505, 101), (5000, 1000)])
def test_the_defaults_allow_a_fifth_of_the_requests_and_ten_per_second_at_the_least(
    requests: int, retries: int
) -> None:
    assert granted(after(requests), 0.0) == retries


@pytest.mark.parametrize(
    ("share", "requests", "retries"),
    [(0.2, 4, 0), (0.2, 5, 1), (0.29, 100, 29), (0.7, 10, 7), (1.0, 3, 3), (2.5, 3, 7), (0.0, 1000, 0)],
)
def test_without_a_floor_the_share_alone_decides(share: float, requests: int, retries: int) -> None:
    assert granted(after(requests, share=share, floor=0.0), 0.0) == retries


def test_what_is_refused_is_not_taken() -> None:
    budget = after(5, share=0.2, floor=0.0)
    assert [budget.withdraw(1.0) for _ in range(3)] == [True, False, False]
    budget.request(2.0)
    for _ in range(4):
        assert not budget.withdraw(2.0)
        budget.request(2.0)
    assert granted(budget, 2.0) == 1


def test_retries_come_back_as_the_window_goes_on() -> None:
    budget = Budget(RetryBudget(share=0.0, floor=0.2, window=10.0))
    assert granted(budget, 0.5) == 2
    assert granted(budget, 9.9) == 0
    assert granted(budget, 10.0) == 2


def test_requests_that_left_the_window_earn_nothing_any_more() -> None:
    budget = after(10, share=0.5, floor=0.0)
    assert budget.withdraw(9.0)
    assert granted(budget, 10.0) == 0


def test_a_clock_that_jumps_or_goes_back_neither_locks_nor_opens_it() -> None:
    budget = after(10, now=1e6, share=0.5, floor=0.0)
    assert granted(budget, 1e6) == 5
    for now in (1e12, 3.0, -1e9, 0.0):
        assert granted(budget, now) == 0, "no requests, no retries"
        for _ in range(10):
            budget.request(now)
        assert granted(budget, now) == 5


def test_two_budgets_of_one_setting_are_two() -> None:
    settings = RetryBudget(share=0.0, floor=0.1)
    assert [granted(Budget(settings), 0.0) for _ in range(2)] == [1, 1]


@given(
    st.lists(st.tuples(st.integers(0, 8).map(lambda quarters: quarters / 4), st.booleans()), max_size=200),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
)
def test_no_nine_tenths_of_a_window_see_more_than_was_promised(
    history: list[tuple[float, bool]], share: float, floor: float
) -> None:
    budget = Budget(RetryBudget(share=share, floor=floor, window=10.0))
    requests: list[float] = []
    retries: list[float] = []
    now = 0.0
    for passed, is_request in history:
        now += passed
        if is_request:
            budget.request(now)
            requests.append(now)
        elif budget.withdraw(now):
            retries.append(now)
            within = sum(now - then <= 9 for then in retries)
            earned = sum(now - then < 10 for then in requests)
            assert within <= max(share * earned, floor * 10) + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [{"share": -0.1}, {"floor": -1}, {"window": 0}, {"share": math.nan}, {"window": math.inf}, {"floor": math.inf}],
)
def test_what_is_no_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a retry budget needs"):
        RetryBudget(**wrong)


def test_a_floor_that_would_allow_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="lengthen the window"):
        RetryBudget(floor=0.05, window=10.0)
    assert granted(Budget(RetryBudget(share=0, floor=0.05, window=20.0)), 0.0) == 1
