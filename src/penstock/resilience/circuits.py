"""A breaker's circuits, one per origin, and when one is forgotten.

Whoever follows links or serves many tenants meets origins without end, and a circuit for each of them would be a leak.

===========================================  ============================================================
a circuit                                    is forgotten
===========================================  ============================================================
with a permit out                            never: its end is still to come
OPEN, its recovery_timeout not yet over      never: it would let everybody through
any other, unused for *idle* seconds         yes; failures of so long ago say nothing of today
any other                                    only for a newcomer beyond *max_origins*, the longest unused first
===========================================  ============================================================

So a count of failures that fell short of the threshold is lost where it is old, or where there are too many origins;
what an open circuit knows is not. Each call looks at a few circuits from the longest unused on, and moves those that
must stay to the back: a constant cost, and room that is bounded by *max_origins* or, where more must stay than that, by
little more than those.
"""

from __future__ import annotations

from collections import OrderedDict

from penstock.resilience.breaker import Breaker, Circuit, State

LOOKS = 16
"""Circuits that one call looks at, at the most."""


class Circuits:
    """The circuits of one client. Not thread-safe; the caller brings the time.

    Attributes:
        settings: The breaker that each circuit is made with.
        idle: Seconds without use after which a circuit may be forgotten.
        max_origins: Circuits beyond which one is forgotten for each that comes.
    """

    def __init__(self, settings: Breaker, *, idle: float = 600.0, max_origins: int = 1024) -> None:
        if not (idle >= 0 and max_origins >= 1):
            raise ValueError(f"circuits need idle >= 0 and max_origins >= 1; got {idle}, {max_origins}")
        self.settings = settings
        self.idle = idle
        self.max_origins = max_origins
        # Not a dict, which looks for its first member from the start again, past all that were ever taken out there.
        self._by_origin: OrderedDict[str, Circuit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_origin)

    def circuit(self, origin: str, now: float) -> Circuit:
        """The origin's circuit, a new one where there is none or none worth remembering.

        It is the origin's until the next call; a permit taken before that keeps it.

        Args:
            origin: Scheme, host and port, however the caller writes them.
            now: A monotonic instant [s].
        """
        circuit = self._by_origin.pop(origin, None)
        self._forget(now)
        if circuit is None or self._is_idle(circuit, now):
            circuit = Circuit(self.settings, origin)
        circuit.used_at = now
        self._by_origin[origin] = circuit
        return circuit

    def state(self, origin: str) -> State:
        """The state of the origin's circuit, which it does not touch: safe from any thread."""
        circuit = self._by_origin.get(origin)
        return State.CLOSED if circuit is None else circuit.state

    def snapshot(self) -> dict[str, State]:
        """The state of every circuit that is remembered; safe from any thread."""
        return {origin: circuit.state for origin, circuit in list(self._by_origin.items())}

    def _forget(self, now: float) -> None:
        """Make room for one, and let go of what is idle."""
        for _ in range(min(LOOKS, len(self._by_origin))):
            origin, circuit = next(iter(self._by_origin.items()))
            crowded = len(self._by_origin) >= self.max_origins
            if not crowded and now - circuit.used_at < self.idle:
                return
            if circuit.forgettable(now):
                del self._by_origin[origin]
            else:
                self._by_origin.move_to_end(origin)

    def _is_idle(self, circuit: Circuit, now: float) -> bool:
        return now - circuit.used_at >= self.idle and circuit.forgettable(now)
