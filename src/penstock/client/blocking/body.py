"""A request's body that is an iterable or an open file: its pieces are asked of the thread that waits.

One piece at a time, when the connection takes it: nothing is read ahead. While nobody waits (the server answered early,
and the caller is busy with the answer) the body pauses; it goes on when the answer is read on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from functools import partial
from typing import IO, Any, TypeAlias

from penstock.client.blocking.call import CALLER
from penstock.client.blocking.response import BlockingResponse
from penstock.client.body import READ_SIZE

Content: TypeAlias = "BlockingResponse | os.PathLike[str] | bytes | Iterable[bytes] | IO[bytes]"


def on_the_loop(content: Any, length: int | None) -> tuple[Any, int | None]:
    """What stands for a content on the loop, and its length as far as it is known.

    A response is read there, without coming to this thread at all.

    Raises:
        TypeError: A file that was opened as text.
    """
    match content:
        case BlockingResponse():
            return content._link.inner, length
        case str() | bytes() | bytearray() | memoryview() | os.PathLike() | AsyncIterable():
            return content, length
        case _ if hasattr(content, "read"):
            return Pieces(_reads(content)), _left(content) if length is None else length
        case Iterator():
            return Pieces(content), length
        case Iterable():
            return Again(content), length
        case _:  # what is no body is refused where all bodies are made
            return content, length


class Pieces:
    """An iterator's pieces, for the loop; once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        errand = _Piece(self._pieces)
        CALLER.get().do(errand)
        piece = await errand.answer
        if piece is None:
            raise StopAsyncIteration
        return piece


class Again:
    """An iterable's pieces, for the loop; from the beginning each time, so that several may send it at once."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return Pieces(_lazily(self._pieces))


def _lazily(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """To begin an iterable may be work too, a query say: so it is done where the first piece is asked for."""
    yield from pieces


class _Piece:
    """The errand to take one piece, None at the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes | None] = self._loop.create_future()

    def run(self) -> Exception | None:
        if self.answer.done():  # cancelled meanwhile: nobody wants it
            return None
        try:
            piece = next(self._pieces, None)
            if piece is not None and type(piece) is not bytes:
                piece = bytes(memoryview(piece))
        except Exception as error:
            self._loop.call_soon_threadsafe(self._settle, None, error)
            return error
        self._loop.call_soon_threadsafe(self._settle, piece, None)
        return None

    def _settle(self, piece: bytes | None, error: Exception | None) -> None:
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(piece)
        else:
            self.answer.set_exception(error)


def _reads(file: Any) -> Iterator[bytes]:
    if isinstance(file.read(0), str):
        raise TypeError(f"a body is bytes, and {file!r} was opened as text: open it with open(…, 'rb')")
    return iter(partial(file.read, READ_SIZE), b"")


def _left(file: Any) -> int | None:
    """How many bytes a file has from where it stands; None if it cannot tell."""
    try:
        if not file.seekable():
            return None
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError):
        return None
    return max(0, end - here) if isinstance(end, int) else None
