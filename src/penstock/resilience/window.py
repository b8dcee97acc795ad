"""How often something happened lately, in constant memory.

The time is cut into slots of a tenth of the window, and the count is that of the present slot and the nine before it.
So an occurrence counts for more than nine tenths of the window, and never longer than the window.

==============================  ==================================================
the clock                       the count
==============================  ==================================================
goes on by less than a window   loses the slots that fell out of the window
jumps on by more                is zero
goes back by less than one      stays; what happens counts into the present slot
goes back by more               is zero, and begins anew from there
==============================  ==================================================

The last two are for clocks that should not, and do: two windows later, at the latest, the count is right again.
"""

from __future__ import annotations

SLOTS = 10


class SlidingCount:
    """The occurrences of the last so many seconds, to a tenth of them."""

    __slots__ = ("_counts", "_present", "_total", "_width")

    def __init__(self, window: float) -> None:
        self._width = window / SLOTS
        self._present = 0
        self._counts = [0] * SLOTS
        self._total = 0

    def add(self, now: float) -> None:
        """Count one occurrence."""
        self._move_to(now)
        self._counts[self._present % SLOTS] += 1
        self._total += 1

    def total(self, now: float) -> int:
        """The occurrences that the window still holds."""
        self._move_to(now)
        return self._total

    def clear(self) -> None:
        """Forget them all."""
        self._counts = [0] * SLOTS
        self._total = 0

    def _move_to(self, now: float) -> None:
        slot = int(now // self._width)
        passed = slot - self._present
        if -SLOTS < passed <= 0:
            return
        if 0 < passed < SLOTS:
            for fallen in range(self._present + 1, slot + 1):
                self._total -= self._counts[fallen % SLOTS]
                self._counts[fallen % SLOTS] = 0
        elif self._total:
            self.clear()
        self._present = slot
