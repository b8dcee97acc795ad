"""The breaker against a model of it that is written from the design's words, not from the code.

The model keeps no generation numbers and no slots: of every permit it keeps the *era* object it belongs to, and an era
is thrown away whenever the circuit changes its state; an era keeps the instants of its outcomes in two lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from penstock.resilience.breaker import Breaker, Circuit, Permit, State
from penstock.testing import FakeClock

T = TypeVar("T")

WINDOW = 10.0  # in ten slots of a second
ORIGIN = "https://one.example"


@dataclass(eq=False)
class Era:
    """The time between two changes of state."""

    successes: list[float] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Held:
    permit: Permit
    era: Era
    given_back: bool = False


class DiskFull(Exception):
    """What a listener raises."""


def lately(instants: list[float], now: float) -> int:
    return sum(floor(then) > floor(now) - WINDOW for then in instants)


class BreakerMachine(RuleBasedStateMachine):
    permits: Bundle[Held] = Bundle("permits")

    @initialize(
        threshold=st.integers(1, 4),
        recovery=st.sampled_from([0.0, 0.0, 1.0, 7.5]),
        probes=st.integers(1, 3),
        rate=st.sampled_from([None, 0.4, 0.5, 1.0]),
        minimum=st.integers(1, 4),
    )
    def start(self, threshold: int, recovery: float, probes: int, rate: float | None, minimum: int) -> None:
        self.settings = Breaker(
            threshold,
            recovery,
            probes,
            failure_rate=rate,
            window=WINDOW,
            minimum_calls=minimum,
            on_change=self.told,
        )
        self.circuit = Circuit(self.settings, ORIGIN)
        self.clock = FakeClock()
        self.era = Era()
        self.word = "closed"
        self.in_a_row = 0
        self.held: set[Held] = set()
        self.probing: set[Held] = set()
        self.until = 0.0
        self.last_failure = ""
        self.changes: list[tuple[str, str]] = []
        self.heard: list[tuple[str, str]] = []
        self.disk_full = False

    def told(self, origin: str, before: State, after: State) -> None:
        assert origin == ORIGIN
        assert self.circuit.state is after
        self.heard.append((before.value, after.value))
        if self.disk_full:
            raise DiskFull

    def become(self, word: str) -> None:
        self.changes.append((self.word, word))
        self.era = Era()
        self.word = word
        self.probing.clear()
        if word == "closed":
            self.in_a_row = 0
        elif word == "open":
            self.until = self.clock() + self.settings.recovery_timeout

    def call(self, method: Callable[[], T]) -> T | DiskFull:
        """Call the circuit; the listener's error comes out of it exactly if it changed its state."""
        before = len(self.heard)
        try:
            answer = method()
        except DiskFull as error:
            assert self.disk_full
            assert len(self.heard) == before + 1
            return error
        assert not self.disk_full or len(self.heard) == before
        return answer

    @rule(target=permits)
    def take(self) -> Held | MultipleResults[Held]:
        if self.word == "open" and self.clock() >= self.until:
            self.become("half_open")
        full = len(self.probing) >= self.settings.half_open_probes
        refused = self.word == "open" or (self.word == "half_open" and full)
        answer = self.call(lambda: self.circuit.take(self.clock()))
        if isinstance(answer, DiskFull):
            return multiple()  # nobody has the permit, so it is not out
        assert (answer is None) == refused
        if answer is None:
            return multiple()
        held = Held(answer, self.era)
        self.held.add(held)
        if self.word == "half_open":
            self.probing.add(held)
        return held

    @rule(held=permits)
    def first_event(self, held: Held) -> None:
        if held in self.probing:
            self.become("closed")
            held.era = self.era
        self.call(lambda: self.circuit.began(held.permit))

    @rule(
        held=permits,
        outcome=st.sampled_from(["failure", "failure", "success", "neither", "cancelled"]),
        text=st.sampled_from(["refused", "lost"]),
    )
    def end(self, held: Held, outcome: str, text: str) -> None:
        counts = not held.given_back and held.era is self.era
        held.given_back = True
        self.held.discard(held)
        if counts:
            self.probing.discard(held)
            self.count(outcome, text)
        match outcome:
            case "success" | "failure" | "neither":
                self.call(lambda: self.circuit.settle(held.permit, outcome, self.clock(), failure=text))
            case _:
                self.call(lambda: self.circuit.release(held.permit))

    def count(self, outcome: str, text: str) -> None:
        if outcome == "success":
            self.in_a_row = 0
            self.era.successes.append(self.clock())
            if self.word == "half_open":
                self.become("closed")
        elif outcome == "failure":
            self.in_a_row += 1
            self.last_failure = text
            self.era.failures.append(self.clock())
            if self.word == "half_open" or self.in_a_row >= self.settings.failure_threshold or self.too_many_failed():
                self.become("open")

    def too_many_failed(self) -> bool:
        if self.settings.failure_rate is None:
            return False
        failed = lately(self.era.failures, self.clock())
        outcomes = failed + lately(self.era.successes, self.clock())
        return outcomes >= self.settings.minimum_calls and failed / outcomes >= self.settings.failure_rate

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.disk_full = full

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "circuit"):
            return
        now = self.clock()
        assert self.circuit.state.value == self.word
        assert self.circuit.failures == self.in_a_row
        assert self.circuit.last_failure == self.last_failure
        assert self.circuit.permits == len(self.held)
        left = max(0.0, self.until - now) if self.word == "open" else 0.0
        assert self.circuit.retry_after(now) == left
        assert self.circuit.forgettable(now) == (not self.held and left == 0)
        assert self.heard == self.changes


BreakerMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBreaker = BreakerMachine.TestCase
