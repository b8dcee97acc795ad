"""What an error says: what happened, about the request (may it be sent again?) and about the server (is it ill?).

Every failure has one cause, and every cause has one row:

=================  =============================================  =======  ================  =======
cause              what happened                                  retried  surely unhandled  verdict
=================  =============================================  =======  ================  =======
dns                the host has no address                        yes      yes               failure
refused            the connection was refused, or reset at once   yes      yes               failure
unreachable        no way to the host, or another reason          yes      yes               failure
tls                the certificate or the handshake is no good    no       yes               failure
connect_timeout    no connection in time                          yes      yes               failure
timeout            no headers in time, or the request not read    yes      no                failure
lost               the connection broke before the headers        yes      no                failure
request_timeout    status 408                                     yes      yes               neither
too_early          status 425                                     yes      yes               neither
throttled          status 429                                     yes      yes               neither
unavailable        status 503                                     yes      yes               failure
server_error       any other 5xx                                  yes      no                failure
unsupported        status 501 or 505                              no       no                failure
status             any other status that is no success            no       no                success
content_type       a stream of another kind, or none              no       no                neither
truncated          the body ended before its end                  yes      no                failure
stalled            the body went silent, or outran its time       yes      no                failure
in_band            the stream itself carried an error             no       no                success
in_band_server     … one that says that the server is ill         no       no                failure
in_band_throttled  … one that asks for fewer requests             no       no                neither
protocol           the response's framing is broken               no       no                failure
decode             JSON or a content coding that does not parse   no       no                success
limit              a limit of ours was outgrown                   no       no                success
replay_gap         what a resume asked for is gone                no       no                success
circuit_open       our own breaker refused                        no       no                neither
url                the URL cannot be asked for                    no       no                neither
other              anything else, such as a request body of ours  no       no                neither
=================  =============================================  =======  ================  =======

"Surely unhandled" is what lets a request that is not idempotent be sent again: no byte of it was written, or the
server itself said that it refused the work. The verdict is the breaker's: "success" means that the server is well,
whatever it made of this request, and "neither" that this end does not tell.

A cancel by the caller is no error, has no cause, and is "neither".
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

from penstock.errors import (
    CircuitOpenError,
    ConnectError,
    ConnectTimeout,
    ContentTypeError,
    DecodeError,
    InBandError,
    InvalidURL,
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadTimeout,
    ReplayGap,
    RetriesExhausted,
    StatusError,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteTimeout,
)

Verdict = Literal["success", "failure", "neither"]

Cause = Literal[
    "dns",
    "refused",
    "unreachable",
    "tls",
    "connect_timeout",
    "timeout",
    "lost",
    "request_timeout",
    "too_early",
    "throttled",
    "unavailable",
    "server_error",
    "unsupported",
    "status",
    "content_type",
    "truncated",
    "stalled",
    "in_band",
    "in_band_server",
    "in_band_throttled",
    "protocol",
    "decode",
    "limit",
    "replay_gap",
    "circuit_open",
    "url",
    "other",
]


class Rule(NamedTuple):
    """What a cause means, where nobody says otherwise.

    Attributes:
        retried: Whether the same request could fare better another time.
        unhandled: Whether the server surely did none of the work: nothing was sent, or it said so itself.
        verdict: What it says about the server's health.
    """

    retried: bool
    unhandled: bool
    verdict: Verdict


RULES: dict[Cause, Rule] = {
    "dns": Rule(True, True, "failure"),
    "refused": Rule(True, True, "failure"),
    "unreachable": Rule(True, True, "failure"),
    "tls": Rule(False, True, "failure"),
    "connect_timeout": Rule(True, True, "failure"),
    "timeout": Rule(True, False, "failure"),
    "lost": Rule(True, False, "failure"),
    "request_timeout": Rule(True, True, "neither"),
    "too_early": Rule(True, True, "neither"),
    "throttled": Rule(True, True, "neither"),
    "unavailable": Rule(True, True, "failure"),
    "server_error": Rule(True, False, "failure"),
    "unsupported": Rule(False, False, "failure"),
    "status": Rule(False, False, "success"),
    "content_type": Rule(False, False, "neither"),
    "truncated": Rule(True, False, "failure"),
    "stalled": Rule(True, False, "failure"),
    "in_band": Rule(False, False, "success"),
    "in_band_server": Rule(False, False, "failure"),
    "in_band_throttled": Rule(False, False, "neither"),
    "protocol": Rule(False, False, "failure"),
    "decode": Rule(False, False, "success"),
    "limit": Rule(False, False, "success"),
    "replay_gap": Rule(False, False, "success"),
    "circuit_open": Rule(False, False, "neither"),
    "url": Rule(False, False, "neither"),
    "other": Rule(False, False, "neither"),
}

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})

_BY_REASON: dict[str, Cause] = {
    "dns": "dns",
    "refused": "refused",
    "reset": "refused",
    "tls": "tls",
    "timeout": "connect_timeout",
}
_BY_STATUS: dict[int, Cause] = {
    408: "request_timeout",
    425: "too_early",
    429: "throttled",
    501: "unsupported",
    503: "unavailable",
    505: "unsupported",
}
_BY_KIND: tuple[tuple[type[PenstockError], Cause], ...] = (  # a subclass stands before what it is a kind of
    (ReadTimeout, "timeout"),
    (WriteTimeout, "timeout"),
    (TransportError, "lost"),
    (ContentTypeError, "content_type"),
    (StreamTruncated, "truncated"),
    (StreamStalled, "stalled"),
    (ProtocolError, "protocol"),
    (DecodeError, "decode"),
    (LimitExceeded, "limit"),
    (ReplayGap, "replay_gap"),
    (CircuitOpenError, "circuit_open"),
    (InvalidURL, "url"),
)


def cause(error: PenstockError) -> Cause:
    """What happened, by name; of retries that were exhausted, what happened last."""
    match error:
        case RetriesExhausted():
            return cause(error.last)
        case ConnectTimeout():
            return "connect_timeout"
        case ConnectError():
            return _BY_REASON.get(error.reason, "unreachable")
        case StatusError():
            return _BY_STATUS.get(error.status, "server_error" if error.status >= 500 else "status")
        case InBandError():
            # Who raised it may know what it says of the server; an error of the caller's own making does not tell.
            if error.throttled:
                return "in_band_throttled"
            return "in_band_server" if error.server_class else "in_band"
    return next((name for kind, name in _BY_KIND if isinstance(error, kind)), "other")


def retryable(error: PenstockError) -> bool:
    """Whether the same request could fare better another time."""
    return RULES[cause(error)].retried


def not_handled(error: PenstockError) -> bool:
    """Whether the server surely did none of the work: nothing was sent, or it said so itself.

    Of exhausted retries that is not sure even if the last attempt was refused: an earlier one may have been worked on.
    """
    return not isinstance(error, RetriesExhausted) and RULES[cause(error)].unhandled


def verdict(error: PenstockError | None) -> Verdict:
    """What an attempt's end says about the server's health; None is a proper end."""
    return "success" if error is None else RULES[cause(error)].verdict


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
