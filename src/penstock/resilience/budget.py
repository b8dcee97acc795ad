"""Whether all retries together are still few enough.

A retry policy bounds one request; a budget bounds the client. When a server fails for everybody, three retries each
make four times the load, at the worst of times. A budget lets retries through as a share of the requests, so that a few
failures are all mended and an outage costs a fifth more load instead of three times more.

Every first attempt is told with `request`, every retry asked for with `withdraw`. A resume of a broken stream is a
retry here like any other: to the server it is one more request.

Source:
    Google SRE book, "Handling Overload"; Finagle's RetryBudget
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from penstock.resilience.window import SlidingCount


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """How many retries and resumes a client may make, all its requests together.

    In any window at most ``max(share × requests, floor × window)`` of them. With the defaults 100 in ten seconds, and
    more than that only beyond 500 requests in ten seconds.

    Attributes:
        share: Retries per request, where there are many requests.
        floor: Retries per second that are allowed however few the requests; they may come all at once in a window.
        window: Seconds that requests and retries are remembered, to a tenth of them.
    """

    share: float = 0.2
    floor: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        sound = self.share >= 0 and self.floor >= 0 and self.window > 0
        if not (sound and isfinite(self.share) and isfinite(self.floor) and isfinite(self.window)):
            raise ValueError(
                f"a retry budget needs share >= 0, floor >= 0 and window > 0; "
                f"got {self.share}, {self.floor}, {self.window}"
            )
        if 0 < self.floor * self.window < 1:
            raise ValueError(
                f"{self.floor} retries per second are less than one in a window of {self.window} s, "
                f"and would allow none: lengthen the window, or set floor to 0"
            )


class Budget:
    """What is left of a retry budget. Not thread-safe; the caller brings the time."""

    def __init__(self, settings: RetryBudget) -> None:
        self.settings = settings
        self._requests = SlidingCount(settings.window)
        self._retries = SlidingCount(settings.window)

    def request(self, now: float) -> None:
        """A request is tried for the first time.

        Args:
            now: A monotonic instant [s].
        """
        self._requests.add(now)

    def withdraw(self, now: float) -> bool:
        """Take one retry; False when there is none left, and then nothing is taken."""
        settings = self.settings
        allowed = max(settings.share * self._requests.total(now), settings.floor * settings.window)
        if self._retries.total(now) + 1 > round(allowed, 9):  # 0.29 × 100 is 28.999999999999996
            return False
        self._retries.add(now)
        return True
