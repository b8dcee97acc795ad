"""Content codings undone: gzip and deflate, as servers send them even to those who asked for identity.

A coded body has an end of its own, and one that stops short of it is truncated, whatever its length says. Output comes
in pieces of a bounded size, so that a few bytes that stand for gigabytes (a decompression bomb) cost no more memory
than any other body. They cost time all the same, and disk where they are kept, so that there is a bound to the whole as
well: what has grown beyond MAX_FREE_BYTES may not be more than MAX_RATIO times as large as it was. Text and JSON are
coded to a twentieth, logs to a hundredth; only what was made to be a bomb, or says nothing at all, to a thousandth.

Source:
    RFC 9110 §8.4; RFC 1952 (a gzip body may have several members), RFC 1950 and 1951 (both are sent as "deflate");
    CVE-2025-69223, for the bound
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from penstock.errors import DecodeError, LimitExceeded, StreamTruncated

MAX_PIECE_BYTES = 256 * 1024
MAX_FREE_BYTES = 64 * 1024 * 1024
MAX_RATIO = 200
SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


def is_identity(coding: str) -> bool:
    """Whether a Content-Encoding means that nothing was done to the body."""
    return coding.strip().lower() in ("", "identity")


class Decoder:
    """Undoes one content coding.

    Args:
        coding: The Content-Encoding field.
        max_ratio: How many times as large as it came a body of more than MAX_FREE_BYTES may be; a security limit.
    Raises:
        DecodeError: A coding that is not supported, or several.
    """

    def __init__(self, coding: str, *, max_ratio: int = MAX_RATIO) -> None:
        self._coding = coding.strip().lower()
        if self._coding not in SUPPORTED:
            raise DecodeError(
                f"the body is coded as {coding.strip()[:40]!r}, which was not asked for and cannot be undone here; "
                "ask the server for identity or gzip"
            )
        self._max_ratio = max_ratio
        self._member: zlib._Decompress | None = None
        self._came = 0
        self._given = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Absorb bytes; yield what they stand for, in pieces of at most MAX_PIECE_BYTES.

        Raises:
            DecodeError: They are not of this coding.
            LimitExceeded: They stand for too much. What came before it was given out.
        """
        self._came += len(data)
        while data:
            if self._member is None:
                self._member = zlib.decompressobj(self._window(data))
            before = self._member.copy()
            try:
                piece = self._member.decompress(data, MAX_PIECE_BYTES)
            except zlib.error as error:
                yield from _until_it_fails(before, data)
                raise DecodeError(f"the body is not {self._coding}, as its Content-Encoding says: {error}") from None
            data = self._member.unconsumed_tail
            if self._member.eof:
                data, self._member = self._member.unused_data, None
            if piece:
                self._given += len(piece)
                if self._given > MAX_FREE_BYTES and self._given > self._max_ratio * self._came:
                    raise LimitExceeded(
                        f"the body's {self._came:,} bytes stand for more than max_ratio={self._max_ratio} times as "
                        "many, as a decompression bomb does; ask the server for identity",
                        limit="max_ratio",
                    )
                yield piece

    def close(self) -> None:
        """End the body.

        Raises:
            StreamTruncated: It ended before the coding's own end.
        """
        if self._member is not None:
            raise StreamTruncated(f"the body ended before the end of its {self._coding} coding")

    def _window(self, data: bytes) -> int:
        if self._coding != "deflate":
            return _GZIP
        # "deflate" means the zlib format, but some servers send what is inside it: a zlib header tells them apart.
        return _ZLIB if data[0] & 0x0F == 8 and data[0] >> 4 <= 7 else _RAW


def _until_it_fails(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What stands before the byte that is wrong: zlib throws it away when it comes to that."""
    for start in range(len(data)):
        try:
            piece = member.decompress(data[start : start + 1])
        except zlib.error:
            return
        if piece:
            yield piece
