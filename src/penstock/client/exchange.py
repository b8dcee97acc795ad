"""Attempts: one request, tried until it is answered, refused for good, or not worth trying.

`attempt` makes one: breaker, middleware, transport, redirects. `send` makes as many as the retry policy allows and
returns the first response that is worth returning. A breaker's permit is given back at the end of the *body*; for a
status that already tells how the server is, at the headers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal, cast

import httpx2

from penstock.client import seam
from penstock.client.body import Outgoing
from penstock.client.request import Middleware, Request, Send
from penstock.client.response import End, Response
from penstock.engine.splice import Splice
from penstock.errors import (
    CircuitOpenError,
    InvalidURL,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    RetriesExhausted,
    StreamError,
)
from penstock.resilience.breaker import Breaker, Circuit, Permit, State
from penstock.resilience.budget import Budget, RetryBudget
from penstock.resilience.circuits import Circuits
from penstock.resilience.classify import verdict
from penstock.resilience.retry import Retry

MAX_REDIRECTS = 20

# Left behind when a redirect leads to another origin: whoever answers there was not meant to have them.
CREDENTIALS = (
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-auth-token",
)

SPENT = ", for the client's retry budget is spent"
CLOSED = ", for the client was closed"

Judge = Callable[[End], PenstockError | Literal["neither"] | None]

logger = logging.getLogger("penstock.client")


class Exchange:
    """What the attempts of one client share: the connections, the middleware, a circuit per origin, a retry budget."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        breaker: Breaker | None,
        headers: Mapping[str, str],
        budget: RetryBudget | None = None,
    ) -> None:
        self.http = http
        self._headers = headers
        self.middleware: list[Middleware] = []
        self._circuits = None if breaker is None else Circuits(_guarded(breaker))
        self._budget = None if budget is None else Budget(budget)
        self._running: set[object] = set()
        self._bodies: weakref.WeakSet[Response] = weakref.WeakSet()
        self._sending: set[asyncio.Timeout] = set()
        self._pauses: set[asyncio.Future[None]] = set()
        self._idle: asyncio.Event | None = None
        self.closing = False
        self._closed = False

    # -- circuits and budget -------------------------------------------------------------------------------------

    def state(self, url: str) -> State | None:
        """The state of the circuit of the URL's origin; None when the client has no breaker. From any thread."""
        if self._circuits is None:
            return None
        return self._circuits.state(seam.origin_of(url))

    def states(self) -> dict[str, State]:
        """The state of every circuit that is remembered, by origin. From any thread."""
        return {} if self._circuits is None else self._circuits.snapshot()

    def may_retry(self, retry: Retry) -> bool:
        """Take one retry from the client's budget, unless that or the policy has none."""
        return self._budget is None or retry.budget is None or self._budget.withdraw(time.monotonic())

    def would_refuse(self, url: str, pause: float) -> CircuitOpenError | None:
        """The breaker's refusal of an attempt after that pause; None if it would let it through.

        A retry that would meet an open breaker is not worth waiting for.
        """
        if self._circuits is None:
            return None
        circuit = self._circuits.circuit(seam.origin_of(url), time.monotonic())
        return self._circuit_open(circuit) if circuit.retry_after(time.monotonic()) > pause else None

    # -- what runs -----------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, what: object) -> Iterator[None]:
        """While it is entered, a graceful end waits for it.

        Raises:
            RuntimeError: The client is closed, or closing.
        """
        self._check_open()
        self._running.add(what)
        try:
            yield
        finally:
            self._ended(what)

    def _check_open(self) -> None:
        if self.closing:
            raise RuntimeError("the client was closed: make another")

    def _ended(self, what: object) -> None:
        self._running.discard(what)
        if self._idle is not None and not self._running:
            self._idle.set()

    async def pause(self, seconds: float) -> None:
        """Wait before another attempt; no longer, once the client is closing and there will be none."""
        over = asyncio.get_running_loop().create_future()
        self._pauses.add(over)
        try:
            async with asyncio.timeout(seconds):
                await over
        except TimeoutError:
            pass
        finally:
            self._pauses.discard(over)

    async def drain(self, grace: float) -> None:
        """Let nothing new begin, and wait for what runs to end, at most so long [s]. Several may wait for it."""
        self.closing = True
        for over in self._pauses:
            if not over.done():
                over.set_result(None)
        if self._idle is None:
            self._idle = asyncio.Event()
        if not self._running or grace <= 0:
            return
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass

    async def abort(self) -> None:
        """Break what still runs: whoever waits for a response or reads one is told so."""
        self._closed = True
        for timer in self._sending:
            if not timer.expired():
                timer.reschedule(0.0)
        for response in list(self._bodies):
            await response.abandon()

    # -- attempts ------------------------------------------------------------------------------------------------

    async def send(self, request: Request, retry: Retry, deadline: float | None) -> Response:
        """Send until a response comes that is worth returning; any status may be that response's.

        Cancellation: the running attempt is abandoned and its connection closed.

        Raises:
            CircuitOpenError: The breaker is open, from the start or after a failure of this very request.
            RetriesExhausted: Every attempt failed.
            PenstockError: The first failure that no retry can mend.
        """
        may_repeat = retry.may_repeat(request.method, has_key=request.has_header("idempotency-key"))
        request = outgoing(request)
        while True:
            refused: Response | None = None
            failure: PenstockError
            try:
                response = await self.attempt(request, deadline)
            except PenstockError as error:
                failure = error
            else:
                if response.status < 400:
                    return response
                refused, failure = response, response.status_error()
            pause = None
            if request.body is None or request.body.replayable:
                pause = retry_pause(retry, failure, request.attempt, may_repeat=may_repeat)
            if pause is None or self.closing or not within(deadline, pause):
                if refused is not None:
                    return refused
                raise exhausted(failure, request.attempt) from failure.__cause__
            if (closed := self.would_refuse(request.url, pause)) is None and not self.may_retry(retry):
                if refused is not None:
                    return refused
                raise exhausted(failure, request.attempt, SPENT) from failure.__cause__
            if refused is not None:
                await refused.aclose()
            if closed is not None:
                raise closed from failure
            await self.pause(pause)
            if self.closing:
                raise exhausted(failure, request.attempt, CLOSED) from failure.__cause__
            request = replace(request, attempt=request.attempt + 1)

    async def attempt(self, request: Request, deadline: float | None, *, judge: Judge | None = None) -> Response:
        """Make one attempt, through the breaker and the middleware.

        Args:
            request: What to send.
            deadline: The instant of the loop's clock by which the body must have ended.
            judge: Says what the end of the body means to the breaker, where that is more than its framing tells.
        """
        self._check_open()
        if request.attempt == 1 and self._budget is not None:
            self._budget.request(time.monotonic())
        exchange = object()  # not the response: one that its reader forgot must not live on because of us
        self._running.add(exchange)
        try:
            response = await self._guarded_attempt(request, deadline, judge)
        except BaseException:
            self._ended(exchange)
            raise
        self._bodies.add(response)
        response.on_end(lambda end: self._ended(exchange))
        return response

    async def _guarded_attempt(self, request: Request, deadline: float | None, judge: Judge | None) -> Response:
        if self._circuits is None:
            return await self._through_middleware(request, deadline)
        origin = seam.origin_of(request.url)
        circuit = self._circuits.circuit(origin, time.monotonic())
        permit = circuit.take(time.monotonic())
        if permit is None:
            raise self._circuit_open(circuit)
        try:
            response = await self._through_middleware(request, deadline)
        except PenstockError as error:
            if error.url is not None and seam.origin_of(error.url) != origin:
                circuit.release(permit)  # the request's own body failed: that says nothing about this server
            else:
                _settle(circuit, permit, error)
            raise
        except BaseException:
            circuit.release(permit)
            raise
        if response.status >= 400:
            _settle(circuit, permit, response.status_error())
            return response

        def at_end(end: End) -> None:
            judgement = end.error if judge is None else judge(end)
            if end.reason == "cancelled" or judgement == "neither":
                circuit.release(permit)
            else:
                _settle(circuit, permit, judgement)

        response.on_first_byte(lambda: circuit.began(permit))
        response.on_end(at_end)
        return response

    def _circuit_open(self, circuit: Circuit) -> CircuitOpenError:
        wait = circuit.retry_after(time.monotonic())
        then = f"the next attempt is allowed in {wait:.0f} s" if wait else "a probe is under way"
        return CircuitOpenError(
            f"circuit breaker open for {circuit.origin} after {circuit.opened_by} "
            f"(the last: {circuit.last_failure}); {then}",
            retry_after=wait,
            url=circuit.origin,
        )

    # -- one attempt ---------------------------------------------------------------------------------------------

    async def _through_middleware(self, request: Request, deadline: float | None) -> Response:
        responses: list[Response] = []

        async def innermost(final: Request) -> Response:
            responses.append(await self._transmit(final, deadline))
            return responses[-1]

        send: Send = innermost
        for middleware in reversed(self.middleware):
            send = _wrapped(middleware, send)
        try:
            return await send(request)
        except BaseException:
            for response in responses:  # one that a middleware refused has no other reader
                await response.aclose()
            raise

    async def _transmit(self, request: Request, deadline: float | None) -> Response:
        started_at = asyncio.get_running_loop().time()
        url = seam.shown(request.url)
        closed = partial(ReadError, f"{url}: the client was closed before the response came", url=url)
        if self._closed:
            raise closed()
        timer = asyncio.timeout_at(deadline)
        self._sending.add(timer)
        try:
            async with timer:
                raw = await self._send_following(self._build(request), request)
        except TimeoutError:
            if not timer.expired():
                raise  # of the request's own body: its source stalled
            if self._closed:
                raise closed() from None
            raise ReadTimeout(
                f"{url}: no response within the total timeout of {request.timeout.total:g} s", url=url
            ) from None
        finally:
            self._sending.discard(timer)
        return Response(raw, request, started_at=started_at, deadline=deadline)

    def _build(self, request: Request) -> httpx2.Request:
        timeout = request.timeout
        extensions: dict[str, object] = {
            "timeout": {
                "connect": timeout.connect,
                "read": timeout.first_event,
                "write": timeout.between_events,
                "pool": None,
            }
        }
        if request.target is not None:
            extensions["target"] = request.target
        headers = list(request.headers)
        if not request.exact:
            headers[:0] = [pair for pair in self._headers.items() if not request.has_header(pair[0])]
        stream = None
        if request.body is not None:
            stream = _OutgoingBody(request)
            if not request.exact:
                headers += _body_headers(request)
        if request.exact:
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            return httpx2.Request(
                request.method, _parsed(request.url), headers=raw, stream=stream or _NOTHING, extensions=extensions
            )
        # Parameters of httpx2's client would take the place of the URL's own unless these are named as well.
        params = httpx2.URL(request.url).params if self.http.params else None
        built = self.http.build_request(
            request.method, request.url, params=params, headers=_encoded(headers), extensions=extensions
        )
        if stream is not None:
            # What httpx2 assumed of an empty body does not hold: the length, or its absence, is the body's own.
            if request.body is not None and request.body.length is None:
                built.headers.pop("content-length", None)
            built.stream = stream
        return built

    async def _send_following(self, outgoing: httpx2.Request, request: Request) -> httpx2.Response:
        follow = not request.exact and request.method in ("GET", "HEAD")
        auth: httpx2.Auth | None = self.http.auth
        hop = request.url
        for hops in range(MAX_REDIRECTS + 1):
            try:
                response = await self.http.send(outgoing, stream=True, auth=auth, follow_redirects=False)
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
                known = seam.translate(error, hop, "request", timeout=request.timeout)
                if hops and isinstance(known, InvalidURL):  # which is the server's fault, then
                    url = seam.shown(request.url)
                    known = ProtocolError(f"{url} redirects to what cannot be asked for: {known}", url=url)
                raise known from error
            # The timer for the headers has done its work; from here on each read of the body has its own.
            outgoing.extensions["timeout"]["read"] = None
            leads = response.headers.get("location", "").strip()
            if not follow or not leads or response.next_request is None:
                return response
            await response.aclose()
            onward = response.next_request
            if _origin(onward) != _origin(outgoing):
                auth = None
                for name in CREDENTIALS:
                    onward.headers.pop(name, None)
            onward.extensions["timeout"]["read"] = request.timeout.first_event
            outgoing, hop = onward, str(onward.url)
        url = seam.shown(hop)
        raise ProtocolError(f"{url}: more than {MAX_REDIRECTS} redirects; they seem to lead in a circle", url=url)


