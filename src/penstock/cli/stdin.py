"""Stdin, read in the event loop."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator

import typer

_SIZE = 256 * 1024


def stdin() -> AsyncIterator[bytes]:
    """Stdin's bytes as they come.

    Raises:
        typer.BadParameter: It is closed.
    """
    if sys.stdin is None:
        raise typer.BadParameter("stdin is closed: redirect something to it, or name a file")
    return _pieces()


async def _pieces() -> AsyncIterator[bytes]:
    """A pipe is read as it becomes ready, so that an interrupt need not wait for the next byte."""
    descriptor = sys.stdin.fileno()
    mode = os.fstat(descriptor).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
    if not waits or sys.platform == "win32":  # a file, or a device such as /dev/null: no selector takes those
        while piece := await asyncio.to_thread(os.read, descriptor, _SIZE):
            yield piece
        return
    blocking = os.get_blocking(descriptor)
    reader = asyncio.StreamReader(limit=_SIZE)
    loop = asyncio.get_running_loop()
    end = os.fdopen(os.dup(descriptor), "rb", buffering=0)  # the transport closes it at the pipe's end
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), end)
    try:
        while piece := await reader.read(_SIZE):
            yield piece
    finally:
        transport.close()
        os.set_blocking(descriptor, blocking)  # it belongs to the open file: whoever shares it would be surprised
