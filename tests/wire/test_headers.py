from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.headers import (
    HOP_BY_HOP,
    MAX_FILENAME_BYTES,
    MAX_VALUE,
    NEVER_NAMED,
    attachment,
    check_header,
    end_to_end,
    filename,
    is_event_stream,
    is_ndjson,
    media_type,
    safe_filename,
)
from tests.wire.cases import corpus, ratio, raw, text

# ---------------------------------------------------------------------------------------------------------- end_to_end


def test_hop_by_hop_fields_do_not_go_on() -> None:
    kept = [(b"Host", b"a"), (b"Accept", b"*/*"), (b"accept", b"x"), (b"X-Te", b"1")]
    dropped = [(name.title(), b"x") for name in sorted(HOP_BY_HOP)]
    assert end_to_end(kept[:2] + dropped + kept[2:]) == kept


def test_fields_that_connection_names_do_not_go_on() -> None:
    headers = [
        (b"X-One", b"1"),
        (b"CONNECTION", b"close, x-ONE ,\tX-Two,, "),
        (b"x-two", b"2"),
        (b"Connection", b"X-Three"),
        (b"X-three", b"3"),
        (b"X-Four", b"4"),
    ]
    before = list(headers)
    assert end_to_end(headers) == [(b"X-Four", b"4")]
    assert headers == before


@pytest.mark.parametrize("name", sorted(NEVER_NAMED))
def test_connection_cannot_name_what_others_rely_on(name: bytes) -> None:
    field = (name.title(), b"value")
    assert end_to_end([(b"Connection", b"close, " + name.upper()), field]) == [field]


def test_never_named_and_hop_by_hop_are_lower_case_and_apart() -> None:
    assert all(name == name.lower() for name in NEVER_NAMED | HOP_BY_HOP)
    assert not NEVER_NAMED & HOP_BY_HOP
    assert {b"content-length", b"host", b"authorization", b"cookie"} <= NEVER_NAMED


# -------------------------------------------------------------------------------------------------------- check_header


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "b"), (b"x-a", b"b"), ("a", ""), ("!#$%&'*+-.^_`|~09", "\t \x7fü"), (b"A", b"\xff\x01")],
)
def test_fields_that_pass(name: str | bytes, value: str | bytes) -> None:
    check_header(name, value)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a\r\nb", "ä", "a\0", b"a\n", b"\xe4", "(a)", "a,b", '"a"', "a/b"]
)
def test_names_that_are_refused(name: str | bytes) -> None:
    with pytest.raises(ValueError, match="not a header name"):
        check_header(name, "x")


@pytest.mark.parametrize(("character", "what"), [("\r", "CR"), ("\n", "LF"), ("\0", "NUL")])
def test_values_that_are_refused(character: str, what: str) -> None:
    for value in (f"secret{character}X-Evil: 1", f"secret{character}".encode()):
        with pytest.raises(ValueError, match=f"{what} at character 6 of the value of header 'X-A'") as caught:
            check_header("X-A", value)
        assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- media types


@pytest.mark.parametrize("case", corpus("headers", "media_type"))
def test_media_type_corpus(case: dict[str, Any]) -> None:
    value = None if case["value"] is None else raw(case["value"])
    forms: list[Any] = [value] if value is None else [value, value.decode("latin-1")]
    for form in forms:
        read = media_type(form)
        assert read.essence == case["essence"]
        assert read.params == case["params"]
        assert is_event_stream(form) is case["event_stream"]
        assert is_ndjson(form) is case["ndjson"]


def test_parts_of_a_media_type() -> None:
    read = media_type("Text/Plain; Charset=ISO-8859-1; q=1")
    assert (read.type, read.subtype, read.charset) == ("text", "plain", "iso-8859-1")
    assert media_type("text/plain").charset is None
    assert media_type("text/plain; charset=").charset is None
    assert media_type("nonsense").charset is None


# ----------------------------------------------------------------------------------------------------------- filenames


