"""How a stream ended, and how that is said to a reader in the middle of a body.

Only *done* is a whole stream, and only then is the body's last chunk written. Every other end is said in the stream's
own words, where it has any, and then the connection is broken off: a reader that knows neither still sees that it is
not whole.

===========  ==========================================================================================
dialect      says
===========  ==========================================================================================
penstock     ``event: penstock.error`` with ``{"error": {"type", "message"}}``
openai       ``data: {"error": {"message", "type", "code"}}``
anthropic    ``event: error`` with ``{"type": "error", "error": {"type", "message"}}``
ai-sdk       ``data: {"type": "error", "errorText"}``
ag-ui        ``data: {"type": "RUN_ERROR", "message", "code"}``
ndjson       ``{"error": {"type", "message"}}`` on a line
===========  ==========================================================================================

A dialect is the route's, or read from what goes by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from penstock.wire.sse import Decoder, Event

Records = list[bytes]
Kind = Literal["sse", "ndjson", "bytes"]
Reason = Literal["done", "error", "cancelled", "producer_lost"]
Dialect = Literal["penstock", "openai", "anthropic", "ai-sdk", "ag-ui", "ndjson"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

TOLD = b": the stream has said so itself\n"
"""In the place of a terminal event, where the last event has told already."""

_AI_SDK = b"x-vercel-ai-ui-message-stream"

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended; `on_end` is called with it, once, whatever the end.

    Attributes:
        id: The stream's id.
        key: The caller's name for it, or None.
        owner: Whose it is, or None.
        reason: "done", "error", "cancelled" or "producer_lost".
        detail: What happened, in words; "" for a whole stream.
        event_count: Events that went by, without comments; of what is no event stream, lines or pieces.
        byte_count: Their bytes, as the upstream sent them.
        first_event: Seconds from the start to the first record; None where none came.
        duration: Seconds from the start to the end.
        usage: The provider's usage block, where one went by.
        status: Of the upstream's answer, 200 for a generator's; where it was answered early, and the upstream then had
            no stream for it, what it would have been answered with; None where there was no answer.
        ended_at: When that was [Unix seconds].
    """

    id: str
    key: str | None
    owner: str | None
    reason: Reason
    detail: str
    event_count: int
    byte_count: int
    first_event: float | None
    duration: float
    usage: Mapping[str, Any] | None = None
    status: int | None = None
    ended_at: float = field(default_factory=time.time, compare=False)
    _kind: Kind = field(default="bytes", repr=False, compare=False)
    _read: Callable[[], Awaitable[Records]] | None = field(default=None, repr=False, compare=False)

    async def records(self) -> Records:
        """All that the log still has of the stream, record by record as sent; [] where it was not logged."""
        return [] if self._read is None else await self._read()

    async def events(self) -> list[Event]:
        """All that the log still has of the stream, as events: of NDJSON each line is one, a byte stream has none."""
        records = await self.records()
        match self._kind:
            case "sse":
                body = b"".join(records)
                return Decoder(max_event_bytes=len(body) + 1).feed(body)
            case "ndjson":
                return [Event(data=record.rstrip(b"\r\n").decode(errors="replace")) for record in records]
            case _:
                return []


def said(
    dialect: Dialect, reason: Reason, message: str, status: int | None = None, *, kind: str | None = None
) -> bytes:
    """The terminal event, as the dialect has it; bytes for the wire, without an id.

    Args:
        dialect: Whose words.
        reason: How the stream ended.
        message: What happened, for a human.
        status: What the request would have been answered with, where it was answered before that was known. Dialects
            that have no place for it have it in the message alone.
        kind: What it is called, where that is not the reason's to say.
    """
    kind = kind or ("upstream_error" if reason == "error" else reason)
    known: dict[str, Any] = {} if status is None else {"status": status}
    match dialect:
        case "openai":
            return _event({"error": {"message": message, "type": kind, "param": None, "code": kind, **known}})
        case "anthropic":
            type_ = _ANTHROPIC.get(status or 0, "api_error")
            return _event({"type": "error", "error": {"type": type_, "message": message, **known}}, "error")
        case "ai-sdk":
            return _event({"type": "error", "errorText": message})
        case "ag-ui":
            return _event({"type": "RUN_ERROR", "message": message, "code": kind})
        case "ndjson":
            return _json({"error": {"type": kind, "message": message}}) + b"\n"
        case _:
            return _event({"error": {"type": kind, "message": message, **known}}, "penstock.error")


def gap(requested: int, earliest: int) -> bytes:
    """The event that tells a reader what it has missed."""
    return _event({"requested": requested, "earliest": earliest}, "penstock.gap")


def spoken(block: bytes) -> Dialect | None:
    """The dialect that the first block with data of a stream is in; None where it does not tell."""
    if b'"chat.completion.chunk"' in block or b'"text_completion"' in block:
        return "openai"
    if block.startswith(b"event: message_start") or b'"type":"message_start"' in block:
        return "anthropic"
    if b'"RUN_STARTED"' in block:
        return "ag-ui"
    return None


def spoken_in(headers: Iterable[tuple[bytes, bytes]]) -> Dialect | None:
    """The dialect that an answer's fields tell; None where they do not."""
    return "ai-sdk" if any(name == _AI_SDK for name, _ in headers) else None


class Usage:
    """Keeps the blocks that a provider's usage is in: the first one, which has what went in, and the last."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: bytes | None = None
        self.last: bytes | None = None

    def saw(self, block: bytes) -> None:
        """A block that has the word in it."""
        if self.first is None:
            self.first = block
        self.last = block

    def total(self) -> dict[str, Any] | None:
        """The usage that they tell of, later values over earlier ones; None where none does."""
        result: dict[str, Any] = {}
        for block in (self.first, self.last):
            if block is not None:
                result |= _usage_in(block)
        return result or None


def _usage_in(block: bytes) -> dict[str, Any]:
    data = b"\n".join(line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")) or block
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    for holder in (value, *(value.get(name) for name in ("message", "response"))) if isinstance(value, dict) else ():
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            return usage
    return {}


def _event(value: object, type_: str = "") -> bytes:
    return (b"event: " + type_.encode() + b"\n" if type_ else b"") + b"data: " + _json(value) + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
