from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.framing import (
    CHUNK_OVERHEAD_BYTES,
    MAX_HEAD_BYTES,
    MAX_OVERHEAD_BYTES,
    Framing,
    Head,
    ResponseParser,
    frame,
)
from penstock.errors import LimitExceeded, PenstockError, ProtocolError
from tests.engine.talk import splits

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CASES = json.loads((Path(__file__).parent.parent / "corpus" / "http1_responses.json").read_text())["cases"]


class Read(NamedTuple):
    """What the parser made of some bytes."""

    head: Head
    body: bytes
    rest: bytes
    complete: bool
    surplus: bool
    trailers: list[tuple[bytes, bytes]]


def read(raw: bytes, cuts: list[int] | None = None, method: bytes = b"GET") -> Read:
    """Parse a response, cut into pieces at those places."""
    body = bytearray()
    parser = ResponseParser(method, body.extend)
    rest: bytes | None = None
    complete = False
    for piece in splits(raw, cuts or []):
        if rest is None:
            rest = piece = parser.feed_head(piece)  # type: ignore[assignment]
            if rest is None:
                continue
        elif parser.head.framing is not Framing.CHUNKED:
            rest += piece
        if parser.head.framing is Framing.CHUNKED and piece and not complete:
            before = len(body)
            complete = parser.feed_chunked(piece)
            parser.count_overhead(len(piece), len(body) - before)
    return Read(parser.head, bytes(body), rest or b"", complete, parser.surplus, parser.trailers)


def told(raw: bytes, cuts: list[int]) -> Any:
    """The part of it that no split may change."""
    try:
        seen = read(raw, cuts)
    except PenstockError as error:
        return type(error)
    chunked = seen.head.framing is Framing.CHUNKED
    return seen.head.status, seen.head.headers, seen.body, chunked or seen.rest, seen.complete, seen.trailers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_the_split_never_changes_the_result(case: dict[str, Any], cuts: list[int]) -> None:
    raw = case["input"].encode("latin-1")
    assert told(raw, cuts) == told(raw, [])


def test_a_head() -> None:
    seen = read(b"HTTP/1.1 404 Not  Found\r\nA: b \t\r\na:c\r\nEmpty:\r\nContent-Length: 3\r\n\r\nabc")
    assert (seen.head.status, seen.head.reason, seen.head.version) == (404, b"Not  Found", "1.1")
    assert seen.head.headers == [(b"A", b"b"), (b"a", b"c"), (b"Empty", b""), (b"Content-Length", b"3")]
    assert (seen.head.framing, seen.head.length, seen.head.keep_alive) == (Framing.LENGTH, 3, True)
    assert seen.rest == b"abc"


def test_trailers_are_kept_apart() -> None:
    seen = read(CHUNKED + b"3\r\nabc\r\n0\r\nDigest: x \r\nAuthorization: y\r\n\r\n", cuts=[50, 70])
    assert (seen.body, seen.complete) == (b"abc", True)
    assert seen.trailers == [(b"Digest", b"x"), (b"Authorization", b"y")]
    assert seen.head.headers == [(b"Transfer-Encoding", b"chunked")]


@pytest.mark.parametrize(
    ("method", "head", "framing", "keep_alive"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\n", Framing.CLOSE, False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", Framing.LENGTH, True),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n", Framing.LENGTH, False),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", Framing.LENGTH, False),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n", Framing.LENGTH, True),
        (b"GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", Framing.CLOSE, False),
        (
            b"GET",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n",
            Framing.CHUNKED,
            False,
        ),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", Framing.NONE, True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", Framing.NONE, True),
        (b"GET", b"HTTP/1.1 204 OK\r\nContent-Length: 9\r\n", Framing.NONE, True),
        (b"GET", b"HTTP/1.1 304 OK\r\nTransfer-Encoding: chunked\r\n", Framing.NONE, True),
        (b"GET", b"HTTP/1.1 103 OK\r\nContent-Length: 9\r\n", Framing.NONE, True),
        (
            b"GET",
            b"HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 9\r\n",
            Framing.TUNNEL,
            False,
        ),
        (b"CONNECT", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", Framing.TUNNEL, False),
        (b"CONNECT", b"HTTP/1.1 407 OK\r\nContent-Length: 9\r\n", Framing.LENGTH, True),
    ],
)
def test_where_a_body_ends(method: bytes, head: bytes, framing: Framing, keep_alive: bool) -> None:
    seen = read(head + b"\r\n", method=method).head
    assert (seen.framing, seen.keep_alive) == (framing, keep_alive)


