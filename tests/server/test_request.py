from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.request import (
    MAX_FIELDS,
    MAX_OVERHEAD_BYTES,
    MAX_TARGET_BYTES,
    ChunkedBody,
    Rejected,
    RequestHead,
    read_head,
)

CASES = json.loads((Path(__file__).parent.parent / "corpus" / "http1_requests.json").read_text())["cases"]
HEADS = [each for each in CASES if each["input"].endswith("\r\n\r\n") and each["input"].count("\r\n\r\n") == 1]


def head(line: str = "GET / HTTP/1.1", *more: str, host: str | None = "Host: x") -> RequestHead:
    return read_head("\r\n".join([line, *more, *([host] if host else []), "", ""]).encode("latin-1"))


def refusal(*args: Any, **kwargs: Any) -> int:
    with pytest.raises(Rejected) as caught:
        head(*args, **kwargs)
    assert str(caught.value) == caught.value.reason
    return caught.value.status


@pytest.mark.parametrize("case", HEADS, ids=lambda each: each["name"])
def test_a_case_of_the_corpus(case: dict[str, Any]) -> None:
    raw = case["input"].encode("latin-1")
    if case["status"] != 200:
        with pytest.raises(Rejected) as caught:
            read_head(raw)
        assert caught.value.status == case["status"]
    else:
        assert read_head(raw).method


def test_what_a_head_says() -> None:
    found = head("POST /a%20b/%C3%A9?x=%20&y#z HTTP/1.1", "X-Two: 1", "x-two:  2 \t", "Empty:", "Content-Length: 12")
    assert found == RequestHead(
        method="POST",
        path="/a b/é",
        raw_path=b"/a%20b/%C3%A9",
        query=b"x=%20&y",
        version="1.1",
        headers=[(b"x-two", b"1"), (b"x-two", b"2"), (b"empty", b""), (b"content-length", b"12"), (b"host", b"x")],
        length=12,
        keep_alive=True,
        expects_continue=False,
    )


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", b"/", b""),
        ("/?", b"/", b""),
        ("/a?b?c", b"/a", b"b?c"),
        ("//a//b/../c", b"//a//b/../c", b""),
        ("http://h", b"/", b""),
        ("HTTP://h:1/a?b", b"/a", b"b"),
        ("https://u:p@h?b", b"/", b"b"),
        ("/http://h/", b"/http://h/", b""),
    ],
)
def test_targets(target: str, path: bytes, query: bytes) -> None:
    found = head(f"GET {target} HTTP/1.1")
    assert (found.raw_path, found.query) == (path, query)


def test_a_star_is_for_options() -> None:
    assert head("OPTIONS * HTTP/1.1").path == "*"
    assert refusal("GET * HTTP/1.1") == 400


def test_a_path_that_is_no_utf8_is_still_a_path() -> None:
    found = head("GET /%ff%zz HTTP/1.1")
    assert (found.path, found.raw_path) == ("/\ufffd%zz", b"/%ff%zz")


@pytest.mark.parametrize("target", ["a", "ftp://h/", "http://", "http:///a", "h:80", "?x", "/\xe9", "/a\tb", "/\x7f"])
def test_targets_that_are_none(target: str) -> None:
    assert refusal(f"GET {target} HTTP/1.1") == 400


def test_a_target_has_a_limit() -> None:
    line = "GET /{} HTTP/1.1"
    assert len(head(line.format("a" * (MAX_TARGET_BYTES - 1))).raw_path) == MAX_TARGET_BYTES
    assert refusal(line.format("a" * MAX_TARGET_BYTES)) == 414


def test_fields_have_a_limit() -> None:
    assert len(head("GET / HTTP/1.1", *["a: b"] * (MAX_FIELDS - 1)).headers) == MAX_FIELDS
    assert refusal("GET / HTTP/1.1", *["a: b"] * MAX_FIELDS) == 431


