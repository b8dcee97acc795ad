"""A response's items, one by one, through the failures that can be mended.

`ItemStream` is the loop that events, records and lines share: make an attempt, check that it is a stream of the
asked-for kind, feed the bytes to a decoder, hand out what it gives, and when something breaks ask the retry policy.

Nothing that has begun to arrive is played again. Before the first item a broken attempt may be repeated; after it
only a *resume* may go on, and only a decoder that knows its place (an event stream with ids) can offer one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from penstock.client import exchange, seam
from penstock.client.exchange import Exchange
from penstock.client.metrics import Metrics, Tally
from penstock.client.request import Request
from penstock.client.response import Response
from penstock.errors import (
    ContentTypeError,
    LimitExceeded,
    PenstockError,
    StreamError,
)
from penstock.resilience.retry import Retry

T = TypeVar("T")

MAX_COLLECTED_BYTES = 64 * 1024 * 1024


class Decoder(Protocol[T]):
    """What turns a body's bytes into items; see `penstock.wire`.

    Attributes:
        dropped: Items that had begun when the body ended; known after `close`.
    """

    @property
    def dropped(self) -> int: ...
    def feed(self, data: bytes, /) -> list[T]: ...
    def close(self) -> list[T]: ...


@dataclass(frozen=True, slots=True)
class Collected(Generic[T]):
    """A whole stream, and what was measured on the way.

    Attributes:
        items: Every item, in order.
        metrics: The stream's metrics.
    """

    items: list[T]
    metrics: Metrics

    @property
    def events(self) -> list[T]:
        """The items, by the name that an event stream's have."""
        return self.items


class ItemStream(Generic[T]):
    """Items as they arrive. Use as ``async with`` and iterate; leaving early cancels the request.

    Subclasses say what a stream of theirs is (`accepts`), how its bytes become items (`decoder`), and how a broken one
    goes on (`resumed`).

    Attributes:
        response: The response being read; None before the first attempt was answered.
    """

    accept = "*/*"

    def __init__(
        self,
        shared: Exchange,
        request: Request,
        retry: Retry,
        *,
        on_metrics: Callable[[Metrics], None] | None = None,
        on_retry: Callable[[PenstockError, int, float], None] | None = None,
    ) -> None:
        self._exchange = shared
        self._request = request
        self._retry = retry
        self._on_metrics = on_metrics
        self._on_retry = on_retry
        self._tally: Tally | None = None
        self._items: AsyncGenerator[T, None] | None = None
        self.response: Response | None = None

    # -- what a kind of stream decides ---------------------------------------------------------------------------

    def accepts(self, content_type: str) -> bool:
        """Whether a body of this content type is such a stream."""
        raise NotImplementedError

    def decoder(self) -> Decoder[T]:
        """A new decoder for a new body."""
        raise NotImplementedError

    def resumed(self, request: Request) -> Request | None:
        """The request that goes on after the last item; None where there is no way."""
        return None

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """What this stream has seen so far; readable at any time, from any thread."""
        if self._tally is None:
            return Metrics()
        return self._tally.snapshot(time.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[T]:
        if self._items is None:
            self._items = self._run()
        return self._items

    async def aclose(self) -> None:
        """Stop reading and let go of the connection. Safe to call twice."""
        if self._items is not None:
            await self._items.aclose()

    async def collect(self, *, max_items: int | None = None, max_bytes: int = MAX_COLLECTED_BYTES) -> Collected[T]:
        """Read to the end and keep everything.

        Raises:
            LimitExceeded: More than max_items, or a body over max_bytes; what had come is in `collected`.
            StreamError: The stream broke; what had come is in `collected`.
        """
        items: list[T] = []
        try:
            async with self:
                async for item in self:
                    items.append(item)
                    if max_items is not None and len(items) > max_items:
                        raise self._too_much("max_items", max_items, items)
                    if self._tally is not None and self._tally.bytes > max_bytes:
                        raise self._too_much("max_bytes", max_bytes, items)
        except PenstockError as error:
            # The stream's own error may stand behind what became of mending it.
            for broken in (error, getattr(error, "last", None), error.__cause__):
                if isinstance(broken, StreamError):
                    broken.collected = items
            raise
        return Collected(items, self.metrics)

    def _too_much(self, limit: str, bound: int, items: list[T]) -> LimitExceeded:
        url = seam.shown(self._request.url)
        return LimitExceeded(
            f"{url}: more than {limit}={bound:,} to collect; raise the limit, or iterate instead",
            limit=limit,
            url=url,
            collected=items,
        )

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _run(self) -> AsyncGenerator[T, None]:
        tally = self._tally = Tally(time.monotonic())
        total = self._request.timeout.total
        deadline = None if total is None else asyncio.get_running_loop().time() + total
        request = exchange.outgoing(self._request)
        repeatable = self._retry.may_repeat(request.method, has_key=request.has_header("idempotency-key"))
        try:
            while True:
                try:
                    async with aclosing(self._attempt(request, deadline, tally)) as batches:
                        async for batch in batches:
                            if tally.first_at is None:
                                tally.first_at = time.monotonic()
                            for item in batch:
                                tally.total += 1
                                yield item
                    tally.stop(time.monotonic(), "complete")
                    return
                except PenstockError as error:
                    failure = error if error.url is not None else seam.located(error, request.url)
                onward = request if tally.first_at is None else self.resumed(request)
                pause = None
                if onward is not None and (onward.body is None or onward.body.replayable):
                    pause = exchange.retry_pause(self._retry, failure, request.attempt, may_repeat=repeatable)
                if onward is None or pause is None or not exchange.within(deadline, pause):
                    raise exchange.exhausted(failure, request.attempt) from failure.__cause__
                if (refused := self._exchange.would_refuse(request.url, pause)) is not None:
                    raise refused from failure
                tally.retries += 1
                tally.reconnects += tally.first_at is not None
                request = replace(onward, attempt=request.attempt + 1)
                if self._on_retry is not None:
                    self._on_retry(failure, request.attempt, pause)
                await asyncio.sleep(pause)
        except Exception:
            tally.stop(time.monotonic(), "failed")
            raise
        finally:
            tally.stop(time.monotonic(), "cancelled")
            if self._on_metrics is not None:
                self._on_metrics(tally.snapshot(time.monotonic()))

    async def _attempt(self, request: Request, deadline: float | None, tally: Tally) -> AsyncGenerator[list[T], None]:
        """One attempt's items, in batches as the reads of the body completed them."""
        async with await self._exchange.attempt(request, deadline, expect_body=True) as response:
            self.response = response
            if not 200 <= response.status < 300:  # what a redirect that leads nowhere says is no stream either
                raise response.status_error(await response.beginning())
            if response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT):
                return
            if not self.accepts(response.content_type):
                raise self._wrong_type(response)
            decoder = self.decoder()
            before = tally.bytes
            try:
                async for data in response:
                    tally.bytes = before + response.bytes_received
                    if items := decoder.feed(data):
                        yield items
            except PenstockError:
                with suppress(PenstockError):
                    decoder.close()
                raise
            else:
                if items := decoder.close():
                    yield items
            finally:
                tally.total += decoder.dropped
                tally.failed += decoder.dropped

    def _wrong_type(self, response: Response) -> ContentTypeError:
        found = response.content_type or "no content type"
        kinds = (kind.partition(";")[0] for kind in self.accept.split(", "))
        wanted = " or ".join(kind for kind in kinds if kind != "*/*")
        return ContentTypeError(
            f"{response.url}: this is {found}, not a stream of {wanted}; check the path, or read it as another kind",
            content_type=response.content_type,
            url=response.url,
        )
