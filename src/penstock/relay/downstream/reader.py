"""The reader: its request body, its departure, and the answer to it.

The one channel that a server gives us for what comes from the reader carries first its body and then its departure.
So one task listens to it from the first moment, and holds one piece of the body at most until somebody takes it: a
reader that leaves is noticed while the upstream is still being connected to, and a body that nobody takes stays with
the reader. (Beyond that one piece a server stops reading, and so cannot see that the reader left before it is taken.)
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self

from anyio.lowlevel import checkpoint_if_cancelled
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Send

from penstock.engine.flag import Flag
from penstock.errors import LimitExceeded, StreamError
from penstock.eventlog.base import Stream
from penstock.relay.settings.cors import replaced
from penstock.relay.upstream.headers import Raw

logger = logging.getLogger("penstock.relay")

PATHSEND = "http.response.pathsend"
DIRECT = "penstock.direct"

LINGER = 2.0
"""Seconds that a refused body is still read and thrown away, so that its sender gets to read the refusal: closing on
unread bytes is a reset, which may overtake the answer."""

READING_TIME = 0.25
"""Seconds between the last bytes of an answer that is broken off and its end: a browser throws away what the page has
not read yet when the connection breaks, and with it how the stream ended."""

NOBODY = 499
"""The status of an answer that nobody reads (nginx's "client closed request"): for the middleware on its way."""


class Direct(Protocol):
    """What a server may offer for a response that has begun; see `penstock.server.direct`."""

    write: Callable[[bytes], None]

    @property
    def write_chunk(self) -> Callable[[bytes], None] | None: ...
    def is_behind(self, send: Send) -> bool: ...
    def open(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None: ...
    def close(self) -> None: ...


OnAsked = Callable[[Request], Callable[["Downstream", BaseException | None], None]]
"""Told of a request before anything is done for it; what it returns is told of the answer once that is over, and of
what broke it off. Neither should raise."""


class PutOff(StreamError):
    """The reader was told to come back later."""


class Downstream:
    """One reader and one answer. Listens as long as it is entered with ``async with``.

    Attributes:
        max_body_bytes: The longest request body that is taken; None for no bound.
        cors: What any answer says to a page of another origin; None leaves what the upstream says.
        started: Whether the status line has been sent: from then on a failure can only break the answer off.
        sent: Body bytes handed to the server.
        route: Which of the configured paths the request was for; None where that is not known.
        status: Of the answer, once it is started.
        stream: The stream that the answer is of; None where it is of none that is kept.
        gaps: How often it was told that what it asked for is no longer kept.
        whole: Whether the answer came to its end with the reader still here.
    """

    max_body_bytes: int | None = None
    cors: Raw | None = None
    route: str | None = None
    status: int | None = None
    stream: Stream | None = None
    gaps: int = 0
    whole: bool = False

    def __init__(self, request: Request, receive: Receive, send: Send, on_asked: Sequence[OnAsked] = ()) -> None:
        self._on_asked = on_asked
        self._request = request
        self._receive = receive
        self._send = send
        self._piece: bytes | None = None
        self._taken = 0
        self._room = Flag(up=True)
        self._news = Flag()
        self._quiet = Flag()  # nothing more of the body will come
        self._unwanted = False
        self._trouble: Exception | None = None
        self._left = False
        self._left_early = False
        self._cancel: Callable[[], None] | None = None
        self.started = False
        self.sent = 0

    async def __aenter__(self) -> Self:
        self._on_over = [asked(self._request) for asked in self._on_asked]
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.cancel()
        for over in reversed(self._on_over):
            over(self, error)

    # -- what comes from the reader ------------------------------------------------------------------------------

    @property
    def head_only(self) -> bool:
        """Whether the reader wants no body."""
        return self._request.method == "HEAD"

    @property
    def takes_events(self) -> bool:
        """Whether it says that it takes events, as an EventSource does."""
        return "text/event-stream" in self._request.headers.get("accept", "").lower()

    @property
    def is_event_source(self) -> bool:
        """Whether it may be an EventSource, which comes back by itself."""
        return self._request.method == "GET" and self.takes_events

    @property
    def comes_back(self) -> bool:
        """Whether it comes back for the rest by itself when its answer breaks off: it may be an EventSource, or did."""
        return self.is_event_source or "last-event-id" in self._request.headers

    async def body(self) -> AsyncIterator[bytes]:
        """The request body as it comes; asked for again, it goes on where it stood.

        Raises:
            LimitExceeded: It is longer than `max_body_bytes`.
        """
        while True:
            if self._piece is not None:
                piece, self._piece = self._piece, None
                self._taken += len(piece)
                if self.max_body_bytes is not None and self._taken > self.max_body_bytes:
                    raise LimitExceeded(
                        f"the request's body is longer than {self.max_body_bytes:,} bytes", limit="max_body_bytes"
                    )
                self._room.set()
                yield piece
            elif self._trouble is not None:
                raise self._trouble
            elif self.body_has_come:
                return
            else:
                self._news.clear()
                await self._news.wait()

    @property
    def body_has_come(self) -> bool:
        """Whether the request's body is here to its end, so that its sender may leave."""
        return self._quiet.is_set() and not self._left_early

    @property
    def left_early(self) -> bool:
        """Whether the reader has left before its request was whole."""
        return self._left_early

    def body_is_over(self) -> None:
        """Throw away what may still come of the body."""
        self._unwanted = True
        self._room.set()

    def on_departure(self, cancel: Callable[[], None] | None) -> None:
        """Call back when the reader leaves, at once if it has; None when that no longer matters."""
        self._cancel = cancel
        if self._left and cancel is not None:
            cancel()

    async def _listen(self) -> None:
        try:
            async for piece in self._request.stream():
                if piece:
                    await self._room.wait()
                if piece and not self._unwanted:
                    self._room.clear()
                    self._piece = piece
                    self._news.set()
            self._hush()
            while (await self._receive())["type"] != "http.disconnect":
                pass  # a body beside the one that the route gave
            self._depart()
        except ClientDisconnect:
            self._depart()
        except Exception as error:
            self._trouble = error
            self._hush()

    def _hush(self) -> None:
        self._quiet.set()
        self._news.set()

    def _depart(self) -> None:
        if self._left:
            return  # told by the server once more
        self._left = True
        self._left_early = not self._quiet.is_set()
        self._hush()
        if self._cancel is not None:
            self._cancel()

    # -- what goes to the reader ---------------------------------------------------------------------------------

    async def start(self, status: int, headers: Raw) -> None:
        """Send the status line and the fields."""
        if self.cors is not None:
            headers = replaced(headers, self.cors)
        await self._tell({"type": "http.response.start", "status": status, "headers": headers})
        self.started = True
        self.status = status

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the reader is slower than we are."""
        await self._tell({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent += len(piece)
        if self._left:  # who always has more to send never waits, and a cancel scope cancels those who wait
            await checkpoint_if_cancelled()

    def direct(self) -> Direct | None:
        """A way to write in the callback that brings the bytes, where the server has one and nothing stands between."""
        writer: Direct | None = self._request.scope.get("extensions", {}).get(DIRECT)
        return writer if writer is not None and writer.is_behind(self._send) else None

    async def finish(self) -> None:
        """Tell that the body is whole. This and nothing else writes the last chunk."""
        # A server reports a reader whose answer is complete as gone; whoever wraps `send` may still be at work then.
        self.on_departure(None)
        self.whole = not self._left
        await self._tell({"type": "http.response.body", "body": b"", "more_body": False})

    async def break_off(self, reason: str) -> None:
        """Make sure that the answer cannot look whole; the caller raises after this.

        A server needs no more than an exception. Starlette's BaseHTTPMiddleware, however, takes the end of the
        application that it wraps for the end of the body, and writes the last chunk before it raises. After a
        `pathsend` it does not, and hands it on, through others of its kind, to the server, which refuses it, as it does
        when there is no middleware. A server that knows the message would take it: there, an exception must do.
        """
        await asyncio.sleep(READING_TIME)
        if PATHSEND in self._request.scope.get("extensions", {}):
            return
        try:
            await self._send({"type": PATHSEND, "path": os.devnull})
        except Exception:
            pass
        except asyncio.CancelledError:
            logger.warning("%s; the answer is broken off", reason)  # what the middleware raises does not tell
            raise

    async def dismiss(self) -> None:
        """End an answer whose reader has left before it began: a middleware around us may insist on one."""
        if not self.started:
            await self.start(NOBODY, [])
            await self.finish()

    async def refuse(
        self,
        status: int,
        reason: str,
        *,
        proxy_status: str | None = None,
        more: Mapping[str, object] | None = None,
        fields: Raw | None = None,
    ) -> None:
        """Answer with a problem instead (RFC 9457), with more members and fields where there are more to tell."""
        self.on_departure(None)
        body = problem(status, reason, more)
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        headers += [*(fields or ()), *_proxy_status(proxy_status)]
        if not self._quiet.is_set():
            headers.append((b"connection", b"close"))  # the rest of the request's body would be taken for a request
        await self.start(status, headers)
        if not self.head_only:
            await self.write(body)
        self.body_is_over()
        try:
            async with asyncio.timeout(LINGER):
                await self._quiet.wait()
        except TimeoutError:
            pass
        await self.finish()

    async def put_off(self, status: int, reason: str, *, proxy_status: str | None = None, after: float = 0.0) -> None:
        """Refuse for now, and say when to come back: each reader at another time, lest all come at once.

        An EventSource takes any refusal for final. It is answered instead, told to come back, and broken off: to others
        that does not look like a whole answer.

        Args:
            status: The refusal's.
            reason: What keeps us.
            proxy_status: The type that Proxy-Status gives it.
            after: Seconds in which it is known to be in vain.
        Raises:
            PutOff: The server is to break the answer off.
        """
        seconds = after + random.uniform(1, 5)
        if not self.is_event_source:
            fields = [(b"retry-after", b"%d" % math.ceil(seconds))]
            await self.refuse(status, reason, proxy_status=proxy_status, fields=fields)
            return
        headers: Raw = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await self.start(200, headers + _proxy_status(proxy_status))
        await self.write(b"retry: %d\n" % (seconds * 1000))
        await self.break_off(reason)
        raise PutOff(reason)

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # how a server of ASGI 2.4 says that the reader has left
            self._depart()


def _proxy_status(error: str | None) -> Raw:
    """What went wrong behind us, for the fields (RFC 9209)."""
    return [] if error is None else [(b"proxy-status", f"penstock; error={error}".encode())]


def problem(status: int, reason: str, more: Mapping[str, object] | None = None) -> bytes:
    """A refusal's body (RFC 9457)."""
    value = {"title": HTTPStatus(status).phrase, "status": status, "detail": reason, **(more or {})}
    return json.dumps(value).encode() + b"\n"
