"""A circuit breaker: stop asking a server that fails, and find out with one probe when it is well again.

Theory of operation. A permit is taken before an attempt and given back exactly once, at the end of the *body*, with
what came of it. Permits carry the *generation* they were given in; every change of state begins a new generation,
and an outcome that arrives from an older one is dropped, because it speaks of a server that we have since judged.

=========  ==========================  ==========================  =====================================
state      take                        failure                     success
=========  ==========================  ==========================  =====================================
CLOSED     a permit                    count + 1; at the           count = 0
                                       threshold or the rate
                                       → OPEN
OPEN       refused until               (old generation: dropped)   (old generation: dropped)
           recovery_timeout passed,
           then → HALF_OPEN
HALF_OPEN  at most half_open_probes    → OPEN                      → CLOSED
=========  ==========================  ==========================  =====================================

`began` tells of a probe's first event. That already proves the server alive, so the circuit closes then, and the
probe's permit moves to the new generation, where its end will count like any other's: a stream may run for an hour,
and nobody should wait for that. A permit given back by `release` (the caller cancelled) says nothing of the server.

The threshold is for a server that is down: it fails every time. The rate is for one that is half well, whose successes
keep the count low. It is judged at each failure, over the outcomes of the present generation that the window holds.

`Breaker.on_change` is called last, when the change is complete and the permit is back, once for each change. So it may
use the circuit, and what it raises leaves through the method that made the change without undoing any of it; only
`take`, which then has nobody to give its permit to, takes it back. Whoever drives the circuit decides what becomes of
such an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from penstock.resilience.classify import Verdict
from penstock.resilience.window import SlidingCount


class State(Enum):
    """The circuit's state; the value is its name in metrics and messages."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a circuit opens and how it recovers.

    Attributes:
        failure_threshold: Consecutive failures that open it.
        recovery_timeout: Seconds that it stays open before a probe is let through.
        half_open_probes: Probes at a time while half open.
        failure_rate: The share of failures, over 0 and up to 1, that opens it as well; None for no such rule.
        window: Seconds that the share is taken over.
        minimum_calls: Outcomes that the window must hold for a share to mean anything.
        on_change: Called with origin, state before and state after at each change. It must not block.
    """

    failure_threshold: int = 3
    recovery_timeout: float = 30.0
    half_open_probes: int = 1
    failure_rate: float | None = None
    window: float = 60.0
    minimum_calls: int = 20
    on_change: Callable[[str, State, State], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.failure_threshold >= 1 and self.half_open_probes >= 1 and self.recovery_timeout >= 0):
            raise ValueError(
                "a breaker needs failure_threshold >= 1, half_open_probes >= 1 and recovery_timeout >= 0; got "
                f"{self.failure_threshold}, {self.half_open_probes}, {self.recovery_timeout}"
            )
        if self.failure_rate is not None and not 0 < self.failure_rate <= 1:
            raise ValueError(f"a breaker needs 0 < failure_rate <= 1, or None; got {self.failure_rate}")
        if not (0 < self.window < float("inf") and self.minimum_calls >= 1):
            raise ValueError(
                f"a breaker needs window > 0 and minimum_calls >= 1; got {self.window}, {self.minimum_calls}"
            )


@dataclass(slots=True, eq=False)
class Permit:
    """The right to make one attempt; given back once, and then of no generation any more."""

    generation: int | None


class Circuit:
    """The state machine of one origin's breaker. Not thread-safe; the caller brings the time.

    Attributes:
        settings: What it goes by.
        origin: Whose circuit it is, for `Breaker.on_change`.
        state: Where it stands.
        failures: Failures in a row.
        permits: Permits that are out, of whatever generation.
        last_failure: What the last failure that counted was, in words.
        opened_by: What opened it the last time, in words to come after "after"; "" until then.
        used_at: When it was last asked for a permit, or told an outcome.
    """

    def __init__(self, settings: Breaker, origin: str = "", *, now: float = 0.0) -> None:
        self.settings = settings
        self.origin = origin
        self.state = State.CLOSED
        self.failures = 0
        self.permits = 0
        self.last_failure = ""
        self.opened_by = ""
        self.used_at = now
        self._generation = 0
        self._opened_at = 0.0
        self._probes = 0
        self._outcomes = SlidingCount(settings.window)
        self._failed = SlidingCount(settings.window)

    def take(self, now: float) -> Permit | None:
        """Ask to make an attempt.

        Args:
            now: A monotonic instant [s].
        Returns:
            A permit to give back with `settle` or `release`; None while the circuit refuses.
        """
        before = self.state
        self.used_at = now
        if before is State.OPEN:
            self._opened_at = min(self._opened_at, now)  # a clock that went back must not make the wait longer
            if self.retry_after(now) > 0:
                return None
            self._enter(State.HALF_OPEN)
        if self.state is State.HALF_OPEN:
            if self._probes >= self.settings.half_open_probes:
                return None
            self._probes += 1
        self.permits += 1
        permit = Permit(self._generation)
        try:
            self._tell(before)
        except BaseException:
            self.release(permit)
            raise
        return permit

    def began(self, permit: Permit) -> None:
        """The attempt's first event came: a probe has proved the server alive."""
        if self.state is State.HALF_OPEN and permit.generation == self._generation:
            self._enter(State.CLOSED)
            permit.generation = self._generation
            self._tell(State.HALF_OPEN)

    def settle(self, permit: Permit, verdict: Verdict, now: float, *, failure: str = "") -> None:
        """Give a permit back with what the attempt's end says about the server.

        Args:
            permit: What `take` gave; one that was given back already is ignored.
            verdict: What `penstock.resilience.classify.verdict` says.
            now: A monotonic instant [s].
            failure: Where the verdict is "failure", what happened in words.
        """
        if verdict == "neither":
            self.release(permit)
            return
        self.used_at = now
        if not self._give_back(permit):
            return
        before = self.state
        self._outcomes.add(now)
        if verdict == "success":
            self.failures = 0
            if before is State.HALF_OPEN:
                self._enter(State.CLOSED)
        else:
            self.failures += 1
            self.last_failure = failure
            self._failed.add(now)
            if reason := self._reason_to_open(now):
                self.opened_by = reason
                self._opened_at = now
                self._enter(State.OPEN)
        self._tell(before)

    def release(self, permit: Permit) -> None:
        """Give a permit back without an outcome: the caller cancelled."""
        if self._give_back(permit) and self.state is State.HALF_OPEN:
            self._probes -= 1

    def retry_after(self, now: float) -> float:
        """Seconds until an open circuit lets a probe through; 0 when it would now."""
        if self.state is not State.OPEN:
            return 0.0
        timeout = self.settings.recovery_timeout
        return min(timeout, max(0.0, self._opened_at + timeout - now))

    def forgettable(self, now: float) -> bool:
        """Whether it can be thrown away: no permit is out, and it would refuse nobody."""
        return self.permits == 0 and self.retry_after(now) == 0

    def _reason_to_open(self, now: float) -> str:
        """Why the failure that was just counted opens the circuit; "" if it does not."""
        settings = self.settings
        if self.failures >= settings.failure_threshold:
            return f"{self.failures} failure{'' if self.failures == 1 else 's'} in a row"
        if self.state is State.HALF_OPEN:
            return "a failed probe"
        if settings.failure_rate is not None:
            outcomes, failed = self._outcomes.total(now), self._failed.total(now)
            if outcomes >= settings.minimum_calls and failed / outcomes >= settings.failure_rate:
                return f"{failed} failures in {outcomes} attempts within {settings.window:g} s"
        return ""

    def _give_back(self, permit: Permit) -> bool:
        """Whether the permit was still out, and speaks of the server as it is judged now."""
        generation, permit.generation = permit.generation, None
        if generation is None:
            return False
        self.permits -= 1
        return generation == self._generation

    def _enter(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._probes = 0
        self._outcomes.clear()
        self._failed.clear()
        if state is State.CLOSED:
            self.failures = 0

    def _tell(self, before: State) -> None:
        if self.state is not before and self.settings.on_change is not None:
            self.settings.on_change(self.origin, before, self.state)
