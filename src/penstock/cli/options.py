"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
import re
from typing import Annotated

import typer

from penstock.client.builder import FRAMING
from penstock.resilience.breaker import Breaker
from penstock.wire.headers import check_header
from penstock.wire.terminator import PROFILES, Terminator

Json = Annotated[bool, typer.Option("--json", help="Tell everything as one JSON object per line on stdout.")]

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def headers(values: list[str]) -> dict[str, str]:
    """``Name: value`` pairs as a mapping; a name that comes again adds to its value, as on several lines of one field.

    Raises:
        typer.BadParameter: One is no header.
    """
    result: dict[str, str] = {}
    names: dict[str, str] = {}  # as they were written first, whatever their case
    for value in values:
        name, colon, content = value.partition(":")
        if not colon:
            raise typer.BadParameter(f"{value!r} is not a header: write it as 'Name: value'")
        try:
            check_header(name.strip(), content.strip())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if name.strip().lower() in FRAMING:
            raise typer.BadParameter(f"{name.strip()} is not set by hand: it follows from the body")
        known = names.setdefault(name.strip().lower(), name.strip())
        between = "; " if known.lower() == "cookie" else ", "
        result[known] = f"{result[known]}{between}{content.strip()}" if known in result else content.strip()
    return result


def pairs(values: list[str]) -> dict[str, str]:
    """``name=value`` pairs as a mapping."""
    result = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{value!r} is not a form field: write it as name=value")
        result[name] = content
    return result


def size(value: str | None) -> float | None:
    """``5M`` as bytes; the units are 1024-based, as curl's and rclone's are."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{value!r} is not a rate: write a number of bytes per second, such as 500K or 5M")
    return float(match[1]) * _UNITS[match[2].upper()]


def seconds(value: float | None) -> float | None:
    """A timeout, checked."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a time to wait: write a number of seconds above 0")
    return value


def grace(value: float) -> float:
    """A time that may be none at all, checked."""
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a time to wait: write a number of seconds, 0 or more")
    return value


def method(value: str | None) -> str | None:
    """A request's method, checked."""
    if value is not None and not (value.isascii() and value.replace("-", "").isalnum()):
        raise typer.BadParameter(f"{value!r} is not an HTTP method")
    return value


def terminator(value: str) -> Terminator:
    """A profile by its name, or ``data:[DONE]`` or ``event:NAME`` as one's own."""
    kind, colon, what = value.partition(":")
    what = what.strip()
    if colon and what and kind in ("data", "event"):
        return Terminator(data=what) if kind == "data" else Terminator(event=what)
    if value not in PROFILES:
        raise typer.BadParameter(
            f"{value!r} ends no stream: it is {', '.join(PROFILES)}, or one's own as data:[DONE] or event:NAME"
        )
    return PROFILES[value]


def breaker(value: str) -> Breaker:
    """``3`` or ``3/30``: the failures in a row that open it, and the seconds that it stays open."""
    match = re.fullmatch(r"(\d{1,9})(?:/(\d{1,9}(?:\.\d{1,6})?))?", value.strip(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{value!r} is no breaker: write the failures that open it, and for how long, as 3/30")
    return Breaker(int(match[1])) if match[2] is None else Breaker(int(match[1]), float(match[2]))


def listen(value: str) -> tuple[str, int]:
    """``HOST:PORT``, read."""
    from penstock.server.listen import parse_listen  # a server's; the commands that are none do without

    try:
        return parse_listen(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
