r"""What ``GET /file`` serves: lines that are generated as they are sent, or a real file.

The generated file is a function of its number of lines: its length, and the line at any offset, are arithmetic, so a
range in the middle of terabytes costs what one at the start costs. A line is ::

    Line {i}: This is a line in the large file.\n

which is 41 bytes and the digits of i. A block of a thousand lines that share their leading digits is one
``bytes.replace`` in a template; that makes several GB/s on one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from penstock.errors import PenstockError

PIECE = 256 * 1024
"""Bytes that are sent at a time."""

MAX_LINES = 10**12

_START, _END = b"Line ", b": This is a line in the large file.\n"
_FIXED = len(_START) + len(_END)
_BLOCK = 1000
_TEMPLATE = b"".join(b"%b\0%03d%b" % (_START, i, _END) for i in range(_BLOCK))

_T = TypeVar("_T")


class OriginError(PenstockError):
    """The sample servers cannot serve what they were told to: a missing file, a directory that is none."""


class FileShrank(PenstockError):
    """A file became shorter while it was sent: the response is broken off, for its length was promised."""


class Content(Protocol):
    """A body with a length, from which any range can be read."""

    name: str
    media_type: str
    length: int
    etag: str

    def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Bytes start to end (exclusive), each piece PIECE bytes but for the last."""
        ...

    def close(self) -> None:
        """Give back what is held open."""
        ...


def length_of(lines: int) -> int:
    """How many bytes so many lines are: 10,000,000 of them are 478,888,897.

    With d digits at most, every line has 1 digit, all but the first 9 have another, all but the first 99 another …
    """
    total = _FIXED * lines
    smaller = 0  # the numbers with fewer digits than we are counting
    while smaller < lines:
        total += lines - smaller
        smaller = smaller * 10 + 9
    return total


def line_at(offset: int) -> int:
    """The number of the line (from 1) that the byte at an offset belongs to."""
    first, width = 1, _FIXED + 1  # of the lines with as many digits as first
    while offset >= (size := 9 * first * width):
        offset -= size
        first, width = first * 10, width + 1
    return first + offset // width


class Lines:
    """So many generated lines."""

    name = "large.txt"
    media_type = "text/plain; charset=utf-8"

    def __init__(self, lines: int) -> None:
        self.length = length_of(lines)
        self.etag = f'"lines-{lines}"'

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes start to end, in blocks of a thousand lines. Constant memory, no scan from the beginning."""
        if start >= end:
            return
        block = line_at(start) // _BLOCK
        position = length_of(max(block * _BLOCK - 1, 0))
        while position < end:
            made = _block(block)
            yield made[max(start - position, 0) : end - position]
            position += len(made)
            block += 1

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        held: list[bytes] = []
        size = 0
        for block in self.blocks(start, end):
            held.append(block)
            size += len(block)
            if size >= PIECE:
                whole = b"".join(held)
                yield whole[:PIECE]
                held, size = [whole[PIECE:]], size - PIECE
                await asyncio.sleep(0)  # a fast reader never makes send() wait: others have their turn here
        if size:
            yield b"".join(held)

    def close(self) -> None:
        pass


def _block(number: int) -> bytes:
    """Lines 1000·number to 1000·number + 999; block 0 lacks line 0, and the leading zeros."""
    if number == 0:
        return b"".join(b"%b%d%b" % (_START, i, _END) for i in range(1, _BLOCK))
    return _TEMPLATE.replace(b"\0", b"%d" % number)


class RealFile:
    """A regular file, opened: the one that was there stays readable when another takes its name."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OriginError: It is not there, not readable, or not a regular file.
        """
        self.name = path.name
        self.media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for its writer
        except OSError as error:
            raise OriginError(
                f"cannot serve {path}: {os.strerror(error.errno or 0)}; give another with --file"
            ) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OriginError(f"cannot serve {path}: it is not a regular file; give another with --file")
        self.length = status.st_size
        self.etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        while start < end:
            piece = await in_thread(self._read, start, min(PIECE, end - start))
            yield piece
            start += len(piece)

    def close(self) -> None:
        os.close(self._fd)

    def _read(self, start: int, size: int) -> bytes:
        piece = os.pread(self._fd, size, start)
        while len(piece) < size:
            more = os.pread(self._fd, size - len(piece), start + len(piece))
            if not more:
                raise FileShrank(
                    f"{self.name} shrank while it was sent: {start + len(piece)} of {self.length} bytes are left;"
                    " the response was broken off"
                )
            piece += more
        return piece


async def in_thread(work: Callable[..., _T], *args: object) -> _T:
    """Run blocking work in a thread.

    Cancellation: the work runs to its end first, so that what it uses may be closed afterwards.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        await asyncio.wait({future})
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        future.exception()  # seen: asyncio need not report it
        raise
    return future.result()
