"""A generator of one's own as the source of a stream: what it yields, made into wire bytes.

===================  ==================================================
item                 becomes
===================  ==================================================
bytes                those bytes, as they stand
an `Event`           that event
a string             an event's data, or a line
a pydantic model     its JSON, as an event's data, or a line
anything else        its JSON, as an event's data, or a line
===================  ==================================================

With ``encoding="raw"`` only bytes are taken, for generators that encode already.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Literal

import anyio
import anyio.to_thread

from penstock.relay.streams.ends import Dialect, Kind
from penstock.relay.streams.head import Head
from penstock.relay.streams.session import Session, draw
from penstock.relay.upstream.headers import Raw
from penstock.wire import ndjson, sse

Encoding = Literal["sse", "ndjson", "raw"]
Items = AsyncIterable[Any] | Iterable[Any]
Factory = Callable[[], Items | Awaitable[Items]]

_TYPES: dict[Encoding, tuple[bytes, Kind]] = {
    "sse": (b"text/event-stream; charset=utf-8", "sse"),
    "ndjson": (b"application/x-ndjson", "ndjson"),
    "raw": (b"text/event-stream; charset=utf-8", "sse"),
}
AI_SDK_END = b"data: [DONE]\n\n"
_DONE = object()


async def generated(
    session: Session,
    factory: Factory,
    *,
    encoding: Encoding,
    dialect: Dialect | None,
    headers: Raw,
    threads: anyio.CapacityLimiter,
) -> None:
    """Run a generator to its end, as a session's source.

    Cancellation: the generator is closed where it stands.

    Args:
        session: The stream's.
        factory: Makes the generator.
        encoding: What its items become.
        dialect: What the stream speaks.
        headers: Of the answer, beside our own.
        threads: What one that is not async runs in. Its own threads, lest generators that wait for tokens hold up
            whatever else the application does in threads.
    """
    content_type, kind = _TYPES[encoding]
    if not any(name == b"content-type" for name, _ in headers):
        headers = [(b"content-type", content_type), *headers]
    headers = [*headers, (b"x-accel-buffering", b"no")]
    if dialect == "ai-sdk":
        headers.append((b"x-vercel-ai-ui-message-stream", b"v1"))
    session.is_own = True
    session.begin(Head(200, headers, kind, dialect=dialect))
    items = factory()
    if inspect.isawaitable(items):
        items = await items
    encode = encoder(encoding)
    async with aclosing(_encoded(items, encode, threads)) as encoded:
        await draw(session, encoded)
    if dialect == "ai-sdk" and encoding == "sse":
        session.received += len(AI_SDK_END)
        session.take(AI_SDK_END)


async def _encoded(
    items: Items, encode: Callable[[Any], bytes], threads: anyio.CapacityLimiter
) -> AsyncGenerator[bytes, None]:
    if isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield encode(item)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return
    pulled: Iterator[Any] = iter(items)
    try:
        while (item := await _in_thread(threads, next, pulled, _DONE)) is not _DONE:
            yield encode(item)
    finally:
        close = getattr(pulled, "close", None)
        if close is not None:
            await _in_thread(threads, close)  # its `finally` may block, as its body may


async def _in_thread(threads: anyio.CapacityLimiter, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a thread, and wait for the call's end when cancelled too: a generator that runs cannot be closed."""
    running = asyncio.ensure_future(anyio.to_thread.run_sync(call, *arguments, limiter=threads))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def encoder(encoding: Encoding) -> Callable[[Any], bytes]:
    """What makes an item into wire bytes.

    Raises:
        TypeError: With "raw", an item that is not bytes; else one that is not JSON.
    """
    match encoding:
        case "raw":
            return _raw
        case "ndjson":
            return _line
        case _:
            return _event


def _raw(item: Any) -> bytes:
    if not isinstance(item, bytes | bytearray | memoryview):
        raise TypeError(
            f'encoding="raw" takes wire bytes, not {type(item).__name__}; yield bytes, or leave encoding out'
        )
    return bytes(item)


def _event(item: Any) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, sse.Event):
        return sse.encode(item)
    return sse.encode(sse.Event(data=item if isinstance(item, str) else _json(item)))


def _line(item: Any) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    dump = getattr(item, "model_dump", None)
    return ndjson.encode(item if dump is None else dump(mode="json"))


def _json(item: Any) -> str:
    dump = getattr(item, "model_dump_json", None)
    if dump is not None:
        text: str = dump()
        return text
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
