"""Values of options, read."""

from __future__ import annotations

import math

import pytest
import typer

from penstock.cli import options


def test_headers() -> None:
    given = ["A: b", "X-Empty:", "Authorization:  Bearer a:b ", "A: c"]
    assert options.headers(given) == {"A": "c", "X-Empty": "", "Authorization": "Bearer a:b"}
    assert options.headers([]) == {}


@pytest.mark.parametrize("value", ["", "name", ": value", "na me: x", "a: b\r\nc: d", "a: b\0", "é: x"])
def test_what_is_no_header(value: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.headers([value])


def test_pairs() -> None:
    assert options.pairs(["a=b", "c=", "d=e=f", "a=z"]) == {"a": "z", "c": "", "d": "e=f"}
    for value in ("", "a", "=b"):
        with pytest.raises(typer.BadParameter, match="name=value"):
            options.pairs([value])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1),
        ("500K", 512_000),
        ("5M", 5 * 1024**2),
        ("5m", 5 * 1024**2),
        ("1.5MiB", 1.5 * 1024**2),
        ("2GB", 2 * 1024**3),
        (" 1T ", 1024**4),
        (None, None),
    ],
)
def test_size(value: str | None, expected: float | None) -> None:
    assert options.size(value) == expected


@pytest.mark.parametrize("value", ["", "0", "0.0K", "-1", "1e3", "5 M", "5X", "M", "nan", "٣", "9" * 16])
def test_what_is_no_size(value: str) -> None:
    with pytest.raises(typer.BadParameter, match="500K or 5M"):
        options.size(value)


def test_times() -> None:
    assert options.seconds(None) is None
    assert options.seconds(0.5) == options.grace(0.5) == 0.5
    assert options.grace(0) == 0
    for value in (-1.0, math.nan, math.inf):
        for read in (options.seconds, options.grace):
            with pytest.raises(typer.BadParameter):
                read(value)
    with pytest.raises(typer.BadParameter, match="above 0"):
        options.seconds(0)


def test_listen() -> None:
    assert options.listen("[::1]:80") == ("::1", 80)
    with pytest.raises(typer.BadParameter, match="HOST:PORT"):
        options.listen("80")
