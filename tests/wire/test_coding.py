from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest

from penstock.errors import DecodeError, StreamTruncated
from penstock.wire.coding import MAX_PIECE_BYTES, Decoder, is_identity

TEXT = b"".join(b"line %d\n" % number for number in range(5000))
BODIES = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),
    " GZip ": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
}


def decoded(coding: str, pieces: list[bytes]) -> bytes:
    decoder = Decoder(coding)
    body = b"".join(part for piece in pieces for part in decoder.feed(piece))
    decoder.close()
    return body


@pytest.mark.parametrize("coding", BODIES)
def test_whole_byte_by_byte_and_in_random_splits(coding: str) -> None:
    body = BODIES[coding]
    assert decoded(coding, [body]) == TEXT
    assert decoded(coding, [body[at : at + 1] for at in range(len(body))]) == TEXT
    cuts = sorted(random.Random(1).sample(range(len(body)), 20))
    assert decoded(coding, [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]) == TEXT


def test_deflate_without_its_wrapping() -> None:
    packer = zlib.compressobj(wbits=-15)
    assert decoded("deflate", [packer.compress(TEXT) + packer.flush()]) == TEXT


@pytest.mark.parametrize("missing", [1, 8, 10, 100])
def test_an_end_that_is_missing(missing: int) -> None:
    with pytest.raises(StreamTruncated, match="before the end of its gzip coding"):
        decoded("gzip", [BODIES["gzip"][:-missing]])


def test_an_empty_body_has_nothing_to_undo() -> None:
    assert decoded("gzip", []) == b""


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "nonsense"])
def test_a_coding_that_nobody_asked_for(coding: str) -> None:
    with pytest.raises(DecodeError, match="cannot be undone here"):
        Decoder(coding)


def test_what_is_not_coded_at_all() -> None:
    with pytest.raises(DecodeError, match="not gzip"):
        decoded("gzip", [TEXT])


def test_a_bomb_comes_in_pieces() -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    tracemalloc.start()
    try:
        sizes = [len(piece) for piece in Decoder("gzip").feed(bomb)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 200 * 1024 * 1024
    assert max(sizes) <= MAX_PIECE_BYTES
    assert peak < 4 * 1024 * 1024


@pytest.mark.parametrize(("coding", "plain"), [("", True), ("identity", True), (" Identity ", True), ("gzip", False)])
def test_identity(coding: str, plain: bool) -> None:
    assert is_identity(coding) is plain
