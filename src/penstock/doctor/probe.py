"""One request, listened to: when each piece of the body came, and what was in it.

Instants are seconds since the request was begun, on one clock, so that two probes can be laid on each other. A probe
ends in one of five ways:

========  ==================================================================================
ended     means
========  ==================================================================================
complete  the body came to its end
broken    the body broke; `error` says how
miscoded  the bytes are not of the content coding that the answer names; `error` says how
outgrown  the body outgrew a limit that readers have; `error` says which
bounded   the doctor had heard enough: its seconds, its items or its bytes. That is no fault
========  ==================================================================================

An item is what the stream is made of: an event, a record, a line of text; and where a body has no lines, a piece as it
came. The module knows nothing of what is good or bad.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from penstock.client.builder import RequestBuilder
from penstock.client.events import MAX_EVENT_BYTES
from penstock.client.response import Response
from penstock.errors import DecodeError, LimitExceeded, PenstockError
from penstock.wire import coding, lines, sse
from penstock.wire.headers import is_event_stream, is_ndjson

MAX_BYTES = 2 * MAX_EVENT_BYTES
"""The most that is listened to of one body, its coding undone: a rhythm shows long before, and a line without end."""

_EVENTS = (b"data:", b"event:", b"id:", b"retry:")
"""What an event stream begins with, whatever it calls itself."""

_MAX_TEXT = 400  # characters kept of an item: enough for a timestamp, and for comparing

Ended = Literal["complete", "broken", "miscoded", "outgrown", "bounded"]
Framing = Literal["chunked", "length", "close", "none"]
Unit = Literal["event", "record", "line", "piece"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the body, as one read gave it.

    Attributes:
        at: When it came.
        size: Its bytes, the coding undone where that can be done.
        items: How many items it completed.
        cut: Whether it ends in the middle of a line: no server writes so, but a buffer that is full does.
    """

    at: float
    size: int
    items: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """An event, a record, a line or a piece.

    Attributes:
        at: When its last byte came.
        text: The beginning of its data.
        id: The event's id, "" where it has none.
    """

    at: float
    text: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one request saw.

    Attributes:
        url: The URL that answered, or that was asked.
        status: None when no answer came within the bound.
        http_version: As the answer has it: "HTTP/1.1".
        headers: The answer's fields, names in lower case.
        headers_at: When they had come.
        unit: What the items are.
        pieces: The body as it came.
        items: What was in it.
        comments: Comment lines of an event stream: keep-alives, mostly.
        ended: How listening ended.
        ended_at: When.
        error: What broke the body, or why it could not be read.
    """

    url: str
    status: int | None = None
    http_version: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    headers_at: float = 0.0
    unit: Unit = "piece"
    pieces: tuple[Piece, ...] = ()
    items: tuple[Item, ...] = ()
    comments: int = 0
    ended: Ended = "bounded"
    ended_at: float = 0.0
    error: str = ""

    def field(self, name: str) -> str:
        """A field's value, "" where it is not there; of several, joined as HTTP joins them."""
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def is_events(self) -> bool:
        """Whether it calls itself an event stream."""
        return is_event_stream(self.field("content-type"))

    @property
    def coding(self) -> str:
        """The content coding, "" where nothing was done to the body."""
        value = self.field("content-encoding")
        return "" if coding.is_identity(value) else value

    @property
    def framing(self) -> Framing:
        """How the body's end is known."""
        if self.status in (None, 204, 304):
            return "none"
        if "chunked" in self.field("transfer-encoding").lower():
            return "chunked"
        return "length" if self.field("content-length") else "close"

    @property
    def spread(self) -> float:
        """From the first item to the last."""
        return self.items[-1].at - self.items[0].at if self.items else 0.0


async def probe(
    request: RequestBuilder, url: str, *, seconds: float, max_items: int, heed_status: bool = False
) -> Probe:
    """Send the request, listen to the answer.

    Cancellation: the connection is closed. So it is when enough was heard.

    Args:
        request: What to send, with no retries and no timers of its own but that for connecting.
        url: What to call the answer if none comes.
        seconds: The longest time to listen, from the request on.
        max_items: The most items to listen to.
        heed_status: Whether an answer that is no success raises, instead of being listened to.
    Raises:
        StatusError: The status is no success, and heed_status; its body may hang.
        PenstockError: No connection, or no answer; a body that breaks does not raise.
    """
    ear = _Ear(url, max_items)
    timer = asyncio.timeout(seconds)
    try:
        async with timer, request.send() as response:
            if heed_status and not 200 <= response.status < 300:
                timer.reschedule(None)  # there is an answer: a body that hangs does not undo it
                raise response.status_error(await response.beginning(seconds=min(2.0, seconds)))
            await ear.listen(response)
    except TimeoutError:
        if not timer.expired():
            raise
    return ear.heard()


