from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import LimitExceeded
from penstock.wire.lines import Decoder
from tests.wire.cases import corpus, every_split, faults, ratio, raw, run

Newlines = Literal["any", "lf"]


@pytest.mark.parametrize("newlines", ["any", "lf"])
@pytest.mark.parametrize("case", corpus("lines"))
def test_corpus(case: dict[str, Any], newlines: Newlines) -> None:
    expected = [raw(line) for line in case[newlines]]
    for outcome in every_split(lambda: Decoder(newlines=newlines), raw(case["input"])):
        assert outcome.items == expected
        assert outcome.error is None


@given(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", b""]), max_size=30))
def test_any_newline_agrees_with_bytes_splitlines(pieces: list[bytes]) -> None:
    # bytes.splitlines knows exactly CR, LF and CRLF (str.splitlines knows more).
    assert run(Decoder(), pieces).items == b"".join(pieces).splitlines()


def test_a_lone_cr_ends_its_line_at_once() -> None:
    decoder = Decoder()
    assert decoder.feed(b"a\r") == [b"a"]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\n") == [b""]


def test_an_empty_feed_between_cr_and_lf_changes_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(b"a\r") + decoder.feed(b"") + decoder.feed(b"\nb\n") == [b"a", b"b"]


def test_close_returns_the_last_line_once() -> None:
    decoder = Decoder()
    assert decoder.feed(b"a\nb") == [b"a"]
    assert decoder.close() == [b"b"]
    assert decoder.close() == []


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="'crlf'"):
        Decoder(newlines="crlf")  # type: ignore[arg-type]


@pytest.mark.parametrize("newlines", ["any", "lf"])
@pytest.mark.parametrize(
    ("data", "lines", "fails"),
    [
        (b"12345\n1234\n", [b"12345", b"1234"], False),
        (b"12345", [b"12345"], False),
        (b"123456\n", [], True),
        (b"123456", [], True),
        (b"1\n\n123456\n2\n", [b"1", b""], True),
        (b"1\n123456", [b"1"], True),
    ],
)
def test_the_limit(newlines: Newlines, data: bytes, lines: list[bytes], fails: bool) -> None:
    for outcome in every_split(lambda: Decoder(max_line_bytes=5, newlines=newlines), data):
        assert outcome.items == lines
        assert isinstance(outcome.error, LimitExceeded) is fails
        if isinstance(outcome.error, LimitExceeded):
            assert outcome.error.limit == "max_line_bytes"
            assert "5 bytes" in str(outcome.error)


def test_after_a_fault_every_call_raises_it_again() -> None:
    decoder = Decoder(max_line_bytes=3)
    assert decoder.feed(b"ok\nfour") == [b"ok"]
    first, *others = faults(lambda: decoder.feed(b""), lambda: decoder.feed(b"x\n"), decoder.close, decoder.close)
    assert isinstance(first, LimitExceeded)
    assert all(fault is first for fault in others)


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("newlines", ["any", "lf"])
def test_an_endless_line_takes_linear_time(newlines: Newlines, size: int) -> None:
    piece = b"x" * size

    def work(count: int) -> None:
        decoder = Decoder(max_line_bytes=count * size, newlines=newlines)
        for _ in range(count):
            decoder.feed(piece)
        assert decoder.close() == [piece * count]

    assert ratio(work, 20_000, 8) < 24
