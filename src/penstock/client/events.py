"""The kinds of streams: events, records, lines, and events as values of a model."""

from __future__ import annotations

import dataclasses
import logging
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar, cast

from penstock.client import seam
from penstock.client.cursor import INHERITED, Cursor
from penstock.client.notices import Comment, Malformed, Replayed
from penstock.client.request import Request
from penstock.client.response import Response
from penstock.client.stream import Decoder, ItemStream
from penstock.errors import InBandError, PenstockError, ReplayGap, StatusError, StreamError, StreamTruncated
from penstock.resilience.reconnect import reconnect_pause
from penstock.wire import headers as fields
from penstock.wire import lines, ndjson, sse
from penstock.wire.terminator import Failure, Terminator
from penstock.wire.terminator import failure as terminator_failure

M = TypeVar("M")
T = TypeVar("T")

MAX_EVENT_BYTES = 16 * 1024 * 1024

Reconnect = Literal["strict", "resilient", "never"]
"""When an event stream is connected to again.

=============  ===================  =========================  ====================
ended by       strict               resilient                  never
=============  ===================  =========================  ====================
a clean end    connect again, if    the end                    the end
               that does no harm
204            the end              the end                    the end
a break        connect again, with  go on after the last id;   raise
               the last id if any   without one, raise
5xx            raise                by the retry policy        by the retry policy,
429, 408       raise                by the retry policy        before it has opened
no connection  by the retry policy  by the retry policy        as above
=============  ===================  =========================  ====================

*strict* is a browser's EventSource: only a 200 is a stream, and only a 204 ends it. *resilient* takes a clean end for
what it is, since an answer must not be asked for a second time. So does *strict* where the request, a POST say, is none
that may be sent twice.
"""

_COMMENT = re.compile(rb"(?<=[\r\n])(?=:)")

logger = logging.getLogger("penstock.client")


