"""Durations and sizes, as people write them: read, and written again.

========  ================================  ======================================================
what      is written                        and is
========  ================================  ======================================================
duration  ``250ms 30s 5m 2h 1d``, ``1.5``   seconds; a number without a unit is seconds
size      ``64K 16M 1.5GiB``, ``4096``      bytes; units are 1024-based, as curl's and rclone's are
========  ================================  ======================================================

Pure, and of the standard library only, so that a command may read its options here as well.
"""

from __future__ import annotations

import re

MOST_SECONDS = 1e9
MOST_BYTES = 1 << 60

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

# Small letters only: 5M is five megabytes to whoever writes it, and would be five minutes here.
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?(ms|s|m|h|d|)", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def duration(value: str | float) -> float:
    """Read a duration, in seconds, MOST_SECONDS at the most.

    Raises:
        ValueError: It is none; the message says how one is written.
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is not None and (seconds := float(match[1]) * _SECONDS[match[2] or "s"]) <= MOST_SECONDS:
            # To the microsecond, or 250ms would be a hair beside a quarter.
            return round(seconds, 6)
    elif not isinstance(value, bool) and 0 <= value <= MOST_SECONDS:
        return float(value)
    raise ValueError(f'{value!r} is not a duration: write seconds, or a number with a unit, as "250ms", "30s", "5m"')


def size(value: str | float) -> int:
    """Read a size, in bytes, MOST_BYTES at the most.

    Raises:
        ValueError: It is none; the message says how one is written.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is not None and (bytes_ := float(match[1]) * _BYTES[match[2].upper()]) <= MOST_BYTES:
            return int(bytes_)
    elif not isinstance(value, bool) and 0 <= value <= MOST_BYTES and value == int(value):
        return int(value)
    raise ValueError(f'{value!r} is not a size: write bytes, or a number with a unit, as "64K", "16M", "1G"')


def spelled_duration(seconds: float) -> str:
    """A duration in words, in the largest unit that says it in whole numbers: ``90 s``, ``5 min``, ``250 ms``."""
    if seconds and seconds < 1:
        return f"{seconds * 1000:g} ms"
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def spelled_size(size: int) -> str:
    """A size in words, in the largest unit that says it in whole numbers: ``64 KiB``, ``1000 B``."""
    for unit in "TGMK":
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]} {unit}iB"
    return f"{size} B"