class _Ear:
    """One answer as it comes in."""

    def __init__(self, url: str, max_items: int) -> None:
        self._began = time.monotonic()  # the loop's own clock may stand still for as long as a callback runs
        self._max_items = max_items
        self._url = url
        self._response: Response | None = None
        self._headers_at = 0.0
        self._pieces: list[Piece] = []
        self._items: list[Item] = []
        self._body: _Body | None = None
        self._ended: Ended = "bounded"
        self._ended_at: float | None = None
        self._error = ""

    async def listen(self, response: Response) -> None:
        self._response = response
        self._headers_at = self._now()
        self._body = body = _Body(response)
        size = 0
        try:
            async for raw in response.raw():
                size += self._absorb(raw, body)
                if len(self._items) >= self._max_items or size >= MAX_BYTES:
                    break
            else:
                body.close()
                self._ended = "complete"
        except PenstockError as error:
            self._ended, self._error = _how(error), str(error)
        self._ended_at = self._now()

    def _absorb(self, raw: bytes, body: _Body) -> int:
        """What one read gave; its size, the coding undone. Of a piece that cannot be read whole, what can be."""
        at = self._now()
        before, came = len(self._items), 0
        try:
            for data in body.undone(raw):
                came += len(data)
                self._items += [Item(at, text, id_) for text, id_ in body.feed(data)]
        finally:
            self._pieces.append(Piece(at, came, len(self._items) - before, body.cut))
        return came

    def heard(self) -> Probe:
        response, body = self._response, self._body
        ended_at = self._now() if self._ended_at is None else self._ended_at
        if response is None or body is None:
            return Probe(self._url, ended_at=ended_at)
        return Probe(
            url=response.url,
            status=response.status,
            http_version=response.http_version,
            headers=tuple((name.lower(), value) for name, value in response.headers.multi_items()),
            headers_at=self._headers_at,
            unit=body.unit,
            pieces=tuple(self._pieces),
            items=tuple(self._items[: self._max_items]),
            comments=body.comments,
            ended=self._ended,
            ended_at=ended_at,
            error=self._error,
        )

    def _now(self) -> float:
        return time.monotonic() - self._began


class _Body:
    """The body's bytes, made into items; what those are is settled by the content type and the first bytes."""

    def __init__(self, response: Response) -> None:
        self.comments = 0
        self.cut = False
        self.unit: Unit = "piece"
        self._content_type = response.content_type
        named = response.headers.get("content-encoding", "")
        self._plain = coding.is_identity(named)
        self._coding = coding.Decoder(named) if named.strip().lower() in coding.SUPPORTED else None
        self._read: Callable[[bytes], list[tuple[str, str]]] | None = None

    def undone(self, raw: bytes) -> Iterable[bytes]:
        """The bytes that a piece stands for; those of a coding that cannot be undone as they are."""
        return [raw] if self._coding is None else self._coding.feed(raw)

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Text and id of every item that these bytes complete."""
        if self._read is None:
            self._read = self._reader(data)
        if self.unit in ("event", "record"):
            self.cut = not data.endswith((b"\n", b"\r"))
        return self._read(data)

    def close(self) -> None:
        """The body has ended: fails where its coding has not, or where its last piece outgrew a limit."""
        if self._read is not None and self.unit != "piece":
            self._read(b"")  # what was complete before a limit was given out first
        if self._coding is not None:
            self._coding.close()

    def _reader(self, data: bytes) -> Callable[[bytes], list[tuple[str, str]]]:
        if not self._plain and self._coding is None:
            return self._piece
        if is_event_stream(self._content_type) or data.startswith(_EVENTS):
            self.unit = "event"
            events = sse.Decoder(max_event_bytes=MAX_EVENT_BYTES, on_comment=self._comment)
            return lambda data: [(event.data[:_MAX_TEXT], event.id) for event in events.feed(data)]
        if is_ndjson(self._content_type) or b"\n" in data:
            self.unit = "record" if is_ndjson(self._content_type) else "line"
            whole = lines.Decoder(max_line_bytes=MAX_EVENT_BYTES)
            return lambda data: [(_text(line), "") for line in whole.feed(data)]
        return self._piece

    def _piece(self, data: bytes) -> list[tuple[str, str]]:
        return [(_text(data), "")]

    def _comment(self, text: str) -> None:
        self.comments += 1


def _how(error: PenstockError) -> Ended:
    """How a body ended that this came of."""
    if isinstance(error, DecodeError):
        return "miscoded"
    return "outgrown" if isinstance(error, LimitExceeded) else "broken"


def _text(data: bytes) -> str:
    return data[:_MAX_TEXT].decode("utf-8", "replace")
