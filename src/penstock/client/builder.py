"""The fluent face: a request is described by setters, each of which returns a new builder, and sent by one terminal.

===========  ======================  ============================================
terminal     gives                   a failed status
===========  ======================  ============================================
send()       Response                is returned, to be looked at
read()       BufferedResponse        is returned, to be looked at
events()     EventStream             raises StatusError when the stream is read
records()    RecordStream            raises StatusError when the stream is read
lines()      LineStream              raises StatusError when the stream is read
collect()    Collected               raises StatusError
===========  ======================  ============================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Generator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload
from urllib.parse import urlencode

from penstock.client import body as bodies
from penstock.client.body import Body, FileSource
from penstock.client.events import EventStream, LineStream, ModelStream, Reconnect, RecordStream
from penstock.client.notices import OnNotice
from penstock.client.request import Request
from penstock.client.response import MAX_READ_BYTES, BufferedResponse, Response
from penstock.client.settings import Timeout
from penstock.client.stream import MAX_COLLECTED_BYTES, Collected, ItemStream
from penstock.resilience.retry import Retry
from penstock.wire import headers as fields
from penstock.wire import multipart
from penstock.wire.sse import Event
from penstock.wire.terminator import Terminator

if TYPE_CHECKING:
    from penstock.client.client import AsyncClient

M = TypeVar("M")
S = TypeVar("S", bound=ItemStream[Any])

FRAMING = frozenset({"content-length", "transfer-encoding"})
"""What tells where a message ends; two that disagree make one request two."""


class Sending:
    """A request about to be sent: ``await`` it for the response, or ``async with`` it to have it closed as well."""

    def __init__(self, builder: RequestBuilder) -> None:
        self._builder = builder
        self._response: Response | None = None

    def __await__(self) -> Generator[Any, None, Response]:
        return self._builder._send().__await__()

    async def __aenter__(self) -> Response:
        self._response = await self._builder._send()
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.aclose()


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """One request, described. Frozen: a builder can be kept, shared and sent many times."""

    _client: AsyncClient
    _method: str
    _url: str
    _headers: tuple[tuple[str, str], ...] = ()
    _params: tuple[tuple[str, str], ...] = ()
    _body: Body | None = None
    _timeout: Timeout | None = None
    _retry: Retry | None = None

    # -- setters -------------------------------------------------------------------------------------------------

    def header(self, name: str, value: str) -> Self:
        """Add a header field.

        Raises:
            ValueError: The name is no token, the value holds CR, LF or NUL (header injection), or it is one of the
                fields that frame the body.
        """
        fields.check_header(name, value)
        if name.lower() in FRAMING:
            raise ValueError(f"{name} is not set by hand: it follows from the body, and from the length given with it")
        return replace(self, _headers=(*self._headers, (name, value)))

    def headers(self, values: Mapping[str, str]) -> Self:
        """Add several header fields."""
        builder = self
        for name, value in values.items():
            builder = builder.header(name, value)
        return builder

    def param(self, name: str, value: object) -> Self:
        """Add a query parameter."""
        return replace(self, _params=(*self._params, (name, str(value))))

    def json(self, value: Any) -> Self:
        """Carry a value as JSON."""
        return replace(self, _body=bodies.json_body(value))

    def content(self, content: FileSource | str, *, content_type: str | None = None, length: int | None = None) -> Self:
        """Carry text, bytes, a path, a `Response` or any async iterable of bytes, as it is."""
        return replace(self, _body=bodies.content_body(content, content_type=content_type, length=length))

    def body(self, body: Body) -> Self:
        """Carry a body of the caller's own making; see `penstock.client.body.Body`."""
        return replace(self, _body=body)

    def timeout(self, timeout: float | Timeout | None) -> Self:
        """A number of seconds is the total; a `Timeout` replaces the client's; None waits for ever."""
        if isinstance(timeout, float | int):
            timeout = replace(self._timeout or self._client.timeout, total=float(timeout))
        return replace(self, _timeout=Timeout.of(timeout))

    def retry(self, retry: Retry | int) -> Self:
        """Another retry policy than the client's; a number keeps the rest of it."""
        if isinstance(retry, int):
            retry = replace(self._retry or self._client.retry, retries=retry)
        return replace(self, _retry=retry)

    # -- terminals -----------------------------------------------------------------------------------------------

    def send(self) -> Sending:
        """Send it: ``response = await builder.send()`` or ``async with builder.send() as response``."""
        return Sending(self)

    async def read(self, *, max_bytes: int = MAX_READ_BYTES) -> BufferedResponse:
        """Send it and read the whole body, up to max_bytes."""
        async with await self._send() as response:
            content = await response.read(max_bytes=max_bytes)
            return BufferedResponse(response.status, response.headers, response.url, content)

    @overload
    def events(
        self,
        *,
        reconnect: Reconnect = ...,
        terminator: Terminator | str | None = ...,
        initial_last_event_id: str = ...,
        on_notice: OnNotice | None = ...,
    ) -> EventStream: ...
    @overload
    def events(
        self,
        *,
        model: Callable[..., M],
        reconnect: Reconnect = ...,
        terminator: Terminator | str | None = ...,
        initial_last_event_id: str = ...,
        on_notice: OnNotice | None = ...,
    ) -> ModelStream[M]: ...
    def events(
        self,
        *,
        model: Callable[..., M] | None = None,
        reconnect: Reconnect = "resilient",
        terminator: Terminator | str | None = None,
        initial_last_event_id: str = "",
        on_notice: OnNotice | None = None,
    ) -> EventStream | ModelStream[M]:
        """Server-sent events as they arrive.

        Args:
            model: A pydantic model, a dataclass or a callable that takes a JSON value: gives its values, not events.
            reconnect: When to connect again: "resilient" goes on where a stream broke, and takes a clean end for the
                end; "strict" is a browser's EventSource, which connects again until a 204; "never" raises.
            terminator: How the stream's protocol says that it is whole or that it failed, a profile's name ("openai",
                "anthropic", "openai-responses", "none") or one's own. An end without it raises `StreamTruncated`, a
                failure `InBandError`.
            initial_last_event_id: Where to begin: what an earlier stream's `last_event_id` was.
            on_notice: Called with what happens besides; see `penstock.client.notices`. It must not raise or block.
        """
        how = {"reconnect": reconnect, "terminator": terminator, "last_event_id": initial_last_event_id}
        if model is None:
            return self.items(EventStream, on_notice=on_notice, **how)
        return self.items(ModelStream[M], on_notice=on_notice, model=model, **how)

    def records(self, *, on_notice: OnNotice | None = None) -> RecordStream:
        """The JSON values of an NDJSON body as they arrive."""
        return self.items(RecordStream, on_notice=on_notice)

    def lines(self, *, on_notice: OnNotice | None = None) -> LineStream:
        """The lines of a text body as they arrive, without their ends."""
        return self.items(LineStream, on_notice=on_notice)

    def items(self, kind: Callable[..., S], *, on_notice: OnNotice | None = None, **keywords: Any) -> S:
        """A stream of a kind of one's own, a subclass of `ItemStream`."""
        request = self._request()
        accept = getattr(kind, "accept", "*/*")
        wanted = [("Accept", accept)]
        if "text/event-stream" in accept:
            wanted.append(("Cache-Control", "no-cache"))
        extra = [pair for pair in wanted if not request.has_header(pair[0])]
        request = replace(request, headers=(*request.headers, *extra))
        shared = {"on_end": self._client.count, "on_notice": on_notice}
        return kind(self._client.exchange, request, self._policy, **shared, **keywords)

    async def collect(
        self,
        *,
        max_events: int | None = None,
        max_bytes: int = MAX_COLLECTED_BYTES,
        terminator: Terminator | str | None = None,
    ) -> Collected[Event]:
        """Every event, and the stream's metrics.

        Args:
            max_events: More than these are too many; None is no bound.
            max_bytes: A body over this is too large.
            terminator: As for `events`.
        Raises:
            LimitExceeded: More than max_events, or a body over max_bytes; what had come is in `collected`.
            StreamError: The stream broke; what had come is in `collected`.
        """
        return await self.events(terminator=terminator).collect(max_events=max_events, max_bytes=max_bytes)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _policy(self) -> Retry:
        return self._retry or self._client.retry

    def _request(self) -> Request:
        client = self._client
        url, _, _ = client.absolute_url(self._url).partition("#")
        if self._params:
            url += ("&" if "?" in url else "?") + urlencode(self._params)
        return Request(
            self._method,
            url,
            self._headers,
            self._body,
            self._timeout or client.timeout,
            client=client.name,
        )

    async def _send(self) -> Response:
        request = self._request()
        total = request.timeout.total
        deadline = None if total is None else asyncio.get_running_loop().time() + total
        return await self._client.exchange.send(request, self._policy, deadline)


