"""One stream, read and shown to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from penstock.cli import output
from penstock.cli.stdout import Stdout
from penstock.cli.tail.chat import TERMINATOR, Chat
from penstock.cli.tail.saving import Saving
from penstock.cli.tail.show import Show
from penstock.cli.tail.tap import PieceStream, Tap, tapped
from penstock.client.builder import RequestBuilder
from penstock.client.events import MAX_EVENT_BYTES, AnyStream, EventStream, LineStream, Reconnect, RecordStream
from penstock.client.notices import Connected, Notice
from penstock.client.response import Response
from penstock.client.stream import MAX_COLLECTED_BYTES, ItemStream
from penstock.errors import LimitExceeded
from penstock.wire import lines
from penstock.wire.headers import is_ndjson
from penstock.wire.sse import Event
from penstock.wire.terminator import Terminator


class Format(StrEnum):
    """How a body is read."""

    auto = "auto"
    sse = "sse"
    ndjson = "ndjson"
    text = "text"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a stream.

    Attributes:
        format: How the body is read.
        reconnect: When an event stream is connected to again.
        terminator: How an event stream ends; None goes by the framing.
        last_event_id: What to go on after.
        until: The item that is the last.
        collect: Whether everything is told again.
        raw: Whether the bytes are written as they come.
        text: Whether the text of a chat is all that is written.
        lines: Whether each line of the body is told.
        save: Where it is recorded.
    """

    format: Format = Format.auto
    reconnect: Reconnect = "resilient"
    terminator: Terminator | None = None
    last_event_id: str = ""
    until: str | None = None
    collect: bool = False
    raw: bool = False
    text: bool = False
    lines: bool = False
    save: Path | None = None


async def read(request: RequestBuilder, wanted: Wanted, stdout: Stdout, show: Show) -> None:
    """Show every item, and the metrics whatever the end.

    Raises:
        ReaderLeft: Whoever read stdout has left; then nothing more is told.
        OSError: The recording cannot be written.
    """
    reading = _Reading(wanted, stdout, show)
    if wanted.save is None:
        await reading.read(request)
        return
    with Saving(wanted.save, show.saved) as saving:
        await reading.read(request, saving)


class _Reading:
    def __init__(self, wanted: Wanted, stdout: Stdout, show: Show) -> None:
        self._wanted = wanted
        self._stdout = stdout
        self._show = show
        self._on_notice: list[Callable[[Notice], None]] = [show.notice]
        self._on_response: list[Callable[[Response], None]] = [self._connected]
        self._is_record = wanted.format is Format.ndjson
        self._collected: list[str] | None = [] if wanted.collect else None
        self._chat = Chat("")
        self._lines = lines.Decoder(max_line_bytes=MAX_EVENT_BYTES)

    async def read(self, request: RequestBuilder, saving: Saving | None = None) -> None:
        stream = self._open(request, saving)
        show = self._show_pieces if self._wanted.raw else self._show_text if self._wanted.text else self._show_items
        try:
            async with self._stdout.while_read(), stream:
                with self._status(stream):
                    await show(stream)
        finally:
            # Also when it failed or was interrupted; but not to a reader who has left.
            error = sys.exc_info()[1]
            if isinstance(error, asyncio.CancelledError):
                self._stdout.hurry()
            if not isinstance(error, output.ReaderLeft):
                await self._show.end(stream.metrics, self._collected, completed=error is None)

    # -- what is read ----------------------------------------------------------------------------------------------

    def _open(self, request: RequestBuilder, saving: Saving | None) -> ItemStream[Any]:
        taps: list[Tap] = []
        if saving is not None:
            taps.append(saving.piece)
            self._on_response.append(saving.connected)
        if self._wanted.lines and not self._wanted.raw:
            taps.append(self._process)
        kind, keywords = self._kind()
        if not keywords and self._wanted.last_event_id:
            request = request.header("Last-Event-ID", self._wanted.last_event_id)
        return request.items(tapped(kind, *taps), on_notice=self._notice, **keywords)

    def _kind(self) -> tuple[type[ItemStream[Any]], dict[str, Any]]:
        wanted = self._wanted
        if wanted.raw:
            return PieceStream, {}
        if wanted.format is Format.ndjson:
            return RecordStream, {}
        if wanted.format is Format.text:
            return LineStream, {}
        how = {"reconnect": wanted.reconnect, "terminator": wanted.terminator, "last_event_id": wanted.last_event_id}
        if wanted.text:
            return EventStream, {**how, "terminator": wanted.terminator or TERMINATOR}
        # A browser knows event streams only, and would ask for another kind for ever.
        return (EventStream if wanted.format is Format.sse or wanted.reconnect == "strict" else AnyStream), how

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Connected):
            for connected in self._on_response:
                connected(notice.response)
        for tell in self._on_notice:
            tell(notice)

    def _connected(self, response: Response) -> None:
        if self._wanted.format is Format.auto:
            self._is_record = is_ndjson(response.content_type)
        self._chat.url = response.url
        if self._wanted.lines:
            self._lines = lines.Decoder(max_line_bytes=MAX_EVENT_BYTES)
            response.on_end(lambda end: self._process_last())

    def _process(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._show.processing(line.decode("utf-8", "replace"))

    def _process_last(self) -> None:
        for line in self._lines.close():
            self._show.processing(line.decode("utf-8", "replace"))

    # -- what is shown ---------------------------------------------------------------------------------------------

    async def _show_items(self, stream: ItemStream[Any]) -> None:
        until, collected, show = self._wanted.until, self._collected, self._show.item
        size = 0
        async for item in stream:
            # A string is a line of text, or an NDJSON record: the response told.
            is_line = isinstance(item, str) and not self._is_record
            shown = item.data if isinstance(item, Event) else item if is_line else _json(item)
            await show(item, shown, is_line=is_line)
            if collected is not None:
                size += len(shown)
                if size > MAX_COLLECTED_BYTES:
                    raise _too_much(stream)
                collected.append(shown)
            if shown == until:
                break

    async def _show_text(self, stream: ItemStream[Any]) -> None:
        last = ""
        try:
            async for event in stream:
                if text := self._chat.text(event):
                    last = text
                    await self._show.text(text)
        finally:
            if last and not last.endswith("\n"):
                if isinstance(sys.exc_info()[1], asyncio.CancelledError):
                    self._stdout.hurry()
                await self._show.text_ended()

    async def _show_pieces(self, stream: ItemStream[Any]) -> None:
        async for piece in stream:
            await self._stdout.raw(piece)

    @contextlib.contextmanager
    def _status(self, stream: ItemStream[Any]) -> Iterator[None]:
        """A line that tells how it goes, where there is a terminal whose cursor always stands at a line's beginning."""
        if not sys.stderr.isatty() or (self._stdout.is_terminal and (self._wanted.raw or self._wanted.text)):
            yield
            return
        from penstock.cli.tail import status

        if not status.wanted():
            yield
            return
        line = status.StatusLine(lambda: stream.metrics)
        self._on_notice.append(line.notice)
        with line.shown():
            yield


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _too_much(stream: ItemStream[Any]) -> LimitExceeded:
    url = None if stream.response is None else stream.response.url
    return LimitExceeded(
        f"{url}: more than {MAX_COLLECTED_BYTES:,} characters to collect; leave --collect out, or --save the stream",
        limit="max_bytes",
        url=url,
    )
