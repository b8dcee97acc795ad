"""The head of a response read, and where its body ends.

llhttp parses the head and a chunked body. Where a body ends is decided here and not by llhttp, which would wait for the
body of an answer to HEAD, take a 1xx for a whole message, and has no way to be told of the end of a connection:

===========================================  ==========================================================
an answer                                    its body
===========================================  ==========================================================
1xx (but 101)                                none; another head follows
to HEAD; 204, 304                            none, whatever its fields say
101; 2xx to CONNECT                          the connection itself
with Transfer-Encoding: chunked              chunks, to the last one and its trailers
with Transfer-Encoding otherwise             refused: no other coding was asked for, and the caller would take
                                             coded bytes for the content
with Content-Length                          that many bytes
otherwise                                    to the end of the connection
===========================================  ==========================================================

Every limit counts raw bytes, before anything is parsed.

Source:
    RFC 9112 §6.3
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import httptools

from penstock.errors import LimitExceeded, ProtocolError

MAX_HEAD_BYTES = 128 * 1024
MAX_OVERHEAD_BYTES = 16 * 1024
CHUNK_OVERHEAD_BYTES = 64
MAX_INFORMATIONAL = 32

RawHeaders = list[tuple[bytes, bytes]]


class Framing(Enum):
    """How a body's end is known."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    TUNNEL = "tunnel"


class Head:
    """A response's status line and fields.

    Attributes:
        status: The status code.
        reason: The reason phrase.
        version: "1.1" or "1.0".
        headers: Raw pairs, in order, names as they came.
        framing: How the body's end is known.
        length: The body's length, where `framing` is LENGTH.
        keep_alive: Whether the server keeps the connection open after the body.
    """

    __slots__ = ("framing", "headers", "keep_alive", "length", "reason", "status", "version")

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.version = "1.1"
        self.headers: RawHeaders = []
        self.framing = Framing.NONE
        self.length = 0
        self.keep_alive = True


class ResponseParser:
    """Reads one response: its head here, its body, when that is chunked, through `feed_chunked`.

    A new one, and a new llhttp parser, per response. llhttp sees the bytes of the head and no more, so that what it
    believes of the body does not matter, unless the body is chunked: then the same parser goes on.

    Args:
        method: The request's, in capitals.
        on_body: Called by llhttp with each piece of a chunked body, without a detour.

    Attributes:
        between: Whether a chunk begins with the next byte of the body.
    """

    __slots__ = (
        "_feed",
        "_held",
        "_in_body",
        "_method",
        "_parser",
        "_searched",
        "_surplus",
        "between",
        "complete",
        "head",
        "on_body",
        "overhead",
        "trailers",
    )

    def __init__(self, method: bytes, on_body: Callable[[bytes], None]) -> None:
        self.on_body = on_body  # looked up by llhttp's binding once, below
        self.head = Head()
        self.complete = False
        self.trailers: RawHeaders = []
        self._method = method
        self._held = bytearray()
        self._searched = 0
        self._in_body = False
        self._surplus = False
        self.overhead = 0
        self.between = True
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def feed_head(self, data: bytes) -> bytes | None:
        """Absorb bytes of the head; once it is whole, what follows it. The head is then in `head`.

        Raises:
            ProtocolError: It is not HTTP/1, or frames its body in two ways.
            LimitExceeded: It is longer than MAX_HEAD_BYTES.
        """
        held = self._held
        held += data
        before, self._searched = self._searched, len(held)
        end = held.find(b"\r\n\r\n", max(0, before - 3))
        if (self._searched - 3 if end < 0 else end) > MAX_HEAD_BYTES:
            raise LimitExceeded(f"the response's head is longer than {MAX_HEAD_BYTES:,} bytes", limit="max_head_bytes")
        if not b"HTTP/1.".startswith(held[:7]):
            raise ProtocolError(f"what came begins with {bytes(held[:24])!r} and is not HTTP/1")
        if end < 0:
            if held.count(b"\n", before) != held.count(b"\r\n", max(0, before - 1)):
                raise ProtocolError("the response's head is malformed: a line ends without a CR")  # and would for ever
            return None
        try:
            self._parser.feed_data(bytes(held[: end + 4]))
        except httptools.HttpParserUpgrade:
            pass  # what follows is the connection's own, and `frame` says so
        except httptools.HttpParserError as error:
            raise ProtocolError(f"the response's head is malformed: {error}") from None
        self._in_body = True
        self.head.status = self._parser.get_status_code()
        if self.head.status < 100:
            raise ProtocolError(f"the response's status is {self.head.status:03}")
        self.head.version = self._parser.get_http_version()
        frame(self.head, self._method)
        self.head.headers = [(name, value.rstrip(b" \t")) for name, value in self.head.headers]
        self.complete = False
        rest = bytes(held[end + 4 :])
        held.clear()
        return rest

    def feed_chunked(self, data: bytes) -> bool:
        """Absorb bytes of a chunked body; whether it is whole. Its pieces have gone to on_body by then.

        Raises:
            ProtocolError: The framing is broken.
        """
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if not self.complete:
                raise ProtocolError(f"the response's chunks are malformed: {error}") from None
            self._surplus = True
        # Behind a chunk that is complete, a header that has begun does not end in LF, and a whole one has been told.
        self.between = self.between and data.endswith(b"\n")
        return self.complete

    def count_overhead(self, overhead: int, body: int) -> None:
        """Hold what `feed_chunked` was given last against the limit.

        Args:
            overhead: Its bytes that were none of the body's.
            body: Those that were; the least of them excuses the overhead of a chunk of its own.
        Raises:
            LimitExceeded: A chunk's header, or the trailers, are longer than MAX_OVERHEAD_BYTES.
        """
        self.overhead += overhead
        if self.overhead > MAX_OVERHEAD_BYTES + body * CHUNK_OVERHEAD_BYTES:
            raise LimitExceeded(
                f"a chunk's header or the trailers are longer than {MAX_OVERHEAD_BYTES:,} bytes",
                limit="max_overhead_bytes",
            )
        if body:
            self.overhead = 0

    @property
    def surplus(self) -> bool:
        """Whether more came than the response: the connection cannot be trusted with another."""
        return self._surplus

    # -- llhttp's callbacks --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._in_body:
            raise _SecondMessageError  # stops llhttp, which would pass its body on as more of ours

    def on_status(self, status: bytes) -> None:
        if not self._in_body:
            self.head.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            self.trailers.append((name, value.rstrip(b" \t")))
        else:
            self.head.headers.append((name, value))

    def on_chunk_header(self) -> None:
        self.between = False

    def on_chunk_complete(self) -> None:
        self.between = True

    def on_message_complete(self) -> None:
        self.complete = True