class _ServerSent(ItemStream[T]):
    """An event stream, whatever its events are made into; it knows its place by the last event's id."""

    accept = "text/event-stream"
    max_event_bytes = MAX_EVENT_BYTES

    def __init__(
        self,
        *args: Any,
        reconnect: Reconnect = "resilient",
        terminator: Terminator | str | None = None,
        last_event_id: str = "",
        retry_ms: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*args, **keywords)
        if reconnect not in ("strict", "resilient", "never"):
            raise ValueError(f'reconnect is "strict", "resilient" or "never", not {reconnect!r}')
        self._reconnect: Reconnect = reconnect
        self._terminator = Terminator.named(terminator) if isinstance(terminator, str) else terminator
        self._cursor = Cursor()
        self._id = last_event_id or self._request_header("last-event-id")
        self._retry_ms = retry_ms
        self._events: _Events[T] | None = None
        if last_event_id:
            self._request = self.continued(self._request)

    def _request_header(self, name: str) -> str:
        return next((value for key, value in self._request.headers if key.lower() == name), "")

    @property
    def last_event_id(self) -> str:
        """The id that a resume would begin after, "" while there is none."""
        return self._id if self._events is None else self._events.last_event_id

    @property
    def retry_ms(self) -> int | None:
        """The reconnection time that the server last asked for [ms], over all connections; None if it never did."""
        return self._retry_ms if self._events is None else self._events.retry_ms

    def convert(self, event: sse.Event) -> T:
        """Make an item of an event.

        Raises:
            ValueError, TypeError, PenstockError: It is left out, and counts as failed.
        """
        return cast("T", event)

    def in_band(self, failure: Failure) -> InBandError:
        """The error for what the stream said when it failed."""
        return in_band(failure, url=seam.shown(self._request.url))

    def replayed(self, count: int, *, first: bool) -> None:
        """Report events that the server played again."""
        assert self._tally is not None
        self._tally.replayed += count
        if first:
            logger.warning(
                "%s: the server ignores Last-Event-ID and plays the stream again; what was delivered is left out",
                seam.shown(self._request.url),
            )
        self._notify(Replayed(count))

    def other_stream(self, id_: str, events: list[sse.Event]) -> list[sse.Event]:
        """The server answers a resume with another stream under the ids of ours: the events that are to be given out.

        A browser would not look. Whoever collects an answer must not be given another's beginning for its end.
        """
        if self._reconnect == "strict":
            return events
        url = seam.shown(self._request.url)
        self.end(
            StreamError(
                f"{url}: the server does not go on after Last-Event-ID: its event {id_!r} is another than before, so "
                "it has begun a new stream; ask for it anew, or read with reconnect='strict' to take it as it comes",
                url=url,
            )
        )
        return []

    def malformed(self, event: sse.Event, reason: str) -> None:
        """Report a payload that could not be made into an item."""
        logger.warning(
            "%s: an event does not fit its model and was left out: %s", seam.shown(self._request.url), reason
        )
        self._notify(Malformed(event, reason))

    # -- what a kind of stream decides ---------------------------------------------------------------------------

    def accepts(self, content_type: str) -> bool:
        return fields.is_event_stream(content_type)

    def accepts_status(self, status: int) -> bool:
        if self._reconnect == "strict":
            return status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT)
        return super().accepts_status(status)

    def decoder(self) -> Decoder[T]:
        self._events = _Events(self, self._terminator, self._cursor, self.last_event_id, self.retry_ms)
        return self._events

    def pieces(self, response: Response) -> AsyncIterator[bytes]:
        body = super().pieces(response)
        return _AtComments(body) if self._asked else body

    def continued(self, request: Request) -> Request:
        kept = tuple(pair for pair in request.headers if pair[0].lower() != "last-event-id")
        if self.last_event_id:
            kept += (("Last-Event-ID", self.last_event_id),)
        return replace(request, headers=kept)

    def onward(self, request: Request, failure: PenstockError | None) -> Request | None:
        if self._reconnect == "strict":
            ended = failure is None and (self._over or not self.repeatable(request))
            return None if ended or isinstance(failure, StatusError) else self.continued(request)
        if self._reconnect == "never" and self._events is not None:
            return None
        if failure is not None and self.begun and self.last_event_id:
            return self.continued(request)
        onward = super().onward(request, failure)
        return None if onward is None else self.continued(onward)

    def pause(self, failure: PenstockError | None, failures: int, asked: float) -> float:
        retry_ms = self.retry_ms
        maximum = self._retry.retry_after_maximum
        if failure is None:
            return reconnect_pause(self._retry.backoff, 0, retry_ms, random.random(), maximum)
        return asked if retry_ms is None else max(asked, min(retry_ms / 1000, maximum))

    def goes_on(self) -> bool:
        return self._reconnect != "never" and self.last_event_id != "" and self.repeatable(self._request)

    def unfinished(self, response: Response) -> PenstockError | None:
        terminator = self._terminator
        if self._is_cut_off(response):
            why = "the connection was closed in the middle of an event, and only the close says where this body ends"
        elif self._cursor.replaying:
            why = "the server played the stream again from before the break, and ended before it came to the break"
        elif terminator is not None and terminator.required:
            why = f"the stream ended without its {terminator.ends_with}; what came may not be all"
        else:
            return super().unfinished(response)
        return StreamTruncated(f"{response.url}: {why}", url=response.url)

    def _ended_badly(self, response: Response) -> PenstockError | None:
        reason = response.headers.get("penstock-end", "done")
        if reason == "done":
            return None
        url = response.url
        return InBandError(f"{url}: the relay has nothing more of this stream, which ended as {reason}", url=url)

    def is_final(self, lack: PenstockError) -> bool:
        cut_off = self.response is not None and self._is_cut_off(self.response)
        return cut_off or self._cursor.replaying or (self._terminator is not None and self._terminator.required)

    def _is_cut_off(self, response: Response) -> bool:
        """Whether an event had begun when a body ended that has no other end than its connection's."""
        return self._events is not None and self._events.cut_off and not response.is_framed

    @property
    def place(self) -> str:
        return self.last_event_id


