"""What can be wrapped around every attempt: log lines, a concurrency limit, progress.

A middleware's work is not done at the response's headers: a stream has only begun there. Each of these hooks into the
response's one end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from penstock.client import seam
from penstock.client.request import Request, Send
from penstock.client.response import End, Response
from penstock.errors import PenstockError


class Logging:
    """A line before the request, one at the response's headers, one at the end of the body.

    Args:
        logger: Where to; "penstock.client" by default.
        level: Of the lines of what goes well; a failure is a warning.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self._logger = logger or logging.getLogger("penstock.client")
        self._level = level

    async def __call__(self, request: Request, send: Send) -> Response:
        prefix = f"{request.client}." if request.client else ""
        url = seam.shown(request.url)
        self._logger.log(self._level, "Sending request %smethod=%s %surl=%s", prefix, request.method, prefix, url)
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            response = await send(request)
        except PenstockError as error:
            elapsed = loop.time() - started_at
            self._logger.warning('Request failed %serror="%s" %sduration=%.3fs', prefix, error, prefix, elapsed)
            raise
        elapsed = loop.time() - started_at
        self._logger.log(
            self._level, "Response received %sstatus=%d %sduration=%.3fs", prefix, response.status, prefix, elapsed
        )

        def at_end(end: End) -> None:
            self._logger.log(
                logging.WARNING if end.error else self._level,
                "Body %s %sbytes=%d %sduration=%.3fs%s",
                end.reason,
                prefix,
                end.bytes,
                prefix,
                end.seconds,
                f' {prefix}error="{end.error}"' if end.error else "",
            )

        response.on_end(at_end)
        return response


class ConcurrencyLimit:
    """At most so many exchanges at a time, counted until the end of the *body*; more wait their turn."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a concurrency limit is 1 or more, got {limit}")
        self._places = asyncio.Semaphore(limit)

    async def __call__(self, request: Request, send: Send) -> Response:
        await self._places.acquire()
        try:
            response = await send(request)
        except BaseException:
            self._places.release()
            raise
        response.on_end(lambda end: self._places.release())
        return response


@dataclass(frozen=True, slots=True)
class Update:
    """How far a body has come.

    Attributes:
        url: Of which response.
        bytes: Received so far.
        total: In all; None when that is not known.
        seconds: Since the headers.
        ended: Whether this is the last word.
    """

    url: str
    bytes: int
    total: int | None
    seconds: float
    ended: bool = False


class Progress:
    """Tell how far each body has come, at an interval and at its end, from a counter: nothing is done per chunk."""

    def __init__(self, callback: Callable[[Update], None], *, interval: float = 0.5) -> None:
        self._callback = callback
        self._interval = interval

    async def __call__(self, request: Request, send: Send) -> Response:
        response = await send(request)
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        timer: asyncio.TimerHandle

        def tell(*, ended: bool = False) -> None:
            self._callback(
                Update(response.url, response.bytes_received, response.content_length, loop.time() - started_at, ended)
            )

        def tick() -> None:
            nonlocal timer
            tell()
            timer = loop.call_later(self._interval, tick)

        timer = loop.call_later(self._interval, tick)

        def at_end(_: End) -> None:
            timer.cancel()
            tell(ended=True)

        response.on_end(at_end)
        return response
