"""How an event stream says that it is whole, and how it says that it failed.

The framing underneath tells only that all bytes came, never that all was said: a proxy that gives up, a worker that is
killed, close their bodies properly too. So the protocols that stream answers end them with an event of their own, and
tell of their failures inside a body whose status was 200 long ago. A `Terminator` is what to look for:

====================  ======================================  =====================================================
profile               ends with                               fails with
====================  ======================================  =====================================================
``openai``            data ``[DONE]``                         data with an ``error`` in it; ``event: error``
``openai-responses``  response.completed, .incomplete         response.failed, response.cancelled, error
``anthropic``         message_stop                            error
``none``              whatever the framing says               nothing
====================  ======================================  =====================================================

Each event is judged, so the way to "content" is short: the type is looked up, the length of the data compared, and data
that cannot hold what is looked for is not parsed. What a model writes is never taken for a failure: in JSON its quotes
are escaped, so ``"error"`` stands only where the document itself has such a key or value, and then parsing decides.

What a failure says of the server, which a circuit breaker must know, is read from the status that it names, else from
the words of its type and code, in this order:

1. *throttled*: rate limits. The server is well, and asks for less.
2. *the request's*: invalid, not allowed, not found, too large, not paid for, against a policy.
3. *the server's*: overloaded, internal, timeout, and everything without a name. A request that is bad is mostly refused
   with a status; who has begun to answer and then fails has failed.

The module does not know of connections, nor what is done about a failure.

Source:
    The types of the openai and anthropic packages; for what they leave out, vercel/ai#6534 (nested errors),
    openai-node#1964 (keepalive), litellm#25492 (vLLM, SGLang), OpenRouter's and Gemini's documentation
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from penstock.wire.sse import Event

MAX_MESSAGE = 500
"""How much of a failure's message is kept, in characters."""

_UNNAMED = "the stream said that it failed, and not why"
_AROUND = 16  # how much white space may stand around the data that ends a stream

# Words in the names of errors, once everything but letters and digits is taken out of these.
_NOT_IN_WORDS = re.compile("[^a-z0-9]")
_THROTTLED = re.compile("ratelimit|toomanyrequests|throttl|resourceexhausted|slowdown")
_REQUESTS_OWN = re.compile(
    r"\binvalid|badrequest|validation|unprocessable|unsupported|notsupported|toolarge|toolong|contextlength"
    "|authent|unauth|permission|forbidden|notallowed|notfound|billing|payment|quota|credit"
    "|policy|contentfilter|safety|moderation|image|mismatch|precondition|conflict|cancel"
)


