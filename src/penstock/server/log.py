"""What a server says of its requests: which one, then what happened; a traceback only for what nobody foresaw."""

from __future__ import annotations

import asyncio
import logging

from penstock.errors import PenstockError

logger = logging.getLogger("penstock.server")


def request_failed(method: str, raw_path: bytes, error: BaseException) -> None:
    """One line for an error that has a name; a bug keeps its traceback."""
    request = f"{method} {raw_path.decode('ascii', 'backslashreplace')}"
    line = foreseen(error)
    if line is None:
        logger.error("%s: the application failed", request, exc_info=error)
    else:
        logger.error("%s: %s", request, line)


def request_unfinished(method: str, raw_path: bytes, what: str) -> None:
    """The application returned, and its response is not whole."""
    logger.error("%s %s: %s", method, raw_path.decode("ascii", "backslashreplace"), what)


def foreseen(error: BaseException) -> str | None:
    """One line for an error that has a name; None for one that is a bug."""
    if isinstance(error, BaseExceptionGroup):
        lines = [foreseen(each) for each in error.exceptions]
        return lines[0] if all(line is not None for line in lines) else None
    if isinstance(error, PenstockError):
        return " ".join(str(error).split())
    if isinstance(error, asyncio.CancelledError):
        return "cut off: the server is stopping and the grace is over"
    return None
