"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
import re
from typing import Annotated

import typer

from penstock.client.builder import FRAMING
from penstock.wire.headers import check_header

Json = Annotated[bool, typer.Option("--json", help="Tell everything as one JSON object per line on stdout.")]

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def headers(values: list[str]) -> dict[str, str]:
    """``Name: value`` pairs as a mapping; the last of a name wins.

    Raises:
        typer.BadParameter: One is no header.
    """
    result = {}
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
        result[name.strip()] = content.strip()
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


def listen(value: str) -> tuple[str, int]:
    """``HOST:PORT``, read."""
    from penstock.server.listen import parse_listen  # a server's; the commands that are none do without

    try:
        return parse_listen(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