@dataclass(frozen=True, slots=True)
class MultipartBuilder(RequestBuilder):
    """A multipart form, sent as it is produced, with a computed Content-Length when every part's length is known."""

    _parts: tuple[tuple[multipart.Field | multipart.File, Body | None], ...] = ()

    def field(self, name: str, value: str | bytes) -> Self:
        """Add a field."""
        return replace(self, _parts=(*self._parts, (multipart.Field(name, value), None)))

    def file(
        self,
        name: str,
        filename: str,
        source: FileSource | AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        length: int | None = None,
    ) -> Self:
        """Add a file.

        Args:
            name: The form field's name.
            filename: The name that the receiver sees.
            source: A `Response`, a path, bytes or any async iterable of bytes. A response and an iterable are read
                while the form is sent, once; when they break, so does the request.
            content_type: The media type; else the source's own, else application/octet-stream.
            length: Bytes in all, where the caller knows and the source does not say.
        Raises:
            StatusError: The source is a response that is an error page.
            OSError: The path cannot be looked at.
        """
        body = bodies.content_body(source, content_type=content_type, length=length)
        media_type = body.content_type or "application/octet-stream"
        part = multipart.File(name, filename, content_type=media_type, length=body.length)
        return replace(self, _parts=(*self._parts, (part, body)))

    def json(self, value: Any) -> NoReturn:
        """Not for a form: it would have two bodies.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a form's body is its parts: add them with .field() and .file(), or begin with .post()")

    def content(
        self, content: FileSource | str, *, content_type: str | None = None, length: int | None = None
    ) -> NoReturn:
        """Not for a form: it would have two bodies; see `json`."""
        self.json(content)

    def body(self, body: Body) -> NoReturn:
        """Not for a form: it would have two bodies; see `json`."""
        self.json(body)

    def _request(self) -> Request:
        form = multipart.Form([part for part, _ in self._parts], boundary=bodies.boundary())
        body = bodies.Form(form, tuple(body for _, body in self._parts))
        # Named in full: with slots, a dataclass is not the class that an argument-less super() looks for.
        return replace(RequestBuilder._request(self), body=body)