@pytest.mark.parametrize(
    "line",
    [
        *("", "GET", "GET /", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1"),
        *("GET / a HTTP/1.1", "get / HTTP/1.1", "G\x00ET / HTTP/1.1", "WHAT / HTTP/1.1", "GET / http/1.1"),
        *("OPTIONS / RTSP/1.0", "SOURCE / ICE/1.0", "GET HTTP/x RTSP/1.0", "GET / HTTP/1.12", "GET / HTTP/1.1\x00"),
    ],
)
def test_request_lines_that_are_none(line: str) -> None:
    assert refusal(line) == 400


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_other_versions(version: str) -> None:
    assert refusal(f"GET / HTTP/{version}") == 505


@pytest.mark.parametrize(
    "field",
    ["a : b", ": b", "a b: c", "a", "a\x00: b", "a: b\x00", "a: b\x07", "a: b\x7f", "a[]: b", "a:\tb\r c", "\xe9: b"],
)
def test_fields_that_are_none(field: str) -> None:
    assert refusal("GET / HTTP/1.1", field) == 400


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t"])
def test_bare_and_folded_lines(ending: bytes) -> None:
    for raw in (
        b"GET / HTTP/1.1%bHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b%bHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x%bA: b\r\n\r\n",
    ):
        with pytest.raises(Rejected) as caught:
            read_head(raw % ending)
        assert caught.value.status == 400


@pytest.mark.parametrize("host", ["a", "a:80", "[::1]:80", "a_b", "xn--a", "1.2.3.4", "", "a%20b"])
def test_hosts(host: str) -> None:
    assert head(host=f"Host: {host}").headers == [(b"host", host.encode())]


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a?b", "a#b", "a\\b", "\xe9", '"a"', "<a>"])
def test_hosts_that_are_none(host: str) -> None:
    assert refusal(host=f"Host: {host}") == 400


def test_there_is_one_host() -> None:
    assert refusal("GET / HTTP/1.1", host=None) == 400
    assert refusal("GET / HTTP/1.1", "Host: x") == 400
    assert refusal("GET / HTTP/1.0", "Host: x") == 400
    assert head("GET / HTTP/1.0", host=None).headers == []


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["Content-Length: 007"], 7),
        (["Content-Length:\t 5 \t"], 5),
        (["Content-Length: " + "9" * 18], int("9" * 18)),
        (["Transfer-Encoding: chunked"], None),
        (["Transfer-Encoding: CHUNKED "], None),
        (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "Content-Length: 3"], 3),
        (["Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"], None),
    ],
)
def test_lengths(fields: list[str], length: int | None) -> None:
    assert head("POST / HTTP/1.1", *fields).length == length


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (400, ["Content-Length: 5", "Content-Length: 6"]),
        (400, ["Content-Length: 5, 5"]),
        (400, ["Content-Length: +5"]),
        (400, ["Content-Length: -5"]),
        (400, ["Content-Length: 5 5"]),
        (400, ["Content-Length: 0x5"]),
        (400, ["Content-Length: 5_0"]),
        (400, ["Content-Length: \xb2"]),
        (400, ["Content-Length:"]),
        (400, ["Content-Length: " + "9" * 19]),
        (400, ["Content-Length: 5", "Transfer-Encoding: chunked"]),
        (400, ["Transfer-Encoding: chunked", "Content-Length: 5"]),
        (400, ["Content-Length: 5", "Transfer-Encoding: identity"]),
        (400, ["Transfer-Encoding:"]),
        (501, ["Transfer-Encoding: gzip, chunked"]),
        (501, ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]),
        (501, ["Transfer-Encoding: ,chunked"]),
        (501, ["Upgrade: h2c", "Connection: Upgrade", "Transfer-Encoding: gzip, chunked"]),
        (417, ["Expect: 200-ok"]),
        (417, ["Expect: 100-continue, more"]),
    ],
)
def test_framings_that_are_refused(status: int, fields: list[str]) -> None:
    found = refusal("POST / HTTP/1.1", *fields)
    assert found == status or (status == 501 and found == 400)  # some of them llhttp refuses first


def test_http_1_0_knows_no_chunks() -> None:
    assert refusal("POST / HTTP/1.0", "Transfer-Encoding: chunked") == 400


def test_connect_is_not_served() -> None:
    assert refusal("CONNECT h:443 HTTP/1.1") == 501


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "keep-alive", True),
        ("1.1", "Foo , CLOSE\t", False),
        ("1.1", "keep-alive, close", False),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_whether_the_connection_lives_on(version: str, connection: str | None, keeps: bool) -> None:
    fields = [] if connection is None else [f"Connection: {connection}"]
    assert head(f"GET / HTTP/{version}", *fields).keep_alive is keeps


def test_expectations() -> None:
    assert head("POST / HTTP/1.1", "Expect: 100-Continue ", "Content-Length: 1").expects_continue
    assert not head("POST / HTTP/1.0", "Expect: 100-continue", "Content-Length: 1").expects_continue


# -- chunks


def chunked(*slices: bytes) -> tuple[bytes, bytes | None]:
    """The body, and what followed; None when the body is not whole."""
    pieces: list[bytes] = []
    body = ChunkedBody(pieces.append)
    rest = None
    for each in slices:
        assert rest is None or not rest
        rest = body.feed(each) if rest is None else rest + each
    assert all(pieces)
    return b"".join(pieces), rest


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\n00b\r\n0123456789a\r\n0\r\n\r\n", b"01234567890123456789a"),
        (b'3;a;b=c;d="e;\xe9" \t\r\nabc\r\n0;last\r\n\r\n', b"abc"),
        (b"3 \t;a\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"5\r\n\r\n0\r\n\r\n0\r\n\r\n", b"\r\n0\r\n"),
    ],
)
def test_chunks(raw: bytes, body: bytes) -> None:
    for after in (b"", b"GET /"):
        assert chunked(raw + after) == (body, after)
        each = [bytes([byte]) for byte in raw]
        assert chunked(*each) == (body, b"")
    for size in range(len(raw)):
        assert chunked(raw[:size])[1] is None


