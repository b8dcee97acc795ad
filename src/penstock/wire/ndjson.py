"""JSON values, one per line: NDJSON, also called JSON Lines.

A record is a line that ends in LF; a CR before it is whitespace to JSON and so is tolerated. Lines that are empty or
hold only spaces and tabs are skipped and not counted. One byte-order mark at the very start is skipped. The last
record may lack its LF: it counts if it is complete JSON, and is otherwise a stream that ended too early. (A number cut
short, ``12`` of ``123``, is complete JSON: only the framing underneath can tell.)

Strict where leniency would let garbage through: UTF-8 only, and no ``NaN`` or ``Infinity``, which are not JSON.

The module does not know RFC 7464 (records that begin with a 1E byte).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from penstock.errors import DecodeError, LimitExceeded
from penstock.wire.lines import LF

BOM = b"\xef\xbb\xbf"
QUOTED = 60  # characters of a payload that an error message shows
BLANK = b" \t\r"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_parse = json.JSONDecoder(parse_constant=_refuse).decode
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_escaped = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def loads(text: str, what: str) -> Any:
    """Parse one JSON value.

    Args:
        text: The whole value; whitespace around it is allowed.
        what: What the text is, for the message, e.g. "record 3".
    Raises:
        DecodeError: Not JSON, nested deeper than Python can follow, or a number too long for it. The message gives
            the reason and the beginning of the text.
    """
    try:
        return _parse(text)
    except json.JSONDecodeError as error:
        # error.pos only: its line and column count newlines of the payload, which mean nothing to the reader.
        raise DecodeError(f"{what} is not JSON: {error.msg} at character {error.pos} of {quoted(text)}") from error
    except ValueError as error:
        raise DecodeError(f"{what} is not JSON that can be read: {error}: {quoted(text)}") from error
    except RecursionError as error:
        raise DecodeError(f"{what} is nested too deeply: {quoted(text)}") from error


def quoted(payload: str | bytes) -> str:
    """The beginning of a payload, quoted and escaped for one line of a message."""
    head = payload[:QUOTED]
    text = head.decode("utf-8", "replace") if isinstance(head, bytes) else head
    return repr(text) + ("…" if len(payload) > QUOTED else "")


def encode(value: Any) -> bytes:
    """One record: compact JSON in UTF-8, ended by LF.

    Raises:
        ValueError: A float that JSON cannot say (NaN, an infinity), or a circular value.
        TypeError: A value of a type that JSON cannot say.
    """
    try:
        return _compact(value).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but JSON can escape it
        return _escaped(value).encode() + b"\n"


class Decoder:
    """Parses a body of newline-delimited JSON.

    Args:
        max_record_bytes: The longest record that is accepted, its LF not counted; a security limit [bytes].

    Attributes:
        dropped: Records that the end of the body cut off: 1 where `close` said so, else 0.
    """

    dropped: int

    def __init__(self, *, max_record_bytes: int = 1 << 20) -> None:
        self.dropped = 0
        self._limit = max_record_bytes
        self._tail = bytearray()  # the unfinished line; holds no LF
        self._fresh = True  # the first line, which may begin with a byte-order mark, is still to come
        self._records = 0
        self._fault: DecodeError | LimitExceeded | None = None

    def feed(self, data: bytes) -> list[Any]:
        """Absorb bytes; return the value of every record they complete.

        Args:
            data: The next slice of the body, any size [bytes]; b"" is a no-op, not the end.
        Returns:
            Parsed values in order; the unfinished record stays buffered, at most max_record_bytes.
        Raises:
            DecodeError: A record that is not JSON in UTF-8; the message gives its number, from 1.
            LimitExceeded: A record outgrew max_record_bytes. After either, the decoder is unusable.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        values: list[Any] = []
        try:
            if LF in data:
                lines = data.split(b"\n")
                if self._tail:
                    self._tail += lines[0]
                    lines[0] = bytes(self._tail)
                self._tail = bytearray(lines.pop())
                for line in lines:
                    self._bound(line)
                    self._record(line, values)
            else:
                self._tail += data
            self._bound(self._tail)
        except (DecodeError, LimitExceeded) as fault:
            self._tail = bytearray()
            self._fault = fault
            if not values:
                raise
        return values

    def close(self) -> list[Any]:
        """End the body; return the value of a last record that had no LF.

        Returns:
            One value, or nothing when the body ended in a newline.
        Raises:
            DecodeError: The body ended inside a record.
            DecodeError, LimitExceeded: The fault that an earlier feed found after it had completed records.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        values: list[Any] = []
        line = bytes(self._tail)
        self._tail = bytearray()
        try:
            self._record(line, values)
        except DecodeError as error:
            self.dropped = 1
            self._fault = DecodeError(f"the stream ended inside record {self._records}: {quoted(line)}")
            raise self._fault from error
        return values

    def _bound(self, line: bytes | bytearray) -> None:
        if len(line) > self._limit:
            raise LimitExceeded(
                f"record {self._records + 1} is longer than {self._limit} bytes; "
                "raise max_record_bytes if such records are expected",
                limit="max_record_bytes",
            )

    def _record(self, line: bytes, values: list[Any]) -> None:
        """Append the value of a whole line, unless it is blank."""
        if self._fresh:
            self._fresh = False
            line = line.removeprefix(BOM)
        if not line.strip(BLANK):
            return
        self._records += 1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"record {self._records} is not UTF-8: byte {error.start} of {quoted(line)}",
            ) from error
        values.append(loads(text, f"record {self._records}"))
