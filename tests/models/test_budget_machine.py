"""The budget against lists of instants, under a clock that also jumps and goes back."""

from __future__ import annotations

from math import floor

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from penstock.resilience.budget import Budget, RetryBudget

WINDOW = 10.0  # in ten slots of a second


class Lately:
    """What happened, and when; the present is the latest second that was seen, unless the clock left it far behind."""

    def __init__(self) -> None:
        self.seconds: list[int] = []
        self.present = 0

    def look(self, now: float) -> int:
        second = floor(now)
        if second <= self.present - WINDOW:
            self.seconds.clear()
            self.present = second
        self.present = max(self.present, second)
        return sum(then > self.present - WINDOW for then in self.seconds)

    def add(self, now: float) -> None:
        self.look(now)
        self.seconds.append(self.present)


class BudgetMachine(RuleBasedStateMachine):
    @initialize(
        share=st.sampled_from([0.0, 0.2, 0.5, 1.0]), floor_=st.sampled_from([0.0, 0.1, 0.3]), now=st.integers(-50, 50)
    )
    def start(self, share: float, floor_: float, now: int) -> None:
        self.settings = RetryBudget(share=share, floor=floor_, window=WINDOW)
        self.budget = Budget(self.settings)
        self.requests = Lately()
        self.retries = Lately()
        self.now = float(now)

    @rule(times=st.integers(1, 10))
    def request(self, times: int) -> None:
        for _ in range(times):
            self.budget.request(self.now)
            self.requests.add(self.now)

    @rule(times=st.integers(1, 10))
    def withdraw(self, times: int) -> None:
        for _ in range(times):
            by_share = self.settings.share * self.requests.look(self.now)
            by_floor = self.settings.floor * WINDOW
            granted = self.retries.look(self.now) + 1 <= max(by_share, by_floor)
            assert self.budget.withdraw(self.now) == granted
            if granted:
                self.retries.add(self.now)

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.5, 9.75, 10.0, 1e6]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.25, 3.5, 9.75, 10.0, 1e6]))
    def go_back(self, seconds: float) -> None:
        self.now -= seconds

    @rule()
    def two_windows_pass(self) -> None:
        """Whatever the clock did: two windows after somebody asked, the floor is there again."""
        self.withdraw(1)
        self.now += 2 * WINDOW
        for _ in range(round(self.settings.floor * WINDOW)):
            assert self.budget.withdraw(self.now)
            self.requests.look(self.now)
            self.retries.add(self.now)


BudgetMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBudget = BudgetMachine.TestCase