class _Events(Generic[T]):
    """One connection's events, made into items.

    What has to be looked at only now and then, such as a replay after a resume, stands aside of the short way.
    """

    __slots__ = (
        "_before",
        "_cursor",
        "_decoder",
        "_feed",
        "_inherits",
        "_judge",
        "_plain",
        "_refused",
        "_relayed",
        "_stream",
        "_terminator",
    )

    def __init__(
        self,
        stream: _ServerSent[T],
        terminator: Terminator | None,
        cursor: Cursor,
        last_event_id: str,
        retry_ms: int | None,
    ) -> None:
        self._stream = stream
        self._cursor = cursor
        self._terminator = terminator or Terminator()
        # A relay tells in the stream how it ended, and what of it is no longer kept.
        self._relayed = stream.response is not None and "penstock-stream" in stream.response.headers
        self._judge = self._terminator.judge if self._relayed or self._terminator != Terminator() else None
        self._inherits = bool(last_event_id)
        self._plain = type(stream).convert is _ServerSent.convert
        self._refused = 0
        self._before = retry_ms
        cursor.resume(last_event_id)
        notify = stream._notify
        self._decoder = sse.Decoder(
            last_event_id=INHERITED if last_event_id else "",
            max_event_bytes=stream.max_event_bytes,
            on_comment=(lambda text: notify(Comment(text))) if stream._asked else None,
        )
        self._feed = self._decoder.feed

    @property
    def last_event_id(self) -> str:
        """As of the last event that was dispatched, over all connections."""
        return self._cursor.place(self._decoder.last_event_id)

    @property
    def retry_ms(self) -> int | None:
        """The reconnection time that the server last asked for, over all connections."""
        return self._before if self._decoder.retry_ms is None else self._decoder.retry_ms

    @property
    def dropped(self) -> int:
        return self._decoder.dropped + self._refused

    @property
    def cut_off(self) -> bool:
        """Whether an event had begun when the body ended; known after `close`."""
        return self._decoder.dropped > 0

    def feed(self, data: bytes, /) -> list[T]:
        events = self._feed(data)
        if not events:
            return cast("list[T]", events)
        if self._inherits:
            events = self._resumed(events)
        if events:
            self._cursor.passed(events)
        if self._judge is not None:
            events = self._judged(events)
        return cast("list[T]", events) if self._plain else self._converted(events)

    def close(self) -> list[T]:
        self._decoder.close()
        return []

    def _resumed(self, events: list[sse.Event]) -> list[sse.Event]:
        """The first events after a resume: less a replay, and with the id that they inherit."""
        cursor = self._cursor
        if cursor.resuming:
            count = len(events)
            came, events = events, cursor.fresh(events)
            left_out = count - len(events)
            if cursor.changed is not None:
                events = self._stream.other_stream(cursor.changed, came)
                cursor.resuming = False
            elif left_out:
                self._stream.replayed(left_out, first=cursor.skipped == left_out)
        if events and events[0].id == INHERITED:
            events = cursor.own(events)
        self._inherits = cursor.resuming or self._decoder.last_event_id == INHERITED
        return events

    def _judged(self, events: list[sse.Event]) -> list[sse.Event]:
        """The events up to the stream's own end, which is told to the stream. A model is given payloads only."""
        judge, terminator = self._judge, self._terminator
        assert judge is not None
        passed: list[sse.Event] = []
        for event in events:
            judgement = judge(event)
            if self._relayed and event.type.startswith("penstock."):
                if event.type == "penstock.gap":
                    self._stream.end(_gap(event))
                    break
                judgement = terminator_failure(event.data)
            if isinstance(judgement, Failure):
                self._stream.end(self._stream.in_band(judgement))
                break
            if self._plain or not (judgement == "ping" or terminator.is_mark(event)):
                passed.append(event)
            if judgement == "end":
                self._stream.end()
                break
        if self._stream.content_only:
            self._stream.only_pings = all(judge(event) == "ping" for event in events)
        return passed

    def _converted(self, events: list[sse.Event]) -> list[T]:
        values: list[T] = []
        for event in events:
            try:
                values.append(self._stream.convert(event))
            except (ValueError, TypeError, PenstockError) as error:
                self._refused += 1
                self._stream.malformed(event, str(error).partition("\n")[0])
        return values


