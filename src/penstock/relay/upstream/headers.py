"""Which header fields go on, in either direction.

Fields are raw pairs, names in lower case, as ASGI has them. What belongs to one connection stays on it; framing is
always our own: the length is passed on as a number, never as a field copied along with another framing.

Source:
    RFC 9110 §7.6 (forwarding), RFC 9112 §6.3 (what a message with two framings is: an attack)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, urlsplit

from penstock.wire import headers as fields

Raw = list[tuple[bytes, bytes]]

_BODILESS = (204, 304)
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})
_OURS = frozenset(
    {b"host", b"content-length", b"expect", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
)


class Refused(Exception):
    """A request that must not be passed on; the status and the reason are for the reader."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def body_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The request body's length: 0 without a body, None when it is chunked.

    Raises:
        Refused: 400 for lengths that differ, a length beside a transfer coding, or a length that is no number: two
            servers could disagree on where such a request ends (request smuggling).
    """
    lengths = {value.strip() for name, value in headers if name == b"content-length"}
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if len(lengths) > 1:
        raise Refused(400, "the request has several Content-Lengths")
    if lengths and chunked:
        raise Refused(400, "the request has both a Content-Length and a Transfer-Encoding")
    if chunked:
        return None
    length = lengths.pop() if lengths else b"0"
    if not length.isdigit():
        raise Refused(400, "the request's Content-Length is not a number")
    return int(length)


def to_upstream(
    headers: Raw,
    *,
    host: str,
    length: int | None,
    peer: str | None,
    scheme: str,
    via: str,
    more: Raw,
    trusted: bool = False,
) -> Raw:
    """The fields of a gateway's request to its upstream.

    Args:
        headers: The reader's.
        host: The upstream's host and port.
        length: The body's, as `body_length` has it.
        peer: The reader's address.
        scheme: How the reader came, "http" or "https".
        via: Our name in Via.
        more: Fields to set, in the place of the reader's own of the same name.
        trusted: Whether the peer is a proxy whose word on X-Forwarded-* counts: ours is added to it.
    Raises:
        Refused: 508 when the request has been here before.
    """
    came_by = b", ".join(value for name, value in headers if name == b"via")
    if via.encode() in came_by:
        raise Refused(508, "the request came back to the relay that had sent it on: the upstream points here")
    asked_host = next((value for name, value in headers if name == b"host"), b"")
    told = {name: value for name, value in headers if name in _FORWARDED} if trusted else {}
    before = told.get(b"x-forwarded-for")
    came_from = [each for each in (before, peer.encode() if peer else b"") if each]
    ours = [
        (b"host", host.encode()),
        *([(b"x-forwarded-for", b", ".join(came_from))] if came_from else []),
        (b"x-forwarded-proto", told.get(b"x-forwarded-proto", scheme.encode())),
        *([(b"x-forwarded-host", told.get(b"x-forwarded-host", asked_host))] if asked_host or told else []),
    ]
    onward = [pair for pair in fields.end_to_end(headers) if pair[0] not in _OURS]
    return [
        *with_set(ours, more),
        *without(onward, more),
        (b"via", (came_by + b", " if came_by else b"") + b"1.1 " + via.encode()),
        *framing(length, always=any(name == b"content-length" for name, _ in headers)),
    ]


def settable(headers: Mapping[str, str]) -> Raw:
    """The fields that the operator or a route sets on a request to the upstream.

    Raises:
        ValueError: A field that no request can carry, or one of those that frame it, which are always our own.
    """
    for name, value in headers.items():
        fields.check_header(name, value)
        if name.lower() in ("connection", "content-length", "transfer-encoding", "via"):
            raise ValueError(f"{name} cannot be set: the relay frames its requests itself")
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def without(headers: Raw, replaced: Raw) -> Raw:
    """The fields less those that `replaced` has by name."""
    names = {name for name, _ in replaced}
    return [pair for pair in headers if pair[0] not in names]


def with_set(headers: Raw, more: Raw) -> Raw:
    """The fields with `more` set, each in the place of those of the same name."""
    return [*without(headers, more), *more]


def framing(length: int | None, *, always: bool = False) -> Raw:
    """The fields that frame a request body of that length; 0 needs none, unless `always`."""
    if length is None:
        return [(b"transfer-encoding", b"chunked")]
    return [(b"content-length", b"%d" % length)] if length or always else []


def to_reader(headers: Raw, *, status: int, upstream: str, root: str = "") -> Raw:
    """The fields of the answer to the reader.

    An upstream's ``Penstock-*`` fields are dropped, for they would speak in our name, and so are its Date, for a server
    writes its own and two are none, and the Location of another relay's stream, which is not to be had here. Any other
    Location on the upstream's own origin is made a path on ours. A body that comes as a stream says so to the proxies
    on its way.

    Args:
        headers: The upstream's.
        status: The answer's.
        upstream: The upstream's URL, with the path that goes before every request's own.
        root: The path at which the reader finds what the upstream has at its own.
    """
    onward = [
        pair for pair in fields.end_to_end(headers) if pair[0] != b"date" and not pair[0].startswith(b"penstock-")
    ]
    if any(name == b"penstock-stream" for name, _ in headers):
        onward = [pair for pair in onward if pair[0] != b"location" or b"/_penstock/streams/" not in pair[1]]
    onward = [(name, _here(value, upstream, root) if name == b"location" else value) for name, value in onward]
    if status in _BODILESS:  # a length there is that of another answer, and servers would wait for so many bytes
        return [pair for pair in onward if pair[0] != b"content-length"]
    if any(name == b"transfer-encoding" for name, _ in headers):  # beside which a length means nothing
        onward = [pair for pair in onward if pair[0] != b"content-length"]
    if _is_stream(onward):
        onward = [pair for pair in onward if pair[0] != b"x-accel-buffering"]
        onward.append((b"x-accel-buffering", b"no"))
    return onward


def _here(location: bytes, upstream: str, root: str) -> bytes:
    base = urlsplit(upstream)
    try:
        target = urlsplit(location.decode("latin-1"))
        same = (target.scheme, target.netloc) == ("", "") or _origin(target) == _origin(base)
    except ValueError:
        return location
    if not same or not (target.netloc or target.path.startswith("/")):
        return location
    path = target.path or "/"
    prefix = base.path.rstrip("/")
    if prefix and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :] or "/"
    path = root + path
    if path.startswith("//"):
        path = "/." + path  # or its first segment would be read as a host
    return target._replace(scheme="", netloc="", path=path).geturl().encode("latin-1")


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _is_stream(headers: Raw) -> bool:
    names = {name for name, _ in headers}
    content_type = next((value.decode("latin-1") for name, value in headers if name == b"content-type"), "")
    return b"content-length" not in names or fields.is_event_stream(content_type) or fields.is_ndjson(content_type)