def _whole_chunks() -> tuple[bytes | None, ...]:
    heads: list[bytes | None] = [None] * (MAX_WHOLE_BYTES + 1)
    for size in range(1, MAX_WHOLE_BYTES):
        head = b"%x\r\n" % size
        if len(head) + size + 2 <= MAX_WHOLE_BYTES:
            heads[len(head) + size + 2] = head
    return tuple(heads)


MAX_WHOLE_BYTES = 2048
WHOLE_CHUNKS = _whole_chunks()
"""By the size of the bytes: how they begin, if they are one chunk, whole and written as anybody would write it.

A live stream comes one chunk at a time. To know such a chunk, no parser is needed, between two chunks.
"""


class _SecondMessageError(Exception):
    """Another response begins behind the one that was asked for."""


def frame(head: Head, method: bytes) -> None:
    """Decide where the body ends, and whether the connection lives on.

    Raises:
        ProtocolError: The fields contradict each other: whoever believes the other one would read another response.
    """
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    options: set[bytes] = set()
    for name, value in head.headers:
        lowered = name.lower()
        if lowered == b"content-length":
            lengths.update(part.strip() for part in value.split(b","))
        elif lowered == b"transfer-encoding":
            codings += [part.strip(b" ").lower() for part in value.split(b",")]  # llhttp takes no tab for a blank
        elif lowered == b"connection":
            options.update(part.strip().lower() for part in value.split(b","))
    head.keep_alive = b"close" not in options and (head.version == "1.1" or b"keep-alive" in options)
    status = head.status
    if status == 101 or (method == b"CONNECT" and 200 <= status < 300):
        head.framing, head.keep_alive = Framing.TUNNEL, False
    elif method == b"HEAD" or status < 200 or status in (204, 304):
        head.framing = Framing.NONE
    elif codings:
        if lengths:
            raise ProtocolError("the response has both a Content-Length and a Transfer-Encoding")
        if codings != [b"chunked"]:
            raise ProtocolError(f"the response's Transfer-Encoding is {b', '.join(codings)[:80]!r}, not chunked alone")
        head.framing = Framing.CHUNKED
        head.keep_alive = head.keep_alive and head.version == "1.1"
    elif lengths:
        length = lengths.pop()
        if lengths or not (length.isdigit() and len(length) <= 19):
            raise ProtocolError("the response's Content-Length is not one number")
        head.framing, head.length = Framing.LENGTH, int(length)
    else:
        head.framing, head.keep_alive = Framing.CLOSE, False
