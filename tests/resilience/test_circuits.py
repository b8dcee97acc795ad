from __future__ import annotations

from typing import Any

import pytest

from penstock.resilience.breaker import Breaker, Circuit, State
from penstock.resilience.circuits import LOOKS, Circuits
from penstock.testing import FakeClock

SETTINGS = Breaker(failure_threshold=2, recovery_timeout=30.0)
HOST = "https://one.example"


def fail(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = circuit.take(now)
        assert permit is not None
        circuit.settle(permit, "failure", now, failure="it broke")


def names(circuits: Circuits) -> list[str]:
    return list(circuits.snapshot())


def test_there_is_one_circuit_for_each_origin() -> None:
    circuits = Circuits(SETTINGS)
    one = circuits.circuit(HOST, 0.0)
    other = circuits.circuit("https://two.example", 0.0)
    assert (one.origin, other.origin) == (HOST, "https://two.example")
    assert one is not other
    fail(one, 1.0, 2)
    assert circuits.circuit(HOST, 1.0) is one
    assert circuits.snapshot() == {"https://two.example": State.CLOSED, HOST: State.OPEN}


def test_the_last_failure_is_remembered_with_the_circuit() -> None:
    circuits = Circuits(SETTINGS)
    fail(circuits.circuit(HOST, 0.0), 0.0)
    assert circuits.circuit(HOST, 1.0).last_failure == "it broke"


def test_an_idle_circuit_is_forgotten_and_its_count_of_failures_with_it() -> None:
    circuits = Circuits(SETTINGS, idle=600.0)
    fail(circuits.circuit("https://failed.example", 0.0), 0.0)
    circuits.circuit("https://well.example", 1.0)
    circuits.circuit(HOST, 599.0)
    assert len(circuits) == 3
    circuits.circuit(HOST, 600.0)
    assert names(circuits) == ["https://well.example", HOST]
    circuits.circuit(HOST, 601.0)
    assert names(circuits) == [HOST]


def test_who_asks_for_an_idle_one_gets_a_new_one() -> None:
    circuits = Circuits(SETTINGS, idle=600.0)
    fail(circuits.circuit(HOST, 0.0), 5.0)
    assert circuits.circuit(HOST, 604.0).failures == 1
    assert circuits.circuit(HOST, 604.0 + 600.0).failures == 0


def test_use_is_a_permit_taken_or_an_outcome_told() -> None:
    circuits = Circuits(SETTINGS, idle=600.0)
    streaming = circuits.circuit(HOST, 0.0)
    permit = streaming.take(0.0)
    assert permit is not None
    streaming.settle(permit, "failure", 3600.0)
    circuits.circuit("https://two.example", 3601.0)
    assert circuits.circuit(HOST, 3602.0).failures == 1, "an hour's stream that broke a second ago is news"


def test_a_circuit_with_a_permit_out_is_kept_however_long() -> None:
    circuits = Circuits(SETTINGS, idle=600.0, max_origins=1)
    streaming = circuits.circuit(HOST, 0.0)
    permit = streaming.take(0.0)
    assert permit is not None
    circuits.circuit("https://two.example", 1e6)
    circuits.circuit("https://three.example", 2e6)
    assert circuits.circuit(HOST, 2e6) is streaming
    streaming.release(permit)
    assert circuits.circuit(HOST, 4e6) is not streaming


def test_an_open_circuit_is_kept_until_it_would_let_a_probe_through() -> None:
    circuits = Circuits(Breaker(failure_threshold=1, recovery_timeout=3600.0), idle=600.0, max_origins=1)
    down = circuits.circuit(HOST, 0.0)
    fail(down, 0.0)
    circuits.circuit("https://two.example", 3599.0)
    assert circuits.circuit(HOST, 3599.0) is down
    circuits.circuit("https://two.example", 3600.0)
    assert names(circuits) == ["https://two.example"]


def test_a_probe_keeps_its_circuit_and_a_cancelled_one_does_not() -> None:
    circuits = Circuits(SETTINGS, idle=600.0)
    down = circuits.circuit(HOST, 0.0)
    fail(down, 0.0, 2)
    probe = down.take(30.0)
    assert probe is not None
    assert circuits.circuit(HOST, 10_000.0) is down
    down.release(probe)
    assert down.state is State.HALF_OPEN
    assert circuits.circuit(HOST, 20_000.0) is not down


def test_beyond_the_maximum_the_longest_unused_makes_room() -> None:
    circuits = Circuits(SETTINGS, max_origins=3)
    for now, origin in enumerate("abcabd"):
        circuits.circuit(origin, float(now))
    assert names(circuits) == ["a", "b", "d"]


def test_nobody_makes_room_for_one_that_is_there() -> None:
    circuits = Circuits(SETTINGS, max_origins=2)
    for now, origin in enumerate("ababab"):
        circuits.circuit(origin, float(now))
    assert names(circuits) == ["a", "b"]


@pytest.mark.parametrize("busy", [0, 100, 1000])
def test_without_end_of_origins_only_those_that_must_stay_take_room(busy: int) -> None:
    circuits = Circuits(Breaker(failure_threshold=1), max_origins=100)
    kept = []
    for number in range(busy):
        kept.append(circuits.circuit(f"https://busy-{number}.example", 0.0))
        if number % 2:
            fail(kept[-1], 0.0)
        else:
            assert kept[-1].take(0.0) is not None
    largest = 0
    for number in range(5000):
        circuits.circuit(f"https://{number}.example", 1.0)
        largest = max(largest, len(circuits))
    assert all(circuits.circuit(circuit.origin, 1.0) is circuit for circuit in kept)
    assert largest <= max(100, busy) * (LOOKS + 1) / LOOKS + LOOKS


def test_each_origins_changes_are_told_with_its_name() -> None:
    told: list[tuple[str, State, State]] = []
    circuits = Circuits(Breaker(failure_threshold=1, on_change=lambda *change: told.append(change)))
    clock = FakeClock(5.0)
    for origin in ("https://a.example", "https://b.example"):
        fail(circuits.circuit(origin, clock()), clock())
    assert told == [
        ("https://a.example", State.CLOSED, State.OPEN),
        ("https://b.example", State.CLOSED, State.OPEN),
    ]


@pytest.mark.parametrize("wrong", [{"idle": -1.0}, {"max_origins": 0}, {"idle": float("nan")}])
def test_what_is_no_registry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="circuits need"):
        Circuits(SETTINGS, **wrong)
