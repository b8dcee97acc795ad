"""From a source to a destination: one piece in hand at a time.

The destination's request pulls, the source's response gives: a slow destination slows the source, a slow source lets
the destination wait, and nothing piles up between them. A source that breaks breaks the destination's request as
well, before its end: whoever receives it sees an upload that broke off, never a short file that looks whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from penstock.client.body import Piece
from penstock.client.builder import RequestBuilder
from penstock.client.client import AsyncClient
from penstock.client.middleware import Logging
from penstock.client.response import Response
from penstock.client.settings import Timeout
from penstock.engine.splice import Splice
from penstock.errors import ProtocolError, StreamTruncated
from penstock.resilience.retry import Retry
from penstock.transfer import memory
from penstock.transfer.destination import Multipart, Put
from penstock.transfer.source import OpenSource, Source, open_source

logger = logging.getLogger("penstock.transfer")

MAX_ANSWER_BYTES = 1024 * 1024
MIB = 1024 * 1024

# Redirects that took nothing of the upload. After a 302 or 303 it was taken, and there is a page to look at.
_ASKED_ELSEWHERE = (301, 307, 308)


@dataclass(frozen=True, slots=True)
class Report:
    """What a transfer did.

    Attributes:
        bytes: Bytes of the source that the destination took.
        seconds: From the first request to the destination's whole answer.
        attempts: Requests that were made for the source.
        path: "splice" when the kernel moved the bytes from socket to socket, "copy" when they came through here.
        digest: Hex digests of the bytes, by algorithm.
        memory_growth_kib: How much the process's peak resident memory grew over what it held before.
        source: Its url and status.
        destination: Its url, status and the body of its answer.
    """

    bytes: int
    seconds: float
    attempts: int
    path: Literal["splice", "copy"]
    digest: dict[str, str]
    memory_growth_kib: int
    source: dict[str, Any]
    destination: dict[str, Any]

    @property
    def bytes_per_second(self) -> float:
        """The mean over the whole transfer."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
            "bytes_per_second": round(self.bytes_per_second),
            "attempts": self.attempts,
            "path": self.path,
            "digest": self.digest,
            "memory_growth_kib": self.memory_growth_kib,
            "source": self.source,
            "destination": self.destination,
        }


