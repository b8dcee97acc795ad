"""Stdout, written in the event loop: for a command that runs for long and must end when it is told to.

A reader that does not read fills the pipe, and a write would then hold up the whole process, signals included. So room
is waited for first, in the loop. And a reader that has left (``| head -1``) is noticed while there is nothing to write.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import select
import stat
import sys
from collections.abc import AsyncIterator
from typing import Any

from penstock.cli import output

_ROOM = 4096  # bytes that fit into a pipe which says that it has room: PIPE_BUF
_WIDEST = 6  # bytes that a character is written with at most: a lone surrogate, escaped
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_LOOK = 0.25  # seconds between two looks at whether the reader is still there


class Stdout:
    """Where data goes, at once.

    Each method waits for room, and raises as `output.text` does.

    Cancellation: what the reader has not made room for is not written any more, nor is anything else after it.

    Attributes:
        is_terminal: Whether a person reads; then nothing is written that a terminal would obey.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._poll: select.poll | None = None
        self._left = 0  # bytes that there is room for
        self._slice = sys.maxsize
        self._hurried = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if hasattr(select, "poll") and (self.is_terminal or _is_pipe()):
            self._poll = select.poll()
            self._poll.register(sys.stdout.fileno(), select.POLLOUT)
            self._slice = _ROOM

    async def line(self, line: str) -> None:
        """Write one line of data."""
        await self.text(line + "\n")

    async def text(self, text: str) -> None:
        """Write text as it is."""
        if self.is_terminal:
            text = output.harmless(text)
        size = self._slice // _WIDEST
        for start in range(0, len(text), size):
            some = text[start : start + size]
            if self._poll is not None:
                await self._room(len(some) * _WIDEST)
            output.text(some)

    async def raw(self, piece: bytes) -> None:
        """Write bytes as they are; to a terminal the text that they are."""
        if self.is_terminal:
            await self.text(self._decoder.decode(piece))
            return
        for start in range(0, len(piece), self._slice):
            some = piece[start : start + self._slice]
            if self._poll is not None:
                await self._room(len(some))
            output.raw(some)

    async def record(self, value: dict[str, Any]) -> None:
        """Write one JSON object on a line of its own."""
        await self.line(output.json_line(value))

    def hurry(self) -> None:
        """Wait for the reader no more: what it has no room for is lost on it."""
        self._hurried = True

    async def _room(self, size: int) -> None:
        """Wait until there is room for so many bytes; asked for anew only when what there was is used up."""
        self._left -= size
        if self._left >= 0 or self._poll is None:
            return
        pause = _FIRST_PAUSE
        try:
            while not self._poll.poll(0):
                if self._hurried:
                    self._give_up()
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except asyncio.CancelledError:
            self._give_up()
            raise
        self._left = 0 if self.is_terminal else _ROOM - size

    def _give_up(self) -> None:
        output.silence(sys.stdout)
        self._poll = None

    @contextlib.asynccontextmanager
    async def while_read(self) -> AsyncIterator[None]:
        """While it is entered, the reader's leaving is noticed also when nothing is written.

        Raises:
            ReaderLeft: It has left.
        """
        if self._poll is None:
            yield
            return
        loop = asyncio.get_running_loop()
        patience = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if self._has_left():
                patience.reschedule(loop.time())
            else:
                timer = loop.call_later(_LOOK, look)

        timer = loop.call_later(_LOOK, look)
        try:
            async with patience:
                yield
        except TimeoutError:
            if not patience.expired():
                raise
            raise output.ReaderLeft from None
        finally:
            timer.cancel()

    def _has_left(self) -> bool:
        left = select.POLLERR | select.POLLHUP | select.POLLNVAL
        return self._poll is not None and any(event & left for _, event in self._poll.poll(0))


def _is_pipe() -> bool:
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
