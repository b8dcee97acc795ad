"""What a request carries: bytes that can be sent again, or a stream that can be sent once."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from penstock.client.response import Response
from penstock.engine.splice import Splice
from penstock.errors import StatusError
from penstock.wire import multipart

READ_SIZE = 256 * 1024

FileSource: TypeAlias = "Response | os.PathLike[str] | bytes | AsyncIterable[bytes]"


Piece: TypeAlias = "bytes | Splice"
"""A piece of a request's body: bytes, or, where a body says so, what the kernel is to move in their place."""


class Body(Protocol):
    """The body of a request.

    Attributes:
        content_type: The media type, or None to say nothing.
        length: Bytes in all; None when that is not known and the body goes out chunked.
        replayable: Whether `open` may be called again, so that the request can be sent again.
    """

    @property
    def content_type(self) -> str | None: ...
    @property
    def length(self) -> int | None: ...
    @property
    def replayable(self) -> bool: ...
    def open(self) -> AsyncIterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class Bytes:
    """A body held in memory."""

    data: bytes
    content_type: str | None = None
    replayable: bool = True

    @property
    def length(self) -> int:
        return len(self.data)

    async def open(self) -> AsyncIterator[bytes]:
        yield self.data


@dataclass(slots=True, eq=False)
class Stream:
    """A body that is produced while it is sent; once."""

    chunks: AsyncIterable[bytes]
    length: int | None = None
    content_type: str | None = None
    replayable: bool = False
    _opened: bool = field(default=False, init=False, repr=False)

    def open(self) -> AsyncIterator[bytes]:
        chunks = aiter(self.chunks)
        if self._opened and chunks is self.chunks:
            # An iterator that has been read gives nothing more, and nothing would look like a whole, empty body.
            raise RuntimeError("this body was already sent: an iterator can be read once; make a new one")
        self._opened = True
        return chunks


@dataclass(frozen=True, slots=True)
class FileOnDisk:
    """A file, read in a thread piece by piece; its length is taken when the body is made."""

    path: Path
    length: int
    content_type: str | None = None
    replayable: bool = True

    async def open(self) -> AsyncIterator[bytes]:
        with await asyncio.to_thread(self.path.open, "rb", buffering=0) as file:
            while chunk := await asyncio.to_thread(file.read, READ_SIZE):
                yield chunk


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form: its parts' framing, and a body for each file."""

    form: multipart.Form
    files: tuple[Body | None, ...]

    @property
    def content_type(self) -> str:
        return self.form.content_type

    @property
    def length(self) -> int | None:
        return self.form.content_length

    @property
    def replayable(self) -> bool:
        return all(file is None or file.replayable for file in self.files)

    async def open(self) -> AsyncIterator[Piece]:
        for index, file in enumerate(self.files):
            yield self.form.head(index)
            if file is not None:
                async for chunk in file.open():
                    yield chunk
        yield self.form.tail


@dataclass(slots=True, eq=False)
class Outgoing:
    """A body on its way: while nobody has opened it, it can be sent again, whatever it is."""

    body: Body
    opened: bool = False

    @property
    def content_type(self) -> str | None:
        return self.body.content_type

    @property
    def length(self) -> int | None:
        return self.body.length

    @property
    def replayable(self) -> bool:
        return self.body.replayable or not self.opened

    def open(self) -> AsyncIterator[Piece]:
        self.opened = True
        return self.body.open()


def json_body(value: Any) -> Bytes:
    """The value as compact UTF-8 JSON; ValueError for NaN and infinities, TypeError for what JSON has no form for."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Bytes(text.encode(), content_type="application/json")


def content_body(content: FileSource | str, *, content_type: str | None = None, length: int | None = None) -> Body:
    """A raw body from whatever yields bytes.

    Args:
        content: Text, bytes, a path, a `Response` or any async iterable of bytes.
        content_type: The media type; guessed for a path, the response's own for a response.
        length: Bytes in all, where the caller knows and the source does not say.
    Raises:
        StatusError: The source is a response that is an error page, not the thing that was asked for.
        OSError: The path cannot be looked at.
    """
    match content:
        case str():
            return Bytes(content.encode(), content_type=content_type or "text/plain; charset=utf-8")
        case bytes():
            return Bytes(content, content_type=content_type)
        case Response():
            if content.status >= 400:
                raise StatusError(
                    f"{content.url} answered {content.status}: that is an error page, not what was asked for; "
                    "nothing was sent on",
                    status=content.status,
                    url=content.url,
                )
            known = content.content_length if length is None else length
            return Stream(content, known, content_type or content.headers.get("content-type"))
        case os.PathLike():
            path = Path(content)
            guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            return FileOnDisk(path, path.stat().st_size, content_type or guessed)
        case AsyncIterable():
            return Stream(content, length, content_type)
        case _:  # what a type checker would have refused
            raise TypeError(
                f"a body is bytes, text, a path, a Response or an async iterable of bytes; got {type(content).__name__}"
            )


def boundary() -> str:
    """A boundary that no body will hold by chance: 128 random bits."""
    return f"penstock-{secrets.token_hex(16)}"
