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
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.client.body import READ_SIZE
from penstock.client.client import AsyncClient
from penstock.client.response import Response
from penstock.errors import PenstockError, StreamTruncated
from penstock.resilience.classify import retryable
from penstock.wire import headers as fields


@dataclass(frozen=True, slots=True)
class Source:
    """A source of bytes.

    Attributes:
        origin: A URL, a path, or any async iterable of bytes.
        headers: For a URL: sent with each request for it.
        length: Bytes in all, where the caller knows and the source cannot say.
    """

    origin: str | os.PathLike[str] | AsyncIterable[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None

    @property
    def shown(self) -> str:
        """The source as it stands in a message."""
        if isinstance(self.origin, str | os.PathLike):
            return os.fspath(self.origin)
        return "the given stream"


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
    """

    def __init__(self, shown: str, filename: str, length: int | None, *, content_type: str | None = None) -> None:
        self.shown = shown
        self.filename = filename
        self.length = length
        self.content_type = content_type
        self.status: int | None = None
        self.replayable = False
        self.attempts = 1

    def read(self) -> AsyncIterator[bytes]:
        """Its bytes, from the first to the last; raises if there are fewer."""
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
            try:
                response.raise_for_status()
            except BaseException:
                await response.aclose()
                raise
            return _Remote(source, response, client)
        case os.PathLike():
            return await asyncio.to_thread(_File, Path(source.origin))
        case _:
            return _Given(source.origin, source)


class _Remote(OpenSource):
    def __init__(self, source: Source, response: Response, client: AsyncClient) -> None:
        super().__init__(
            response.url, response.filename, response.content_length, content_type=response.content_type or None
        )
        self.status = response.status
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

    async def _resumed(self, offset: int, failure: PenstockError) -> Response:
        """The rest of the body; the failure itself when there is no way to get it."""
        retry = self._client.retry
        pause = retry.delay(failure, attempt=self.attempts, may_repeat=True, now=time.time(), draw=random.random())
        if pause is None or not retryable(failure) or self._validator is None:
            raise failure
        await asyncio.sleep(pause)
        self.attempts += 1
        headers = {**self._source.headers, "Range": f"bytes={offset}-", "If-Range": self._validator}
        response = await self._client.get(str(self._source.origin)).headers(headers).retry(0).send()
        if response.status == 206 and response.headers.get("content-range", "").startswith(f"bytes {offset}-"):
            return response
        await response.aclose()
        raise StreamTruncated(
            f"{failure}; it could not be picked up from there: the source answered {response.status} "
            "to a request for the rest (it may have changed)",
            url=self.shown,
        ) from failure


class _File(OpenSource):
    def __init__(self, path: Path) -> None:
        status = path.stat()
        regular = stat.S_ISREG(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(21, "is a directory; name a file", str(path))
        name = fields.safe_filename(path.name) or "file"
        super().__init__(str(path), name, status.st_size if regular else None)
        self.replayable = regular
        with path.open("rb"):
            pass  # that it cannot be read shall be known before anything is sent
        self._path = path

    async def read(self) -> AsyncIterator[bytes]:
        sent = 0
        with await asyncio.to_thread(self._path.open, "rb", buffering=0) as file:
            while piece := await asyncio.to_thread(file.read, READ_SIZE):
                sent += len(piece)
                yield piece
        if self.length is not None and sent != self.length:
            raise StreamTruncated(
                f"{self.shown} changed while it was read: it had {self.length:,} bytes and gave {sent:,}", url=None
            )


class _Given(OpenSource):
    def __init__(self, chunks: AsyncIterable[bytes], source: Source) -> None:
        super().__init__(source.shown, "file", source.length)
        self._chunks = chunks

    def read(self) -> AsyncIterator[bytes]:
        return aiter(self._chunks)


def _strong_validator(response: Response) -> str | None:
    """What identifies this very version of the source, byte for byte (RFC 9110 §8.8.3, §13.1.5)."""
    etag = response.headers.get("etag", "")
    if not etag.startswith('"') or response.headers.get("content-encoding", "identity") != "identity":
        return None
    return str(etag) if response.headers.get("accept-ranges", "") == "bytes" else None