@dataclass(slots=True)
class Passage:
    """A source on its way out: counted, digested and paced as the destination's request pulls it.

    Attributes:
        source: The opened source.
        digest: What each piece is fed to, or None.
        rate: Bytes per second at the most, or None.
        may_splice: Whether the kernel may move bytes that nobody looks at.
        whole: Whether the source came to its end.
        path: "splice" when the kernel moved bytes, else "copy".
    """

    source: OpenSource
    algorithm: str | None = None
    rate: float | None = None
    may_splice: bool = False
    whole: bool = False
    path: Literal["splice", "copy"] = "copy"
    digest: Any = field(default=None, init=False)
    _sent: int = 0
    _splice: Splice | None = None

    @property
    def sent(self) -> int:
        """Bytes that were pulled so far."""
        return self._sent + (self._splice.moved if self._splice is not None else 0)

    @property
    def content_type(self) -> str | None:
        return self.source.content_type

    @property
    def length(self) -> int | None:
        return self.source.length

    @property
    def replayable(self) -> bool:
        return self.source.replayable

    async def open(self) -> AsyncIterator[Piece]:
        self._sent = 0
        self.whole = False
        if self.may_splice and self.source.framed and self.algorithm is None and self.rate is None:
            async for piece in self._spliced():
                yield piece
            self.whole = True
            return
        self.digest = hashlib.new(self.algorithm) if self.algorithm else None
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        async for piece in self._checked():
            if self.digest is not None:
                self.digest.update(piece)
            for part in self._paced(piece):
                self._sent += len(part)
                yield part
                if self.rate is not None and (ahead := self._sent / self.rate - (loop.time() - started_at)) > 0:
                    await asyncio.sleep(ahead)
        self.whole = True

    async def _spliced(self) -> AsyncIterator[Piece]:
        """The source's pieces, one of which may stand for bytes that the kernel moves: of these none is too many."""
        async for piece in self.source.read_or_splice():
            if isinstance(piece, Splice):
                self.path = "splice"
                self._splice = piece
                yield piece
                self._splice = None
                self._sent += piece.moved
            else:
                yield piece
                self._sent += len(piece)
        if self._sent != self.length:
            raise self._wrong_length(f"{self._sent:,}")

    async def _checked(self) -> AsyncIterator[bytes]:
        """The source's pieces; the one that completes the promised length only when nothing came behind it.

        A short source must break before the form's end is written, and a long one before its length is reached: from
        there on the upload looks whole.
        """
        came, last = 0, b""
        async for piece in self.source.read():
            came += len(piece)
            if self.length is not None and came > self.length:
                raise self._wrong_length("more")
            if came == self.length:
                last += piece
            else:
                yield piece
        if self.length is not None and came != self.length:
            raise self._wrong_length(f"{came:,}")
        if last:
            yield last

    def _paced(self, piece: bytes) -> list[bytes]:
        """The piece in parts of a tenth of a second each; whole where there is no rate."""
        size = len(piece) if self.rate is None else max(1, int(self.rate / 10))
        return [piece] if len(piece) <= size else [piece[at : at + size] for at in range(0, len(piece), size)]

    def _wrong_length(self, came: str) -> StreamTruncated:
        return StreamTruncated(
            f"{self.source.shown}: it was to have {self.length:,} bytes and gave {came}; did it change while it was "
            "read? The upload was broken off",
            url=self.source.shown,
        )


async def pipe(
    source: str | os.PathLike[str] | AsyncIterable[bytes] | Source,
    destination: str | Multipart | Put,
    *,
    field: str | None = None,
    filename: str | None = None,
    form: Mapping[str, str] | None = None,
    retries: int = 0,
    digest: str | None = None,
    rate: float | None = None,
    timeout: Timeout | float | None = None,
    on_progress: Callable[[Passage], None] | None = None,
    progress_interval: float = 0.25,
) -> Report:
    """Stream a source into a destination, in constant memory.

    The upload has a Content-Length when the source's is known, and is chunked otherwise. The source is asked for
    again after a failure, and picked up where it broke, ``retries`` times; the upload itself is sent once, unless the
    source can be read again and the destination said that it did nothing with it.

    Cancellation: both connections are closed at once; the destination sees an upload that broke off.

    Args:
        source: A URL, a path, an async iterable of bytes, or a `Source`.
        destination: A URL for a multipart upload, a `Multipart` or a `Put`.
        field: For a multipart destination: the file's field name.
        filename: For a multipart destination: the name that the receiver sees; else the source's.
        form: For a multipart destination: further fields.
        retries: Requests for the source after the first.
        digest: An algorithm of `hashlib` that the bytes are digested with on their way.
        rate: Bytes per second at the most.
        timeout: For both sides; a number is the total of each.
        on_progress: Called at an interval, and at the end, with how far it has come.
        progress_interval: Seconds between those calls.
    Raises:
        ValueError: An unknown digest, or a rate that is not positive.
        OSError: A file that cannot be read.
        StatusError: Either side refused.
        StreamTruncated: The source broke and could not be picked up again.
        PenstockError: All else that either request can meet; its message names the side by its URL.
    """
    if digest is not None and not _digests(digest):
        known = ", ".join(filter(_digests, sorted(hashlib.algorithms_guaranteed)))
        raise ValueError(f"there is no digest {digest!r}: use one of {known}")
    if rate is not None and rate <= 0:
        raise ValueError(f"a rate is more than 0 bytes per second, got {rate:g}")
    source = source if isinstance(source, Source) else Source(source)
    target = _destination(destination, field, filename, form)
    patience = Timeout() if timeout is None else Timeout.of(timeout)
    retry = Retry(retries=retries)
    async with (
        _client("server1", retry, patience) as client1,
        # The upload's answer may come long after its headers' time: the destination answers when it has everything.
        _client("server2", retry, replace(patience, first_event=patience.between_events)) as client2,
    ):
        held = memory.resident_kib()
        logger.info('Before streaming "RSS (KB)"=%d "Peak RSS (KB)"=%d', held, memory.peak_kib())
        started_at = time.monotonic()
        async with await open_source(source, client1) as opened:
            passage = Passage(opened, digest, rate, client2.can_splice_to(target.url))
            request = target.request(client2, filename or opened.filename, passage)
            with _Ticker(passage, on_progress, progress_interval):
                response = await _sent(request, passage)
            answer = await _answer(response)
    peak = memory.peak_kib()
    logger.info('After streaming "RSS (KB)"=%d "Peak RSS (KB)"=%d', memory.resident_kib(), peak)
    logger.info('Data streamed through pipeline bytes=%d megabytes="%.2f MB"', passage.sent, passage.sent / MIB)
    logger.info('Upload successful "server2Resp response"="%s"', " ".join(answer.split()))
    return Report(
        bytes=passage.sent,
        seconds=time.monotonic() - started_at,
        attempts=opened.attempts,
        path=passage.path,
        digest={digest: passage.digest.hexdigest()} if digest else {},
        memory_growth_kib=max(0, peak - held),
        source={"url": opened.shown, "status": opened.status},
        destination={"url": response.url, "status": response.status, "body": answer},
    )


