"""Server-sent events: decoding, encoding, and cutting a stream into blocks without decoding it.

The interpretation is the WHATWG's, to the letter:

=====================  ==============================================================================================
seen                   effect
=====================  ==============================================================================================
a byte-order mark      dropped once, at the very start; anywhere else it is U+FEFF, a character of the field's name
CR, LF, CRLF           each ends a line; a lone CR does so at once, and an LF that follows it later ends nothing
``: text``             a comment
``data``               one more line of the event's data
``event``              the event's type; ``message`` when absent or empty
``id``                 the id from here on, unless it contains NUL
``retry``              the reconnection time, at once, if it is ASCII digits only
any other field        nothing
a blank line           the id is committed; with at least one data line the event is complete, without one it is not
the end                what no blank line has ended is dropped, its id with it
=====================  ==============================================================================================

Bytes are UTF-8 whatever the content type says, and bytes that are not become U+FFFD. Decoding a field on its own gives
the same characters as decoding the whole stream, because no UTF-8 sequence, valid or broken, reaches across the ASCII
byte that delimits a field.

The module does not know about connections: reconnecting, and sending `last_event_id`, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from penstock.errors import LimitExceeded
from penstock.wire.lines import CR, LF, unify
from penstock.wire.ndjson import BOM, loads, quoted

MAX_RETRY_MS = 2**31 - 1
"""The longest reconnection time that is reported: 24.8 days, the most that a browser's timers hold too."""

_MAX_DIGITS = len(str(MAX_RETRY_MS))  # a longer number is over the cap unread: int() refuses 4,301 digits
_new = tuple.__new__  # a third of the time of Event(…), whose __new__ is Python


class Event(NamedTuple):
    """One event.

    Attributes:
        type: Its name; "message" where the stream gave none.
        data: Its data, lines joined by LF.
        id: The id in force when it was dispatched, "" if none: a cursor, not an identity. Events without an `id` line
            of their own have that of the one before.
    """

    type: str = "message"
    data: str = ""
    id: str = ""

    def json(self) -> Any:
        """The data, parsed as JSON.

        Raises:
            DecodeError: It is not JSON; the message gives the reason and the beginning of the data.
        """
        return loads(self.data, f"the data of the {quoted(self.type)} event")


def encode(event: Event, *, retry_ms: int | None = None) -> bytes:
    """The bytes of one event, blank line included.

    The data is split on CRLF, CR and LF, which all come back as LF; everything else survives `Decoder` unchanged. Type
    "message" and id "" are not written: an empty id says nothing, it does not reset the reader's.

    Args:
        event: The event.
        retry_ms: A reconnection time to send along [ms].
    Raises:
        ValueError: CR, LF or NUL in the type or the id, where they would inject fields or be ignored by the reader; a
            negative retry_ms; or half a surrogate pair, which has no UTF-8.
    Source:
        GHSA-4hxc-9384-m385, for the injection
    """
    type_, data, id_ = event
    head = ""
    if type_ and type_ != "message":
        head = f"event: {_one_line(type_, 'type')}\n"
    if id_:
        head += f"id: {_one_line(id_, 'id')}\n"
    if retry_ms is not None:
        if retry_ms < 0:
            raise ValueError(f"retry_ms is a time in milliseconds, not {retry_ms}")
        head += f"retry: {retry_ms:d}\n"
    if "\r" in data:
        data = data.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in data:
        data = data.replace("\n", "\ndata: ")
    return f"{head}data: {data}\n\n".encode()


def comment(text: str = "") -> bytes:
    """One comment line, without a blank line after it, so that it may stand between blocks and dispatch nothing.

    Raises:
        ValueError: CR, LF or NUL in the text.
    """
    return f": {_one_line(text, 'comment')}\n".encode()


def _one_line(text: str, what: str) -> str:
    for character, name in (("\n", "LF"), ("\r", "CR"), ("\0", "NUL")):
        if character in text:
            raise ValueError(f"{name} at character {text.index(character)} of the event's {what}: {quoted(text)}")
    return text


