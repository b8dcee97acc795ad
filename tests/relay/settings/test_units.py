from __future__ import annotations

import math

import pytest

from penstock.relay.settings.units import duration, size, spelled_duration, spelled_size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30),
        ("250ms", 0.25),
        ("5m", 300),
        ("1.5h", 5400),
        ("2d", 172_800),
        (" 90 s ", 90),
        ("30", 30),
        ("0", 0),
        (30, 30),
        (0.1, 0.1),
        (10**9, 1e9),
    ],
)
def test_durations(value: str | float, seconds: float) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "s", "-1s", "1e3", "5M", "5 min", "1s2", "nan", "inf", "٣s", "9" * 16, "900000d"),
        *(-1, math.nan, math.inf, 10**400, True),
    ],
)
def test_what_is_no_duration(value: str | float) -> None:
    with pytest.raises(ValueError, match='"30s"'):
        duration(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("64K", 65_536),
        ("16M", 16 * 1024**2),
        ("1.5GiB", 1.5 * 1024**3),
        ("2TB", 2 * 1024**4),
        ("5 m", 5 * 1024**2),
        ("4096", 4096),
        ("0", 0),
        (4096, 4096),
        (4096.0, 4096),
    ],
)
def test_sizes(value: str | float, expected: int) -> None:
    assert size(value) == expected
    assert isinstance(size(value), int)


@pytest.mark.parametrize(
    "value", ["", "M", "-1", "1e3", "5X", "nan", "٣", "999999999999999T", -1, 0.5, math.nan, math.inf, 10**400, True]
)
def test_what_is_no_size(value: str | float) -> None:
    with pytest.raises(ValueError, match='"64K"'):
        size(value)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.25, "250 ms"), (1, "1 s"), (90, "90 s"), (300, "5 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert spelled_duration(seconds) == words


@pytest.mark.parametrize(
    ("size_", "words"), [(0, "0 B"), (1000, "1000 B"), (65_536, "64 KiB"), (1 << 20, "1 MiB"), (3 << 40, "3 TiB")]
)
def test_sizes_in_words(size_: int, words: str) -> None:
    assert spelled_size(size_) == words
