"""What a page of another origin is told: whether it may ask, and whether it may read. Pure.

Where a route says nothing of CORS, what the upstream says of it goes through as it came. Where it does, the relay
answers preflights itself, and what the upstream says gives way.

Source:
    WHATWG Fetch, CORS protocol
"""

from __future__ import annotations

from penstock.relay.headers import Raw
from penstock.relay.policy import Cors

_OURS = b"access-control-"


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
