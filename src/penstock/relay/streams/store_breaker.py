"""A breaker on the store: while it does not answer, one request at a time finds that out, and no other waits for it.

A store that is down refuses at once, but one that hangs keeps whoever asks for seconds. So the first that it fails
opens the circuit, and from then on a request is told no at once, but for one each second that asks.

Only that it cannot be reached counts. A store that is full, or that only reads, says so without delay, and still has
what readers come for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.errors import LimitExceeded, StoreError
from penstock.eventlog.base import Producer
from penstock.resilience.breaker import Breaker, Circuit, State
from penstock.resilience.classify import Verdict

RECOVERY = 1.0
"""Seconds between two that ask while it does not answer."""

T = TypeVar("T")


class StoreBreaker:
    """The breaker of one relay's store."""

    def __init__(self) -> None:
        self._circuit = Circuit(Breaker(failure_threshold=1, recovery_timeout=RECOVERY), "store")

    @property
    def away(self) -> bool:
        """Whether it did not answer who asked last."""
        return self._circuit.state is not State.CLOSED

    async def ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store something.

        Cancellation: says nothing of the store.

        Raises:
            StoreError: It does not answer, as it did not before; or it refuses.
            LimitExceeded: It is full.
        """
        permit = self._circuit.take(time.monotonic())
        if permit is None:
            raise StoreError("the store did not answer a moment ago, and is not asked", reason="unavailable")
        verdict: Verdict = "neither"
        try:
            answer = await ask()
            if not isinstance(answer, Producer):  # a stream of our own is found without the store
                verdict = "success"
            return answer
        except StoreError as error:
            verdict = "failure" if error.reason == "unavailable" else "success"
            raise
        except LimitExceeded:
            verdict = "success"  # that it is full is an answer
            raise
        finally:
            self._circuit.settle(permit, verdict, time.monotonic())
