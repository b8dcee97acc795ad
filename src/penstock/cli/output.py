"""What goes where.

Stdout carries data only. Banners, progress, retries and metrics go to stderr. With ``--json`` all that is meant for a
program goes to stdout, one object per line, and a failure is the last one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from rich.console import Console

from penstock.errors import CircuitOpenError, PenstockError, RetriesExhausted
from penstock.resilience.classify import retryable

console = Console(stderr=True, highlight=False, soft_wrap=True)


def data(text: str) -> None:
    """One line of data, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def raw(piece: bytes) -> None:
    """Bytes as they are, at once."""
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def record(value: dict[str, Any]) -> None:
    """One JSON object on a line of its own, at once."""
    data(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def note(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


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


def show_log(level: int = logging.INFO) -> None:
    """Show Penstock's log lines on stderr: the time, the level, the words."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y/%m/%d %H:%M:%S"))
    root = logging.getLogger("penstock")
    root.addHandler(handler)
    root.setLevel(level)


def silence_stdout() -> None:
    """Whoever read stdout has left: let what is still buffered go nowhere, instead of failing at exit."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