@lru_cache(maxsize=64)
def _parsed(url: str) -> httpx2.URL:
    """A relay's upstream is the same each time, and parsing it is a tenth of what a request costs."""
    return httpx2.URL(url)


class _OutgoingBody(httpx2.AsyncByteStream):
    """A request's body, opened anew for each attempt."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._request.body
        assert body is not None
        length, sent = body.length, 0
        async for chunk in body.open():
            if isinstance(chunk, Splice):
                yield cast("bytes", chunk)  # the engine's own kind of piece, for the engine
                sent += chunk.moved
                continue
            sent += len(chunk)
            if length is not None and sent > length:
                raise self._not_as_announced(f"at least {sent:,}", length)
            yield chunk
        if length is not None and sent < length:
            raise self._not_as_announced(f"{sent:,}", length)

    def _not_as_announced(self, sent: str, length: int) -> StreamError:
        url = seam.shown(self._request.url)
        return StreamError(
            f"{url}: the request's body has {sent} bytes, and {length:,} were announced: it was broken off", url=url
        )


class _Nothing(httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece


_NOTHING = _Nothing()


def _wrapped(middleware: Middleware, send: Send) -> Send:
    async def call(request: Request) -> Response:
        return await middleware(request, send)

    return call


def _encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Fields as they go on the wire: in UTF-8, which is what an event stream's ids are in, without outer blanks."""
    return [(name.encode(), value.strip(" \t").encode("utf-8", "surrogateescape")) for name, value in headers]


