"""`penstock.events`: server-sent events out of whatever yields bytes, whosever response that is.

No other library is imported here. A source is known by what it offers, and the first row that fits decides:

============================  =====================================  ==============================================
it offers                     as do                                  and is read by
============================  =====================================  ==============================================
iter_bytes and aiter_bytes    httpx's and httpx2's response          the one for the way it is iterated
iter_bytes                    openai's and anthropic's own response  that, whichever way it goes
iter_content and raw          requests' response                     its raw, a urllib3 response
read1 and decode_content      urllib3's response                     ``read1``, which undoes codings
read1                         http.client, urllib; buffered files    ``read1``, and the coding is undone here
(a raw file, or socket)       what ``open(…, buffering=0)`` gives    ``read``
(asyncio's StreamReader)                                             ``await read``
iter_any                      aiohttp's StreamReader                 that
an iterator of either kind    a penstock Response, a generator       that
content                       aiohttp's response, a BufferedResponse its ``iter_any``, or the bytes that it is
============================  =====================================  ==============================================

Each is there for a trap. requests iterates by 128 bytes, and by ``iter_content(None)`` waits for the end of a body that
is not chunked; urllib3 notices a short body only if asked for so many bytes at most, and http.client never; a body that
was read before is empty the second time, and not an error; files and stream readers iterate by lines, which may have no
end; and a file opened as text has lost what a decoder needs.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from functools import partial
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar, overload

import anyio

from penstock.client import seam
from penstock.client.events import MAX_EVENT_BYTES, in_band, parser
from penstock.errors import PenstockError, StreamTruncated
from penstock.wire import coding, sse
from penstock.wire.terminator import Failure, Terminator

T = TypeVar("T")
M = TypeVar("M")

READ_SIZE = 64 * 1024

_NOTHING = object()

logger = logging.getLogger("penstock.client")


class _Decoded(Generic[T]):
    """What both ways of iterating share."""

    def __init__(self, source: Any, decoding: _Decoding[T], ways: _Ways) -> None:
        self._source = source
        self._decoding = decoding
        self._ways = ways

    @property
    def last_event_id(self) -> str:
        """The id to resume from: that of the last event that was handed out; "" while there is none."""
        return self._decoding.last_event_id

    @property
    def retry_ms(self) -> int | None:
        """The reconnection time that the stream last asked for [ms]; None if it never did."""
        return self._decoding.decoder.retry_ms

    @property
    def dropped(self) -> int:
        """Events that the end of the body cut off, and those that the model refused."""
        return self._decoding.decoder.dropped + self._decoding.refused


class Events(_Decoded[T]):
    """Events to iterate with ``for``, once. At its end, or left early as ``with``, the source is closed."""

    _items: Generator[T, None, None] | None = None

    def __iter__(self) -> Iterator[T]:
        # The generator, not self: it is what a loop holds on to, so that leaving the loop lets go of the source.
        if self._items is None:
            assert self._ways.plain is not None
            self._items = _iterate(self._ways.plain(), self._decoding, self._source)
        return self._items

    def __next__(self) -> T:
        return next(iter(self))

    def close(self) -> None:
        """Stop reading and close the source. Safe to call twice."""
        _close(self._items, self._source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncEvents(_Decoded[T]):
    """Events to iterate with ``async for``, once. At its end, or left early as ``async with``, the source is closed."""

    _async_items: AsyncGenerator[T, None] | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        if self._async_items is None:
            assert self._ways.asynchronous is not None
            self._async_items = _aiterate(self._ways.asynchronous(), self._decoding, self._source)
        return self._async_items

    async def __anext__(self) -> T:
        return await anext(aiter(self))

    async def aclose(self) -> None:
        """Stop reading and close the source. Safe to call twice, and while another task waits for the next event."""
        await _aclose(self._async_items, self._source)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class EitherEvents(Events[T], AsyncEvents[T]):
    """Events of a source that goes either way, as an httpx response does: it raises where it is taken the wrong one."""


# -- what a type checker knows of sources ----------------------------------------------------------------------------


class _IteratesBytes(Protocol):
    def iter_bytes(self) -> Iterator[bytes]: ...


class _IteratesBytesEitherWay(_IteratesBytes, Protocol):
    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


class _IteratesBytesAsync(Protocol):
    def iter_bytes(self) -> AsyncIterator[bytes]: ...


class _IteratesAny(Protocol):
    def iter_any(self) -> AsyncIterable[bytes]: ...


class _HasContent(Protocol):
    @property
    def content(self) -> _IteratesAny: ...


class _HasBytes(Protocol):
    @property
    def content(self) -> bytes: ...


BytesLike: TypeAlias = bytes | bytearray | memoryview
Source: TypeAlias = "BytesLike | Iterable[BytesLike] | _IteratesBytes | _HasBytes"
AsyncSource: TypeAlias = "AsyncIterable[BytesLike] | _IteratesBytesAsync | _IteratesAny | _HasContent"


@overload
def events(
    source: _IteratesBytesEitherWay,
    *,
    model: None = None,
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> EitherEvents[sse.Event]: ...
@overload
def events(
    source: _IteratesBytesEitherWay,
    *,
    model: Callable[..., M],
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> EitherEvents[M]: ...
@overload
def events(
    source: AsyncSource,
    *,
    model: None = None,
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> AsyncEvents[sse.Event]: ...
@overload
def events(
    source: AsyncSource,
    *,
    model: Callable[..., M],
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> AsyncEvents[M]: ...
@overload
def events(
    source: Source,
    *,
    model: None = None,
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> Events[sse.Event]: ...
@overload
def events(
    source: Source,
    *,
    model: Callable[..., M],
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> Events[M]: ...
def events(
    source: Any,
    *,
    model: Callable[..., Any] | None = None,
    terminator: Terminator | str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> Events[Any] | AsyncEvents[Any]:
    """Decode anything that yields bytes into server-sent events: iterate what is returned, as the source would be.

    Content codings are undone, by the source or here. The response's status and content type are not looked at: an
    error page has no events in it, so call its `raise_for_status` first. Events come as soon as their bytes do, as far
    as the source gives these away. What the source raises comes through, after the events before it.

    Args:
        source: A response of httpx, httpx2, aiohttp, requests, urllib3, http.client or Penstock, an open binary file,
            bytes, or any iterable or async iterable of bytes.
        model: What an event's data is made into: a pydantic model, a dataclass, or a function of the JSON value. Data
            that it refuses is logged, counted in `dropped` and left out; pings and ``[DONE]`` never reach it.
        terminator: How the stream ends and fails: a profile's name ("openai", "openai-responses", "anthropic") or a
            `Terminator`. Nothing is read after the end, which is the last event handed out.
        max_event_bytes: The most that a line, or the data of an event, may have; a security limit [bytes].
    Raises:
        TypeError: The source yields no bytes: it is text, or a path, or something else.
        ValueError: There is no profile of that name.
        InBandError: While iterating: the stream said that it failed.
        StreamTruncated: While iterating: it ended without the end that the terminator names.
        LimitExceeded: While iterating: an event outgrew max_event_bytes.
    """
    if isinstance(terminator, str):
        terminator = Terminator.named(terminator)
    ways = _ways(source)
    decoding = _Decoding[Any](_url(source), model, terminator, max_event_bytes)
    if ways.plain is None:
        return AsyncEvents(source, decoding, ways)
    return (Events if ways.asynchronous is None else EitherEvents)(source, decoding, ways)


# -- bytes to events -------------------------------------------------------------------------------------------------


class _Decoding(Generic[T]):
    """From pieces to items, and what is to be told at the end.

    Attributes:
        over: Nothing more is to be read: the terminator came, or a failure.
        refused: Events that the model refused.
    """

    def __init__(
        self,
        url: str,
        model: Callable[..., T] | None,
        terminator: Terminator | None,
        max_event_bytes: int,
    ) -> None:
        self.decoder = sse.Decoder(max_event_bytes=max_event_bytes)
        self.over = False
        self.refused = 0
        self._url = url
        self._parse = None if model is None else parser(model)
        self._terminator = None if terminator is None or terminator == Terminator() else terminator
        self._fault: PenstockError | None = None
        # The items handed out last, and what they came from, from which `last_event_id` is told when it is asked for.
        self._left: Iterator[T] = iter(())
        self._events: Sequence[sse.Event] = ()
        self._before = ""

    @property
    def last_event_id(self) -> str:
        left = length_hint(self._left)
        if not left and not self.over:
            return self.decoder.last_event_id
        taken = len(self._events) - left
        return self._events[taken - 1].id if taken else self._before

    def feed(self, data: object) -> Iterable[T]:
        """The items that these bytes complete; they are to be taken before more is fed."""
        if type(data) is not bytes:
            data = _bytes(data)
        before = self.decoder.last_event_id
        events = self.decoder.feed(data)
        if not events:
            return ()
        self._before = before
        items: list[Any] = events
        if self._parse is not None or self._terminator is not None:
            events, items = self._judged(events)
        self._events = events
        self._left = iter(items)
        return self._left

    def _judged(self, events: list[sse.Event]) -> tuple[list[sse.Event], list[Any]]:
        """The events to hand out and what they are handed out as, up to one that ends the stream."""
        terminator, parse = self._terminator, self._parse
        kept: list[sse.Event] = []
        items: list[Any] = []
        for event in events:
            judged = "content" if terminator is None else terminator.judge(event)
            if isinstance(judged, Failure):
                self.over = True
                self._fault = in_band(judged, url=self._url or None)
                break
            item: Any = event
            if parse is not None:
                if judged == "ping" or (terminator is not None and terminator.is_mark(event)):
                    item = _NOTHING
                else:
                    item = self._parsed(parse, event)
            if item is not _NOTHING:
                kept.append(event)
                items.append(item)
            if judged == "end":
                self.over = True
                break
        return kept, items

    def _parsed(self, parse: Callable[[sse.Event], T], event: sse.Event) -> Any:
        try:
            return parse(event)
        except (ValueError, TypeError, PenstockError) as error:
            self.refused += 1
            reason = str(error).partition("\n")[0]
            logger.warning("%s: an event does not fit its model and was left out: %s", self._url or "a stream", reason)
            return _NOTHING

    def finish(self) -> None:
        """All items are handed out: raise what became of the stream, if that is not its proper end.

        Raises:
            InBandError: It said that it failed.
            StreamTruncated: The body ended, and no terminator had come.
            LimitExceeded: An event outgrew the limit in the last piece, behind others.
        """
        if self._fault is not None:
            raise self._fault
        if self.over:
            return
        self.decoder.close()
        if self._terminator is not None and self._terminator.required:
            raise StreamTruncated(f"the stream ended without its {self._terminator.ends_with}: what came is not all")

    def broke(self, error: Exception) -> None:
        """The body broke off, or what it held cannot be read: count what it cut, and say where."""
        with suppress(PenstockError):
            self.decoder.close()
        if isinstance(error, PenstockError) and error.url is None and self._url:
            seam.located(error, self._url)


def _iterate(pieces: Iterable[object], decoding: _Decoding[T], source: object) -> Generator[T, None, None]:
    try:
        for piece in pieces:
            yield from decoding.feed(piece)
            if decoding.over:
                break
        decoding.finish()
    except Exception as error:
        decoding.broke(error)
        raise
    finally:
        _close(pieces, source)


async def _aiterate(pieces: AsyncIterable[object], decoding: _Decoding[T], source: object) -> AsyncGenerator[T, None]:
    try:
        async for piece in pieces:
            for item in decoding.feed(piece):
                yield item
            if decoding.over:
                break
        decoding.finish()
    except Exception as error:
        decoding.broke(error)
        raise
    finally:
        await _aclose(pieces, source)


def _close(*things: object) -> None:
    """Close what can be closed. What cannot be closed properly changes nothing about how the stream ended."""
    for thing in things:
        close = getattr(thing, "close", None)
        if callable(close):
            with suppress(Exception):
                close()


async def _aclose(*things: object) -> None:
    """The same for what may have to be waited for. Whoever cancels us wants it closed, not forgotten."""
    with anyio.CancelScope(shield=True):
        for thing in things:
            close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
            if callable(close):
                with suppress(Exception):
                    closing = close()
                    if inspect.isawaitable(closing):
                        await closing


# -- sources to pieces -----------------------------------------------------------------------------------------------


class _Ways(NamedTuple):
    """The ways in which a source can be iterated; each is asked for once."""

    plain: Callable[[], Iterable[object]] | None = None
    asynchronous: Callable[[], AsyncIterable[object]] | None = None


def _ways(source: Any) -> _Ways:
    """The first row of the table that fits."""
    if isinstance(source, str | os.PathLike | io.TextIOBase):
        raise TypeError(
            f"events are decoded from bytes, and {_a(source)} is none: encode text, and open a file with open(…, 'rb')"
        )
    if isinstance(source, bytes | bytearray | memoryview):
        return _Ways(lambda: _blocks(source))
    if hasattr(source, "iter_bytes"):
        if hasattr(source, "aiter_bytes"):
            return _Ways(source.iter_bytes, source.aiter_bytes)
        pieces = source.iter_bytes()
        return _Ways(None, lambda: pieces) if hasattr(pieces, "__aiter__") else _Ways(lambda: pieces)
    if hasattr(source, "iter_content") and hasattr(source, "raw"):
        return _Ways(lambda: _requests(source))
    if hasattr(source, "read1"):
        return _Ways(lambda: _urllib3(source) if hasattr(source, "decode_content") else _buffered(source))
    if isinstance(source, io.RawIOBase):
        return _Ways(lambda: _reads(source.read))
    if isinstance(source, asyncio.StreamReader):
        return _Ways(None, lambda: _areads(source.read))
    if hasattr(source, "iter_any"):
        return _Ways(None, source.iter_any)
    plain, asynchronous = hasattr(source, "__iter__"), hasattr(source, "__aiter__")
    if plain or asynchronous:
        return _Ways(partial(iter, source) if plain else None, partial(aiter, source) if asynchronous else None)
    content = getattr(source, "content", None)
    if isinstance(content, bytes):
        return _Ways(lambda: _blocks(content))
    if hasattr(content, "iter_any"):
        return _Ways(None, lambda: _aiohttp(source))
    raise TypeError(
        f"{_a(source)} yields no bytes: give a response, an open binary file, bytes, or an iterable of bytes, "
        "sync or async"
    )


def _blocks(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Bytes in memory, in pieces, so that their events are not all held as well."""
    with memoryview(data).cast("B") as view:
        for start in range(0, len(view), READ_SIZE):
            yield bytes(view[start : start + READ_SIZE])


