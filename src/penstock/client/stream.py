"""A response's items, one by one, through the failures that can be mended.

`ItemStream` is the loop that events, records and lines share: make an attempt, check that it is a stream of the
asked-for kind, feed the bytes to a decoder, hand out what it gives, and when something breaks ask the retry policy.

Nothing that has begun to arrive is played again. Before the first item a broken attempt may be repeated; after it
only a *resume* may go on, and only a decoder that knows its place (an event stream with ids) can offer one; unless the
caller prefers to have it from the beginning again (``Retry(after_first_event="restart")``).

Failures are counted in a row: an item that arrives begins the count anew, so that a stream of hours may break more
often than ``retries``, and one that never gets on is given up. What all the streams of a client may spend on it is the
budget's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar

import anyio

from penstock.client import exchange, seam
from penstock.client.exchange import Exchange
from penstock.client.metrics import Metrics, Tally
from penstock.client.notices import Connected, Interrupted, OnNotice, Reconnecting
from penstock.client.request import Request
from penstock.client.response import End, Response
from penstock.errors import (
    ContentTypeError,
    DecodeError,
    LimitExceeded,
    PenstockError,
    StreamError,
    StreamStalled,
    StreamTruncated,
)
from penstock.resilience.classify import cause
from penstock.resilience.retry import Retry

T = TypeVar("T")
R = TypeVar("R")

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
    goes on (`onward`).

    Attributes:
        response: The response being read; None before the first attempt was answered.
        only_pings: The decoder's to say: whether the items that it gave last are signs of life and no content.
    """

    accept = "*/*"

    def __init__(
        self,
        shared: Exchange,
        request: Request,
        retry: Retry,
        *,
        on_end: Callable[[Tally], None] | None = None,
        on_notice: OnNotice | None = None,
    ) -> None:
        self._exchange = shared
        self._request = request
        self._retry = retry
        self._on_end = on_end
        self._asked = on_notice is not None
        self._notify = on_notice or _nobody
        self._tally: Tally | None = None
        self._source: AsyncGenerator[list[T], None] | None = None
        self._items: AsyncGenerator[T, None] | None = None
        self._waiting: anyio.CancelScope | None = None
        self._stopped = False
        self._restarting = False
        self._brought_before: float | None = None
        self._over = False
        self._fault: PenstockError | None = None
        self.only_pings = False
        self.response: Response | None = None

    # -- what a kind of stream decides ---------------------------------------------------------------------------

    def accepts(self, content_type: str) -> bool:
        """Whether a body of this content type is such a stream."""
        raise NotImplementedError

    def decoder(self) -> Decoder[T]:
        """A new decoder for a new body.

        One that knows the end of its protocol calls `end` when it has seen it.
        """
        raise NotImplementedError

    def accepts_status(self, status: int) -> bool:
        """Whether a response of this status may be such a stream; what a redirect that leads nowhere says is none."""
        return 200 <= status < 300

    def pieces(self, response: Response) -> AsyncIterator[bytes]:
        """The body in the pieces that the decoder is given."""
        return aiter(response)

    def continued(self, request: Request) -> Request:
        """The request that goes on from where the stream stands."""
        return request

    def onward(self, request: Request, failure: PenstockError | None) -> Request | None:
        """The request that goes on after a failure, or with None after a clean end; None where there is no way."""
        if failure is None:
            return None
        return request if not self.begun or self._retry.after_first_event == "restart" else None

    def pause(self, failure: PenstockError | None, failures: int, asked: float) -> float:
        """Seconds before the next attempt.

        Args:
            failure: What ended the last one; None for a clean end.
            failures: Failures in a row.
            asked: What the retry policy asks for.
        """
        return asked

    def unfinished(self, response: Response) -> PenstockError | None:
        """What a body that came whole lacks all the same, by the stream's own protocol."""
        if response.bytes_received == 0 and response.status == HTTPStatus.OK:
            return StreamTruncated(f"{response.url}: a {response.status} with nothing in it", url=response.url)
        return None

    def is_final(self, lack: PenstockError) -> bool:
        """Whether what `unfinished` says is the reader's to know, and not only the breaker's."""
        return False

    @property
    def place(self) -> str:
        """Where the stream would go on, in words for a notice."""
        return ""

    @property
    def content_only(self) -> bool:
        """Whether somebody asks what of the items is content."""
        return self._request.timeout.content_only

    @property
    def begun(self) -> bool:
        """Whether an item has come."""
        return self._tally is not None and self._tally.first_at is not None

    def _ended_badly(self, response: Response) -> PenstockError | None:
        """What a response without content says of the stream's end, where that was not a proper one."""
        return None

    def end(self, fault: PenstockError | None = None) -> None:
        """The decoder's: the stream's protocol says that this is all, or that it failed. What follows is not read."""
        self._over = True
        self._fault = fault

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
        self._check_unbroken()
        if self._items is None:
            self._items = self._each()
        return self._items

    async def next_batch(self) -> list[T]:
        """The items that the next read brings, at least one; [] at the end. For who reads from elsewhere.

        Raises as iterating does. Not to be mixed with it.
        """
        self._check_unbroken()
        batch: list[T] = await anext(self._batches(), [])
        if self._tally is not None:
            self._tally.total += len(batch)
        return batch

    def _check_unbroken(self) -> None:
        """What was closed in its middle must not look like a stream that has come to its end."""
        if self._stopped and self._tally is not None and self._tally.reason == "cancelled":
            raise RuntimeError("the stream was closed before its end")

    async def aclose(self) -> None:
        """Stop reading and let go of the connection. Safe to call twice, and while another task reads.

        That task, if it waits for an item, gets a `StreamError`: an iteration that ends quietly means that all came.
        """
        self._stopped = True
        for generator in (self._items, self._source):
            if generator is None:
                continue
            try:
                await generator.aclose()
            except RuntimeError:  # another task waits in it
                await self._wake()

    async def restart(self) -> None:
        """Let go of the connection and make another at once, from where the stream stands. It is no failure.

        Whether the request may be sent twice is the caller's to know. Where its body can be read only once it cannot,
        and who reads gets a `StreamError`.
        """
        self._restarting = True
        await self._wake()

    async def _wake(self) -> None:
        """Whoever waits for a response, for its body or for a pause to end waits no longer."""
        if self._waiting is not None:
            self._waiting.cancel()
        elif self.response is not None:
            await self.response.aclose()

    async def collect(self, *, max_events: int | None = None, max_bytes: int = MAX_COLLECTED_BYTES) -> Collected[T]:
        """Read to the end and keep everything.

        Raises:
            LimitExceeded: More than max_events, or a body over max_bytes; what had come is in `collected`.
            StreamError: The stream broke; what had come is in `collected`.
        """
        items: list[T] = []
        try:
            async with self:
                async for item in self:
                    if len(items) == max_events:
                        raise self._too_much("max_events", max_events, items)
                    items.append(item)
                    if self._tally is not None and self._tally.bytes > max_bytes:
                        raise self._too_much("max_bytes", max_bytes, items)
        except PenstockError as error:
            # The stream's own error may stand behind what became of mending it.
            for broken in (error, getattr(error, "last", None), error.__cause__):
                if isinstance(broken, PenstockError):
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

    async def _each(self) -> AsyncGenerator[T, None]:
        async with aclosing(self._batches()) as batches:
            async for batch in batches:
                tally = self._tally
                assert tally is not None
                for item in batch:
                    tally.total += 1
                    yield item

    def _batches(self) -> AsyncGenerator[list[T], None]:
        if self._source is None:
            self._source = self._run()
        return self._source

    async def _run(self) -> AsyncGenerator[list[T], None]:
        """Attempt after attempt, as long as there is a way on."""
        if self._stopped:
            raise RuntimeError("the stream was closed before it was read")
        tally = self._tally = Tally(time.monotonic())
        request: Request | None = exchange.outgoing(self._request)
        timeout = self._request.timeout
        content_only = timeout.content_only
        deadline = None if timeout.total is None else asyncio.get_running_loop().time() + timeout.total
        failures = 0
        try:
            with self._exchange.running(self):
                while request is not None:
                    failure: PenstockError | None = None
                    self._restarting = False
                    before = tally.last_at
                    try:
                        async with self._attempt(request, deadline, tally) as reading:
                            if reading is not None:
                                response, decoder = reading
                                feed, received = decoder.feed, tally.bytes
                                async for data in self.pieces(response):
                                    tally.bytes = received + response.bytes_received
                                    if items := feed(data):
                                        tally.arrived(time.monotonic())
                                        yield items
                                    if self._over or self._restarting:
                                        break
                                    if content_only and items and not self.only_pings:
                                        self._expect_content(response, timeout.between_events)
                                if not (self._over or self._restarting) and (items := decoder.close()):
                                    tally.arrived(time.monotonic())
                                    yield items
                                await self._settle(response)
                    except PenstockError as error:
                        failure = error if error.url is not None else seam.located(error, request.url)
                    failed = failure is not None and not self._restarting
                    failures = (0 if tally.last_at != before else failures) + failed
                    request = await self._next(request, failure, failures, deadline, tally)
            tally.stop(time.monotonic(), "complete")
        except Exception as error:
            tally.stop(time.monotonic(), "failed", cause(error) if isinstance(error, PenstockError) else "other")
            raise
        finally:
            tally.stop(time.monotonic(), "cancelled")
            state = self._exchange.state(self._request.url)
            tally.breaker = "" if state is None else state.value
            if self._on_end is not None:
                self._on_end(tally)

    async def _next(
        self, request: Request, failure: PenstockError | None, failures: int, deadline: float | None, tally: Tally
    ) -> Request | None:
        """The request that goes on, after a pause; None where the stream has come to its end.

        Args:
            request: The one that has ended.
            failure: What ended it; None for a clean end, or where we were told to begin again.
            failures: Failures in a row.
            deadline: The instant by which all must have ended.
            tally: Counts the retry.
        Raises:
            PenstockError: There is no way on, or none that is worth it.
        """
        self._check_open(request, failure)
        if self._restarting:
            if not _replayable(request):
                url = seam.shown(request.url)
                raise StreamError(f"{url}: no restart: the request's body can be sent only once", url=url)
            onward, pause, failure = self.continued(request), 0.0, None
        else:
            onward_or_none = self.onward(request, failure)
            if failure is not None:
                self._notify(Interrupted(failure))
            elif onward_or_none is None:
                return None
            onward, pause = self._decided(request, onward_or_none, failure, failures, deadline)
        tally.retries += 1
        tally.reconnects += self.begun
        tally.restarts += self.begun and not self.place
        onward = replace(onward, attempt=request.attempt + 1)
        self._notify(Reconnecting(onward.attempt, pause, failure, self.place))
        await self._interruptibly(self._exchange.pause(pause))
        self._check_open(request, failure)
        if self._exchange.closing:
            raise self._given_up(failure, request, exchange.CLOSED)
        return onward

    def _check_open(self, request: Request, failure: PenstockError | None) -> None:
        if self._stopped:
            url = seam.shown(request.url)
            raise StreamError(f"{url}: the stream was closed while it was being read", url=url) from failure

    async def _interruptibly(self, work: Awaitable[R]) -> R | None:
        """Wait for it, until somebody calls `_wake`: then it is cancelled, and None."""
        with anyio.CancelScope() as self._waiting:
            try:
                return await work
            finally:
                self._waiting = None
        return None

    def _decided(
        self,
        request: Request,
        onward: Request | None,
        failure: PenstockError | None,
        failures: int,
        deadline: float | None,
    ) -> tuple[Request, float]:
        """The request that goes on, and the pause before it; raises where there is none."""
        pause: float | None = 0.0
        if failure is not None:
            pause = exchange.retry_pause(self._retry, failure, failures, may_repeat=self._may_repeat(request))
        if onward is None or pause is None or not _replayable(onward):
            raise self._given_up(failure, request)
        pause = self.pause(failure, failures, pause)
        if self._exchange.closing or not exchange.within(deadline, pause):
            raise self._given_up(failure, request)
        if (refused := self._exchange.would_refuse(request.url, pause)) is not None:
            raise refused from failure
        if not self._exchange.may_retry(self._retry):
            raise self._given_up(failure, request, exchange.SPENT)
        return onward, pause

    def repeatable(self, request: Request) -> bool:
        """Whether it can be sent once more after it was answered: the whole of it, and without harm."""
        return _replayable(request) and self._may_repeat(request)

    def _may_repeat(self, request: Request) -> bool:
        return self._retry.may_repeat(request.method, has_key=request.has_header("idempotency-key"))

    def _given_up(self, failure: PenstockError | None, request: Request, why: str = "") -> PenstockError:
        if failure is None:  # a clean end that was to be followed by another connection
            url = seam.shown(request.url)
            failure = StreamTruncated(f"{url}: the stream ended, and there is no other connection to follow", url=url)
        error = exchange.exhausted(failure, request.attempt, why)
        error.__cause__ = failure.__cause__
        return error

    @asynccontextmanager
    async def _attempt(
        self, request: Request, deadline: float | None, tally: Tally
    ) -> AsyncIterator[tuple[Response, Decoder[T]] | None]:
        """One attempt: a response that is such a stream, and what decodes it; None where nothing is to be read."""
        self._over, self._fault, self.response = False, None, None
        self._brought_before = tally.last_at
        opening = self._exchange.attempt(request, deadline, judge=self._judge)
        self.response = await self._interruptibly(opening)
        if self.response is None:
            yield None
            return
        async with self.response as response:
            if self._stopped or self._restarting:
                yield None
                return
            if not self.accepts_status(response.status):
                raise response.status_error(await response.beginning())
            if response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT):
                self._over = True
                await response.conclude()
                if (fault := self._ended_badly(response)) is not None:
                    raise fault
                yield None
                return
            if not self.accepts(response.content_type):
                raise self._wrong_type(response)
            decoder = self.decoder()
            self._notify(Connected(response, request.attempt))
            if request.timeout.content_only:
                self._expect_content(response, request.timeout.first_event)
            try:
                yield response, decoder
            except PenstockError as error:
                # Only the decoder knows no URL: it failed at an item. One that the end cut off it has counted itself.
                if error.url is None and not (isinstance(error, DecodeError) and decoder.dropped):
                    tally.total += 1
                    tally.failed += 1
                if not self._over:
                    with suppress(PenstockError):
                        decoder.close()
                raise
            finally:
                tally.total += decoder.dropped
                tally.failed += decoder.dropped

    def _expect_content(self, response: Response, patience: float | None) -> None:
        now = asyncio.get_running_loop().time()
        response.expect_content(None if patience is None else now + patience, patience)

    async def _settle(self, response: Response) -> None:
        """The body was read as far as it will be: end the response as its protocol says."""
        if self._restarting:
            return
        if self._fault is not None:
            await response.fail(self._fault)
            raise self._fault
        if self._over:
            await response.conclude()
        elif (lack := self.unfinished(response)) is not None and self.is_final(lack):
            raise lack

    def goes_on(self) -> bool:
        """Whether a body that breaks now is only gone on with, for what came of it is not asked for again."""
        return False

    def _judge(self, end: End) -> PenstockError | Literal["neither"] | None:
        """What a body's end says, for the breaker: one that came whole may lack something by its own protocol.

        One that broke after it had brought items, and will be gone on with, is how a proxy bounds its connections: it
        speaks neither for the server nor against it.
        """
        brought = self._tally is not None and self._tally.last_at != self._brought_before
        if isinstance(end.error, StreamTruncated | StreamStalled) and brought and self.goes_on():
            return "neither"
        if end.reason != "complete" or self._over or self.response is None:
            return end.error
        return self.unfinished(self.response)

    def _wrong_type(self, response: Response) -> ContentTypeError:
        found = response.content_type or "no content type"
        kinds = (kind.partition(";")[0] for kind in self.accept.split(", "))
        wanted = " or ".join(kind for kind in kinds if kind != "*/*")
        return ContentTypeError(
            f"{response.url}: this is {found}, not a stream of {wanted}; check the path, or read it as another kind",
            content_type=response.content_type,
            url=response.url,
        )


def _replayable(request: Request) -> bool:
    return request.body is None or request.body.replayable


def _nobody(notice: object) -> None:
    """Nobody asked."""
