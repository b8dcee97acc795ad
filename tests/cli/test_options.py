"""Values of options, read."""

from __future__ import annotations

import math

import pytest
import typer

from penstock.cli import options
from penstock.resilience.breaker import Breaker
from penstock.wire.terminator import PROFILES, Terminator


def test_headers() -> None:
    given = ["A: b", "X-Empty:", "Authorization:  Bearer a:b "]
    assert options.headers(given) == {"A": "b", "X-Empty": "", "Authorization": "Bearer a:b"}
    assert options.headers([]) == {}


def test_a_header_that_comes_again_adds_to_its_value() -> None:
    # RFC 9110 §5.3, and RFC 6265 §4.2.1 for the one field that is separated otherwise.
    assert options.headers(["Accept: a", "X: 1", "accept: b", "Accept:c"]) == {"Accept": "a, b, c", "X": "1"}
    assert options.headers(["Cookie: a=1", "cookie: b=2"]) == {"Cookie": "a=1; b=2"}


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


def test_method() -> None:
    assert [options.method(value) for value in (None, "get", "VERSION-CONTROL")] == [None, "get", "VERSION-CONTROL"]
    for value in ("", "GE T", "G\r\nET", "É"):
        with pytest.raises(typer.BadParameter, match="is not an HTTP method"):
            options.method(value)


def test_terminator() -> None:
    assert options.terminator("openai") is PROFILES["openai"]
    assert options.terminator("none") == Terminator()
    assert options.terminator("data:[DONE]") == Terminator(data="[DONE]")
    assert options.terminator("data: a:b ") == Terminator(data="a:b")
    assert options.terminator("event:message_stop") == Terminator(event="message_stop")
    for value in ("", "data", "data:", "event: ", "id:1", "OpenAI"):
        with pytest.raises(typer.BadParameter, match="openai-responses"):
            options.terminator(value)


def test_breaker() -> None:
    assert options.breaker("5") == Breaker(failure_threshold=5)
    assert options.breaker("3/30") == Breaker()
    assert options.breaker(" 1/0.5") == Breaker(failure_threshold=1, recovery_timeout=0.5)
    for value in ("", "0", "0/30", "3/", "/30", "-1", "1e3", "3/inf", "3/3/3", "٣"):
        with pytest.raises(typer.BadParameter, match="as 3/30"):
            options.breaker(value)
