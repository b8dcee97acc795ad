from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DecodeError, LimitExceeded
from penstock.wire.headers import is_event_stream
from penstock.wire.sse import MAX_RETRY_MS, BlockCutter, Decoder, Event, comment, encode
from tests.wire.cases import Outcome, corpus, every_split, ratio, raw, reference, run, text


class Plain:
    """The interpretation as the standard words it, one character at a time over the whole text. No limits."""

    def __init__(self, body: bytes, last_event_id: str = "") -> None:
        stream = body.decode("utf-8", "replace").removeprefix("\ufeff")
        self.events: list[Event] = []
        self.comments: list[str] = []
        self.last_event_id = self._id = last_event_id
        self.retry_ms: int | None = None
        self._data = ""
        self._type = ""
        line = ""
        i = 0
        while i < len(stream):
            if stream[i] in "\r\n":
                i += 2 if stream[i : i + 2] == "\r\n" else 1
                self._line(line)
                line = ""
            else:
                line += stream[i]
                i += 1
        self.dropped = int(self._data != "" or line == "data" or line.startswith("data:"))

    def _line(self, line: str) -> None:
        if line == "":
            self.last_event_id = self._id
            if self._data != "":
                self.events.append(Event(self._type or "message", self._data[:-1], self._id))
            self._data = self._type = ""
        elif line[0] == ":":
            self.comments.append(line[1:].removeprefix(" "))
        elif ":" in line:
            self._field(line[: line.index(":")], line[line.index(":") + 1 :].removeprefix(" "))
        else:
            self._field(line, "")

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value and set(value) <= set("0123456789"):
            self.retry_ms = min(int(value), MAX_RETRY_MS)


def every_way(body: bytes, **options: Any) -> list[tuple[Outcome, list[str]]]:
    """Decode in every split, with the comments that each run saw."""
    told: list[list[str]] = []

    def new() -> Decoder:
        told.append([])
        return Decoder(on_comment=told[-1].append, **options)

    return list(zip(every_split(new, body), told, strict=False)) if False else _paired(every_split(new, body), told)


def _paired(outcomes: Any, told: list[list[str]]) -> list[tuple[Outcome, list[str]]]:
    return [(outcome, told[-1]) for outcome in outcomes]
