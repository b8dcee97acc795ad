"""What a page of another origin is told: whether it may ask, and whether it may read. Pure.

Where a route says nothing of CORS, what the upstream says of it goes through as it came. Where it does, the relay
answers preflights itself, and what the upstream says gives way.

Source:
    WHATWG Fetch, CORS protocol
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from penstock.relay.upstream.headers import Raw
from penstock.wire import headers as fields

CORS_HEADERS = ("accept", "cache-control", "content-type", "idempotency-key", "last-event-id")
"""What a page of an allowed origin may send: what an EventSource and a fetch that resumes do send."""

CORS_EXPOSED = ("location", "penstock-end", "penstock-offset", "penstock-stream", "retry-after")
"""What it may read: where the stream can be had again."""

_OURS = b"access-control-"


@dataclass(frozen=True, slots=True)
class Cors:
    """Which pages of other origins may read a route's answers. Without one, none may.

    Attributes:
        origins: As browsers write them, ``https://app.example``; or ``*`` alone for all, which credentials exclude.
        credentials: Whether their cookies count.
        headers: Fields that they may send, beside CORS_HEADERS.
        expose: Fields that they may read, beside CORS_EXPOSED.
        max_age: Seconds that a browser may remember the answer to its preflight.
    """

    origins: tuple[str, ...]
    credentials: bool = False
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age: float = 600.0

    def __post_init__(self) -> None:
        if not self.origins:
            raise ValueError("no origin is allowed: name those that are, or leave CORS out")
        for origin in self.origins:
            check_origin(origin)
        if "*" in self.origins:
            if len(self.origins) > 1:
                raise ValueError('"*" stands for all origins, so that no other need be named')
            if self.credentials:
                raise ValueError('credentials are not for every origin: name the origins in the place of "*"')
        for name in ("headers", "expose"):
            for value in getattr(self, name):
                fields.check_header(value, "")
        own = {"headers": CORS_HEADERS, "expose": CORS_EXPOSED}
        for name, always in own.items():
            more = (value.lower() for value in getattr(self, name))
            object.__setattr__(self, name, tuple(dict.fromkeys((*always, *more))))
        if not 0 <= self.max_age < math.inf:
            raise ValueError(f"max_age is 0 seconds or more, got {self.max_age}")

    def allows(self, origin: str) -> bool:
        """Whether a page of that origin may read the answer."""
        return origin in self.origins or self.origins == ("*",)


def check_origin(origin: str) -> None:
    """Refuse what no browser sends as Origin, so that it could never match.

    Raises:
        ValueError: The message says how it is written.
    """
    if origin == "*":
        return
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    as_sent = f"{parts.scheme}://{host}" + (f":{port}" if port is not None and port != usual else "")
    if not parts.scheme or not host or as_sent != origin:
        hint = f"; a browser sends {as_sent}" if parts.scheme and host else ""
        raise ValueError(
            f"{origin!r} is not an origin: write scheme and host in small letters, without a path and the usual port, "
            f"as https://app.example{hint}"
        )


def allowed(cors: Cors, origin: str) -> Raw:
    """The fields of an answer that a page of an allowed origin reads."""
    anyone = cors.origins == ("*",)
    fields: Raw = [(b"access-control-allow-origin", b"*" if anyone else origin.encode("latin-1"))]
    if not anyone:
        fields.append((b"vary", b"Origin"))
    if cors.credentials:
        fields.append((b"access-control-allow-credentials", b"true"))
    return fields


def exposed(cors: Cors) -> Raw:
    """What of an answer's fields such a page sees."""
    return [(b"access-control-expose-headers", ", ".join(cors.expose).encode())]


def preflight(cors: Cors, origin: str, methods: str) -> Raw:
    """The fields of the answer to a preflight.

    Args:
        cors: Allows the origin.
        origin: As the browser wrote it.
        methods: What may be asked.
    """
    return [
        *allowed(cors, origin),
        (b"access-control-allow-methods", methods.encode("latin-1")),
        (b"access-control-allow-headers", ", ".join(cors.headers).encode()),
        (b"access-control-max-age", b"%d" % cors.max_age),
    ]


def replaced(headers: Raw, ours: Raw) -> Raw:
    """An answer's fields with ours in the place of what the upstream says of CORS."""
    return [*(pair for pair in headers if not pair[0].startswith(_OURS)), *ours]
