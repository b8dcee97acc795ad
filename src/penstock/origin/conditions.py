"""Which part of a body a request wants: conditions and ranges, decided without I/O.

Source: RFC 9110 §13 (If-None-Match before Range and If-Range) and §14. One range is answered with 206; several would
need a multipart body, and a server may then send the whole one, as it may for a Range it does not understand.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_RANGE = re.compile(
    r"bytes[ \t]*=[ \t]*(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))[ \t]*", re.ASCII | re.IGNORECASE
)
_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Part(NamedTuple):
    """What to answer: a status, and the bytes from start to end (exclusive)."""

    status: int
    start: int = 0
    end: int = 0


def select(length: int, etag: str, *, range_: str | None, if_range: str | None, if_none_match: str | None) -> Part:
    """Decide on 200, 206, 304 or 416.

    Args:
        length: Of the whole body [bytes].
        etag: Strong, with its quotes.
        range_: The Range field, None where there is none or the method is not GET; so with the other two.
    """
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)):
        return Part(304)
    if range_ is None or (if_range is not None and if_range.strip() != etag):
        return Part(200, 0, length)
    match = _RANGE.fullmatch(range_.strip())
    if match is None:
        return Part(200, 0, length)
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(length - int(suffix), 0), length
    else:
        start = int(first)
        end = length if last is None else min(int(last) + 1, length)
        if last is not None and int(last) < start:
            return Part(200, 0, length)  # not a valid range, so not one at all
    return Part(206, start, end) if start < end else Part(416)
