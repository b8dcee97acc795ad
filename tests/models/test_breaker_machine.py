"""The breaker against a model of it that is written from the design's words, not from the code.

The model keeps no generation numbers: it keeps, of every permit, the *era* object it belongs to, and an era is thrown
away whenever the circuit changes its state.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from penstock.resilience.breaker import Breaker, Circuit, Permit
from penstock.testing import FakeClock


class Era:
    """The time between two changes of state."""


@dataclass(eq=False)
class Held:
    permit: Permit
    era: Era


class BreakerMachine(RuleBasedStateMachine):
    permits: Bundle[Held] = Bundle("permits")

    @initialize(threshold=st.integers(1, 3), recovery=st.sampled_from([0.0, 0.0, 1.0, 7.5]), probes=st.integers(1, 3))
    def start(self, threshold: int, recovery: float, probes: int) -> None:
        self.settings = Breaker(threshold, recovery, probes)
        self.circuit = Circuit(self.settings)
        self.clock = FakeClock()
        self.era = Era()
        self.word = "closed"
        self.in_a_row = 0
        self.probing: set[Held] = set()
        self.until = 0.0

    def become(self, word: str) -> None:
        self.era = Era()
        self.word = word
        self.probing.clear()
        if word == "closed":
            self.in_a_row = 0
        elif word == "open":
            self.until = self.clock() + self.settings.recovery_timeout

    @rule(target=permits)
    def take(self) -> Held | MultipleResults[Held]:
        if self.word == "open" and self.clock() >= self.until:
            self.become("half_open")
        full = len(self.probing) >= self.settings.half_open_probes
        refused = self.word == "open" or (self.word == "half_open" and full)
        permit = self.circuit.take(self.clock())
        assert (permit is None) == refused
        if permit is None:
            return multiple()
        held = Held(permit, self.era)
        if self.word == "half_open":
            self.probing.add(held)
        return held

    @rule(held=permits)
    def first_event(self, held: Held) -> None:
        self.circuit.began(held.permit)
        if held in self.probing:
            self.become("closed")
            held.era = self.era

    @rule(held=consumes(permits), outcome=st.sampled_from(["failure", "failure", "success", "neither", "cancelled"]))
    def end(self, held: Held, outcome: str) -> None:
        match outcome:
            case "success" | "failure" | "neither":
                self.circuit.settle(held.permit, outcome, self.clock())
            case _:
                self.circuit.release(held.permit)
        if held.era is not self.era:
            return
        self.probing.discard(held)
        if outcome == "success":
            self.in_a_row = 0
            if self.word == "half_open":
                self.become("closed")
        elif outcome == "failure":
            self.in_a_row += 1
            if self.word == "half_open" or self.in_a_row >= self.settings.failure_threshold:
                self.become("open")

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "circuit"):
            return
        assert self.circuit.state.value == self.word
        assert self.circuit.failures == self.in_a_row
        left = max(0.0, self.until - self.clock()) if self.word == "open" else 0.0
        assert self.circuit.retry_after(self.clock()) == left


BreakerMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBreaker = BreakerMachine.TestCase
