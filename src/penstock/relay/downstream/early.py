"""An answer before the upstream's: whoever asks for events is told that a stream has begun while there is none yet.

A model may think for a minute before its headers. Proxies on the way and the timers of SDKs give up on an answer
without a head; one that has begun and is silent is kept alive. The price is that the status has been said already:

======================================  =====================================================================
the upstream                            its reader sees
======================================  =====================================================================
answers with an event stream            its events
answers with another status or type     an error in the stream, with that status, in the reader's dialect
gives no answer                         the same, with the status that the refusal would have had
======================================  =====================================================================

...and after an error never the last chunk. The error has an id if the same request would fare no better, so that an
EventSource comes back once and is told that there is nothing more; otherwise it says when to come back, and has none.

A request asks for events if it accepts them, or if its JSON body says ``"stream": true``. So the body is read first, as
much of it as may be held to be sent again; a longer one waits for the upstream.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from penstock.client.response import Response
from penstock.errors import ContentTypeError, PenstockError, StreamError
from penstock.relay.downstream.reader import Downstream
from penstock.relay.settings.policy import Policy
from penstock.relay.streams.ends import Dialect
from penstock.relay.streams.head import Head
from penstock.relay.upstream.headers import Raw
from penstock.relay.upstream.outgoing import answer_to, worth_another_try

MOST_SAID = 16_384
"""Bytes of a refusal that are read, for what it says."""

PATIENCE = 2.0
"""Seconds that they may take."""

_FIELDS: Raw = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


class Unanswered(StreamError):
    """The upstream gave no event stream, and its reader had been answered.

    Attributes:
        status: What the reader would have been answered with.
        told: Why, for the reader.
        retry_ms: When an EventSource is to come back; None where the same request would fare no better.
    """

    def __init__(self, error: PenstockError, status: int, told: str) -> None:
        super().__init__(str(error), url=error.url)
        self.status = status
        self.told = told
        seconds = worth_another_try(error)
        self.retry_ms = None if seconds is None else int((seconds + random.uniform(1, 5)) * 1000)


class Ahead:
    """A request's body, read before it goes on, up to a limit.

    Args:
        body: Gives it from where it stands.
        limit: Bytes that are held.
    """

    def __init__(self, body: Callable[[], AsyncIterator[bytes]], limit: int) -> None:
        self._body = body
        self._limit = limit
        self._pieces: list[bytes] = []

    async def read(self) -> bytes | None:
        """All of it; None if it is longer than the limit.

        Raises:
            LimitExceeded: It is longer than the route takes.
        """
        size = 0
        async for piece in self._body():
            self._pieces.append(piece)
            size += len(piece)
            if size > self._limit:
                return None
        return b"".join(self._pieces)

    async def open(self) -> AsyncIterator[bytes]:
        """The body: what was read, and then the rest. Asked for again, it goes on where it stood."""
        while self._pieces:
            yield self._pieces.pop(0)
        async for piece in self._body():
            yield piece


def asked_in(body: bytes, headers: Raw, downstream: Downstream) -> Dialect | None:
    """The dialect in which a request asks for events, as far as it tells; None if it does not ask for any."""
    says_stream = _says_stream(body)
    if not (says_stream or downstream.takes_events):
        return None
    if any(name == b"anthropic-version" for name, _ in headers):
        return "anthropic"
    return "openai" if says_stream else "penstock"


def _says_stream(body: bytes) -> bool:
    if b'"stream"' not in body:
        return False
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("stream") is True


def early_head(policy: Policy, digest: str) -> Head:
    """What a stream begins with of which the upstream has said nothing yet."""
    return Head(200, policy.response_headers.apply(_FIELDS), "sse", digest, policy.dialect)


@asynccontextmanager
async def under_way(opening: Coroutine[Any, Any, Response]) -> AsyncIterator[asyncio.Task[Response]]:
    """A response that is being asked for. At the end it is let go of, or the request is, whatever has become of it."""
    task = asyncio.create_task(opening)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()


async def answered(opening: Awaitable[Response], is_stream: Callable[[Response], bool]) -> Response:
    """The event stream that the upstream answers with.

    Raises:
        Unanswered: It has none.
    """
    try:
        response = await opening
    except PenstockError as error:
        status, told, _ = answer_to(error)
        raise Unanswered(error, status, told) from error
    if is_stream(response):
        return response
    status, sort = response.status, response.content_type
    if status >= 300:
        body = await _beginning(response)
        said = _said_in(body)
        told = f"the upstream answered {status} {response.reason}".rstrip() + (f": {said}" if said else "")
        raise Unanswered(response.status_error(body), status, told)
    coding = response.headers.get("content-encoding", "")
    what = "no content" if status == 204 else f"{sort or 'no content type'}{f' in {coding}' if coding else ''}"
    told = f"the upstream answered {status} with {what} in the place of an event stream"
    mistaken = ContentTypeError(f"{response.url}: {told}", content_type=sort, url=response.url)
    raise Unanswered(mistaken, 502, told)


async def _beginning(response: Response) -> bytes:
    """As much of a refusal's body as comes soon."""
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in response:
                body += piece
                if len(body) > MOST_SAID:
                    break
    except (TimeoutError, PenstockError):
        pass  # what there is
    return bytes(body[:MOST_SAID])


def _said_in(body: bytes) -> str:
    """The reason that a refusal gives in its JSON, in one line; "" where it gives none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for _ in range(2):
        if isinstance(value, dict):
            value = next((value[name] for name in ("error", "message", "detail") if value.get(name)), None)
    return " ".join(value.split())[:300] if isinstance(value, str) else ""
