"""The fluent face for a thread that waits: the setters are `RequestBuilder`'s own, and so is what the terminals do.

A builder is kept, shared and sent by any thread, and after a fork as well: the connections are looked up when it is
sent, not when it is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, overload

from penstock.client.blocking.body import Content, on_the_loop
from penstock.client.blocking.call import Caller
from penstock.client.blocking.link import Link
from penstock.client.blocking.portal import current
from penstock.client.blocking.response import BlockingResponse
from penstock.client.blocking.stream import BlockingEventStream, BlockingStream
from penstock.client.builder import MultipartBuilder, RequestBuilder
from penstock.client.events import Reconnect
from penstock.client.notices import OnNotice
from penstock.client.stream import ItemStream
from penstock.wire.sse import Event
from penstock.wire.terminator import Terminator

if TYPE_CHECKING:
    from penstock.client.blocking.client import Client

A = TypeVar("A", bound=RequestBuilder)
B = TypeVar("B", bound="BlockingRequestBuilder")
M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _setter(method: Callable[Concatenate[A, P], A]) -> Callable[Concatenate[B, P], B]:
    """A builder's setter: a new builder around what the asynchronous one's gives."""

    @wraps(method)
    def setter(self: B, /, *args: P.args, **keywords: P.kwargs) -> B:
        return self._with(method.__name__, *args, **keywords)

    return setter


def _terminal(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[B, P], R]:
    """A builder's terminal that gives what it gives when all has come."""

    @wraps(method)
    def terminal(self: B, /, *args: P.args, **keywords: P.kwargs) -> R:
        work: Callable[[], Awaitable[R]] = partial(getattr(self._here(), method.__name__), *args, **keywords)
        return current().run(work, Caller())

    return terminal


@dataclass(frozen=True, slots=True)
class BlockingRequestBuilder:
    """One request, described. Frozen: a builder can be kept, shared and sent many times."""

    _client: Client
    _described: RequestBuilder

    # -- setters -------------------------------------------------------------------------------------------------

    header = _setter(RequestBuilder.header)
    headers = _setter(RequestBuilder.headers)
    param = _setter(RequestBuilder.param)
    json = _setter(RequestBuilder.json)
    body = _setter(RequestBuilder.body)
    timeout = _setter(RequestBuilder.timeout)
    retry = _setter(RequestBuilder.retry)

    def content(self, content: Content | str, *, content_type: str | None = None, length: int | None = None) -> Self:
        """Carry text, bytes, a path, a `BlockingResponse`, an open binary file or any iterable of bytes, as it is.

        A file and an iterable are read piece by piece in the thread that sends the request, while it waits; what they
        raise, it raises.
        """
        return self._carrying("content", content, content_type, length)

    # -- terminals -----------------------------------------------------------------------------------------------

    def send(self) -> BlockingResponse:
        """Send it: ``response = builder.send()``, or ``with builder.send() as response`` to have it closed as well."""
        portal, caller, sending = current(), Caller(), self._here().send()

        async def opened() -> BlockingResponse:
            # It is somebody's from the moment it is: an interrupt on its way to the caller would lose it, else.
            return BlockingResponse(Link(self._client, portal, await sending, caller), owned=True)

        return portal.run(opened, caller)

    read = _terminal(RequestBuilder.read)

    @overload
    def events(
        self,
        *,
        reconnect: Reconnect = ...,
        terminator: Terminator | str | None = ...,
        initial_last_event_id: str = ...,
        on_notice: OnNotice | None = ...,
    ) -> BlockingEventStream[Event]: ...
    @overload
    def events(
        self,
        *,
        model: Callable[..., M],
        reconnect: Reconnect = ...,
        terminator: Terminator | str | None = ...,
        initial_last_event_id: str = ...,
        on_notice: OnNotice | None = ...,
    ) -> BlockingEventStream[M]: ...
    def events(
        self,
        *,
        model: Callable[..., M] | None = None,
        reconnect: Reconnect = "resilient",
        terminator: Terminator | str | None = None,
        initial_last_event_id: str = "",
        on_notice: OnNotice | None = None,
    ) -> BlockingEventStream[Event] | BlockingEventStream[M]:
        """Server-sent events as they arrive; the arguments are those of `RequestBuilder.events`.

        ``on_notice`` is called in the loop's thread.
        """
        how: dict[str, Any] = {
            "model": model,
            "reconnect": reconnect,
            "terminator": terminator,
            "initial_last_event_id": initial_last_event_id,
            "on_notice": on_notice,
        }
        return BlockingEventStream(self._link(self._here().events(**how)))

    def records(self, *, on_notice: OnNotice | None = None) -> BlockingStream[Any]:
        """The JSON values of an NDJSON body as they arrive."""
        return BlockingStream(self._link(self._here().records(on_notice=on_notice)))

    def lines(self, *, on_notice: OnNotice | None = None) -> BlockingStream[str]:
        """The lines of a text body as they arrive, without their ends."""
        return BlockingStream(self._link(self._here().lines(on_notice=on_notice)))

    def items(
        self, kind: Callable[..., ItemStream[T]], *, on_notice: OnNotice | None = None, **keywords: Any
    ) -> BlockingStream[T]:
        """A stream of a kind of one's own, a subclass of `ItemStream`."""
        return BlockingStream(self._link(self._here().items(kind, on_notice=on_notice, **keywords)))

    collect = _terminal(RequestBuilder.collect)

    # -- inside --------------------------------------------------------------------------------------------------

    def _with(self, setter: str, /, *args: Any, **keywords: Any) -> Self:
        return replace(self, _described=getattr(self._described, setter)(*args, **keywords))

    def _carrying(
        self, setter: str, content: Content | str, content_type: str | None, length: int | None, *names: str
    ) -> Self:
        body, known = on_the_loop(content, length)
        builder = self._with(setter, *names, body, content_type=content_type, length=known)
        if isinstance(content, BlockingResponse):
            content._give_away()
        return builder

    def _here(self) -> RequestBuilder:
        """The request, to be sent through the connections of this process."""
        return replace(self._described, _client=self._client._inner)

    def _link(self, stream: ItemStream[T]) -> Link[ItemStream[T]]:
        return Link(self._client, current(), stream, Caller())


@dataclass(frozen=True, slots=True)
class BlockingMultipartBuilder(BlockingRequestBuilder):
    """A multipart form, sent as it is produced, with a computed Content-Length when every part's length is known."""

    field = _setter(MultipartBuilder.field)

    def file(
        self,
        name: str,
        filename: str,
        source: Content,
        *,
        content_type: str | None = None,
        length: int | None = None,
    ) -> Self:
        """Add a file.

        Args:
            name: The form field's name.
            filename: The name that the receiver sees.
            source: A `BlockingResponse`, a path, bytes, an open binary file or any iterable of bytes. All but a path
                and bytes are read while the form is sent; when they break, so does the request.
            content_type: The media type; else the source's own, else application/octet-stream.
            length: Bytes in all, where the caller knows and the source does not say.
        Raises:
            StatusError: The source is a response that is an error page.
            OSError: The path cannot be looked at.
        """
        return self._carrying("file", source, content_type, length, name, filename)
