r"""A response on disk with its timing, so that it can be looked at, kept with tests, and played again.

A recording is a text file of one JSON object per line::

    {
        "penstock": 1,
        "url": "http://…",
        "status": 200,
        "headers": [["content-type", "text/event-stream"]],
        "recorded_at": "2026-01-31T12:00:00+00:00",
    }
    {"at": 0.251034, "data": "data: drip\n\n"}
    {"at": 0.498117, "base64": "…"}
    {"end": "complete", "at": 0.5}

========  ==========================================================================================================
line      holds
========  ==========================================================================================================
first     the version of the format, which is 1; the response's URL, status and fields in order; when it was recorded
a piece   what one read of the body gave, and the seconds from the response's head to it; as text where it is UTF-8 by
          itself, else in base64, so that no character's bytes are moved from one piece to another
last      how the body ended, "complete", "failed" or "cancelled"; when; and, if it failed, the error's message
========  ==========================================================================================================

Times never go back. Members that are not named here are for later versions, and ignored.

Credentials are not written: what stands before the host in a URL, the values of parameters that look like a secret's,
and fields such as Authorization, Cookie, Set-Cookie and X-Api-Key. What the body says is the body's business.

A recording appears under its name when it is whole, and until then grows beside it, as ``NAME.….part``. One that is cut
short with its program still alive (an error, Ctrl-C, a `with` that is left) is closed as a cancelled one: what had come
is worth keeping. Only a program that is killed leaves the part behind; `load` tells how to make a recording of it.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import math
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self, TypeAlias, get_args
from urllib.parse import unquote_plus

from penstock.client import seam
from penstock.errors import DecodeError, StreamTruncated
from penstock.wire import ndjson

VERSION = 1
MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest line that is read; a security limit [bytes]."""

_MAX_PIECE_BYTES = MAX_LINE_BYTES // 8  # a byte is six characters of JSON at most, \u0000

Reason: TypeAlias = Literal["complete", "failed", "cancelled"]

_REASONS: tuple[str, ...] = get_args(Reason)
_WITHHELD = "REDACTED"

# Names of secrets, word by word: X-RateLimit-Remaining-Tokens tells of tokens, and is none.
_WORD_BORDER = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_SECRET = re.compile(
    "(^|[-_.])"
    "(o?auth|authorization|cookie2?|credentials?|jwt|passw(or)?d|pwd|secret|session([-_]?id)?|sig|signature|token"
    "|(api|access|account|auth|functions|private|secret|subscription)[-_]?key)"
    "([-_.]|$)"
)
_SECRET_PARAMETERS = frozenset({"key", "code"})  # Google's and OAuth's; a field of such a name would be another thing
_LOCATIONS = frozenset({"location", "content-location"})


class Piece(NamedTuple):
    """What one read of the body gave, and the seconds from the response's head to it."""

    at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class RecordedEnd:
    """How the recorded body ended.

    Attributes:
        reason: "complete", "failed" or "cancelled".
        at: Seconds from the response's head.
        error: What broke it, when it failed; "" where nothing is known.
    """

    reason: Reason
    at: float
    error: str = ""


