from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest

from penstock.errors import DecodeError, LimitExceeded, StreamTruncated
from penstock.wire.coding import MAX_FREE_BYTES, MAX_PIECE_BYTES, Decoder, is_identity

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


@pytest.mark.parametrize("feed", [16, 1 << 20], ids=["in drops", "at once"])
def test_a_bomb_costs_no_memory_and_is_stopped(feed: int) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    decoder, given, largest = Decoder("gzip"), 0, 0
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="more than max_ratio=200 times as many") as caught:
            for at in range(0, len(bomb), feed):
                for piece in decoder.feed(bomb[at : at + feed]):
                    given += len(piece)
                    largest = max(largest, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (caught.value.limit, caught.value.category) == ("max_ratio", "application")
    assert MAX_FREE_BYTES - MAX_PIECE_BYTES < given <= MAX_FREE_BYTES
    assert largest <= MAX_PIECE_BYTES
    assert peak < 4 * 1024 * 1024


def test_a_bomb_of_many_members_is_one_body() -> None:
    member = gzip.compress(bytes(1024 * 1024))
    decoder = Decoder("gzip")
    with pytest.raises(LimitExceeded, match="max_ratio"):
        for _ in range(MAX_FREE_BYTES // 1024**2 + 1):
            for _ in decoder.feed(member):
                pass


def test_what_is_only_large_or_only_coded_well_is_no_bomb() -> None:
    small = bytes(MAX_FREE_BYTES)
    assert sum(map(len, Decoder("gzip").feed(gzip.compress(small)))) == len(small)
    line = b"".join(b"%d: the same words again and again, as a log has them\n" % number for number in range(1000))
    packed = gzip.compress(line)
    assert 5 < len(line) / len(packed) < 200
    decoder = Decoder("gzip")
    count = MAX_FREE_BYTES // len(line) + 10
    assert sum(len(piece) for _ in range(count) for piece in decoder.feed(packed)) == count * len(line) > MAX_FREE_BYTES


def test_the_bound_can_be_set() -> None:
    bomb = gzip.compress(bytes(MAX_FREE_BYTES + MAX_PIECE_BYTES))
    assert sum(map(len, Decoder("gzip", max_ratio=2000).feed(bomb))) == MAX_FREE_BYTES + MAX_PIECE_BYTES


@pytest.mark.parametrize(("coding", "plain"), [("", True), ("identity", True), (" Identity ", True), ("gzip", False)])
def test_identity(coding: str, plain: bool) -> None:
    assert is_identity(coding) is plain