def test_trailers_go_nowhere() -> None:
    raw = b"1\r\nx\r\n0\r\nAuthorization: secret\r\nDigest:  a \r\nDigest:\r\n\r\nrest"
    assert chunked(raw) == (b"x", b"rest")


@pytest.mark.parametrize(
    "raw",
    [
        *(b"\r\n", b"g\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1_0\r\n", b" 1\r\n", b"1 \r\n", b"0 \r\n", b"1 1\r\n"),
        *(b";a\r\n", b"1\n", b"1\r\r\n", b"1;a\rb\r\n", b"1;a\x00\r\n", b"1;a\nx\r\n", b"\xb2\r\n", b"1,\r\n"),
        *(b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na\r\r\n", b"1\r\na0\r\n", b"1\r\n\r\n\r\n1\r\n", b"f" * 16 + b"\r\n"),
        *(b"0\r\na\r\n", b"0\r\n: b\r\n", b"0\r\na : b\r\n", b"0\r\n a: b\r\n", b"0\r\na: b\r\n c\r\n"),
        *(b"0\r\na: b\n", b"0\r\na: b\x00\r\n", b"0\r\n\n", b"0\r\na: b\rc: d\r\n"),
    ],
)
def test_chunks_that_are_none(raw: bytes) -> None:
    for slices in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        with pytest.raises(Rejected) as caught:
            chunked(*slices)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"a" * 100, b"0" * 100, b"1\r\na" + b"b" * 100],
    ids=["extension", "size", "behind the data"],
)
def test_a_line_has_a_limit(endless: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        chunked(endless, *[b"a" * 1000] * (2 * MAX_OVERHEAD_BYTES // 1000))
    assert caught.value.status == 431


def test_trailers_have_a_limit() -> None:
    with pytest.raises(Rejected) as caught:
        chunked(b"0\r\n", *[b"a: b\r\n"] * MAX_OVERHEAD_BYTES)
    assert caught.value.status == 431


def test_extensions_may_not_outweigh_the_data() -> None:
    """Go's CVE-2023-39326: a little body that costs its reader a lot of lines."""
    with pytest.raises(Rejected) as caught:
        chunked(*[b"1;" + b"a" * 1000 + b"\r\nx\r\n"] * 20)
    assert caught.value.status == 431
    plain = [b"1\r\nx\r\n"] * (2 * MAX_OVERHEAD_BYTES)
    assert len(chunked(*plain)[0]) == len(plain)
    signed = [b"400;signature=" + b"a" * 64 + b"\r\n" + b"x" * 1024 + b"\r\n"] * 1000  # as S3's SDKs send them
    assert len(chunked(*signed)[0]) == 1024 * 1000


def sliced(raw: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[begin:end] for begin, end in itertools.pairwise(at)]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    trailers=st.lists(st.sampled_from([b"A: b", b"Digest:x", b"c:"]), max_size=3),
    after=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
)
def test_the_split_never_changes_the_result(
    pieces: list[bytes], trailers: list[bytes], after: bytes, cuts: list[int]
) -> None:
    raw = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
    raw += b"0\r\n" + b"".join(each + b"\r\n" for each in trailers) + b"\r\n"
    found: list[bytes] = []
    body, rest = ChunkedBody(found.append), None
    slices = sliced(raw + after, cuts)
    while rest is None:
        rest = body.feed(slices.pop(0))
    assert b"".join(found) == b"".join(pieces)
    assert rest + b"".join(slices) == after


@given(raw=st.binary(max_size=200), cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_trash_is_refused_or_read_alike_however_it_comes(raw: bytes, cuts: list[int]) -> None:
    def outcome(slices: list[bytes]) -> tuple[bytes, int | bool]:
        found: list[bytes] = []
        body = ChunkedBody(found.append)
        try:
            whole = any(body.feed(each) is not None for each in slices)
        except Rejected as rejected:
            return b"".join(found), rejected.status
        return b"".join(found), whole

    assert outcome([raw]) == outcome(sliced(raw, cuts))


@given(raw=st.binary(max_size=200))
def test_any_head_is_read_or_refused(raw: bytes) -> None:
    for each in (raw + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n" + raw + b"\r\n\r\n"):
        if each.find(b"\r\n\r\n") == len(each) - 4:
            with contextlib.suppress(Rejected):
                read_head(each)