@pytest.mark.parametrize("case", corpus("headers", "filename"))
def test_filename_corpus(case: dict[str, Any]) -> None:
    value = raw(case["value"])
    assert filename(value) == case["filename"]
    assert filename(value.decode("latin-1")) == case["filename"]  # as most HTTP libraries hand it out
    if not isinstance(case["value"], list):
        assert filename(case["value"]) == case["filename"]


def test_no_header_has_no_filename() -> None:
    assert filename(None) is None


@pytest.mark.parametrize("case", corpus("headers", "safe_filename"))
def test_safe_filename_corpus(case: dict[str, Any]) -> None:
    safe = None if case["safe"] is None else text(case["safe"])
    assert safe_filename(text(case["value"])) == safe


NAMES = st.text(st.characters() | st.sampled_from('./\\: \0"%*\u202e')) | st.sampled_from(
    ["con", "CON.", "nul.txt", "c:con", "..con", "com¹ .a.b", "a" * 300 + ".b", "€" * 90 + ".txt", "a" * 251 + " .txt"]
)


@given(NAMES)
def test_a_safe_filename_is_safe(name: str) -> None:
    safe = safe_filename(name)
    if safe is None:
        return
    assert safe
    assert safe_filename(safe) == safe
    assert 0 < len(safe.encode()) <= MAX_FILENAME_BYTES
    assert not set(safe) & set('/\\:<>"|?*\0\r\n')
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in safe)
    assert safe[0] not in ". "
    assert safe[-1] not in ". "
    assert safe.partition(".")[0].rstrip().lower() not in {"con", "nul", "com1", "com¹", "aux", "prn", "lpt1"}


@given(NAMES)
def test_an_attachment_comes_back(name: str) -> None:
    value = attachment(name)
    check_header("Content-Disposition", value)
    assert value.isascii()
    assert filename(value) == safe_filename(name)
    assert filename(value.encode()) == safe_filename(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("large.txt", 'attachment; filename="large.txt"'),
        ("a b;c.txt", 'attachment; filename="a b;c.txt"'),
        ("../ü.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"),
        ("50%.txt", "attachment; filename=\"50_.txt\"; filename*=UTF-8''50%25.txt"),
        ("€'(1).txt", "attachment; filename=\"_'(1).txt\"; filename*=UTF-8''%E2%82%AC%27%281%29.txt"),
        ('x"\r\nSet-Cookie: a=b', 'attachment; filename="x_Set-Cookie_ a=b"'),
        ("..", "attachment"),
    ],
)
def test_attachment(name: str, value: str) -> None:
    assert attachment(name) == value


# -------------------------------------------------------------------------------------------------------- hostile input


@given(st.text() | st.binary() | st.text(st.sampled_from("; =\"\\*'%a/")))
def test_no_value_raises(value: str | bytes) -> None:
    name = filename(value)
    assert name is None or safe_filename(name) == name
    read = media_type(value)
    assert bool(read.type) is bool(read.subtype)


@pytest.mark.parametrize("unit", [";", "a;", 'a="', '\\"', "=;", ";a=b", "%22", "/", ". ", "filename*=UTF-8''%"])
def test_only_the_beginning_of_a_value_is_looked_at(unit: str) -> None:
    def work(factor: int) -> None:
        value = "attachment; filename=" + unit * (MAX_VALUE * factor // len(unit))
        filename(value)
        media_type(value)

    assert ratio(work, 4, 16) < 8  # sixteen times the value, about the same work


def test_a_filename_beyond_what_is_looked_at_is_not_seen() -> None:
    assert filename("attachment; " + "x=y; " * MAX_VALUE + "filename=a") is None
    assert filename("attachment; filename=a; " + "x=y; " * MAX_VALUE) == "a"
    assert safe_filename("../" * MAX_VALUE + "a.txt") == "a.txt"
    assert safe_filename("/" + "b" * 100_000 + ".txt") == "b" * 251 + ".txt"