class Recorder:
    """Writes a recording: `head`, then each `piece` as it comes, then `end`. Use as ``with``.

    Leaving the block before `end` ends it as cancelled, and before `head` leaves no file.

    Args:
        path: Where the recording is to be; what is there stays until the new one is whole, and is then replaced.
    Raises:
        OSError: Here, no file can be made in that folder; later, it cannot be written to. Then no part of it stays.

    Attributes:
        path: Where the recording is to be.
        part: Where it grows until it is whole.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise FileExistsError(errno.EEXIST, "there is something else than a file, which is not replaced", str(path))
        self.part = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = self.part.open("xb")
        self._headed = False
        self._urls = "", ""
        self._at = 0.0

    def head(
        self,
        *,
        url: str,
        status: int,
        headers: Iterable[tuple[str | bytes, str | bytes]] = (),
        recorded_at: datetime | None = None,
    ) -> None:
        """Write what is known when the response's head has come. Once, before everything else.

        Args:
            url: Where it came from; credentials are left out.
            status: The status code.
            headers: The fields, in order, as text or as raw bytes; credentials are left out. Those of the framing and
                of a coding are kept: they tell of the response, not of the pieces, which whoever replays must frame.
            recorded_at: When; now if left out.
        """
        if self._headed:
            raise RuntimeError("the recording has its head already")
        at = datetime.now(UTC) if recorded_at is None else recorded_at
        kept = [_shown_field(_text(name), _text(value)) for name, value in headers if not _is_secret(_text(name))]
        self._urls = seam.shown(url), _shown_url(url)
        self._write(
            {
                "penstock": VERSION,
                "url": self._urls[1],
                "status": status,
                "headers": kept,
                "recorded_at": at.isoformat(timespec="seconds"),
            }
        )
        self._headed = True

    def piece(self, at: float, data: bytes) -> None:
        """Write what one read of the body gave.

        Args:
            at: Seconds since the head came.
            data: The bytes, content codings undone; b"" is a no-op.
        Raises:
            ValueError: A time before the head's, or none at all.
        """
        if not data:
            return
        self._advance(at)
        for start in range(0, len(data), _MAX_PIECE_BYTES):
            some = data[start : start + _MAX_PIECE_BYTES]
            try:
                held = {"data": some.decode()}
            except UnicodeDecodeError:
                held = {"base64": base64.b64encode(some).decode()}
            self._write({"at": self._at, **held})

    def end(self, reason: Reason, at: float, error: str = "") -> None:
        """Write how the body ended, and give the recording its name. Nothing can be written after.

        Args:
            reason: "complete", "failed" or "cancelled".
            at: Seconds since the head came.
            error: What broke it, if it failed; the URL in it is written without credentials too.
        """
        if reason not in _REASONS:
            raise ValueError(f"a body's end is {_one_of(_REASONS)}, not {reason!r}")
        self._advance(at)
        error = error.replace(*self._urls)
        self._write({"end": reason, "at": self._at, **({"error": error} if error else {})})
        file, self._file = self._file, None
        assert file is not None
        try:
            with file:
                os.fsync(file.fileno())
            self.part.replace(self.path)
        except BaseException:
            self.part.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """End what has not ended as cancelled, at the time of its last piece. Safe to call twice."""
        if self._file is None:
            return
        if self._headed:
            self.end("cancelled", self._at)
        else:
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, at: float) -> None:
        if not self._headed:
            raise RuntimeError("a recording begins with its head")
        if not (math.isfinite(at) and at >= 0):
            raise ValueError(f"a piece comes some seconds after the head, not {at}")
        self._at = max(self._at, round(at, 6))  # if it goes back, that is the clock's doing: they came in this order

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("the recording has ended: nothing can be written to it")
        encoded = ndjson.encode(line)
        try:
            self._file.write(encoded)
            self._file.flush()  # who is killed leaves behind what had come
        except OSError:
            self._discard()
            raise

    def _discard(self) -> None:
        file, self._file = self._file, None
        self.part.unlink(missing_ok=True)
        if file is not None:
            with suppress(OSError):  # what it still held cannot be written either
                file.close()


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that `load` has looked through. Its pieces stay on disk.

    Attributes:
        path: The file.
        url: Where the response came from, without credentials.
        status: The status code.
        headers: The fields, in order, without credentials. Content-Length, Transfer-Encoding and Content-Encoding are
            those of the recorded response: a server that replays it frames the pieces anew.
        recorded_at: When.
        end: How the body ended, and when.
        count: How many pieces there are.
        bytes: How many bytes they hold.
    """

    path: Path
    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    recorded_at: datetime
    end: RecordedEnd
    count: int
    bytes: int

    def pieces(self) -> Generator[Piece, None, None]:
        """The pieces, read from the file one by one.

        Raises:
            DecodeError: The file was changed since, and is no recording any more.
        """
        with closing(_read(self.path)) as entries:
            for entry in entries:
                if isinstance(entry, Piece):
                    yield entry


def load(path: str | os.PathLike[str]) -> Recording:
    """Look through a recording, in constant memory.

    Raises:
        DecodeError: It is none, or one of a later version, or was interrupted; the message has the file, the line and
            what is wrong with it.
        OSError: The file cannot be read.
    """
    path = Path(path)
    count = size = 0
    head: _Head | None = None
    end: RecordedEnd | None = None
    for entry in _read(path):
        if isinstance(entry, Piece):
            count += 1
            size += len(entry.data)
        elif isinstance(entry, RecordedEnd):
            end = entry
        else:
            head = entry
    assert head is not None
    assert end is not None
    return Recording(path, *head, end, count, size)


