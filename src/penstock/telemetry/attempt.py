"""One attempt, watched from before it is sent to the end of its body, and told of once.

An attempt whose headers have come has not succeeded yet: an answer of ten minutes may break off in the ninth, long
after its 200. So nothing is told at the headers. There are three ways to the one telling, and they exclude each other:

====================================  ===========  ==========================
what happens                          reason       told by
====================================  ===========  ==========================
no response: an error is raised       "failed"     `watched`
no response: the caller is cancelled  "cancelled"  `watched`
a response, and later its one end     the end's    `Response.on_end`
====================================  ===========  ==========================
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from penstock.client.request import Request, Send
from penstock.client.response import End, Response

METHODS = frozenset(
    os.environ.get(
        "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE"
    ).split(",")
)
"""The methods that are told by name. Any token is a method, so a caller's own would be a label of his choice."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        reason: "complete", "failed" or "cancelled". Only a failure speaks against the server, or the way to it.
        seconds: From before it was sent to the end of its body, or to the failure.
        first_byte: From before it was sent to the body's first byte [s]; None when none came, or nobody saw it come.
        bytes: Of the body, as many as came.
        response: What answered, redirects followed; None when nothing did.
        error: What broke it.
    """

    reason: Literal["complete", "failed", "cancelled"]
    seconds: float
    first_byte: float | None = None
    bytes: int = 0
    response: Response | None = None
    error: Exception | None = None

    @property
    def status(self) -> int | None:
        """The status of the response; None without one."""
        return None if self.response is None else self.response.status


def known_method(method: str) -> str:
    """The method, or "_OTHER": a bounded set of labels, whatever the callers send."""
    return method if method in METHODS else "_OTHER"


async def watched(request: Request, send: Send, tell: Callable[[Outcome], None]) -> Response:
    """Send, and tell the outcome once: at the end of the body, or when there will be no response.

    A response that is neither read nor closed has no end, and is not told of.

    Cancellation: is told of as such.

    Args:
        request: What to send.
        send: The rest of the attempt.
        tell: Called once; should not raise.
    """
    started_at = time.monotonic()
    try:
        response = await send(request)
    except Exception as error:
        tell(Outcome("failed", time.monotonic() - started_at, error=error))
        raise
    except BaseException:
        tell(Outcome("cancelled", time.monotonic() - started_at))
        raise
    first_byte: float | None = None

    def at_first_byte() -> None:
        nonlocal first_byte
        if not response.bytes_received:  # a body that was pushed tells of its first byte with all of them, at its end
            first_byte = time.monotonic() - started_at

    def at_end(end: End) -> None:
        tell(Outcome(end.reason, time.monotonic() - started_at, first_byte, end.bytes, response, end.error))

    response.on_first_byte(at_first_byte)
    response.on_end(at_end)
    return response