def _reads(read: Callable[[int], bytes | None]) -> Iterator[bytes]:
    while piece := read(READ_SIZE):
        yield piece
    if piece is None:
        raise BlockingIOError("the source is in non-blocking mode and has nothing at the moment: make it blocking")


async def _areads(read: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    while piece := await read(READ_SIZE):
        yield piece


def _buffered(source: Any) -> Iterator[bytes]:
    """A buffered file; or the response of http.client, which leaves codings as they are and bears with a short body."""
    headers = getattr(source, "headers", None)
    coded = "" if headers is None else headers.get("content-encoding") or ""
    if coding.is_identity(coded):
        yield from _reads(source.read1)
    else:
        decoder = coding.Decoder(coded)
        for piece in _reads(source.read1):
            yield from decoder.feed(piece)
        decoder.close()
    missing = getattr(source, "length", None) if headers is not None else None
    if isinstance(missing, int) and missing > 0:
        raise StreamTruncated(f"the body ended {missing:,} bytes short of its Content-Length")


def _urllib3(source: Any) -> Iterator[bytes]:
    """As it arrives, decoded; or what was read before."""
    piece = source.read1(READ_SIZE, decode_content=True)
    if not piece:
        yield from _blocks(source.data or b"")
    while piece:
        yield piece
        piece = source.read1(READ_SIZE, decode_content=True)


def _requests(source: Any) -> Iterator[bytes]:
    """As it arrives, decoded; or what was read before, as without ``stream=True``."""
    raw = source.raw
    if not (hasattr(raw, "read1") and hasattr(raw, "decode_content")):
        # An old urllib3, or a stand-in: byte by byte is slow, and all else waits for bytes that may be long in coming.
        yield from source.iter_content(None if getattr(raw, "chunked", False) else 1)
        return
    piece = raw.read1(READ_SIZE, decode_content=True)
    if not piece:
        yield from source.iter_content(None)
    while piece:
        yield piece
        piece = raw.read1(READ_SIZE, decode_content=True)


async def _aiohttp(source: Any) -> AsyncIterator[bytes]:
    """As it arrives, decoded by aiohttp; or what was read before."""
    if source.content.at_eof():
        yield await source.read()
    async for piece in source.content.iter_any():
        yield piece


def _bytes(piece: object) -> bytes:
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"events are decoded from bytes, and the source yields {_a(piece)}: encode text, or take its bytes")


def _a(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")


def _url(source: object) -> str:
    """The URL that a response tells, "" where there is none."""
    try:
        url = str(getattr(source, "url", None) or "")
    except Exception:  # a response that was made by hand may refuse to tell
        return ""
    return seam.shown(url) if "://" in url else ""
