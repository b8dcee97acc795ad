"""Every error Penstock raises, in one tree.

::

    PenstockError                    .category  .url
    ├── InvalidURL                   application   (also a ValueError)
    ├── ProtocolError                server        the peer broke HTTP's framing
    ├── TransportError               network
    │   ├── ConnectError             network       .reason: refused, dns, unreachable, tls …
    │   │   └── ConnectTimeout       network       (also a TimeoutError)
    │   ├── ReadError                network       lost before the response headers
    │   │   └── ReadTimeout          network       (also a TimeoutError)
    │   └── WriteError               network
    │       └── WriteTimeout         network       (also a TimeoutError)
    ├── StatusError                  server        .status  .retry_after  .body
    ├── ContentTypeError             server        .content_type
    ├── StreamError                  stream        .collected
    │   ├── StreamTruncated          stream        the body ended before its end
    │   ├── StreamStalled            stream        (also a TimeoutError)
    │   └── InBandError              stream        the stream itself said that it failed: .kind  .code  .status
    ├── DecodeError                  application   a payload that is not what it should be
    ├── CircuitOpenError             network       .retry_after
    ├── RetriesExhausted             the last one's  .attempts  .last  .collected
    ├── ReplayGap                    stream        .requested  .earliest
    ├── StreamGone                   stream        the log keeps nothing of it any more
    ├── ProducerLost                 stream        the log takes nothing more of it from this producer
    ├── StoreError                   application   .reason: full, locked, read-only, unavailable …
    └── LimitExceeded                application   .limit

A category is one of four, and the same four that a person would sort by: ``network`` (DNS, connect, unreachable,
TLS), ``server`` (status, content type, malformed), ``stream`` (in-band error, stall, truncation, closed) and
``application`` (JSON, cancelled, interrupted, limits of our own).

A message says what happened, to which URL, and what to do. The text alone is meant to be enough: the command line
prints ``str(error)`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Category = Literal["network", "server", "stream", "application"]
Trouble = Literal["full", "locked", "read-only", "corrupt", "not-a-log", "newer", "unavailable"]


class PenstockError(Exception):
    """The root: ``except penstock.PenstockError`` catches all that Penstock raises.

    Attributes:
        category: Where the fault lies: "network", "server", "stream" or "application".
        url: The URL it happened to, without credentials; None where there is none.
        collected: What had arrived, where the caller had asked for it to be collected; else empty.
    """

    category: Category = "application"
    collected: Sequence[Any] = ()

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class InvalidURL(PenstockError, ValueError):
    """The URL cannot be used: no host, no scheme we speak, not a URL."""


class ProtocolError(PenstockError):
    """The peer broke HTTP itself: bad status line, header or chunk framing."""

    category: Category = "server"


class TransportError(PenstockError):
    """The connection could not be made, or was lost before the response headers came."""

    category: Category = "network"


class ConnectError(TransportError):
    """No connection: nothing was sent.

    Attributes:
        reason: "refused", "dns", "unreachable", "tls", "timeout", "reset" or "other".
    """

    def __init__(self, message: str, *, url: str | None = None, reason: str = "other") -> None:
        super().__init__(message, url=url)
        self.reason = reason


class ConnectTimeout(ConnectError, TimeoutError):
    """No connection within the connect timeout. Nothing was sent."""


class ReadError(TransportError):
    """The connection was lost after the request went out and before the response headers came."""


class ReadTimeout(ReadError, TimeoutError):
    """No response headers within the timeout."""


class WriteError(TransportError):
    """The connection was lost while the request was being sent."""


class WriteTimeout(WriteError, TimeoutError):
    """The peer stopped reading the request."""


class StatusError(PenstockError):
    """The response's status says failure (400 and above).

    Attributes:
        status: The status code.
        retry_after: The raw Retry-After field, if one came.
        body: The beginning of the response's body, for the message [bytes].
    """

    category: Category = "server"

    def __init__(
        self, message: str, *, status: int, url: str | None = None, retry_after: str | None = None, body: bytes = b""
    ) -> None:
        super().__init__(message, url=url)
        self.status = status
        self.retry_after = retry_after
        self.body = body


class ContentTypeError(PenstockError):
    """The response is not a stream of the asked-for kind."""

    category: Category = "server"

    def __init__(self, message: str, *, content_type: str, url: str | None = None) -> None:
        super().__init__(message, url=url)
        self.content_type = content_type


class StreamError(PenstockError):
    """A body that had begun did not come to its proper end.

    Attributes:
        collected: What had arrived, where the caller had asked for it to be collected; else empty.
    """

    category: Category = "stream"

    def __init__(self, message: str, *, url: str | None = None, collected: Sequence[Any] = ()) -> None:
        super().__init__(message, url=url)
        self.collected = collected


class StreamTruncated(StreamError):
    """The body ended before its end: reset, closed early, short of its length, or without its terminator."""


class StreamStalled(StreamError, TimeoutError):
    """The stream went silent for longer than the timeout between events, or outran its total."""


class InBandError(StreamError):
    """The stream itself said that it failed.

    Attributes:
        kind: The error's own type, e.g. "overloaded_error"; "" where it gave none.
        code: Its code, as text; None where it gave none.
        status: The HTTP status that it names; None where it names none.
        server_class: Whether the server is ill, which counts against it; else the request was bad.
        throttled: Whether the server is well and asks for fewer requests.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str | None = None,
        collected: Sequence[Any] = (),
        kind: str = "",
        code: str | None = None,
        status: int | None = None,
        server_class: bool = False,
        throttled: bool = False,
    ) -> None:
        super().__init__(message, url=url, collected=collected)
        self.kind = kind
        self.code = code
        self.status = status
        self.server_class = server_class
        self.throttled = throttled


