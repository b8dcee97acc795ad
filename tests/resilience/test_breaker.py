from __future__ import annotations

import math
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


# -- the failure rate


def rated(**settings: Any) -> Circuit:
    return Circuit(
        Breaker(**{"failure_threshold": 100, "failure_rate": 0.5, "window": 10.0, "minimum_calls": 4} | settings)
    )


def outcomes(circuit: Circuit, clock: FakeClock, history: str) -> None:
    for letter in history:
        circuit.settle(taken(circuit, clock), "failure" if letter == "F" else "success", clock())


@pytest.mark.parametrize(
    ("history", "state"),
    [
        ("FSF", State.CLOSED),
        ("FSSF", State.OPEN),
        ("SSSF", State.CLOSED),
        ("SFSSFF", State.OPEN),
        ("FSFS", State.CLOSED),
        ("FSFSF", State.OPEN),
    ],
)
def test_a_rate_opens_at_a_failure_once_there_are_enough_outcomes(clock: FakeClock, history: str, state: State) -> None:
    circuit = rated()
    outcomes(circuit, clock, history)
    assert circuit.state is state


@pytest.mark.parametrize("rate", [0.29, 0.3, 0.7, 1.0])
def test_a_rate_is_met_by_exactly_its_share(clock: FakeClock, rate: float) -> None:
    circuit = rated(failure_rate=rate, minimum_calls=100, failure_threshold=1000)
    failures = round(rate * 100)
    outcomes(circuit, clock, "S" * (100 - failures) + "F" * (failures - 1))
    assert state(circuit) is State.CLOSED
    fail(circuit, clock)
    assert state(circuit) is State.OPEN


def test_a_rate_is_of_the_window_only(clock: FakeClock) -> None:
    circuit = rated()
    outcomes(circuit, clock, "FF")
    clock.advance(10)
    outcomes(circuit, clock, "SSF")
    assert state(circuit) is State.CLOSED
    clock.advance(8)
    fail(circuit, clock)
    assert state(circuit) is State.OPEN


def test_what_is_neither_is_no_outcome(clock: FakeClock) -> None:
    circuit = rated()
    outcomes(circuit, clock, "FS")
    for _ in range(9):
        circuit.settle(taken(circuit, clock), "neither", clock())
        circuit.release(taken(circuit, clock))
    fail(circuit, clock)
    assert circuit.state is State.CLOSED, "three outcomes, and four are the minimum"


def test_a_rate_begins_anew_with_each_state(clock: FakeClock) -> None:
    circuit = rated(recovery_timeout=1.0, window=1000.0)
    outcomes(circuit, clock, "SSFF")
    assert state(circuit) is State.OPEN
    clock.advance(1)
    outcomes(circuit, clock, "S")
    outcomes(circuit, clock, "SSF")
    assert state(circuit) is State.CLOSED, "three outcomes, the probe's not among them"
    outcomes(circuit, clock, "SSF")
    assert state(circuit) is State.CLOSED, "two failures of six, those from before not among them"
    outcomes(circuit, clock, "FF")
    assert state(circuit) is State.OPEN


def test_without_a_rate_only_failures_in_a_row_count(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=3))
    outcomes(circuit, clock, "FFS" * 50)
    assert circuit.state is State.CLOSED


# -- what it tells


def test_what_opened_it_is_said_in_words(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=1))
    assert circuit.opened_by == ""
    fail(circuit, clock)
    assert circuit.opened_by == "1 failure in a row"
    assert opened(clock).opened_by == "3 failures in a row"
    circuit = rated(recovery_timeout=TIMEOUT)
    outcomes(circuit, clock, "FSFSF")
    assert circuit.opened_by == "3 failures in 5 attempts within 10 s"
    clock.advance(TIMEOUT)
    fail(circuit, clock)
    assert circuit.opened_by == "a failed probe"


def test_the_last_failure_that_counted_is_remembered(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=2))
    late = taken(circuit, clock)
    for text in ("refused", "lost"):
        circuit.settle(taken(circuit, clock), "failure", clock(), failure=text)
        assert circuit.last_failure == text
    circuit.settle(late, "failure", clock(), failure="of a time gone by")
    assert (circuit.state, circuit.last_failure) == (State.OPEN, "lost")