_Meaning: TypeAlias = Literal["end", "error", "ping"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What a stream said when it failed.

    Attributes:
        message: Its own words, in one line.
        kind: The error's type, e.g. "overloaded_error"; "" where it has none.
        code: Its code, as text, e.g. "rate_limit_exceeded" or "503"; None where it has none.
        status: The HTTP status that it names; None where it names none.
        server_class: The server is ill: this counts against it, and another attempt may fare better.
        throttled: The server is well and asks for fewer requests.
    """

    message: str
    kind: str = ""
    code: str | None = None
    status: int | None = None
    server_class: bool = True
    throttled: bool = False

    def __str__(self) -> str:
        names = dict.fromkeys(name for name in (self.kind, self.code) if name)
        return f"{self.message} ({', '.join(names)})" if names else self.message


Judgement: TypeAlias = Literal["content", "ping", "end"] | Failure
"""What an event is: content, a sign of life without content, the stream's proper end, or its failure."""


def _names(types: str | Iterable[str]) -> frozenset[str]:
    return frozenset((types,) if isinstance(types, str) else types)


@dataclass(frozen=True, slots=True, init=False)
class Terminator:
    """How the event stream of a protocol ends, and how it fails. Two that look for the same are equal.

    Any of what is named ends a stream: ``Terminator(data="[DONE]", event="end")`` ends with either.

    Args:
        data: The data of the event that ends the stream; white space around it does not count.
        event: The types of events that end it.
        error: The types of events that say it failed, whatever their data.
        ping: The types of events that are signs of life and not content.
        payload: What else is looked for in data that is a JSON object. "error": an `error` member that is not null,
            false or empty is a failure, whatever the event's type. "type": the object's own `type` stands for that of
            an event which has none, as where a proxy dropped the ``event:`` lines. None: data is not looked into.
    Raises:
        ValueError: A type that is to mean two things, or white space around data.

    Attributes:
        required: Whether a stream without its end is truncated, since there is something that ends it.
    """

    data: str | None
    event: frozenset[str]
    error: frozenset[str]
    ping: frozenset[str]
    payload: Literal["error", "type"] | None
    required: bool = field(repr=False, compare=False)
    # What `judge` looks at first, made once: a stream has many events.
    _types: Mapping[str, _Meaning] = field(repr=False, compare=False)
    _longest: int = field(repr=False, compare=False)
    _needles: tuple[str, ...] = field(repr=False, compare=False)

    def __init__(
        self,
        *,
        data: str | None = None,
        event: str | Iterable[str] = (),
        error: str | Iterable[str] = (),
        ping: str | Iterable[str] = (),
        payload: Literal["error", "type"] | None = None,
    ) -> None:
        if data is not None and data != data.strip():
            raise ValueError(f"white space around data does not count: write {data.strip()!r}, not {data!r}")
        if payload not in ("error", "type", None):
            raise ValueError(f'payload is "error", "type" or None, not {payload!r}')
        types: dict[str, _Meaning] = {}
        meanings: tuple[tuple[_Meaning, frozenset[str]], ...]
        meanings = (("end", _names(event)), ("error", _names(error)), ("ping", _names(ping)))
        for meaning, names in meanings:
            if twice := sorted(names & types.keys()):
                raise ValueError(f"an event's type means one thing: {', '.join(map(repr, twice))} is given twice")
            types |= dict.fromkeys(names, meaning)
        needles = {'"error"': None} if payload is not None else {}
        if payload == "type":
            needles |= dict.fromkeys(json.dumps(name) for name in sorted(types))
        values = {
            "data": data,
            "event": meanings[0][1],
            "error": meanings[1][1],
            "ping": meanings[2][1],
            "payload": payload,
            "required": data is not None or bool(meanings[0][1]),
            "_types": types,
            "_longest": -1 if data is None else len(data) + _AROUND,
            "_needles": tuple(needles),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def named(cls, name: str) -> Terminator:
        """The profile of that name.

        Raises:
            ValueError: There is none; the message lists those there are.
        """
        profile = PROFILES.get(name)
        if profile is None:
            raise ValueError(f"there is no terminator profile {name!r}: it is one of {', '.join(PROFILES)}")
        return profile

    def judge(self, event: Event) -> Judgement:
        """What this event is to the stream. Pure, and cheap where it is content.

        Args:
            event: The next event.
        Returns:
            "content", "ping", "end" or a `Failure`. Data that is not the JSON it was taken for is content: whether a
            payload can be read is for its reader to say.
        """
        type_, data, _ = event
        meaning = self._types.get(type_)
        if meaning is not None:
            return meaning if meaning != "error" else failure(data)
        if len(data) <= self._longest and data.strip() == self.data:
            return "end"
        if self.payload == "error" or type_ == "message":
            for needle in self._needles:
                if needle in data:
                    return self._read(data)
        return "content"

    @property
    def ends_with(self) -> str:
        """What ends the stream, for a message: "message_stop"; "" where nothing does."""
        return " or ".join((*([] if self.data is None else [repr(self.data)]), *sorted(self.event)))

    def is_mark(self, event: Event) -> bool:
        """Whether the event is the end's mark and nothing else: ``[DONE]``, which no reader of payloads could read."""
        return len(event.data) <= self._longest and event.data.strip() == self.data

    def _read(self, data: str) -> Judgement:
        """Judge data in which something was found that only parsing can place."""
        nulls = data.count('"error":null') + data.count('"error": null')
        if self.payload == "error" and nulls == data.count('"error"'):
            return "content"  # there are servers that say with every piece that it is no error
        value = _parsed(data)
        if not isinstance(value, dict):
            return "content"
        type_ = value.get("type")
        meaning = self._types.get(type_) if isinstance(type_, str) else None
        if meaning is not None:
            return meaning if meaning != "error" else _failure(value)
        if self.payload == "type" and isinstance(type_, str):
            return "content"  # an event of another type may have an `error` for a field: response.steer.failed
        return _failure(value) if value.get("error") or value.get("object") == "error" else "content"


PROFILES: Mapping[str, Terminator] = MappingProxyType(
    {
        "openai": Terminator(data="[DONE]", error="error", payload="error"),
        "openai-responses": Terminator(
            event=("response.completed", "response.incomplete"),
            error=("response.failed", "response.cancelled", "error"),
            ping=("keepalive", "response.keep_alive", "ping"),
            payload="type",
        ),
        "anthropic": Terminator(event="message_stop", error="error", ping="ping", payload="type"),
        "none": Terminator(),
    }
)
"""The profiles, by name."""


def failure(data: str) -> Failure:
    """Read the data of an event that says that the stream failed: JSON in any of the shapes in use, or plain text."""
    value = _parsed(data)
    if isinstance(value, dict):
        return _failure(value)
    return _failure({"message": value if isinstance(value, str) else data})


def _failure(value: Mapping[str, Any]) -> Failure:
    """Read an object that says that the stream failed.

    The error is its `error`, or its response's `error`, each an object or text; or it is the object itself.
    """
    response = value.get("response")
    answered = response if isinstance(response, dict) else {}
    said = value.get("error") or answered.get("error")
    if isinstance(said, dict):
        error = said
    elif answered:
        error = {"message": said, "type": answered.get("status")}
    else:
        error = {**value, "message": said or value.get("message")}
    details = error.get("details")
    type_, numbered = error.get("type"), _status(error.get("status"))
    kind = _first_text(None if type_ == "error" else type_, error.get("status") if numbered is None else None)
    code = _first_text(error.get("code"), details.get("error_code") if isinstance(details, dict) else None)
    numbers = (
        numbered,
        *map(_status, (error.get("code"), error.get("status_code"), value.get("status"), value.get("code"))),
    )
    status = next((number for number in numbers if number is not None), None)
    throttled, server_class = _blamed(status, kind, code)
    return Failure(
        message=_first_text(error.get("message"), error.get("detail"), value.get("message")) or _UNNAMED,
        kind=kind,
        code=code or None,
        status=status,
        server_class=server_class,
        throttled=throttled,
    )


def _blamed(status: int | None, *names: str) -> tuple[bool, bool]:
    """Whether the server throttles, and whether it is ill."""
    if status is not None:
        return status == HTTPStatus.TOO_MANY_REQUESTS, status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT
    words = " ".join(_NOT_IN_WORDS.sub("", name.lower()) for name in names)
    throttled = _THROTTLED.search(words) is not None
    return throttled, not throttled and _REQUESTS_OWN.search(words) is None


def _parsed(data: str) -> Any:
    """The value of JSON, and None for what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _first_text(*values: object) -> str:
    """The first that is text or a whole number and not empty, in one line of bounded length; "" if there is none."""
    for value in values:
        if isinstance(value, str | int) and not isinstance(value, bool):
            text = str(value)[: 4 * MAX_MESSAGE]
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
            if text:
                return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"
    return ""


def _status(value: object) -> int | None:
    """An HTTP status that says failure, written as a number or as its digits."""
    text = str(value) if isinstance(value, str | int) else ""
    return int(text) if len(text) == 3 and text.isascii() and text.isdigit() and 400 <= int(text) <= 599 else None