def _digests(algorithm: str) -> bool:
    """Whether there is such a digest, and it has a size of its own (those of SHAKE have not)."""
    try:
        return hashlib.new(algorithm).digest_size > 0
    except ValueError:
        return False


def _destination(
    destination: str | Multipart | Put, field: str | None, filename: str | None, form: Mapping[str, str] | None
) -> Multipart | Put:
    if isinstance(destination, str):
        return Multipart(destination, field=field or "file", filename=filename, form=form or {})
    if field is not None or form is not None or (filename is not None and isinstance(destination, Put)):
        raise ValueError(
            "field=, filename= and form= belong to a destination that is a URL; put them into Multipart(…)"
        )
    return destination


def _client(name: str, retry: Retry, timeout: Timeout) -> AsyncClient:
    return AsyncClient(name=name, retry=retry, timeout=timeout).use(Logging(logger))


async def _sent(request: RequestBuilder, passage: Passage) -> Response:
    """The destination's response, once it has taken the whole source."""
    response = await request.send()
    try:
        if response.status >= 400:
            raise response.status_error(await response.beginning())
        if response.status in _ASKED_ELSEWHERE:
            elsewhere = response.headers.get("location", "another URL")
            raise ProtocolError(
                f"{response.url} answered {response.status}: it took nothing; upload to {elsewhere} instead",
                url=response.url,
            )
        if not passage.whole:
            raise ProtocolError(
                f"{response.url} answered {response.status} after {passage.sent:,} bytes, before the source's end: "
                "it cannot have taken the whole",
                url=response.url,
            )
    except BaseException:
        await response.aclose()
        raise
    return response


async def _answer(response: Response) -> str:
    body = await response.read(max_bytes=MAX_ANSWER_BYTES)
    return body.decode("utf-8", "replace")


class _Ticker:
    """Tells how far a passage has come: at an interval, and once more at the end."""

    def __init__(self, passage: Passage, callback: Callable[[Passage], None] | None, interval: float) -> None:
        self._passage = passage
        self._callback = callback
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._callback is not None:
            self._tick(self._callback)

    def _tick(self, callback: Callable[[Passage], None]) -> None:
        callback(self._passage)
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick, callback)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None and self._callback is not None:
            self._timer.cancel()
            self._callback(self._passage)
