"""A circuit breaker: stop asking a server that fails, and find out with one probe when it is well again.

Theory of operation. A permit is taken before an attempt and given back exactly once, at the end of the *body*, with
what came of it. Permits carry the *generation* they were given in; every change of state begins a new generation,
and an outcome that arrives from an older one is dropped, because it speaks of a server that we have since judged.

=========  ==========================  ==========================  =====================================
state      take                        failure                     success
=========  ==========================  ==========================  =====================================
CLOSED     a permit                    count + 1; at the           count = 0
                                       threshold → OPEN
OPEN       refused until               (old generation: dropped)   (old generation: dropped)
           recovery_timeout passed,
           then → HALF_OPEN
HALF_OPEN  at most half_open_probes    → OPEN                      → CLOSED
=========  ==========================  ==========================  =====================================

`began` tells of a probe's first event. That already proves the server alive, so the circuit closes then, and the
probe's permit moves to the new generation, where its end will count like any other's: a stream may run for an hour,
and nobody should wait for that. A permit given back by `release` (the caller cancelled) says nothing of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from penstock.resilience.classify import Verdict


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
    """

    failure_threshold: int = 3
    recovery_timeout: float = 30.0
    half_open_probes: int = 1

    def __post_init__(self) -> None:
        if self.failure_threshold < 1 or self.half_open_probes < 1 or self.recovery_timeout < 0:
            raise ValueError(
                "a breaker needs failure_threshold >= 1, half_open_probes >= 1 and recovery_timeout >= 0; got "
                f"{self.failure_threshold}, {self.half_open_probes}, {self.recovery_timeout}"
            )


@dataclass(slots=True, eq=False)
class Permit:
    """The right to make one attempt; given back once."""

    generation: int


class Circuit:
    """The state machine of one origin's breaker. Not thread-safe; the caller brings the time."""

    def __init__(self, settings: Breaker) -> None:
        self.settings = settings
        self.state = State.CLOSED
        self.failures = 0
        self._generation = 0
        self._opened_at = 0.0
        self._probes = 0

    def take(self, now: float) -> Permit | None:
        """Ask to make an attempt.

        Args:
            now: A monotonic instant [s].
        Returns:
            A permit to give back with `settle` or `release`; None while the circuit refuses.
        """
        if self.state is State.OPEN and self.retry_after(now) <= 0:
            self._change(State.HALF_OPEN)
        if self.state is State.OPEN:
            return None
        if self.state is State.HALF_OPEN:
            if self._probes >= self.settings.half_open_probes:
                return None
            self._probes += 1
        return Permit(self._generation)

    def began(self, permit: Permit) -> None:
        """The attempt's first event came: a probe has proved the server alive."""
        if self.state is State.HALF_OPEN and permit.generation == self._generation:
            self._change(State.CLOSED)
            permit.generation = self._generation

    def settle(self, permit: Permit, verdict: Verdict, now: float) -> None:
        """Give a permit back with what the attempt's end says about the server."""
        if verdict == "neither":
            self.release(permit)
        elif permit.generation != self._generation:
            return
        elif verdict == "success":
            self.failures = 0
            if self.state is State.HALF_OPEN:
                self._change(State.CLOSED)
        else:
            self.failures += 1
            if self.state is State.HALF_OPEN or self.failures >= self.settings.failure_threshold:
                self._opened_at = now
                self._change(State.OPEN)

    def release(self, permit: Permit) -> None:
        """Give a permit back without an outcome: the caller cancelled."""
        if self.state is State.HALF_OPEN and permit.generation == self._generation:
            self._probes -= 1

    def retry_after(self, now: float) -> float:
        """Seconds until an open circuit lets a probe through; 0 when it would now."""
        if self.state is not State.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self.settings.recovery_timeout - now)

    def _change(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._probes = 0
        if state is State.CLOSED:
            self.failures = 0
