"""Where the bytes come from.

A source is *opened* once and then read. A source behind HTTP that breaks in the middle can be picked up where it
broke, if it named a strong validator: the rest is asked for with ``Range`` and ``If-Range``, and only a 206 that
continues at that very byte, of that very version, is accepted. Whoever reads sees one unbroken body or an error.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.client.body import READ_SIZE, Piece
from penstock.client.client import AsyncClient
from penstock.client.response import Response
from penstock.errors import PenstockError, StatusError, StreamTruncated
from penstock.wire import headers as fields


@dataclass(frozen=True, slots=True)
class Source:
    """A source of bytes.

    Attributes:
        origin: A URL, a path, or any async iterable of bytes.
        headers: For a URL: sent with each request for it.
        length: Bytes in all, where the caller knows and the source cannot say.
        name: What to call it in messages, where it is neither a URL nor a path.
    """

    origin: str | os.PathLike[str] | AsyncIterable[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    name: str = ""

    @property
    def shown(self) -> str:
        """The source as it stands in a message."""
        if isinstance(self.origin, str | os.PathLike):
            return os.fspath(self.origin)
        return self.name or "the given stream"


class OpenSource:
    """An opened source: what is known of it before its bytes are read.

    Attributes:
        shown: The source as it stands in a message.
        filename: A safe name for what it holds.
        length: Bytes in all; None when that is not known.
        content_type: Its media type, if it has one.
        status: The response's status; None for what is no response.
        replayable: Whether `read` may be called again.
        attempts: Requests that were made for it.
        framed: Whether it cannot give more than its length, so that `read_or_splice` may be asked.
    """

    def __init__(self, shown: str, filename: str, length: int | None, *, content_type: str | None = None) -> None:
        self.shown = shown
        self.filename = filename
        self.length = length
        self.content_type = content_type
        self.status: int | None = None
        self.replayable = False
        self.framed = False
        self.attempts = 1

    def read(self) -> AsyncIterator[bytes]:
        """Its bytes, from the first to the last; raises if there are fewer."""
        raise NotImplementedError

    def read_or_splice(self) -> AsyncIterator[Piece]:
        """The same, but where the kernel can move bytes from the source's socket, a piece that stands for them.

        Only where the source's own framing ends at its length, so that no byte can come behind it.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def open_source(source: Source, client: AsyncClient) -> OpenSource:
    """Open a source through a client.

    Raises:
        StatusError: The server refused it.
        OSError: The file cannot be opened.
        PenstockError: No connection, and all else that a request can meet.
    """
    match source.origin:
        case str():
            response = await client.get(source.origin).headers(source.headers).send()
            if not 200 <= response.status < 300:  # a 304 has no body either
                raise response.status_error(await response.beginning())
            return _Remote(source, response, client)
        case os.PathLike():
            opening = asyncio.get_running_loop().run_in_executor(None, _File, Path(source.origin))
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_unseen)
                raise
        case _:
            return _Given(source.origin, source)


class _Remote(OpenSource):
    def __init__(self, source: Source, response: Response, client: AsyncClient) -> None:
        length = source.length if response.content_length is None else response.content_length
        super().__init__(response.url, response.filename, length, content_type=response.content_type or None)
        self.status = response.status
        self.framed = response.content_length is not None
        self.attempts = response.request.attempt
        self._source = source
        self._client = client
        self._response = response
        self._validator = _strong_validator(response)

    async def aclose(self) -> None:
        await self._response.aclose()

    async def read(self) -> AsyncIterator[bytes]:
        offset = 0
        while True:
            try:
                async for piece in self._response:
                    offset += len(piece)
                    yield piece
                return
            except PenstockError as error:
                failure = error
            self._response = await self._resumed(offset, failure)

    async def read_or_splice(self) -> AsyncIterator[Piece]:
        offset = 0
        while True:
            handed = self._response.splice()
            try:
                if handed is None:
                    async for piece in self._response:
                        offset += len(piece)
                        yield piece
                    return
                come, rest = handed
                if come:
                    offset += len(come)
                    yield come
                yield rest
                offset += rest.moved
                await self._response.spliced(rest)
                return
            except PenstockError as error:
                failure = error
            self._response = await self._resumed(offset, failure)

    async def _resumed(self, offset: int, failure: PenstockError) -> Response:
        """The rest of the body, asked for as often as the policy allows.

        Raises:
            StreamTruncated, StreamStalled, ProtocolError: The failure that broke the body, when there is no way.
        """
        retry = self._client.retry
        trouble = failure
        while self._validator is not None:
            draw = random.random()
            pause = retry.delay(trouble, attempt=self.attempts, may_repeat=True, now=time.time(), draw=draw)
            if pause is None or not self._client.exchange.may_retry(retry):
                break
            await asyncio.sleep(pause)
            self.attempts += 1
            headers = {**self._source.headers, "Range": f"bytes={offset}-", "If-Range": self._validator}
            try:
                response = await self._client.get(str(self._source.origin)).headers(headers).retry(0).send()
            except PenstockError as error:
                trouble = error
                continue
            if self._goes_on(response, offset):
                return response
            await response.aclose()
            trouble = response.status_error()
        if trouble is failure:
            raise failure
        # Never the trouble itself: this is raised within the upload, where it would pass for the upload's own.
        reason = str(trouble)
        if isinstance(trouble, StatusError) and trouble.status < 400:
            reason = f"the source answered {trouble.status} to a request for the rest (it may have changed)"
        raise StreamTruncated(f"{failure}; it could not be picked up from there: {reason}", url=self.shown) from trouble

    def _goes_on(self, response: Response, offset: int) -> bool:
        """Whether this is the rest of that very body, to its end."""
        said = response.headers.get("content-range", "")
        unit, _, place = said.partition(" ")
        span, _, total = place.partition("/")
        first, _, last = span.partition("-")
        return (
            response.status == 206
            and unit == "bytes"
            and first == str(offset)
            and (total == "*" or (total.isdigit() and last == str(int(total) - 1)))
            and response.headers.get("etag", self._validator) == self._validator
        )