def _decode(raw: bytes) -> str:
    """UTF-8 with replacement; in two steps, because the strict decoder is twice as fast to call."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


class Decoder:
    """Turns the bytes of a `text/event-stream` body into events.

    Args:
        last_event_id: The id in force before the first byte: the one that was sent as Last-Event-ID.
        max_event_bytes: The most bytes that one line, or the data of one event, may have; a security limit [bytes]. At
            most twice as much is buffered: an event's data and a line that is to join it.
        on_comment: Called with each comment's text (one leading space removed) as its line ends, which is before the
            events of that feed are returned. It must not raise.

    Attributes:
        last_event_id: The id to resume from: that of the last block that was ended by a blank line.
        retry_ms: The reconnection time that the stream last asked for, at most MAX_RETRY_MS; None if it never did.
        dropped: Events that the end of the body cut off after their data had begun.
    """

    last_event_id: str
    retry_ms: int | None
    dropped: int

    def __init__(
        self,
        *,
        last_event_id: str = "",
        max_event_bytes: int = 1 << 20,
        on_comment: Callable[[str], None] | None = None,
    ) -> None:
        self.last_event_id = last_event_id
        self.retry_ms = None
        self.dropped = 0
        self._limit = max_event_bytes
        self._on_comment = on_comment
        self._clean = False  # at the start of a block, with nothing else in the state than an id that is committed
        self._fresh = True  # a byte-order mark may still come, or come to its end
        self._after_cr = False
        self._tail = bytearray()  # the unfinished line; holds no newline, so that only new bytes are ever searched
        # The unfinished event. Its data lines are held each with an LF behind it, so that none and one empty one differ
        # (which is how the WHATWG tells them apart), and in one buffer, since a list of tiny lines costs ten times it.
        self._data = bytearray()
        self._type = ""
        self._id = last_event_id
        self._fault: LimitExceeded | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Absorb bytes; return every event they complete.

        The split of the bytes never changes the result. Pure: no I/O, clock or await.

        Args:
            data: The next slice of the body, any size [bytes]; b"" is a no-op, not the end.
        Returns:
            Events in stream order; the unfinished tail stays buffered.
        Raises:
            LimitExceeded: A line or an event's data outgrew max_event_bytes; the decoder is unusable after. Events that
                the same bytes completed before it are returned first, and the error raised by the next call.
        Source:
            WHATWG HTML, event stream interpretation
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        if self._clean and data.startswith(b"data: "):
            # One chunk, one event, one line of data: what a live stream mostly is, and worth a way of its own.
            size = len(data)
            end = data.find(b"\n")
            if end == size - 2:
                whole = data.endswith(b"\n\n") and CR not in data
            else:
                end -= 1
                whole = end == size - 4 and data.endswith(b"\r\n\r\n") and data.find(b"\r") == end
            if whole and end <= self._limit:
                return [_new(Event, ("message", _decode(data[6:end]), self.last_event_id))]
        if self._after_cr or CR in data:
            if not data:
                return []
            data, self._after_cr = unify(data, self._after_cr)
        end = data.rfind(b"\n")
        if end < 0:
            self._clean = self._clean and not data
            self._grow(data)
            return []
        lines = data[:end]
        if not self._clean:
            if self._tail:
                self._tail += lines
                lines = bytes(self._tail)
                self._tail = bytearray()
            if self._fresh:
                self._fresh = False
                lines = lines.removeprefix(BOM)
        events = self._interpret(lines)
        if end + 1 < len(data) and self._fault is None:
            self._clean = False
            self._grow(data[end + 1 :], events)
        return events

    def close(self) -> list[Event]:
        """End the body: drop what no blank line has ended, and count it if it was an event's data.

        Returns:
            Nothing, ever: an event without its blank line is not one. (The list is there to keep the contract of feed.)
        Raises:
            LimitExceeded: The fault that an earlier feed found after it had completed events.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        tail = self._tail.removeprefix(BOM) if self._fresh else self._tail
        if self._data or bytes(tail[:5]) in (b"data", b"data:"):
            self.dropped += 1
        self._forget()
        self._id = self.last_event_id
        return []

    def _grow(self, data: bytes, events: Sequence[Event] = ()) -> None:
        """Append to the unfinished line; past the limit fail, now or after `events`."""
        self._tail += data
        if self._fresh:
            if len(self._tail) < len(BOM):
                return  # too short to tell, and too short to need a bound
            self._fresh = False
            if self._tail.startswith(BOM):
                del self._tail[: len(BOM)]
        if len(self._tail) > self._limit:
            fault = self._outgrown("a line")
            if not events:
                raise fault

    def _interpret(self, raw: bytes) -> list[Event]:
        """Apply whole lines to the state; return the events they complete.

        The hot path: a chunk is decoded at once, and one loop runs over its lines with what it needs in locals. Sizes
        are counted only where a limit could be near.
        """
        try:
            lines = raw.decode().split("\n")
        except UnicodeDecodeError:
            lines = raw.decode("utf-8", "replace").split("\n")
        outgrown = ""
        held = self._data
        size = len(held)
        limit = self._limit
        tight = size + 3 * len(raw) > limit  # three, because U+FFFD is three bytes and may stand for one
        if tight:
            whole = next((index for index, line in enumerate(raw.split(b"\n")) if len(line) > limit), len(lines))
            if whole < len(lines):
                outgrown = "a line"
                del lines[whole:]
        events: list[Event] = []
        type_ = self._type
        id_ = self._id
        last = self.last_event_id
        data: str | None = None  # the first data line in this chunk of the unfinished event, and …
        more: list[str] = []  # … the others
        for line in lines:
            if not line:
                last = id_
                if data is not None or held:
                    if more or held:
                        data = self._joined(data, more)
                        more = []
                    events.append(_new(Event, (type_ or "message", data, id_)))
                    data = None
                    size = 0
                type_ = ""
                continue
            # Nearly every field has a space behind its colon, so that one cut gives name and value. A name that still
            # has a colon in it was cut in the wrong place.
            name, _, value = line.partition(": ")
            if name != "data" and name != "event" and name != "id" and ":" in name:  # noqa: PLR1714 (a set is slower)
                name, _, value = line.partition(":")
            if name == "data":
                if tight:
                    size += len(value.encode()) + 1
                    if size > limit + 1:  # the LF behind the last line is not data
                        outgrown = "the data of an event"
                        break
                if data is None:
                    data = value
                else:
                    more.append(value)
            elif name == "event":
                type_ = value
            elif name == "id":
                if "\0" not in value:
                    id_ = value
            elif name == "retry":
                if value.isascii() and value.isdigit():
                    digits = value.lstrip("0")
                    self.retry_ms = min(int(digits or 0), MAX_RETRY_MS) if len(digits) <= _MAX_DIGITS else MAX_RETRY_MS
            elif not name and self._on_comment is not None:
                self._on_comment(value)
        if data is not None:
            held += "\n".join((data, *more)).encode() + b"\n"
        self._type = type_
        self._id = id_
        self.last_event_id = last
        self._clean = not (held or type_ or self._after_cr) and id_ is last
        if outgrown:
            fault = self._outgrown(outgrown)
            if not events:
                raise fault
        return events

    def _joined(self, data: str | None, more: list[str]) -> str:
        """The data of an event of several lines: those held, then those of this chunk."""
        text = "\n".join(more if data is None else (data, *more))
        held = self._data
        if held:
            if data is None:
                held.pop()  # the LF behind the last line
            held += text.encode()
            text = held.decode()
            held.clear()
        return text

    def _outgrown(self, what: str) -> LimitExceeded:
        self._forget()
        self._fault = LimitExceeded(
            f"{what} is longer than {self._limit} bytes; raise max_event_bytes if such events are expected",
            limit="max_event_bytes",
        )
        return self._fault

    def _forget(self) -> None:
        self._clean = False
        self._tail = bytearray()
        self._data = bytearray()
        self._type = ""


