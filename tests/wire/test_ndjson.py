from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DecodeError, LimitExceeded
from penstock.wire.ndjson import Decoder, encode
from tests.wire.cases import corpus, every_split, faults, ratio, raw, run, text

# Floats that JSON can say, and text with half surrogate pairs, which JSON can escape.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def value(written: Any) -> Any:
    is_bytes = isinstance(written, dict) and set(written) <= {"repeat", "times"} and written
    return text(written) if is_bytes else written


@pytest.mark.parametrize("case", corpus("ndjson"))
def test_corpus(case: dict[str, Any]) -> None:
    expected = [value(written) for written in case["values"]]
    for outcome in every_split(Decoder, raw(case["input"])):
        assert outcome.items == expected
        assert list(map(type, outcome.items)) == list(map(type, expected))
        assert outcome.decoder.dropped == case.get("dropped", 0)
        if "error" in case:
            assert isinstance(outcome.error, DecodeError)
            assert case["error"] in str(outcome.error)
        else:
            assert outcome.error is None


@pytest.mark.parametrize("case", corpus("ndjson"))
def test_the_whole_error_is_the_same_in_every_split(case: dict[str, Any]) -> None:
    assert len({outcome.told[1] for outcome in every_split(Decoder, raw(case["input"]))}) == 1


@given(st.lists(JSON, max_size=6), st.randoms(use_true_random=False))
def test_what_is_encoded_is_decoded(values: list[Any], chance: Any) -> None:
    body = b"".join(map(encode, values))
    cuts = sorted(chance.choices(range(len(body) + 1), k=5))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    outcome = run(Decoder(), pieces)
    assert outcome.error is None
    assert outcome.items == values
    assert body.count(b"\n") == len(values)


def test_encode_is_compact_utf8() -> None:
    assert encode({"a": [1, "ü\n€"], "b": None}) == '{"a":[1,"ü\\n€"],"b":null}\n'.encode()
    assert encode("\ud800") == b'"\\ud800"\n'


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [-float("inf")]])
def test_encode_refuses_what_json_cannot_say(bad: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(bad)
    with pytest.raises(TypeError):
        encode({"at": object()})


def test_a_message_shows_the_beginning_only() -> None:
    with pytest.raises(DecodeError) as caught:
        Decoder().feed(b"x" * 10_000 + b"\n")
    assert "xxx" in str(caught.value)
    assert "…" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_message_is_one_line() -> None:
    with pytest.raises(DecodeError) as caught:
        Decoder().feed(b"a\rb\x1b[31m\n")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "values", "fails"),
    [
        (b"12345\n1234\n", [12345, 1234], False),
        (b"12345", [12345], False),
        (b"123456\n", [], True),
        (b"123456", [], True),
        (b"      \n", [], True),
        (b"\n\n1\n123456\n", [1], True),
        (b"\n123456\n1\n", [], True),
        (b"1234\r\n12345\r\n", [1234], True),
    ],
)
def test_the_limit(data: bytes, values: list[Any], fails: bool) -> None:
    outcomes = list(every_split(lambda: Decoder(max_record_bytes=5), data))
    assert len({str(outcome.error) for outcome in outcomes}) == 1
    for outcome in outcomes:
        assert outcome.items == values
        assert isinstance(outcome.error, LimitExceeded) is fails
        if isinstance(outcome.error, LimitExceeded):
            assert outcome.error.limit == "max_record_bytes"


@pytest.mark.parametrize("bad", [b"nonsense\n", b"1" * 100])
def test_values_before_a_fault_come_first(bad: bytes) -> None:
    decoder = Decoder(max_record_bytes=50)
    assert decoder.feed(b"1\n2\n" + bad) == [1, 2]
    first, *others = faults(lambda: decoder.feed(b"3\n"), decoder.close, decoder.close)
    assert isinstance(first, DecodeError | LimitExceeded)
    assert all(fault is first for fault in others)


def test_after_an_early_end_every_call_raises_it_again() -> None:
    decoder = Decoder()
    decoder.feed(b"[1")
    with pytest.raises(DecodeError) as first:
        decoder.close()
    with pytest.raises(DecodeError) as second:
        decoder.close()
    assert first.value is second.value


@pytest.mark.parametrize("size", [1, 64])
def test_an_endless_record_takes_linear_time(size: int) -> None:
    piece = b"1" * size

    def work(count: int) -> None:
        decoder = Decoder(max_record_bytes=count * size)
        decoder.feed(b'"')
        for _ in range(count - 1):
            decoder.feed(piece)

    assert ratio(work, 20_000, 8) < 24