class Listener:
    """Writes down what it is told, looks at the circuit meanwhile, and fails if it is to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[tuple[str, State, State]] = []
        self.seen: list[tuple[State, int]] = []
        self.fails = fails
        self.circuit = Circuit(
            Breaker(failure_threshold=2, recovery_timeout=TIMEOUT, on_change=self.changed), "https://one.example"
        )

    def changed(self, origin: str, before: State, after: State) -> None:
        self.told.append((origin, before, after))
        self.seen.append((self.circuit.state, self.circuit.failures))
        if self.fails:
            raise OSError("no disk to write it down on")

    @property
    def steps(self) -> list[str]:
        return [f"{before.value} > {after.value}" for _, before, after in self.told]


def test_each_change_is_told_once_with_the_origin_when_it_is_complete(clock: FakeClock) -> None:
    listener = Listener()
    circuit = listener.circuit
    fail(circuit, clock, 2)
    assert circuit.take(clock()) is None
    clock.advance(TIMEOUT)
    fail(circuit, clock)
    clock.advance(TIMEOUT)
    probe = taken(circuit, clock)
    assert circuit.take(clock()) is None
    circuit.began(probe)
    circuit.began(probe)
    circuit.settle(probe, "success", clock())
    assert listener.steps == [
        "closed > open",
        "open > half_open",
        "half_open > open",
        "open > half_open",
        "half_open > closed",
    ]
    assert {origin for origin, _, _ in listener.told} == {"https://one.example"}
    assert [seen.value for seen, _ in listener.seen] == [step.rpartition(" ")[2] for step in listener.steps]


def test_a_listener_may_use_the_circuit(clock: FakeClock) -> None:
    taken_inside: list[Permit | None] = []

    def changed(origin: str, before: State, after: State) -> None:
        taken_inside.append(circuit.take(clock()))

    circuit = Circuit(Breaker(failure_threshold=1, recovery_timeout=TIMEOUT, on_change=changed))
    fail(circuit, clock)
    clock.advance(TIMEOUT)
    probe = taken(circuit, clock)
    assert taken_inside == [None, None], "open, and then its one probe is under way"
    circuit.settle(probe, "success", clock())
    assert (circuit.state, circuit.permits) == (State.CLOSED, 1)


def test_a_listener_that_raises_undoes_nothing(clock: FakeClock) -> None:
    listener = Listener(fails=True)
    circuit = listener.circuit
    fail(circuit, clock)
    with pytest.raises(OSError, match="no disk"):
        fail(circuit, clock)
    assert (state(circuit), circuit.failures, circuit.permits) == (State.OPEN, 2, 0)
    assert circuit.retry_after(clock()) == TIMEOUT

    clock.advance(TIMEOUT)
    with pytest.raises(OSError, match="no disk"):
        circuit.take(clock())
    assert (state(circuit), circuit.permits) == (State.HALF_OPEN, 0)
    probe = taken(circuit, clock)
    assert circuit.take(clock()) is None, "the place of the permit that nobody got is free, and only that"

    with pytest.raises(OSError, match="no disk"):
        circuit.began(probe)
    assert (state(circuit), circuit.permits) == (State.CLOSED, 1)
    circuit.settle(probe, "failure", clock())
    assert (circuit.failures, circuit.permits) == (1, 0)
    assert listener.steps == ["closed > open", "open > half_open", "half_open > closed"]


# -- permits


@pytest.mark.parametrize("again", ["success", "failure", "neither", "release", "began"])
def test_a_permit_is_given_back_once(clock: FakeClock, again: Any) -> None:
    circuit, probe = half_open(clock, half_open_probes=2)
    other = taken(circuit, clock)
    circuit.release(probe)
    match again:
        case "release":
            circuit.release(probe)
        case "began":
            circuit.began(probe)
        case _:
            circuit.settle(probe, again, clock())
    assert (circuit.state, circuit.permits) == (State.HALF_OPEN, 1)
    taken(circuit, clock)
    assert circuit.take(clock()) is None
    circuit.release(other)


def test_permits_that_are_out_are_counted_whatever_their_generation(clock: FakeClock) -> None:
    circuit = Circuit(Breaker(failure_threshold=1, recovery_timeout=TIMEOUT))
    late, failing = taken(circuit, clock), taken(circuit, clock)
    circuit.settle(failing, "failure", clock())
    assert circuit.permits == 1
    assert not circuit.forgettable(clock())
    circuit.settle(late, "success", clock())
    assert circuit.permits == 0
    assert not circuit.forgettable(clock()), "it is open"
    clock.advance(TIMEOUT)
    assert circuit.forgettable(clock())


def test_a_clock_that_goes_back_does_not_make_the_wait_longer() -> None:
    clock = FakeClock(1e6)
    circuit = opened(clock)
    assert circuit.retry_after(10.0) == TIMEOUT
    assert circuit.take(10.0) is None
    assert circuit.take(10.0 + TIMEOUT - 1) is None
    assert circuit.take(10.0 + TIMEOUT) is not None


# -- settings


def test_what_listens_is_no_part_of_what_a_breaker_is() -> None:
    listening = Breaker(on_change=lambda *_: None)
    assert listening == Breaker()
    assert hash(listening) == hash(Breaker())
    assert repr(listening) == repr(Breaker())


@pytest.mark.parametrize(
    "wrong",
    [
        {"failure_threshold": 0},
        {"half_open_probes": 0},
        {"recovery_timeout": -1},
        {"recovery_timeout": math.nan},
        {"failure_rate": 0.0},
        {"failure_rate": 1.1},
        {"failure_rate": math.nan},
        {"window": 0.0},
        {"window": math.inf},
        {"minimum_calls": 0},
    ],
)
def test_what_is_no_breaker_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a breaker needs"):
        Breaker(**wrong)