class _AtComments:
    """A body in pieces that begin where comments do, so that each is told after the events that came before it."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._left: list[bytes] = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._left:
            return self._left.pop()
        data = await anext(self._body)
        if b":" not in data:
            return data
        self._left = _COMMENT.split(data)[::-1]
        return self._left.pop()


class EventStream(_ServerSent[sse.Event]):
    """Server-sent events as they arrive."""


class ModelStream(_ServerSent[M], Generic[M]):
    """Server-sent events as values of a model; a payload that the model refuses counts as failed and is reported.

    The mark that ends a stream, such as ``[DONE]``, is no payload.
    """

    def __init__(self, *args: Any, model: Callable[..., M], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._parse = parser(model)

    def convert(self, event: sse.Event) -> M:
        return self._parse(event)


class RecordStream(ItemStream[Any]):
    """The JSON values of an NDJSON body."""

    accept = "application/x-ndjson"

    def accepts(self, content_type: str) -> bool:
        return fields.is_ndjson(content_type)

    def decoder(self) -> Decoder[Any]:
        return ndjson.Decoder(max_record_bytes=MAX_EVENT_BYTES)


class LineStream(ItemStream[str]):
    """The lines of a body, whatever its type, as UTF-8; what does not decode becomes U+FFFD."""

    accept = "*/*"

    def accepts(self, content_type: str) -> bool:
        return True

    def decoder(self) -> Decoder[str]:
        return _TextLines()


class AnyStream(_ServerSent[Any]):
    """Whatever stream comes: events, records or lines, by its content type."""

    accept = "text/event-stream, application/x-ndjson, text/plain;q=0.9, */*;q=0.1"
    _content_type = ""

    def accepts(self, content_type: str) -> bool:
        self._content_type = content_type
        is_text = fields.media_type(content_type).essence == "text/plain"
        return is_text or fields.is_event_stream(content_type) or fields.is_ndjson(content_type)

    def decoder(self) -> Decoder[Any]:
        if fields.is_event_stream(self._content_type):
            return super().decoder()
        self._terminator = None  # what other streams do not know, they do not lack
        if fields.is_ndjson(self._content_type):
            return ndjson.Decoder(max_record_bytes=MAX_EVENT_BYTES)
        return _TextLines()


class _TextLines:
    def __init__(self) -> None:
        self._lines = lines.Decoder(max_line_bytes=MAX_EVENT_BYTES)
        self.dropped = 0

    def feed(self, data: bytes, /) -> list[str]:
        return [line.decode("utf-8", "replace") for line in self._lines.feed(data)]

    def close(self) -> list[str]:
        return [line.decode("utf-8", "replace") for line in self._lines.close()]


def _gap(event: sse.Event) -> ReplayGap:
    """What a relay tells of what it has no longer."""
    try:
        said = event.json()
        requested, earliest = int(said["requested"]), int(said["earliest"])
    except (PenstockError, ValueError, TypeError, KeyError):
        requested = earliest = 0
    return ReplayGap(
        f"what follows the event {requested} is kept from {earliest} on only; ask for the stream anew",
        requested=requested,
        earliest=earliest,
    )


def in_band(failure: Failure, *, url: str | None) -> InBandError:
    """The error for what a stream said when it failed."""
    said = f"the stream itself said that it failed: {failure}"
    return InBandError(
        f"{url}: {said}" if url else said,
        url=url,
        kind=failure.kind,
        code=failure.code,
        status=failure.status,
        server_class=failure.server_class,
        throttled=failure.throttled,
    )


def parser(model: Callable[..., M]) -> Callable[[sse.Event], M]:
    """What makes an event's data into a value of the model.

    A pydantic model validates the JSON text, a dataclass takes the JSON object's members as its fields, and any other
    callable is given the JSON value.
    """
    validate = getattr(model, "model_validate_json", None)
    if validate is not None:
        return lambda event: cast("M", validate(event.data))
    if dataclasses.is_dataclass(model):
        return lambda event: cast("M", model(**event.json()))
    return lambda event: model(event.json())
