"""The head of a request read, and where its body ends. What two servers could read differently is refused.

==================================================  ======
refused                                             status
==================================================  ======
no request, bare CR or LF, a folded field, no,       400
several or no proper Hosts, Content-Lengths that
differ or are no number, a length beside a coding
an Expect that is not 100-continue                   417
a target, or a head, that is too long                414, 431
CONNECT; a transfer coding other than chunked        501
a version other than HTTP/1.0 and HTTP/1.1           505
==================================================  ======

An Upgrade is ignored, as RFC 9110 allows, and its request keeps its body: llhttp, which would take what follows the
head for another protocol, is shown the head alone.

Source:
    RFC 9112 §2.2, §3.2, §5.2, §6; uvicorn merges trailers into the fields, lets 8 MB of fields in, and loses the body
    of a request that asks for an upgrade
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httptools

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 16 * 1024
MAX_FIELDS = 256
MAX_OVERHEAD_BYTES = 16 * 1024

RawHeaders = list[tuple[bytes, bytes]]


class Rejected(Exception):
    """A request that is answered with an error, and the connection closed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(slots=True)
class RequestHead:
    """A request line and its fields.

    Attributes:
        method: In capitals.
        path: The target's path, undone of its percent-encoding.
        raw_path: The target's path as it came, without the origin of an absolute one.
        query: What followed the question mark.
        version: "1.1" or "1.0".
        headers: Names in lower case.
        length: The body's length; None for a chunked one.
        keep_alive: Whether the connection lives on after the response.
        expects_continue: Whether the body waits for a 100.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: str
    headers: RawHeaders
    length: int | None
    keep_alive: bool
    expects_continue: bool


class _Collector:
    """What llhttp finds in a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: RawHeaders = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))  # llhttp strips the blanks before it only


def read_head(raw: bytes) -> RequestHead:
    """Read a head, its empty line included.

    Raises:
        Rejected: It is none, or one that is refused.
    """
    if raw.count(b"\r\n") != raw.count(b"\n") or raw.count(b"\r\n") != raw.count(b"\r"):
        raise Rejected(400, "a line of the request ends in a bare CR or LF")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise Rejected(400, "a header field is folded over several lines")
    found = _Collector()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise Rejected(400, f"the request is malformed: {error}") from None
    line = raw[: raw.index(b"\r\n")]
    if line.count(b" ") != 2 or not line.rpartition(b" ")[2].startswith(b"HTTP/"):  # llhttp takes RTSP and ICE as well
        raise Rejected(400, "the request line is no method, target and HTTP version with one space between")
    method = parser.get_method().decode("ascii")
    if method == "CONNECT":
        raise Rejected(501, "CONNECT is not served")
    if len(found.headers) > MAX_FIELDS:
        raise Rejected(431, f"the request has more than {MAX_FIELDS} header fields")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise Rejected(505, "only HTTP/1.0 and HTTP/1.1 are spoken")
    path, query = _split_target(method, found.url)
    fields = _Fields(found.headers, version)
    decoded = unquote_to_bytes(path).decode("utf-8", "replace")
    return RequestHead(
        method, decoded, path, query, version, found.headers, fields.length, fields.keep_alive, fields.expects_continue
    )


