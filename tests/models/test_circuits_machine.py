"""The registry of circuits against what is promised of it.

The model does not repeat how circuits are looked at. It knows of each one whether it must stay, may go or has to be a
new one, from the permits that it handed out itself and the instants at which it made a circuit open; and it checks each
promise after each call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.resilience.breaker import Breaker, Circuit, Permit, State
from penstock.resilience.circuits import Circuits
from penstock.testing import FakeClock

RECOVERY = 7.0
ORIGINS = st.sampled_from("abcdefgh")


@dataclass(eq=False)
class Known:
    """What the model knows of an origin."""

    circuit: Circuit
    used_at: float
    out: list[Permit] = field(default_factory=list)
    open_until: float = 0.0

    def must_stay(self, now: float) -> bool:
        return bool(self.out) or now < self.open_until


class CircuitsMachine(RuleBasedStateMachine):
    @initialize(idle=st.sampled_from([0.0, 5.0, 20.0]), most=st.integers(1, 5), threshold=st.integers(1, 2))
    def start(self, idle: float, most: int, threshold: int) -> None:
        self.circuits = Circuits(Breaker(threshold, RECOVERY), idle=idle, max_origins=most)
        self.clock = FakeClock()
        self.known: dict[str, Known] = {}

    def ask(self, origin: str) -> Known:
        now = self.clock()
        before = set(self.circuits.snapshot())
        circuit = self.circuits.circuit(origin, now)
        after = set(self.circuits.snapshot())
        known = self.known.get(origin)

        assert circuit.origin == origin
        assert origin in after
        assert after <= before | {origin}
        if known is not None:
            stays = known.must_stay(now) or now - known.used_at < self.circuits.idle
            assert (circuit is known.circuit) == stays
        if known is None or circuit is not known.circuit:
            known = self.known[origin] = Known(circuit, now)
        known.used_at = now

        gone = before - after
        for name in gone:
            assert not self.known.pop(name).must_stay(now), "it must stay"
        assert len(after) <= self.circuits.max_origins or all(
            self.known[name].must_stay(now) for name in after - {origin}
        ), "there was one that could have made room"
        return known

    @rule(origin=ORIGINS)
    def look(self, origin: str) -> None:
        self.ask(origin)

    @rule(origin=ORIGINS)
    def nobody_goes_who_is_neither_idle_nor_in_the_way(self, origin: str) -> None:
        now = self.clock()
        fresh = {name for name, known in self.known.items() if now - known.used_at < self.circuits.idle}
        room = len(self.known.keys() | {origin}) <= self.circuits.max_origins
        self.ask(origin)
        assert not room or fresh <= self.known.keys()

    @rule(origin=ORIGINS)
    def take(self, origin: str) -> None:
        known = self.ask(origin)
        permit = known.circuit.take(self.clock())
        if permit is not None:
            known.out.append(permit)

    @rule(origin=ORIGINS, outcome=st.sampled_from(["failure", "failure", "success", "cancelled"]))
    def end(self, origin: str, outcome: str) -> None:
        known = self.known.get(origin)
        if known is None or not known.out:
            return
        permit = known.out.pop(0)
        before = known.circuit.state
        match outcome:
            case "success" | "failure":
                known.circuit.settle(permit, outcome, self.clock())
                known.used_at = self.clock()
            case _:
                known.circuit.release(permit)
        if known.circuit.state is State.OPEN and before is not State.OPEN:
            known.open_until = self.clock() + RECOVERY

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def tells_what_it_holds(self) -> None:
        if hasattr(self, "circuits"):
            snapshot = self.circuits.snapshot()
            assert len(self.circuits) == len(snapshot)
            assert snapshot == {name: known.circuit.state for name, known in self.known.items()}


CircuitsMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestCircuits = CircuitsMachine.TestCase
