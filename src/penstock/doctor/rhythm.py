"""What arrival times tell: bursts, silences, and what caught up.

Buffering delays the first of what it holds the most and the last the least, so that later items *catch up* on earlier
ones. A slow network, a far server or a slow start delays all alike, or more and more: nothing catches up. That is what
tells the two apart, whatever the clocks say::

    sent     |  |  |  |  |            sent     |  |  |  |  |
    held               |||||          delayed        |  |  |  |  |
    late by  4  3  2  1  0            late by  2  2  2  2  2
    caught up: 4                      caught up: 0

Pure: instants in, figures out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import NamedTuple

from penstock.doctor.probe import Item, Probe

WINDOW = 0.01
"""What comes within so many seconds came at once: less than a screen shows, more than a scheduler needs."""


class Burst(NamedTuple):
    """Items that came at once."""

    at: float
    size: int


def bursts(instants: Sequence[float], window: float = WINDOW) -> list[Burst]:
    """Group what came at once: each within the window of the one before."""
    found: list[Burst] = []
    last = 0.0
    for at in instants:
        if found and at - last <= window:
            found[-1] = Burst(found[-1].at, found[-1].size + 1)
        else:
            found.append(Burst(at, 1))
        last = at
    return found


def per_burst(items: Sequence[Item]) -> float:
    """How many items came at once, typically: the size of the burst that the median item is in."""
    groups = bursts([item.at for item in items])
    return float(median([group.size for group in groups for _ in range(group.size)])) if groups else 0.0


def regular_gap(found: Sequence[Burst]) -> float | None:
    """The typical gap between bursts, where the gaps are alike; None where they are not, or too few to say."""
    gaps = [after.at - before.at for before, after in pairwise(found)]
    if len(gaps) < 2:
        return None
    typical = median(gaps)
    return typical if all(0.6 * typical <= gap <= 1.6 * typical for gap in gaps) else None


def longest_silence(instants: Sequence[float], *, until: float) -> float:
    """The longest time without anything, from the first instant to `until`."""
    ends = [*instants[1:], until]
    return max((end - start for start, end in zip(instants, ends, strict=False)), default=0.0)


def caught_up(lags: Sequence[float]) -> float:
    """By how much a later item was less late than an earlier one, at the most."""
    return max((most - lag for most, lag in zip(accumulate(lags, max), lags, strict=True)), default=0.0)


def lags(direct: Probe, through: Probe) -> list[float]:
    """How much later than directly each item came through the gateway.

    Items are laid on each other by their order; bodies without items, or with others, by their bytes.
    """
    if direct.unit != through.unit or direct.unit == "piece":
        return _lags_of_bytes(direct, through)
    return [late.at - early.at for early, late in zip(direct.items, through.items, strict=False)]


def _lags_of_bytes(direct: Probe, through: Probe) -> list[float]:
    reached = list(accumulate(piece.size for piece in through.pieces))
    found = []
    for piece, offset in zip(direct.pieces, accumulate(piece.size for piece in direct.pieces), strict=True):
        index = bisect_left(reached, offset)
        if index < len(reached):
            found.append(through.pieces[index].at - piece.at)
    return found


def held_mid_line(probe: Probe, *, longer_than: float) -> int:
    """How often the rest of a line was waited for: a buffer went out because it was full."""
    return sum(piece.cut and after.at - piece.at > longer_than for piece, after in pairwise(probe.pieces))
