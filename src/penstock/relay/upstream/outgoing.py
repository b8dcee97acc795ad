"""What is asked of the upstream, and what its failures mean to the reader."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from starlette.types import Scope

from penstock.client.body import Stream
from penstock.client.client import AsyncClient
from penstock.client.response import Response
from penstock.errors import (
    CircuitOpenError,
    ConnectError,
    ConnectTimeout,
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadTimeout,
    StatusError,
    WriteTimeout,
)
from penstock.relay.upstream.headers import Raw
from penstock.resilience.classify import RULES, cause, retry_after

LONGEST = 60.0
"""Seconds that an upstream may have a reader wait."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to the upstream, fields and all.

    Attributes:
        method: As the reader's, or the route's.
        url: Where to connect to.
        target: The request target, byte for byte.
        headers: All of them, framing included.
        has_body: Whether a body goes with it.
        root: The path at which the reader finds what the upstream has at its own.
    """

    method: str
    url: str
    target: bytes
    headers: Raw
    has_body: bool
    root: str = ""

    async def open(self, client: AsyncClient, body: AsyncIterator[bytes]) -> Response:
        """Send it, once; the body is pulled as the upstream takes it.

        Raises:
            ProtocolError: The answer has a status or a field that no server could pass on.
            PenstockError: There was no answer.
        """
        response = await client.relay(
            self.method,
            self.url,
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers),
            body=Stream(body) if self.has_body else None,
            target=self.target,
        )
        trouble = _not_http(response)
        if trouble is not None:
            await response.aclose()
            raise ProtocolError(f"{response.url}: {trouble}", url=response.url)
        return response


def _not_http(response: Response) -> str | None:
    """What is wrong with a head that the parser let through and that a server would choke on."""
    if not 200 <= response.status <= 599:
        return f"{response.status} is no final status"
    for name, value in response.headers.raw:
        if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
            return f"the field {name.decode('latin-1')} has a control character"
    return None


def target_of(scope: Scope, upstream: str) -> bytes:
    """The upstream's target for a reader's: the upstream's own path before it, nothing else changed or normalised."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root = scope.get("root_path", "").encode()
    if root and raw.startswith(root):
        raw = raw[len(root) :]
    target = urlsplit(upstream).path.rstrip("/").encode() + raw.partition(b"?")[0]
    query: bytes = scope.get("query_string", b"")
    return (target or b"/") + (b"?" + query if query else b"")


def answer_to(error: PenstockError) -> tuple[int, str, str]:
    """The status, a reason for the reader, and the type that Proxy-Status gives it.

    The reason names no address: where the upstream lives is not the reader's business.

    Source:
        RFC 9209 §2.3
    """
    match error:
        case LimitExceeded(limit="max_body_bytes"):
            return 413, str(error), "http_request_error"
        case CircuitOpenError():
            return 503, "the upstream is failing and is given time to recover", "destination_unavailable"
        case ConnectTimeout():
            return 504, "the upstream could not be reached in time", "connection_timeout"
        case ReadTimeout() | WriteTimeout():
            return 504, "the upstream did not answer in time", "http_response_timeout"
        case ConnectError(reason="refused"):
            return 502, "the upstream refuses connections; is it running?", "connection_refused"
        case ConnectError(reason="dns"):
            return 502, "the upstream's host name is not known", "dns_error"
        case ConnectError(reason="tls"):
            return 502, "no TLS connection to the upstream", "tls_protocol_error"
        case ConnectError():
            return 502, "no connection to the upstream", "destination_ip_unroutable"
        case ProtocolError():
            return 502, "what the upstream answered is not proper HTTP", "http_protocol_error"
        case _:
            return 502, "the upstream closed the connection before it answered", "connection_terminated"


def worth_another_try(error: PenstockError) -> float | None:
    """Seconds after which the same request may fare better; None where another time would change nothing."""
    if isinstance(error, CircuitOpenError):
        return error.retry_after
    if not RULES[cause(error)].retried:
        return None
    asked = retry_after(error.retry_after, time.time()) if isinstance(error, StatusError) else None
    return min(asked or 0.0, LONGEST)