async def replay(
    recording: Recording,
    *,
    speed: float = 1.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[bytes, None]:
    """Yield the pieces at their times, and end when and as the recorded body did.

    Each is due so long after the start, not after the one before: a reader that is slow now and then delays none but
    those it is late for. A cancelled recording ends properly after its last piece, since how the body would have gone
    on nobody knows.

    Args:
        recording: What `load` gave.
        speed: How many times as fast; `math.inf` waits for nothing.
        sleep: Waits for so many seconds.
        clock: Tells the time, in seconds from anywhere.
    Raises:
        ValueError: A speed that is not above 0.
        StreamTruncated: At the time when the recorded body failed, in its words. A server around this closes the
            connection then, so that its reader meets with the failure too.
    """
    if not speed > 0:
        raise ValueError(f"the speed is above 0, not {speed}: 2 is twice as fast")
    started = clock()

    async def until(at: float) -> None:
        wait = started + at / speed - clock()
        if wait > 0:
            await sleep(wait)

    with closing(recording.pieces()) as pieces:
        for piece in pieces:
            await until(piece.at)
            yield piece.data
    await until(recording.end.at)
    if recording.end.reason == "failed":
        said = recording.end.error or f"{recording.url}: the recorded body broke off"
        raise StreamTruncated(said, url=recording.url)


# -- reading ---------------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    recorded_at: datetime


def _read(path: Path) -> Generator[_Head | Piece | RecordedEnd, None, None]:
    """The lines of a recording, as what they stand for: the head, the pieces, the end, and nothing else."""
    with path.open("rb") as file:
        number = 1
        at = 0.0
        ended = False
        while raw := file.readline(MAX_LINE_BYTES + 1):
            try:
                line = _object(raw)
                if ended:
                    raise _Wrong("nothing comes after the end")
                if number == 1:
                    yield _head(line)
                elif "end" in line:
                    at, ended = _at(line, at), True
                    yield _end(line, at)
                else:
                    at = _at(line, at)
                    yield Piece(at, _data(line))
            except _Wrong as wrong:
                raise DecodeError(f"{path}: line {number}: {wrong}") from None
            number += 1
        if number == 1:
            raise DecodeError(f"{path}: line 1: the file is empty, and no recording")
        if not ended:
            last = json.dumps({"end": "cancelled", "at": at})
            raise DecodeError(
                f"{path}: line {number}: the end is missing: the recording was interrupted; "
                f"to use what there is of it, add the line {last}"
            )


class _Wrong(Exception):
    """What is wrong with a line."""


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise _Wrong(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        value = ndjson.loads(raw.decode(), "it")
    except UnicodeDecodeError:
        raise _Wrong("it is not UTF-8: this is no recording") from None
    except DecodeError as error:
        torn = "" if raw.endswith(b"\n") else " (it was cut off: the recording was interrupted; take the line out)"
        raise _Wrong(f"{error}{torn}") from None
    if not isinstance(value, dict):
        raise _Wrong("it is not a JSON object")
    return value


def _head(line: dict[str, Any]) -> _Head:
    version = line.get("penstock")
    if type(version) is not int:
        raise _Wrong('it has no "penstock": this is no recording')
    if version != VERSION:
        raise _Wrong(f"the recording is of version {version}, and this Penstock reads version {VERSION}")
    status = line.get("status")
    if type(status) is not int or not 100 <= status <= 599:
        raise _Wrong('"status" is not a status code')
    headers = line.get("headers")
    if not isinstance(headers, list) or not all(
        isinstance(field, list) and len(field) == 2 and all(isinstance(text, str) for text in field)
        for field in headers
    ):
        raise _Wrong('"headers" is not a list of [name, value] pairs')
    try:
        recorded_at = datetime.fromisoformat(_string(line, "recorded_at"))
    except ValueError:
        raise _Wrong('"recorded_at" is not a time as in 2026-01-31T12:00:00+00:00') from None
    return _Head(_string(line, "url"), status, tuple((name, value) for name, value in headers), recorded_at)


def _at(line: dict[str, Any], before: float) -> float:
    value = line.get("at")
    try:
        at = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0
    except OverflowError:
        at = math.inf
    if not (math.isfinite(at) and at >= 0):
        raise _Wrong('"at" is not a number of seconds')
    if at < before:
        raise _Wrong(f'"at" goes back, from {before:g} to {at:g}')
    return at


def _data(line: dict[str, Any]) -> bytes:
    if ("data" in line) == ("base64" in line):
        raise _Wrong('it has to have one of "data", "base64" and "end"')
    if "data" in line:
        try:
            return _string(line, "data").encode()
        except UnicodeEncodeError:
            raise _Wrong('"data" holds half a surrogate pair, which has no bytes') from None
    try:
        return base64.b64decode(_string(line, "base64"), validate=True)
    except ValueError:
        raise _Wrong('"base64" is not base64') from None


def _end(line: dict[str, Any], at: float) -> RecordedEnd:
    reason = line["end"]
    if reason not in _REASONS:
        raise _Wrong(f'"end" is not {_one_of(_REASONS)}')
    return RecordedEnd(reason, at, _string(line, "error") if "error" in line else "")


def _string(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str):
        raise _Wrong(f'"{name}" is missing, or no text')
    return value


def _one_of(names: Iterable[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


# -- what is not written ---------------------------------------------------------------------------------------------


def _is_secret(name: str) -> bool:
    return _SECRET.search(_WORD_BORDER.sub("-", name).lower()) is not None


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _shown_field(name: str, value: str) -> tuple[str, str]:
    return name, _shown_url(value) if name.lower() in _LOCATIONS else value


def _shown_url(url: str) -> str:
    """The URL without what may be a secret in it: user and password, values of such parameters, and the fragment."""
    url = url.partition("#")[0]
    if url.startswith("//"):
        url = seam.shown(f"http:{url}").removeprefix("http:")
    elif "://" in url.partition("?")[0]:
        url = seam.shown(url)
    path, mark, query = url.partition("?")
    return path + mark + "&".join(map(_shown_parameter, query.split("&")))


def _shown_parameter(parameter: str) -> str:
    name, mark, _ = parameter.partition("=")
    plain = unquote_plus(name)
    secret = mark and (_is_secret(plain) or plain.lower() in _SECRET_PARAMETERS)
    return f"{name}={_WITHHELD}" if secret else parameter