class DecodeError(PenstockError):
    """A payload that is not what it should be: malformed JSON, a value that the model refuses."""


class CircuitOpenError(PenstockError):
    """The circuit breaker is open: nothing was sent.

    Attributes:
        retry_after: Seconds until the breaker lets a probe through.
    """

    category: Category = "network"

    def __init__(self, message: str, *, retry_after: float, url: str | None = None) -> None:
        super().__init__(message, url=url)
        self.retry_after = retry_after


class RetriesExhausted(PenstockError):
    """Every attempt failed; the category is the last failure's.

    Attributes:
        attempts: How many times the request was tried, the first included.
        last: The error of the last attempt.
        collected: What had arrived, where the caller had asked for it to be collected; else empty.
    """

    def __init__(
        self,
        message: str,
        *,
        attempts: int,
        last: PenstockError,
        url: str | None = None,
        collected: Sequence[Any] = (),
    ) -> None:
        super().__init__(message, url=url)
        self.collected = collected
        self.attempts = attempts
        self.last = last
        self.category = last.category


class ReplayGap(PenstockError):
    """What was asked for has been evicted: the replay would begin later than the cursor.

    Attributes:
        requested: The cursor that was asked for.
        earliest: The earliest one that can still be given.
    """

    category: Category = "stream"

    def __init__(self, message: str, *, requested: int, earliest: int, url: str | None = None) -> None:
        super().__init__(message, url=url)
        self.requested = requested
        self.earliest = earliest


class LimitExceeded(PenstockError):
    """A limit of ours was outgrown.

    Attributes:
        limit: The limit's name, as the caller can set it, e.g. "max_event_bytes".
        collected: What had arrived, where the caller had asked for it to be collected; else empty.
    """

    def __init__(self, message: str, *, limit: str, url: str | None = None, collected: Sequence[Any] = ()) -> None:
        super().__init__(message, url=url)
        self.limit = limit
        self.collected = collected


class StoreError(PenstockError):
    """The store behind the log does not do its work: what was asked for is not stored.

    Attributes:
        reason: "full", "locked", "read-only", "corrupt", "not-a-log" (a file of something else), "newer" (written by
            a later version) or "unavailable".
    """

    def __init__(self, message: str, *, reason: Trouble) -> None:
        super().__init__(message)
        self.reason = reason


class ProducerLost(PenstockError):
    """The lease ran out: the stream is no longer this producer's, and nothing more is stored of it."""

    category: Category = "stream"


class StreamGone(PenstockError):
    """Retention has taken the whole stream, its end too."""

    category: Category = "stream"
