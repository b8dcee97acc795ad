"""One request and its answer: refusals, parameters, and the reader that may leave.

:class:`Watch` is the only place that listens for a reader's leaving, and it does so on any ASGI server: Starlette's
StreamingResponse stops listening where a server speaks ASGI 2.4, and then notices only at its next send, which a
generator asleep does not reach. When the reader leaves, the answer is cancelled wherever it is, and one line is logged:
``GET /generate: the reader left after 7 chunks``. At a stream's own end it is ``GET /generate: 100 chunks sent``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, overload
from urllib.parse import quote

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("penstock.origin")

LINGER = 2.0
"""Seconds that a refused body is still read and thrown away, so that its sender gets to read the refusal: closing on
unread bytes is a reset, which may overtake the answer."""


class Refusal(Exception):
    """The request is not served: a status and a reason."""

    def __init__(self, status: int, detail: Any, *, close: bool = False) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.close = close

    def response(self) -> Response:
        """The answer, in FastAPI's form; the connection is closed when the body was not read to its end."""
        return JSONResponse({"detail": self.detail}, self.status, {"connection": "close"} if self.close else None)


@overload
def whole(query: QueryParams, name: str, default: int, *, low: int = ..., high: int = ...) -> int: ...
@overload
def whole(query: QueryParams, name: str, default: None, *, low: int = ..., high: int = ...) -> int | None: ...
def whole(query: QueryParams, name: str, default: int | None, *, low: int = 0, high: int = 10**9) -> int | None:
    """Read a whole number from the query.

    Raises:
        Refusal: 422, it is none, or out of its bounds.
    """
    text = query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 18 and low <= int(text) <= high:
        return int(text)
    raise Refusal(422, f"{name} must be a whole number from {low} to {high}, not {text[:40]!r}")


def seconds(query: QueryParams, name: str, default: float, *, high: float = 3600.0) -> float:
    """Read a duration from the query.

    Raises:
        Refusal: 422, it is none, or out of its bounds.
    """
    text = query.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and 0 <= value <= high:
            return value
    raise Refusal(422, f"{name} must be a number of seconds from 0 to {high:g}, not {text[:40]!r}")


async def json_body(request: Request, max_bytes: int = 1 << 20) -> Any:
    """Read a JSON body.

    Raises:
        Refusal: 413 when it is too large.
        ValueError: It is not JSON.
        ClientDisconnect: The sender left.
    """
    body = bytearray()
    async with contextlib.aclosing(request.stream()) as stream:
        async for data in stream:
            body += data
            if len(body) > max_bytes:
                raise Refusal(413, f"the body is larger than {max_bytes} bytes", close=True)
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Stream(Response):
    """A body that is sent as it is made, each chunk at once."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self._chunks = chunks
        self._close = close
        self.init_headers({"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._chunks) as chunks:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                if scope["method"] != "HEAD":
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if self._close is not None:
                self._close()


class Watch:
    """ASGI middleware that cancels the answer when the reader leaves, and says how each stream ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Watched(scope, receive, send).run(self._app)


def request_line(scope: Scope) -> str:
    """``GET /generate``, safe for a log line."""
    return f"{scope['method']} {quote(scope['path'])}"


class _Watched:
    """One exchange. Until the answer begins, `receive` is the application's; from then on it is ours."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._left = asyncio.Event()
        self._received = asyncio.Event()  # the request body has been read to its end
        self._watcher: asyncio.Task[None] | None = None
        self._started = self._complete = self._cancelled = self._closes = False
        self._unit: str | None = None
        self._chunks = self._bytes = 0

    async def run(self, app: ASGIApp) -> None:
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._task = task
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._cancelled or task.uncancel() > before:
                raise
            logger.info("%s: the reader left after %s", request_line(self._scope), self._told())
        finally:
            if self._watcher is not None:
                self._watcher.cancel()

    async def receive(self) -> Message:
        if self._started:
            await self._left.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._note(message)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(Headers(raw=list(message.get("headers", []))))
            await self._send(message)
            return
        body = message.get("body", b"")
        last = not message.get("more_body", False)
        if last and self._closes and not self._received.is_set():
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        self._complete = last
        await self._send(message)
        self._chunks += bool(body)
        self._bytes += len(body)
        if last and self._unit and self._scope["method"] != "HEAD":
            logger.info("%s: %s sent", request_line(self._scope), self._told())

    def _start(self, headers: Headers) -> None:
        self._started = True
        self._closes = headers.get("connection") == "close"
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._unit = "event"
        elif "accept-ranges" in headers:
            self._unit = "byte"
        elif "content-length" not in headers:
            self._unit = "chunk"
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while not self._left.is_set():
            self._note(await self._receive())
        if not self._complete:
            self._cancelled = True
            self._task.cancel()

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._left.set()
        elif not message.get("more_body", False):
            self._received.set()

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._received.wait()

    def _told(self) -> str:
        count = self._bytes if self._unit == "byte" else self._chunks
        unit = self._unit or "chunk"
        return f"{count} {unit}{'' if count == 1 else 's'}"
