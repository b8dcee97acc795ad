"""A request's body from the command line: ``-d BODY``, ``-d @FILE``, ``-d @-``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from penstock.cli.stdin import stdin
from penstock.client.client import AsyncClient
from penstock.transfer.source import Source, open_source


async def content(body: str) -> bytes:
    """The bytes that the value of ``--data`` stands for.

    Raises:
        OSError: The file cannot be read.
        typer.BadParameter: Stdin is closed.
    """
    if body == "@-":
        return b"".join([piece async for piece in stdin()])
    if body.startswith("@"):
        async with AsyncClient() as client, await open_source(Source(Path(body[1:])), client) as file:
            return b"".join([piece async for piece in file.read()])
    return os.fsencode(body)


def content_type(content: bytes, names: Iterable[str]) -> str | None:
    """What a body is, by its first byte; None where a header says so already.

    Args:
        content: The body.
        names: Those of the headers that were given.
    """
    if any(name.lower() == "content-type" for name in names):
        return None
    return "application/json" if content.lstrip()[:1] in (b"{", b"[", b'"') else "text/plain; charset=utf-8"