@pytest.mark.parametrize("step", [1, 3, 4096, 10**9])
@pytest.mark.parametrize("over", [False, True])
def test_the_limit_of_a_head_is_exact(step: int, over: bool) -> None:
    head = OK + b"A: "
    head += b"x" * (MAX_HEAD_BYTES - len(head) + over)
    raw = head + b"\r\n\r\n"
    if over:
        with pytest.raises(LimitExceeded, match="131,072 bytes") as caught:
            read(raw, list(range(0, len(raw), step)))
        assert caught.value.limit == "max_head_bytes"
    else:
        assert len(read(raw, list(range(0, len(raw), step))).head.headers) == 1


@pytest.mark.parametrize("endless", [b"x" * 4096, b"A: b\r\n" * 700, b"A" * 4096, b"A:" + b" " * 4096])
def test_an_endless_head_ends(endless: bytes) -> None:
    parser = ResponseParser(b"GET", list[bytes]().append)
    parser.feed_head(OK)
    with pytest.raises(LimitExceeded):
        for _ in range(100):
            parser.feed_head(endless)


@pytest.mark.parametrize("step", [1, 100, 10**9])
@pytest.mark.parametrize("endless", [b"3;" + b"x" * 20_000 + b"\r\nabc\r\n", b"0" * 20_000 + b"3\r\nabc\r\n"])
def test_the_limit_of_a_chunk_header(endless: bytes, step: int) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read(CHUNKED + endless, list(range(0, len(endless) + 50, step)))
    assert caught.value.limit == "max_overhead_bytes"


@pytest.mark.parametrize("step", [1, 100, 10**9])
@pytest.mark.parametrize("trailers", [b"A: b\r\n" * 4000, b"A: " + b"x" * 20_000, b"A:\r\n" * 6000])
def test_the_limit_of_the_trailers(trailers: bytes, step: int) -> None:
    with pytest.raises(LimitExceeded):
        read(CHUNKED + b"0\r\n" + trailers, list(range(0, len(trailers) + 50, step)))


@pytest.mark.parametrize("step", [1, 7, 4096, 10**9])
def test_small_chunks_and_large_ones_are_no_overhead(step: int) -> None:
    raw = CHUNKED + b"1;ab=cd\r\nx\r\n" * 5000 + b"186a0\r\n" + b"y" * 100_000 + b"\r\n0\r\n\r\n"
    seen = read(raw, list(range(0, len(raw), step)))
    assert (seen.body == b"x" * 5000 + b"y" * 100_000, seen.complete) == (True, True)
    assert len(b"1;ab=cd\r\n\r\n") < CHUNK_OVERHEAD_BYTES < MAX_OVERHEAD_BYTES


def test_what_follows_the_last_chunk_is_not_part_of_the_body() -> None:
    other = OK + b"Set-Cookie: stolen\r\nContent-Length: 5\r\n\r\nhello"
    seen = read(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + other)
    assert (seen.body, seen.complete, seen.surplus, seen.trailers) == (b"abc", True, True, [])


CODING = st.lists(
    st.sampled_from([b"chunked", b"CHUNKED", b"gzip", b"identity", b",", b" ", b"\t", b";q=1", b'"', b"x", b""]),
    max_size=5,
).map(b"".join)


@settings(max_examples=300)
@given(values=st.lists(CODING, min_size=1, max_size=3))
def test_the_engine_and_llhttp_never_differ_on_chunked(values: list[bytes]) -> None:
    """Where they did, one of them would take the chunks' framing for content."""
    raw = OK + b"".join(b"Transfer-Encoding: %b\r\n" % value for value in values) + b"\r\n3\r\nabc\r\n0\r\n\r\n"
    try:
        seen = read(raw)
    except ProtocolError:
        return
    assert (seen.head.framing, seen.body, seen.complete) == (Framing.CHUNKED, b"abc", True)


@given(
    lengths=st.lists(st.sampled_from([b"3", b"03", b"+3", b" 3", b"3 ", b"3,3", b"4", b"", b"0x3", b"3\t"]), max_size=3)
)
def test_a_length_is_one_number_or_refused(lengths: list[bytes]) -> None:
    head = Head()
    head.status = 200
    head.headers = [(b"content-length", value) for value in lengths]
    raw = OK + b"".join(b"Content-Length: %b\r\n" % value for value in lengths) + b"\r\nabc"
    numbers = {int(part) for value in lengths for part in value.split(b",") if part.strip().isdigit()}
    for attempt in (lambda: frame(head, b"GET"), lambda: read(raw)):
        try:
            attempt()
        except ProtocolError:
            continue
        assert len(numbers) == (1 if lengths else 0)


def test_memory_stays_flat_through_a_body_of_many_chunks() -> None:
    parser = ResponseParser(b"GET", lambda data: None)
    parser.feed_head(CHUNKED)
    piece = b"400;a=b\r\n" + b"x" * 1024 + b"\r\n"
    tracemalloc.start()
    try:
        for _ in range(1000):
            parser.feed_chunked(piece)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(5000):
            parser.feed_chunked(piece)
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()