def _split_target(method: str, url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target; the origin of an absolute one is dropped."""
    if len(url) > MAX_TARGET_BYTES:
        raise Rejected(414, f"the request target is longer than {MAX_TARGET_BYTES:,} bytes")
    if not url.isascii():
        raise Rejected(400, "the request target holds characters that are not percent-encoded")
    if url.startswith(b"/"):
        path, _, query = url.partition(b"#")[0].partition(b"?")
        return path, query
    if url == b"*" and method == "OPTIONS":
        return b"*", b""
    scheme, separator, rest = url.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        authority = rest.partition(b"/")[0].partition(b"?")[0]
        path, _, query = rest[len(authority) :].partition(b"#")[0].partition(b"?")
        if authority:
            return path or b"/", query
    raise Rejected(400, "the request target is no path")


class _Fields:
    """The fields that decide on framing and on the connection."""

    def __init__(self, headers: RawHeaders, version: str) -> None:
        lengths: set[bytes] = set()
        codings: list[bytes] = []
        options: set[bytes] = set()
        hosts = 0
        self.expects_continue = False
        for name, value in headers:
            if name == b"content-length":
                lengths.add(value)
            elif name == b"transfer-encoding":
                codings += [part.strip(b" \t").lower() for part in value.split(b",")]
            elif name == b"connection":
                options.update(part.strip(b" \t").lower() for part in value.split(b","))
            elif name == b"host":
                hosts += 1
                if not _HOST.issuperset(value):
                    raise Rejected(400, "the request's Host is none")
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise Rejected(417, "the only Expect that is met is 100-continue")
                self.expects_continue = version == "1.1"
        if hosts > 1 or (not hosts and version == "1.1"):
            raise Rejected(400, "a request has one Host")
        self.keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        self.length = _body_length(lengths, codings, version)


def _body_length(lengths: set[bytes], codings: list[bytes], version: str) -> int | None:
    if codings:
        if lengths:
            raise Rejected(400, "the request has both a Content-Length and a Transfer-Encoding")
        if version == "1.0":
            raise Rejected(400, "HTTP/1.0 knows no Transfer-Encoding")
        if codings != [b"chunked"]:
            raise Rejected(501, "the only transfer coding that is undone is chunked")
        return None
    if len(lengths) > 1:
        raise Rejected(400, "the request has several Content-Lengths")
    length = lengths.pop() if lengths else b"0"
    if not length.isdigit() or len(length) > 18:
        raise Rejected(400, "the request's Content-Length is not a number")
    return int(length)


class ChunkedBody:
    """Reads a chunked request body, strictly; its trailers are checked, and go nowhere.

    Not llhttp's work, because llhttp does not tell where a message ends, and what follows it may be the next request.

    Args:
        on_body: Called with each piece.
    """

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self._on_body = on_body
        self._line = bytearray()  # a chunk's header, the CRLF behind its data, or a trailer, until it is whole
        self._left = 0  # bytes of the current chunk's data that have not come
        self._overhead = 0  # bytes of the chunks' extensions beyond those of their data
        self._behind_data = False
        self._in_trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes | None:
        """Absorb bytes; once the body is whole, what follows it.

        Raises:
            Rejected: The framing is broken, or a chunk's header or the trailers are too long.
        """
        at = 0
        size = len(data)
        while at < size:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                self._behind_data = not self._left
                self._on_body(piece)
                continue
            end = data.find(b"\n", at)
            self._line += data[at:] if end < 0 else data[at : end + 1]
            if len(self._line) > MAX_OVERHEAD_BYTES:
                raise Rejected(431, "a chunk's header, or a trailer, is too long")
            if end < 0:
                return None
            at = end + 1
            line = bytes(self._line)
            self._line.clear()
            if self._ended_by(line):
                return data[at:]
        return None

    def _ended_by(self, line: bytes) -> bool:
        """Take in a whole line; whether it was the last."""
        if not line.endswith(b"\r\n"):
            raise Rejected(400, "a line of the chunked body ends in a bare LF")
        line = line[:-2]
        if not _CONTROL.isdisjoint(line):
            raise Rejected(400, "a line of the chunked body holds a control character")
        if self._in_trailers:
            return self._trailer(line)
        if self._behind_data:
            if line:
                raise Rejected(400, "a chunk is longer than its header says")
            self._behind_data = False
            return False
        number, extended, _ = line.partition(b";")
        if extended:
            number = number.rstrip(b" \t")
        if not 0 < len(number) <= 15 or not _HEX.issuperset(number):
            raise Rejected(400, "a chunk's size is not a hexadecimal number")
        self._left = int(number, 16)
        self._in_trailers = not self._left
        self._overhead = max(0, self._overhead + len(line) - len(number) - self._left)
        if self._overhead > MAX_OVERHEAD_BYTES:
            raise Rejected(431, "the chunks' extensions are longer than what the chunks hold")
        return False

    def _trailer(self, line: bytes) -> bool:
        if not line:
            return True
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_OVERHEAD_BYTES:
            raise Rejected(431, "the trailers are too long")
        name, colon, _ = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name):
            raise Rejected(400, "a trailer is malformed")
        return False


_HEX = frozenset(b"0123456789abcdefABCDEF")
_ALPHANUMERIC = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~" + _ALPHANUMERIC)
_HOST = frozenset(b"-._~%!$&'()*+,;=:[]" + _ALPHANUMERIC)
_CONTROL = (frozenset(range(32)) - {9}) | {127}
