"""When an item says that it was sent: the time that it carries, if it carries one.

Recognised are RFC 3339 dates with a time, times of day (``12:34:56.789``) and, under a name that says so, Unix times in
seconds or milliseconds. Only differences are used, so that clocks need not agree. A stream that replays what happened
long ago carries times too: those that cannot all lie within the request are not used.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from penstock.doctor.probe import Item
from penstock.doctor.rhythm import caught_up

_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?")
_TIME = re.compile(r"(?<![\d:.-])(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?![\d:])")
_UNIX = re.compile(
    r'"(?:ts|t|time|timestamp|created|created_at|sent|sent_at|date|now)"\s*:\s*"?(\d{10}(?:\d{3})?(?:\.\d{1,9})?)\b'
)
_SLACK = 1.0  # seconds by which the items' times may spread over more than the request took


class Stamp(NamedTuple):
    """A time in an item.

    Attributes:
        kind: Only stamps of one kind can be compared.
        at: In seconds, from whatever the kind counts from.
        resolution: The seconds that its last digit stands for.
    """

    kind: str
    at: float
    resolution: float


class Held(NamedTuple):
    """What the items' own times tell.

    Attributes:
        by: The seconds by which a later item caught up on an earlier one, less what the stamps cannot resolve.
        spread: The seconds over which the items say that they were sent.
        items: How many said so.
    """

    by: float
    spread: float
    items: int


def stamp(text: str) -> Stamp | None:
    """The first time that a text carries; None where it carries none."""
    if found := _DATE.search(text):
        written = found[0].replace(",", ".")
        digits = re.search(r"\.(\d+)", written)
        # datetime reads six digits at most in some versions, and the seventh says nothing here.
        written = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), written)
        try:
            when = datetime.fromisoformat(written)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return Stamp("date", when.timestamp(), _resolution(digits[1] if digits else ""))
    if found := _UNIX.search(text):
        whole, _, fraction = found[1].partition(".")
        scale = 1000 if len(whole) == 13 else 1
        return Stamp("unix", float(found[1]) / scale, _resolution(fraction) / scale)
    if found := _TIME.search(text):
        hours, minutes, whole = int(found[1]), int(found[2]), int(found[3])
        if hours > 23 or minutes > 59 or whole > 60:
            return None
        fraction = found[4] or ""
        at = 3600 * hours + 60 * minutes + whole + float(f"0.{fraction or 0}")
        return Stamp("time", at, _resolution(fraction))
    return None


def held(items: Sequence[Item]) -> Held | None:
    """What the items' own times tell; None where too few carry one, or the times are not those of sending."""
    read = [(item.at, found) for item in items if (found := stamp(item.text)) is not None]
    if len(read) < 3 or len({found.kind for _, found in read}) > 1:
        return None
    sent = [found.at for _, found in read]
    spread = sent[-1] - sent[0]
    if spread <= 0 or any(after < before for before, after in pairwise(sent)):
        return None
    if spread > read[-1][0] + _SLACK:
        return None
    resolution = max(found.resolution for _, found in read)
    return Held(max(0.0, caught_up([at - found.at for at, found in read]) - resolution), spread, len(read))


def _resolution(fraction: str) -> float:
    return float(10 ** -min(len(fraction), 6))
