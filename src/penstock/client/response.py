"""One response as it comes in: headers at once, the body as it arrives, and exactly one end.

A response ends once: *complete* when the protocol's own end was seen, *failed* when the body broke, *cancelled* when
the reader left first. Whoever must know (the breaker, a concurrency limit, a log line) asks with `Response.on_end`.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import anyio
import httpx2

from penstock.client import seam
from penstock.client.request import Request
from penstock.engine.connection import Exchange, Patience
from penstock.engine.splice import Splice
from penstock.errors import DecodeError, LimitExceeded, PenstockError, StatusError, StreamStalled, StreamTruncated
from penstock.wire import coding
from penstock.wire import headers as fields

MAX_READ_BYTES = 64 * 1024 * 1024

TICK = 0.005
"""By how much a timer may go off before its instant: loops round their clocks to a millisecond [s]."""


@dataclass(frozen=True, slots=True)
class End:
    """How a body ended.

    Attributes:
        reason: "complete", "failed" or "cancelled".
        bytes: Body bytes that had come.
        seconds: From the request to the end.
        error: What broke it, when it failed.
    """

    reason: Literal["complete", "failed", "cancelled"]
    bytes: int
    seconds: float
    error: PenstockError | None = None


class Response:
    """A streaming response: iterate it for its bytes, or `read` it whole; close it if you do neither.

    As ``async with`` it closes itself. A body that breaks raises, always: a loop that ends means that all came.

    Attributes:
        status: The status code.
        reason: The reason phrase, possibly "".
        headers: The header fields, case-insensitive.
        url: The URL that answered, after redirects.
        http_version: "HTTP/1.1" or "HTTP/1.0".
        request: The request that it answers.
        bytes_received: Body bytes so far.
    """

    def __init__(self, raw: httpx2.Response, request: Request, *, started_at: float, deadline: float | None) -> None:
        self._raw = raw
        self._exchange: Exchange | None = raw.extensions.get("penstock.exchange")
        self._body: AsyncGenerator[bytes, None] | None = None
        self._decoded: AsyncGenerator[bytes, None] | None = None
        self._source: AsyncGenerator[bytes, None] | None = None
        self._started_at = started_at
        self._deadline = deadline
        self._content_by: float | None = None
        self._content_patience: float | None = None
        self._concluded = False
        self._callbacks: list[Callable[[End], None]] = []
        self._loop = asyncio.get_running_loop()
        self._on_first: Callable[[], None] | None = None
        self.end: End | None = None
        self.request = request
        self.status = raw.status_code
        self.reason = raw.reason_phrase
        self.headers = raw.headers
        self.url = seam.shown(str(raw.url))
        self.http_version = raw.http_version
        self.bytes_received = 0

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.url}>"

    @property
    def content_type(self) -> str:
        """The Content-Type field as it came, "" if none did."""
        return str(self.headers.get("content-type", ""))

    @property
    def content_length(self) -> int | None:
        """Bytes that iterating will give; None when that is not known beforehand."""
        value = self.headers.get("content-length", "")
        coded = not coding.is_identity(self.headers.get("content-encoding", ""))
        if coded or not (value.isascii() and value.isdigit()):
            return None
        return int(value)

    @property
    def is_framed(self) -> bool:
        """Whether anything but the connection's close says where the body ends."""
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    @property
    def filename(self) -> str:
        """A safe name for the body: Content-Disposition's, else the URL's last segment, else "file"."""
        named = fields.filename(self.headers.get("content-disposition", ""))
        last = unquote(urlsplit(self.url).path.rpartition("/")[2])
        return named or fields.safe_filename(last) or "file"

    def raise_for_status(self) -> Self:
        """Return self.

        Raises:
            StatusError: The status is 400 or above.
        """
        if self.status >= 400:
            raise self.status_error()
        return self

    def status_error(self, body: bytes = b"") -> StatusError:
        """The error for this status, with the beginning of the body to explain it."""
        said = " ".join(body[:300].decode("utf-8", "replace").split())
        advice = _ADVICE.get(self.status, "")
        if 300 <= self.status < 400 and self.request.method not in ("GET", "HEAD"):
            advice = (
                f"a {self.request.method} is not redirected: send it to {self.headers.get('location', 'where it says')}"
            )
        return StatusError(
            f"{self.request.method} {self.url} answered {self.status} {self.reason}".rstrip()
            + (f": {said}" if said else "")
            + (f"; {advice}" if advice else ""),
            status=self.status,
            url=self.url,
            retry_after=self.headers.get("retry-after"),
            body=body,
        )

    # -- the body ------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive, content codings undone. Once."""
        body = self.raw()
        if coding.is_identity(self.headers.get("content-encoding", "")):
            return body
        self._decoded = self._undone(body)
        return self._decoded

    def raw(self) -> AsyncGenerator[bytes, None]:
        """The body's bytes as they are on the wire, content codings left as they are. Once."""
        if self._exchange is not None:
            return self._once(self._from_engine(self._exchange))
        return self._once(self._from_httpx2(self._raw.aiter_raw()))

    @property
    def can_push(self) -> bool:
        """Whether `push` works: the engine carries this response."""
        return self._exchange is not None

    async def push(
        self,
        sink: Callable[[bytes], None],
        attach: Callable[[Callable[[], None], Callable[[], None]], None],
        *,
        chunk_sink: Callable[[bytes], None] | None = None,
    ) -> None:
        """Give the body's bytes, as they are on the wire, to a sink in the callbacks that bring them. Once.

        Returns at the body's end, and raises as iterating does. In between no task wakes and nothing is queued.

        Cancellation: the connection is closed.

        Args:
            sink: Called with each piece; must neither raise nor block.
            attach: Called once with two functions, to pause and to resume what comes.
            chunk_sink: Called in the sink's place with a piece that came as one chunk, framing and all.
        """
        exchange = self._exchange
        if exchange is None or self._body is not None or self.end is not None:
            raise RuntimeError(f"{self.url}: the body cannot be pushed: it was read, or another transport carries it")
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[PenstockError | None] = loop.create_future()
        self._be_patient(exchange)
        self._body = self._nothing()

        def on_end(error: PenstockError | None) -> None:
            if not ended.done():
                ended.set_result(error)

        exchange.push(sink, on_end, chunk_sink=chunk_sink, on_first=self._on_first)
        attach(exchange.pause, exchange.resume)
        try:
            error = await ended
        except BaseException:
            self.bytes_received = exchange.received
            await self._close("cancelled")
            raise
        self.bytes_received = exchange.received
        if error is None:
            await self._close("complete")
            return
        known = self._known(error)
        await self._close("failed", known)
        raise known from (None if known is error else error)

    def splice(self) -> tuple[bytes, Splice] | None:
        """Give the body to the kernel, to be moved into another request's body; None where that cannot be done. Once.

        What is returned is what has come of the body already, and the piece that stands for the rest. When the piece
        has been sent, `spliced` ends the response.
        """
        if self._exchange is None or self._body is not None or self.end is not None:
            return None
        if not coding.is_identity(self.headers.get("content-encoding", "")):
            return None
        self._be_patient(self._exchange)
        handed = self._exchange.splice()
        if handed is not None:
            self._body = self._nothing()
            self._began()
        return handed

    async def spliced(self, piece: Splice) -> None:
        """The piece has been sent, or its source broke: end the response as reading it would have.

        Raises:
            StreamTruncated, StreamStalled: The source broke.
        """
        assert self._exchange is not None
        self._began()
        if piece.failure is None:
            await self._close("complete")
            return
        known = self._known(piece.failure)
        await self._close("failed", known)
        raise known from piece.failure

    def _began(self) -> None:
        """The kernel does not tell of the first byte as it comes: tell of it when we look."""
        assert self._exchange is not None
        first = not self.bytes_received
        self.bytes_received = self._exchange.received
        if first and self.bytes_received and self._on_first is not None:
            self._on_first()

    def _once(self, source: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes, None]:
        if self._body is not None or self.end is not None:
            raise RuntimeError(f"{self.url}: the body was already read, or closed: it can be read once")
        self._body = self._pieces(source)
        return self._body

    async def read(self, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The whole body.

        Raises:
            LimitExceeded: It is larger than max_bytes; what had come is in `collected`.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in self:
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise LimitExceeded(
                        f"{self.url}: the body is larger than {max_bytes:,} bytes; iterate it instead of reading it",
                        limit="max_bytes",
                        url=self.url,
                        collected=pieces,
                    )
        finally:
            await self.aclose()
        return b"".join(pieces)

    async def beginning(self, *, max_bytes: int = 2048, seconds: float = 2.0) -> bytes:
        """What comes of the body within a bound and a moment, to explain a failure with; then let go of it."""
        body = b""
        try:
            async with asyncio.timeout(seconds):
                async for piece in self:
                    body += piece
                    if len(body) >= max_bytes:
                        break
        except (PenstockError, TimeoutError):
            pass  # an explanation that does not come explains nothing
        finally:
            await self.aclose()
        return body[:max_bytes]

    async def text(self) -> str:
        """The whole body as text, in the charset that it names, or UTF-8; what does not decode becomes U+FFFD."""
        body = await self.read()
        try:
            return body.decode(self._raw.charset_encoding or "utf-8", "replace")
        except (LookupError, ValueError):  # no such charset, or one of Python's own that cannot replace
            return body.decode("utf-8", "replace")

    async def json(self) -> Any:
        """The whole body as JSON.

        Raises:
            DecodeError: It is not JSON.
        """
        return _json(await self.read(), self.url)

    async def _undone(self, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The body with its content coding undone; one that ends before its coding does is truncated."""
        try:
            decoder = coding.Decoder(self.headers["content-encoding"])
            async for piece in body:
                for part in decoder.feed(piece):
                    yield part
                    await asyncio.sleep(0)  # few bytes may stand for many parts: timers and other tasks have their turn
            decoder.close()
        except PenstockError as error:
            known = error if error.url is not None else seam.located(error, self.url)
            await self.fail(known)
            raise known from None
        finally:
            await body.aclose()

    def _from_engine(self, exchange: Exchange) -> Callable[[], Awaitable[bytes]]:
        """Reads that go straight to the engine, whose own timers are as fair as ours."""
        self._be_patient(exchange)
        return exchange.read

    def _be_patient(self, exchange: Exchange) -> None:
        timeout = self.request.timeout
        exchange.allow(Patience(first=timeout.first_event, between=timeout.between_events), self._until)

    def expect_content(self, by: float | None, patience: float | None) -> None:
        """Wait for the body until an instant of the loop's clock, whatever comes of it; None for as long as before.

        For who knows what is content, and calls this whenever it has come. Not while a read waits.

        Args:
            by: The instant.
            patience: The seconds that it stands for, for the error's words.
        """
        self._content_by, self._content_patience = by, patience
        if self._exchange is not None:
            self._be_patient(self._exchange)

    @property
    def _until(self) -> float | None:
        if self._content_by is None or self._deadline is None:
            return self._deadline if self._content_by is None else self._content_by
        return min(self._content_by, self._deadline)

    def _from_httpx2(self, source: AsyncGenerator[bytes, None]) -> Callable[[], Awaitable[bytes]]:
        """Reads from any other transport, each with a timer: it stands still while our own reader is busy."""
        loop = asyncio.get_running_loop()
        timeout = self.request.timeout
        self._source = source

        async def read() -> bytes:
            if self._raw.is_closed:  # under us: what httpx2 gives then looks like a proper end
                raise StreamTruncated("the connection was closed")
            patience = timeout.between_events if self.bytes_received else timeout.first_event
            timer = asyncio.timeout_at(_earlier(loop.time(), patience, self._until))
            try:
                async with timer:
                    return await anext(source, b"")
            except TimeoutError:
                if not timer.expired():
                    raise  # the transport's own
                raise StreamStalled("the stream went silent") from None

        return read

    async def _pieces(self, read: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes, None]:
        overdue = None
        if self._deadline is not None:
            # A reader with enough to do never waits, and the timers look at those who wait.
            overdue = self._loop.call_at(self._deadline, _let_go, self._raw)
        try:
            while piece := await read():
                if not self.bytes_received and self._on_first is not None:
                    self._on_first()
                self.bytes_received += len(piece)
                yield piece
        except Exception as error:
            known = self._known(error)
            await self._close("failed", known)
            if known is error:
                raise
            raise known from error
        except BaseException:
            await self._close("cancelled")
            raise
        else:
            await self._close("complete")
        finally:
            if overdue is not None:
                overdue.cancel()
            if self._source is not None:
                with anyio.CancelScope(shield=True):
                    await self._source.aclose()

    async def _nothing(self) -> AsyncGenerator[bytes, None]:
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece

    def _known(self, error: Exception) -> PenstockError:
        """Our error, with the URL in it."""
        now = self._loop.time() + TICK
        if isinstance(error, StreamStalled) or (self._deadline is not None and now >= self._deadline):
            return StreamStalled(f"{self.url}: {self._patience_lost(now)}", url=self.url)
        return seam.translate(error, self.url, "body", received=self.bytes_received)

    def _patience_lost(self, now: float) -> str:
        timeout = self.request.timeout
        after = f"after {self.bytes_received:,} bytes"
        if self._deadline is not None and now >= self._deadline:
            return f"not finished within the total timeout of {timeout.total:g} s ({after})"
        if self._content_by is not None and now >= self._content_by:
            return (
                f"nothing but signs of life for {self._content_patience:g} s {after}; allow more with a longer timeout"
            )
        patience = timeout.between_events if self.bytes_received else timeout.first_event
        return f"the stream went silent for {patience:g} s {after}; allow more with a longer timeout"

    # -- the end -------------------------------------------------------------------------------------------------

    def on_end(self, callback: Callable[[End], None]) -> None:
        """Call back once when the body has ended, however it did; at once if it already has."""
        if self.end is not None:
            callback(self.end)
        else:
            self._callbacks.append(callback)

    def on_first_byte(self, callback: Callable[[], None]) -> None:
        """Call back once when the body's first byte has come."""
        previous = self._on_first

        def both() -> None:
            if previous is not None:
                previous()
            callback()

        self._on_first = both

    async def aclose(self) -> None:
        """Let go of the connection; an unfinished body is cancelled. Safe to call twice."""
        for body in (self._decoded, self._body):
            if body is None:
                continue
            try:
                await body.aclose()
            except RuntimeError:
                pass  # another task is waiting in it: closing the connection below wakes that one up
        await self._close("cancelled")

    async def conclude(self, *, within: float = 0.5) -> None:
        """All that matters has come: end the response as complete.

        The rest of the body is waited for, for a moment, since a connection that saw its end can be used again.
        """
        self._concluded = True
        body = self._body if self._decoded is None else self._decoded
        try:
            async with asyncio.timeout(within):
                if body is None:
                    body = self.raw()
                async for _ in body:
                    pass
        except (PenstockError, TimeoutError, RuntimeError):
            pass  # whatever it was, it is not missed
        await self._close("complete")

    async def fail(self, error: PenstockError) -> None:
        """The body says that it failed: end the response so, without waiting for the rest."""
        await self._close("failed", error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _close(
        self, reason: Literal["complete", "failed", "cancelled"], error: PenstockError | None = None
    ) -> None:
        if self.end is not None:
            return
        if self._concluded:
            reason, error = "complete", None
        self.end = End(reason, self.bytes_received, self._loop.time() - self._started_at, error)
        try:
            await self.abandon()
        finally:
            _tell(self._callbacks, self.end)

    async def abandon(self) -> None:
        """Close the connection under whoever reads the body, who finds it broken. The end is for the reader to find."""
        # Whoever cancels us wants the connection closed, not forgotten; and one that cannot be closed properly changes
        # nothing about what came of the body.
        with anyio.CancelScope(shield=True), suppress(Exception):
            await self._raw.aclose()

    def __del__(self) -> None:
        # Forgotten by its reader, neither read nor closed. A breaker's permit or a place may hang on its end, and the
        # garbage collector comes at any time, in any thread: so the loop is asked to do what `aclose` would have done.
        if self.end is not None:
            return
        was_closed = self._raw.is_closed  # with its client
        self.end = End("cancelled", self.bytes_received, self._loop.time() - self._started_at)
        with suppress(RuntimeError):  # the loop is closed: nobody waits for anything there
            self._loop.call_soon_threadsafe(_forgotten, self._raw, self._callbacks, self.end)
        if not was_closed:
            unread = f"{self!r} was neither read to its end nor closed"
            warnings.warn(unread, ResourceWarning, stacklevel=1, source=self)


def _tell(callbacks: list[Callable[[End], None]], end: End) -> None:
    """Tell how a body ended, to each even if one before it raises: a permit or a place may hang on it."""
    with ExitStack() as turns:
        for callback in reversed(callbacks):
            turns.callback(callback, end)
        callbacks.clear()


def _forgotten(raw: httpx2.Response, callbacks: list[Callable[[End], None]], end: End) -> None:
    """End a response that is no more."""
    _let_go(raw)
    _tell(callbacks, end)


def _let_go(raw: httpx2.Response) -> None:
    """Close a connection from where nobody can wait for it."""

    async def close() -> None:
        with suppress(Exception):
            await raw.aclose()

    closing = asyncio.ensure_future(close())
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
"""The loop itself holds tasks weakly."""


@dataclass(frozen=True, slots=True)
class BufferedResponse:
    """A response read to its end.

    Attributes:
        status: The status code.
        headers: The header fields, case-insensitive.
        url: The URL that answered.
        content: The body, content codings undone.
    """

    status: int
    headers: httpx2.Headers
    url: str
    content: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what does not decode becomes U+FFFD."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON; DecodeError if it is not."""
        return _json(self.content, self.url)


def _json(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{url}: the body is not JSON: {error}", url=url) from None


def _earlier(now: float, patience: float | None, deadline: float | None) -> float | None:
    if patience is None:
        return deadline
    return now + patience if deadline is None else min(now + patience, deadline)


_ADVICE = {
    401: "credentials are missing or wrong: pass them with a header",
    403: "these credentials may not do this",
    404: "check the path",
    405: "check the method",
    413: "the server refuses a body of this size",
    429: "the server asks for fewer requests",
}