class _File(OpenSource):
    """A file, opened once: the one that was there is read whatever takes its name, and a FIFO loses no writer."""

    def __init__(self, path: Path) -> None:
        try:
            # Without blocking: a FIFO opens at once, whether it has a writer or not. On a file it makes no difference.
            self._file = open(path, "rb", buffering=0, opener=_opened_at_once)  # noqa: SIM115 – Path has no opener
        except IsADirectoryError:
            raise IsADirectoryError(21, "is a directory; name a file", str(path)) from None
        status = os.fstat(self._file.fileno())
        regular = stat.S_ISREG(status.st_mode)
        self._fifo = stat.S_ISFIFO(status.st_mode)
        name = fields.safe_filename(path.name) or "file"
        super().__init__(str(path), name, status.st_size if regular else None)
        self.replayable = regular
        self._reading: asyncio.Future[bytes] | None = None

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file: now, or when the thread that reads it has done so, lest it find another behind its number."""
        if self._reading is None or self._reading.done():
            self._file.close()
        else:
            self._reading.add_done_callback(lambda _: self._file.close())

    async def read(self) -> AsyncIterator[bytes]:
        if self.replayable:
            self._file.seek(0)
        elif self._fifo:
            async for piece in self._read_fifo():
                yield piece
            return
        loop = asyncio.get_running_loop()
        while True:
            self._reading = loop.run_in_executor(None, self._file.read, READ_SIZE)
            piece = await asyncio.shield(self._reading)
            if not piece:
                return
            yield piece

    async def _read_fifo(self) -> AsyncIterator[bytes]:
        """A FIFO's bytes as they come. Before its first writer it reads as ended; after its last one it has ended."""
        loop = asyncio.get_running_loop()
        begun = False
        while True:
            try:
                piece = self._file.read(READ_SIZE)
            except BlockingIOError:
                piece = None
            if piece:
                begun = True
                yield piece
            elif piece is None:
                begun = True
                await _readable(loop, self._file.fileno())
            elif begun:
                return
            else:
                await asyncio.sleep(_FIFO_PAUSE)


_FIFO_PAUSE = 0.05


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    ready = loop.create_future()
    loop.add_reader(descriptor, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _close_unseen(opening: asyncio.Future[_File]) -> None:
    """Close a file that was opened for somebody who has been cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class _Given(OpenSource):
    def __init__(self, chunks: AsyncIterable[bytes], source: Source) -> None:
        super().__init__(source.shown, "file", source.length)
        self._chunks = aiter(chunks)

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()  # what it holds is let go of now, not when somebody forgets it

    def read(self) -> AsyncIterator[bytes]:
        return self._chunks


def _strong_validator(response: Response) -> str | None:
    """What identifies this very version of the source, byte for byte (RFC 9110 §8.8.3, §13.1.5)."""
    etag = response.headers.get("etag", "")
    if response.status != 200:  # a part, whose offsets are not ours
        return None
    if not etag.startswith('"') or response.headers.get("content-encoding", "identity") != "identity":
        return None
    return str(etag) if response.headers.get("accept-ranges", "") == "bytes" else None
