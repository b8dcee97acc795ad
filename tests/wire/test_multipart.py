from __future__ import annotations

import base64
import os
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.multipart import Field, File, Form
from tests.wire.cases import corpus, raw, reference


def body(form: Form, contents: list[bytes]) -> bytes:
    """What a caller sends: each head, each file's bytes, the tail."""
    files = iter(contents)
    out = b""
    for index, part in enumerate(form.parts):
        out += form.head(index)
        if isinstance(part, File):
            out += next(files)
    return out + form.tail


@pytest.mark.parametrize("case", corpus("multipart"))
def test_corpus(case: dict[str, Any]) -> None:
    parts: list[Field | File] = []
    contents: list[bytes] = []
    for part in case["parts"]:
        if "filename" in part:
            content = raw(part["bytes"])
            options = {"content_type": part["content_type"]} if "content_type" in part else {}
            parts.append(File(part["name"], part["filename"], length=len(content), **options))
            contents.append(content)
        else:
            parts.append(Field(part["name"], raw(part["raw"]) if "raw" in part else part["value"]))
    form = Form(parts, boundary="B", charset=case.get("charset", "utf-8"))
    assert body(form, contents) == raw(case["body"])
    assert form.content_length == len(raw(case["body"]))


@pytest.mark.parametrize("case", reference("wpt_multipart_encode.json", "description"))
def test_reference_vectors(case: dict[str, Any]) -> None:
    content = case["value"].encode(case["charset"], "xmlcharrefreplace")
    part: Field | File = Field(case["name"], case["value"])
    if case["filename"] is not None:
        part = File(case["name"], case["filename"], content_type="text/plain", length=len(content))
    form = Form([part], boundary="B", charset=case["charset"])
    expected = b"--B\r\n" + base64.b64decode(case["expected_part_b64"]) + b"\r\n--B--\r\n"
    assert body(form, [content]) == expected
    assert form.content_length == len(expected)


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\r\n\\;%='), max_size=20)
# Without the two byte values that could write a delimiter by chance: the boundary is fixed here, not guessed.
BYTES = st.binary(max_size=50).filter(lambda content: b"--" not in content)
PARTS = st.lists(
    st.tuples(TEXT, TEXT.filter(lambda value: "--" not in value)) | st.tuples(TEXT, TEXT, BYTES), max_size=5
)


@given(PARTS)
def test_the_length_is_the_body_s_and_every_part_comes_back(parts: list[Any]) -> None:
    form = Form(
        [Field(*part) if len(part) == 2 else File(part[0], part[1], length=len(part[2])) for part in parts],
        boundary="gate-7",
    )
    sent = body(form, [part[2] for part in parts if len(part) == 3])
    assert form.content_length == len(sent)
    pieces = sent.split(b"--gate-7")
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    assert len(pieces) == len(parts) + 2
    for part, piece in zip(parts, pieces[1:-1], strict=True):
        head, _, content = piece.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert len(lines) == (2 if len(part) == 2 else 3)  # nothing in a name makes a line of its own
        assert lines[1].count(b'"') == (2 if len(part) == 2 else 4)
        if len(part) == 3:
            assert content == part[2] + b"\r\n"


def test_another_parser_reads_it() -> None:
    form = Form([Field("owner", "miller"), File("f", "log.txt", "text/plain", 5)], boundary="a b:c")
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + form.content_type.encode() + b"\r\n\r\n" + body(form, [b"bytes"])
    )
    owner, file = message.iter_parts()
    assert owner.get_param("name", header="content-disposition") == "owner"
    assert owner.get_payload() == "miller"
    assert file.get_filename() == "log.txt"
    assert file.get_content_type() == "text/plain"
    assert file.get_payload(decode=True) == b"bytes"


def test_the_length_is_unknown_as_soon_as_one_file_s_is() -> None:
    known = File("f", "x", length=0)
    unknown = File("f", "y")
    assert Form([known], boundary="B").content_length is not None
    assert Form([known, unknown, Field("a", "b")], boundary="B").content_length is None


def test_parts_do_not_change() -> None:
    parts: list[Field | File] = [Field("a", "1")]
    form = Form(parts, boundary="B")
    parts.append(Field("b", "2"))
    assert form.parts == (Field("a", "1"),)
    with pytest.raises(AttributeError):
        form.parts[0].name = "c"  # type: ignore[misc]
    with pytest.raises(IndexError):
        form.head(1)


@pytest.mark.parametrize(
    ("boundary", "written"),
    [
        ("x", "x"),
        ("x" * 70, "x" * 70),
        ("----WebKit7MA4", "----WebKit7MA4"),
        ("a'b+c_d-e.f", "a'b+c_d-e.f"),
        ("a:b", '"a:b"'),
        ("(a,b/c=d?e f)", '"(a,b/c=d?e f)"'),
    ],
)
def test_a_boundary_and_its_content_type(boundary: str, written: str) -> None:
    form = Form([], boundary=boundary)
    assert form.content_type == f"multipart/form-data; boundary={written}"
    assert form.tail == f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    "boundary", ["", "x" * 71, "x ", " ", 'x"y', "x\ny", "x\r\ny", "x;y", "ü", "x\\y", "x@y", "x\0"]
)
def test_a_boundary_that_is_none(boundary: str) -> None:
    with pytest.raises(ValueError, match="boundary"):
        Form([], boundary=boundary)


@pytest.mark.parametrize("value", ["--B", "x\r\n--B\r\ny", "x\n--B--", "x\r--Beta", b"\n--B"])
def test_a_value_that_contains_the_boundary(value: str | bytes) -> None:
    with pytest.raises(ValueError, match="'a' contains the boundary"):
        Form([Field("a", value)], boundary="B")


@pytest.mark.parametrize("value", ["x--B", "-B", "B", "\n -–B", "\n--A"])
def test_a_value_that_only_looks_like_it(value: str) -> None:
    assert Form([Field("a", value)], boundary="B").content_length


@pytest.mark.parametrize("content_type", ["text/plain\r\nX-Evil: 1", "a\rb", "a\nb", "a\0b", "tëxt/plain"])
def test_a_content_type_that_is_refused(content_type: str) -> None:
    with pytest.raises(ValueError, match="content type of file 'x'"):
        Form([File("f", "x", content_type)], boundary="B")


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="'x' is -1"):
        Form([File("f", "x", length=-1)], boundary="B")


@pytest.mark.parametrize("charset", ["utf-16", "utf-32-be", "utf-8-sig", "utf-7", "cp037", "no-such", "idna", "rot13"])
def test_a_charset_that_headers_cannot_use(charset: str) -> None:
    with pytest.raises(ValueError, match="charset"):
        Form([], boundary="B", charset=charset)


def test_a_charset_that_brings_the_quote_back() -> None:
    # In ISO-2022-JP the bytes of 〈 are 0x21 0x52, and those of some kana hold 0x22, the quote.
    quote_inside = next(
        character for character in map(chr, range(0x3000, 0x30FF)) if b'"' in character.encode("iso2022_jp", "ignore")
    )
    assert Form([Field("a", quote_inside)], boundary="B", charset="iso2022_jp").content_length
    with pytest.raises(ValueError, match="use utf-8"):
        Form([Field(quote_inside, "x")], boundary="B", charset="iso2022_jp")


def test_a_filename_that_the_system_could_not_decode() -> None:
    form = Form([File("f", os.fsdecode(b"a\xffb"), length=0)], boundary="B")
    assert 'filename="a\ufffdb"'.encode() in form.head(0)
