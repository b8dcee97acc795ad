"""A clock that a test moves by hand."""

from __future__ import annotations


class FakeClock:
    """Stands in for ``time.monotonic``: call it for the seconds, :meth:`advance` it to let time pass."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: Backwards: a monotonic clock never goes back.
        """
        if not seconds >= 0:
            raise ValueError(f"a monotonic clock cannot advance by {seconds} s")
        self._now += seconds
