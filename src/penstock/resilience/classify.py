"""What an error says: about the request (may it be sent again?) and about the server (is it ill?).

===========================  ==============  ==================  ====================
failure                      may be retried  surely not handled  the breaker's verdict
===========================  ==============  ==================  ====================
connect: refused, DNS, …     yes             yes                 failure
connect: TLS                 no              yes                 failure
write, read before headers   yes             no                  failure
408, 425, 429, 503           yes             yes                 neither, 503 failure
500, 502, 504 and other 5xx  yes             no                  failure
other 4xx                    no              no                  success
wrong content type           no              no                  neither
truncated, stalled           yes             no                  failure
in-band error, JSON, limits  no              no                  success
cancelled by the caller      no              no                  neither
===========================  ==============  ==================  ====================

"Surely not handled" is what lets a request that is not idempotent be sent again: no byte of it was written, or the
server itself said that it refused the work.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from penstock.errors import (
    ConnectError,
    ContentTypeError,
    PenstockError,
    ProtocolError,
    RetriesExhausted,
    StatusError,
    StreamStalled,
    StreamTruncated,
    TransportError,
)

Verdict = Literal["success", "failure", "neither"]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
_REFUSED = frozenset({408, 425, 429, 503})


def retryable(error: PenstockError) -> bool:
    """Whether the same request could fare better another time."""
    match error:
        case RetriesExhausted():
            return retryable(error.last)
        case ConnectError():
            return error.reason != "tls"
        case StatusError():
            return error.status in _REFUSED or (error.status >= 500 and error.status not in (501, 505))
        case TransportError() | StreamTruncated() | StreamStalled():
            return True
        case _:
            return False


def not_handled(error: PenstockError) -> bool:
    """Whether the server surely did none of the work: nothing was sent, or it said so itself."""
    return isinstance(error, ConnectError) or (isinstance(error, StatusError) and error.status in _REFUSED)


def verdict(error: PenstockError | None) -> Verdict:
    """What an attempt's end says about the server's health; None is a proper end."""
    match error:
        case None:
            return "success"
        case StatusError():
            if error.status >= 500:
                return "failure"
            return "neither" if error.status in _REFUSED else "success"
        case TransportError() | ProtocolError() | StreamTruncated() | StreamStalled():
            return "failure"
        case ContentTypeError():
            return "neither"
        case _:
            return "success"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After field asks us to wait; None when there is none or it cannot be read.

    Args:
        value: Delta-seconds or an HTTP-date.
        now: The present, in seconds since the epoch.
    Source:
        RFC 9110 §10.2.3
    """
    if value is None or len(value) > 64:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)  # the asctime form names no zone, and means GMT like the others
        return max(0.0, date.timestamp() - now)
    except (ValueError, OverflowError):
        return None