def _body_headers(request: Request) -> list[tuple[str, str]]:
    body = request.body
    assert body is not None
    headers = []
    if body.content_type is not None and not request.has_header("content-type"):
        headers.append(("Content-Type", body.content_type))
    if body.length is not None:
        headers.append(("Content-Length", str(body.length)))
    else:
        headers.append(("Transfer-Encoding", "chunked"))
    return headers


def _origin(request: httpx2.Request) -> tuple[str, bytes]:
    return request.url.scheme, request.url.netloc


def outgoing(request: Request) -> Request:
    """The request with a body that remembers whether any attempt has opened it."""
    return request if request.body is None else replace(request, body=Outgoing(request.body))


def retry_pause(retry: Retry, failure: PenstockError, attempt: int, *, may_repeat: bool) -> float | None:
    """`Retry.delay` with the clock and the randomness of the real world."""
    return retry.delay(failure, attempt=attempt, may_repeat=may_repeat, now=time.time(), draw=random.random())


def within(deadline: float | None, pause: float) -> bool:
    """Whether a pause from now ends before the deadline."""
    return deadline is None or asyncio.get_running_loop().time() + pause < deadline


def exhausted(failure: PenstockError, attempts: int, why: str = "") -> PenstockError:
    """The error to raise after the last attempt: the failure itself when there was only one and nothing else to say."""
    if isinstance(failure, CircuitOpenError) or (attempts == 1 and not why):
        return failure
    times = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    return RetriesExhausted(f"gave up after {times}{why}: {failure}", attempts=attempts, last=failure, url=failure.url)


def _settle(circuit: Circuit, permit: Permit, error: PenstockError | None) -> None:
    circuit.settle(permit, verdict(error), time.monotonic(), failure=str(error))


def _guarded(breaker: Breaker) -> Breaker:
    """The same, but what the listener raises is logged: it must not take the place of what happened to a request."""
    told = breaker.on_change
    if told is None:
        return breaker

    def on_change(origin: str, before: State, after: State) -> None:
        try:
            told(origin, before, after)
        except Exception:
            logger.exception("the listener to the breaker of %s failed", origin)

    return replace(breaker, on_change=on_change)