# What the last byte was, where an LF after it would belong to it.
_NOT_CR = 0
_CR_IN_BLOCK = 1  # it ended a line that is not blank
_CR_AT_END = 2  # it ended a blank line of a sender of CRLF: its LF is waited for
_CR_CUT = 3  # it ended a blank line, and the block has gone out


class BlockCutter:
    r"""Cuts the raw bytes of an event stream at its blank lines, for forwarding them byte for byte.

    A block is everything up to and including a blank line: an event, comments, a lone ``id:`` or ``retry:``, or nothing
    but the blank line. Nothing is decoded, dropped or normalised: all that `feed` and `close` return, joined, is
    exactly what was fed. Between two items a relay may insert lines of its own.

    CRLF is the hard part. A blank line's CR ends the event at once, so its block must not be held back; yet nothing may
    come between that CR and an LF that belongs to it. Hence, when a blank line ends in CR:

    ============================  ==================================================================================
    the line before it ended in   then
    ============================  ==================================================================================
    CRLF                          the sender writes CRLF, so the LF will come: the block is cut behind it. Where the
                                  next byte proves to be another, the block is cut before that byte.
    CR, LF, or there is none      the block is cut right behind the CR. If an LF follows after all, it comes out as
                                  an item of its own, b"\n", before the next block: a blank line more at worst, which
                                  dispatches nothing.
    ============================  ==================================================================================

    It is not the chunks that decide this but the bytes: the split never changes the items. A byte-order mark counts as
    part of the first line.

    Args:
        max_block_bytes: The longest block that is accepted, blank line included; a security limit [bytes].

    Attributes:
        between: Whether it stands between two blocks, in lines that end in LF: bytes that are one such block, without
            CR, pass it as they are, and need not be fed.
        unfinished: Whether `close` found a rest that no blank line had ended.
    """

    __slots__ = ("_cr", "_crlf", "_fault", "_held", "_limit", "_line_empty", "between", "unfinished")

    def __init__(self, *, max_block_bytes: int = 1 << 20) -> None:
        self.between = True
        self.unfinished = False
        self._limit = max_block_bytes
        self._held = bytearray()  # the unfinished block
        self._line_empty = True  # nothing of the current line has come yet
        self._crlf = False  # the line before ended in CRLF
        self._cr = _NOT_CR
        self._fault: LimitExceeded | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Absorb bytes; return every block they complete.

        Args:
            data: The next slice of the body, any size [bytes]; b"" is a no-op, not the end.
        Returns:
            Blocks in order, byte for byte; the unfinished block stays buffered, at most max_block_bytes.
        Raises:
            LimitExceeded: A block outgrew max_block_bytes; the cutter is unusable after. Blocks that the same bytes
                completed before it are returned first, and the error raised by the next call.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        if not data:
            return []
        if (
            self.between
            and data.endswith(b"\n\n")
            and data.find(b"\n\n") == len(data) - 2
            and CR not in data
            and len(data) <= self._limit
            and data[0] != LF
        ):
            return [data]  # one chunk, one block: what a live stream mostly is
        blocks: list[bytes] = []
        try:
            if self._cr == _NOT_CR and CR not in data:
                self._cut_lf(data, blocks)
            else:
                self._cut_any(data, blocks)
        except LimitExceeded:
            if not blocks:
                raise
        self.between = self._line_empty and not (self._held or self._crlf or self._cr != _NOT_CR or self._fault)
        return blocks

    def close(self) -> list[bytes]:
        """End the body; return what is left of it.

        Returns:
            The rest as one item, or nothing when the body ended in a blank line. `unfinished` tells whether that rest
            lacks its blank line; it does not where only a blank line's LF was still waited for.
        Raises:
            LimitExceeded: The fault that an earlier feed found after it had completed blocks.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        rest = bytes(self._held)
        if not rest:
            return []
        self.unfinished = self._cr != _CR_AT_END
        self._held = bytearray()
        self._line_empty = True
        self._cr = _NOT_CR
        return [rest]

    def _cut_lf(self, data: bytes, blocks: list[bytes]) -> None:
        """Cut a chunk in which every line ends in LF: one search per block."""
        start = 0
        if self._line_empty:
            start = self._cut_blank(data, start, blocks)
        while (end := data.find(b"\n\n", start)) >= 0:
            start = self._cut(data, start, end + 2, blocks)
            start = self._cut_blank(data, start, blocks)
        if LF in data:
            self._crlf = False
        self._line_empty = data.endswith(b"\n")
        self._hold(data, start)

    def _cut_blank(self, data: bytes, start: int, blocks: list[bytes]) -> int:
        """Cut behind each LF from data[start] on: blank lines that end the block held, or are one themselves."""
        while data.startswith(b"\n", start):
            start = self._cut(data, start, start + 1, blocks)
        return start

    def _cut_any(self, data: bytes, blocks: list[bytes]) -> None:
        """Cut a chunk with CR in it, or after one: line by line."""
        size = len(data)
        start = at = 0  # where the unfinished block, and the current line, begin in data
        if self._cr != _NOT_CR:
            start, at = self._behind_cr(data, start, at, blocks)
        lf = data.find(b"\n", at)
        cr = data.find(b"\r", at)
        while lf >= 0 or cr >= 0:
            if cr < 0 or 0 <= lf < cr:
                blank = lf == at and self._line_empty
                at = lf + 1
                self._crlf = False
                if blank:
                    start = self._cut(data, start, at, blocks)
            else:
                blank = cr == at and self._line_empty
                at = cr + 1
                if blank and not self._crlf:
                    start = self._cut(data, start, at, blocks)
                    self._cr = _CR_CUT
                else:
                    self._cr = _CR_AT_END if blank else _CR_IN_BLOCK
                self._line_empty = True
                if at == size:
                    break
                start, at = self._behind_cr(data, start, at, blocks)
                cr = data.find(b"\r", at)
            self._line_empty = True
            if lf < at:
                lf = data.find(b"\n", at)
        if at < size:
            self._line_empty = False
        self._hold(data, start)

    def _behind_cr(self, data: bytes, start: int, at: int, blocks: list[bytes]) -> tuple[int, int]:
        """Settle the CR before data[at]: whether an LF belongs to it, and whether a block ends here."""
        state, self._cr = self._cr, _NOT_CR
        self._crlf = data.startswith(b"\n", at)
        if self._crlf:
            at += 1
        if state == _CR_AT_END or (state == _CR_CUT and self._crlf):
            start = self._cut(data, start, at, blocks)
        return start, at

    def _cut(self, data: bytes, start: int, end: int, blocks: list[bytes]) -> int:
        """Append the block that ends before data[end]; return end, where the next one begins."""
        block = data[start:end]
        if self._held:
            self._held += block
            block = bytes(self._held)
            self._held = bytearray()
        if len(block) > self._limit:
            raise self._outgrown()
        blocks.append(block)
        return end

    def _hold(self, data: bytes, start: int) -> None:
        """Keep the unfinished block, within the limit."""
        self._held += data[start:] if start else data
        if len(self._held) > self._limit:
            raise self._outgrown()

    def _outgrown(self) -> LimitExceeded:
        self._held = bytearray()
        self._fault = LimitExceeded(
            f"a block is longer than {self._limit} bytes; raise max_block_bytes if such blocks are expected",
            limit="max_block_bytes",
        )
        return self._fault
