from __future__ import annotations

from typing import Any

import pytest

from penstock.resilience.breaker import Breaker, Circuit, Permit, State
from penstock.testing import FakeClock

TIMEOUT = 30.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


def taken(circuit: Circuit, clock: FakeClock) -> Permit:
    permit = circuit.take(clock())
    assert permit is not None
    return permit


def fail(circuit: Circuit, clock: FakeClock, times: int = 1) -> None:
    for _ in range(times):
        circuit.settle(taken(circuit, clock), "failure", clock())


def opened(clock: FakeClock, **settings: Any) -> Circuit:
    circuit = Circuit(Breaker(failure_threshold=3, recovery_timeout=TIMEOUT, **settings))
    fail(circuit, clock, 3)
    return circuit


def half_open(clock: FakeClock, **settings: Any) -> tuple[Circuit, Permit]:
    circuit = opened(clock, **settings)
    clock.advance(TIMEOUT)
    probe = taken(circuit, clock)
    assert circuit.state is State.HALF_OPEN
    return circuit, probe


def state(circuit: Circuit) -> State:
    return circuit.state


# -- CLOSED


def test_closed_gives_permits_and_opens_at_the_threshold_of_failures_in_a_row(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=3))
    for count in (1, 2):
        fail(circuit, clock)
        assert (state(circuit), circuit.failures) == (State.CLOSED, count)
    fail(circuit, clock)
    assert (state(circuit), circuit.failures) == (State.OPEN, 3)


def test_closed_a_success_takes_the_count_back_to_zero(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=3))
    fail(circuit, clock, 2)
    circuit.settle(taken(circuit, clock), "success", clock())
    assert circuit.failures == 0
    fail(circuit, clock, 2)
    assert circuit.state is State.CLOSED


def test_closed_what_is_neither_counts_for_nothing(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=3))
    fail(circuit, clock, 2)
    circuit.settle(taken(circuit, clock), "neither", clock())
    circuit.release(taken(circuit, clock))
    assert (circuit.state, circuit.failures) == (State.CLOSED, 2)


# -- OPEN


def test_open_refuses_until_the_recovery_timeout_has_passed(clock: FakeClock) -> None:
    circuit = opened(clock)
    assert circuit.take(clock()) is None
    assert circuit.retry_after(clock()) == TIMEOUT
    clock.advance(TIMEOUT - 1)
    assert circuit.take(clock()) is None
    assert circuit.retry_after(clock()) == 1
    clock.advance(1)
    assert circuit.retry_after(clock()) == 0
    assert state(circuit) is State.OPEN, "only somebody who asks makes it half open"
    assert circuit.take(clock()) is not None
    assert state(circuit) is State.HALF_OPEN


@pytest.mark.parametrize("late", ["success", "failure", "neither"])
def test_open_outcomes_of_the_old_generation_are_dropped(clock: FakeClock, late: Any) -> None:
    circuit = Circuit(Breaker(failure_threshold=2, recovery_timeout=TIMEOUT))
    old = taken(circuit, clock)
    fail(circuit, clock, 2)
    clock.advance(10)
    circuit.settle(old, late, clock())
    assert circuit.state is State.OPEN
    assert circuit.failures == 2
    assert circuit.retry_after(clock()) == TIMEOUT - 10, "a late failure does not start the timeout anew"


# -- HALF_OPEN


@pytest.mark.parametrize("probes", [1, 3])
def test_half_open_admits_so_many_probes_at_a_time(clock: FakeClock, probes: int) -> None:
    circuit, _ = half_open(clock, half_open_probes=probes)
    for _ in range(probes - 1):
        assert circuit.take(clock()) is not None
    assert circuit.take(clock()) is None
    assert circuit.retry_after(clock()) == 0


def test_half_open_a_failure_opens_again_from_now(clock: FakeClock) -> None:
    circuit, probe = half_open(clock)
    clock.advance(5)
    circuit.settle(probe, "failure", clock())
    assert circuit.state is State.OPEN
    assert circuit.retry_after(clock()) == TIMEOUT


def test_half_open_a_success_closes_and_forgets(clock: FakeClock) -> None:
    circuit, probe = half_open(clock)
    circuit.settle(probe, "success", clock())
    assert (state(circuit), circuit.failures) == (State.CLOSED, 0)
    fail(circuit, clock, 2)
    assert state(circuit) is State.CLOSED


@pytest.mark.parametrize("how", ["release", "neither"])
def test_half_open_a_cancelled_probe_gives_its_place_back(clock: FakeClock, how: str) -> None:
    circuit, probe = half_open(clock)
    assert circuit.take(clock()) is None
    if how == "release":
        circuit.release(probe)
    else:
        circuit.settle(probe, "neither", clock())
    assert circuit.state is State.HALF_OPEN
    assert circuit.take(clock()) is not None
    assert circuit.take(clock()) is None, "one place, not two"


def test_half_open_permits_from_before_say_nothing_and_free_nothing(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=1, recovery_timeout=TIMEOUT))
    failing, late, cancelled = (taken(circuit, clock) for _ in range(3))
    circuit.settle(failing, "failure", clock())
    clock.advance(TIMEOUT)
    taken(circuit, clock)
    circuit.settle(late, "success", clock())
    circuit.release(cancelled)
    assert circuit.state is State.HALF_OPEN
    assert circuit.take(clock()) is None


# -- a probe's first event


def test_a_probes_first_event_closes_and_its_end_counts_in_the_new_generation(clock: FakeClock) -> None:
    circuit, probe = half_open(clock)
    circuit.began(probe)
    assert (state(circuit), circuit.failures) == (State.CLOSED, 0)
    circuit.settle(probe, "failure", clock())
    assert (state(circuit), circuit.failures) == (State.CLOSED, 1)


def test_of_two_probes_the_one_that_comes_second_speaks_of_the_past(clock: FakeClock) -> None:
    circuit, first = half_open(clock, half_open_probes=2)
    second = taken(circuit, clock)
    circuit.began(first)
    circuit.began(second)
    circuit.settle(second, "failure", clock())
    assert (circuit.state, circuit.failures) == (State.CLOSED, 0)


def test_a_first_event_outside_of_half_open_changes_nothing(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=2, recovery_timeout=TIMEOUT))
    fail(circuit, clock)
    old = taken(circuit, clock)
    circuit.began(old)
    assert circuit.failures == 1
    fail(circuit, clock)
    circuit.began(old)
    assert state(circuit) is State.OPEN
    clock.advance(TIMEOUT)
    taken(circuit, clock)
    circuit.began(old)
    assert state(circuit) is State.HALF_OPEN


@pytest.mark.parametrize("wrong", [{"failure_threshold": 0}, {"half_open_probes": 0}, {"recovery_timeout": -1}])
def test_what_is_no_breaker_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a breaker needs"):
        Breaker(**wrong)
