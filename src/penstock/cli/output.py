"""What goes where.

Stdout carries data only. Banners, progress, retries and metrics go to stderr. With ``--json`` all that is meant for a
program goes to stdout, one object per line, and a failure is the last one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from penstock.errors import CircuitOpenError, PenstockError, RetriesExhausted
from penstock.resilience.classify import retryable

# What a terminal obeys, and what turns text around. A newline and a tab do no harm; a joiner in an emoji is none.
_HARMFUL = dict.fromkeys(
    (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"
)


class Footer(Protocol):
    """A line at the bottom of the terminal, which makes way for what is written."""

    def clear(self) -> None:
        """Take the line away, if it is there."""


_footer: Footer | None = None


class ReaderLeft(Exception):
    """Whoever read stdout has left (``| head -1``): nothing more is to be told, and nothing is wrong.

    Not a BrokenPipeError, for Typer takes those for a failure.
    """


def prepare() -> None:
    """Make stdout fit for data: UTF-8 whatever the locale; and let a closed one (``>&-``) swallow what it is given.

    A lone surrogate, which JSON can name and UTF-8 cannot write, becomes the escape that JSON has for it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number free, which would be a socket's otherwise
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def above(footer: Footer) -> Iterator[None]:
    """While it is entered, whatever is written has the footer cleared first."""
    global _footer  # noqa: PLW0603 – there is one terminal
    _footer = footer
    try:
        yield
    finally:
        _footer = None
        footer.clear()


def data(line: str) -> None:
    """One line of data, at once; raises as `text` does."""
    text(line + "\n")


def text(some: str) -> None:
    """Some text of data as it is, at once.

    Raises:
        ReaderLeft: Whoever read stdout has left.
        OSError: It cannot be written to, a full disk for one; it is named "stdout".
    """
    with _to_reader():
        sys.stdout.write(some)
        sys.stdout.flush()


def raw(piece: bytes) -> None:
    """Bytes as they are, at once; raises as `text` does."""
    with _to_reader():
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _to_reader() -> Iterator[None]:
    if _footer is not None:
        _footer.clear()
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        error.filename = "stdout"
        raise


def record(value: dict[str, Any]) -> None:
    """One JSON object on a line of its own, at once; raises as `text` does."""
    data(json_line(value))


def json_line(value: dict[str, Any]) -> str:
    """A JSON object in one line; what cannot be printed is escaped, and so no terminal is told anything by it."""
    line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)


def printable(line: str) -> str:
    """A line with what a server may have put into it made harmless: no escape sequence reaches the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def harmless(some: str) -> str:
    """Text of a server's, of any number of lines, with nothing in it that a terminal would obey."""
    return some if some.isprintable() else some.replace("\r\n", "\n").translate(_HARMFUL)


def note(line: str) -> None:
    """A line for the person at the terminal; that nobody reads it any more changes nothing."""
    if _footer is not None:
        _footer.clear()
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def error_record(error: BaseException, message: str, *, category: str = "application") -> dict[str, Any]:
    """What ``--json`` says of a failure."""
    known = isinstance(error, PenstockError)
    return {
        "error": {
            "category": error.category if isinstance(error, PenstockError) else category,
            "type": type(error).__name__,
            "message": message,
            "url": error.url if isinstance(error, PenstockError) else None,
            "retryable": known and _retryable(error),
        }
    }


def _retryable(error: BaseException) -> bool:
    if isinstance(error, RetriesExhausted):
        return _retryable(error.last)
    return isinstance(error, CircuitOpenError) or (isinstance(error, PenstockError) and retryable(error))


class _Notes(logging.Handler):
    """Writes to what stderr is now: while a progress bar is shown, that puts lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        note(printable(self.format(record)))


def show_log(level: int = logging.INFO) -> None:
    """Show Penstock's log lines on stderr: the time, the level, the words."""
    handler = _Notes()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y/%m/%d %H:%M:%S"))
    root = logging.getLogger("penstock")
    root.addHandler(handler)
    root.setLevel(level)


def hide_log() -> None:
    """Keep Penstock's warnings off stderr, where Python puts them when nobody asks for any."""
    logging.getLogger("penstock").addHandler(logging.NullHandler())


def silence(stream: TextIO) -> None:
    """Whoever read it has left: let what is still buffered go nowhere, instead of failing at exit."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, stream.fileno())
    os.close(sink)
