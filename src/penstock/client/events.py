"""The kinds of streams: events, records, lines, and events as values of a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from penstock.client import seam
from penstock.client.request import Request
from penstock.client.stream import Decoder, ItemStream
from penstock.errors import PenstockError
from penstock.wire import headers as fields
from penstock.wire import lines, ndjson, sse

M = TypeVar("M")
T = TypeVar("T")

MAX_EVENT_BYTES = 16 * 1024 * 1024

logger = logging.getLogger("penstock.client")


class _ServerSent(ItemStream[T]):
    """An event stream, whatever its events are made into; it knows its place by the last event's id."""

    accept = "text/event-stream"
    _events: sse.Decoder | None = None
    max_event_bytes = MAX_EVENT_BYTES

    def accepts(self, content_type: str) -> bool:
        return fields.is_event_stream(content_type)

    def resumed(self, request: Request) -> Request | None:
        if self._events is None or not self._events.last_event_id:
            return None
        kept = tuple(pair for pair in request.headers if pair[0].lower() != "last-event-id")
        return replace(request, headers=(*kept, ("Last-Event-ID", self._events.last_event_id)))

    @property
    def last_event_id(self) -> str:
        """The id that a resume would begin after, "" while there is none."""
        return "" if self._events is None else self._events.last_event_id

    def _new_events(self) -> sse.Decoder:
        self._events = sse.Decoder(last_event_id=self.last_event_id, max_event_bytes=self.max_event_bytes)
        return self._events


class EventStream(_ServerSent[sse.Event]):
    """Server-sent events as they arrive."""

    def decoder(self) -> Decoder[sse.Event]:
        return self._new_events()


class ModelStream(_ServerSent[M], Generic[M]):
    """Server-sent events as values of a model; a payload that the model refuses counts as failed and is reported."""

    def __init__(self, *args: Any, model: Callable[..., M], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._parse = parser(model)

    def decoder(self) -> Decoder[M]:
        return _ModelDecoder(self._new_events(), self._parse, seam.shown(self._request.url))


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
            return self._new_events()
        self._events = None
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


class _ModelDecoder(Generic[M]):
    def __init__(self, events: sse.Decoder, parse: Callable[[sse.Event], M], url: str) -> None:
        self._events = events
        self._parse = parse
        self._url = url
        self._refused = 0

    @property
    def dropped(self) -> int:
        return self._events.dropped + self._refused

    def feed(self, data: bytes, /) -> list[M]:
        return self._parsed(self._events.feed(data))

    def close(self) -> list[M]:
        return self._parsed(self._events.close())

    def _parsed(self, events: list[sse.Event]) -> list[M]:
        values = []
        for event in events:
            try:
                values.append(self._parse(event))
            except (ValueError, TypeError, PenstockError) as error:
                self._refused += 1
                reason = str(error).partition("\n")[0]
                logger.warning("%s: an event does not fit its model and was left out: %s", self._url, reason)
        return values


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
