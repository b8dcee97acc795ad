from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.origin.conditions import Part, select

TAG = '"v1"'


def wanted(range_: str | None, *, length: int = 100, if_range: str | None = None, none: str | None = None) -> Part:
    return select(length, TAG, range_=range_, if_range=if_range, if_none_match=none)


@pytest.mark.parametrize(
    ("range_", "part"),
    [
        (None, Part(200, 0, 100)),
        ("bytes=0-", Part(206, 0, 100)),
        ("bytes=0-0", Part(206, 0, 1)),
        ("bytes=10-19", Part(206, 10, 20)),
        ("bytes=99-", Part(206, 99, 100)),
        ("bytes=90-1000", Part(206, 90, 100)),
        ("bytes=-1", Part(206, 99, 100)),
        ("bytes=-1000", Part(206, 0, 100)),
        ("BYTES = 1-2 ", Part(206, 1, 3)),
        ("bytes=100-", Part(416)),
        ("bytes=100-200", Part(416)),
        ("bytes=-0", Part(416)),
        # several, malformed, or of another unit: the whole body
        ("bytes=0-1,4-5", Part(200, 0, 100)),
        ("bytes=5-4", Part(200, 0, 100)),
        ("bytes=200-100", Part(200, 0, 100)),
        ("bytes=-", Part(200, 0, 100)),
        ("bytes=a-b", Part(200, 0, 100)),
        ("bytes=١-٢", Part(200, 0, 100)),
        ("lines=0-1", Part(200, 0, 100)),
        ("bytes=" + "9" * 5000 + "-", Part(200, 0, 100)),
        ("", Part(200, 0, 100)),
    ],
)
def test_range(range_: str | None, part: Part) -> None:
    assert wanted(range_) == part


def test_an_empty_body_has_no_range() -> None:
    assert wanted("bytes=0-", length=0) == Part(416)
    assert wanted(None, length=0) == Part(200, 0, 0)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [(TAG, 206), ('"v2"', 200), ('W/"v1"', 200), ("Fri, 20 Nov 2026 06:00:00 GMT", 200), ("v1", 200)],
)
def test_if_range_needs_the_very_same_strong_tag(if_range: str, status: int) -> None:
    assert wanted("bytes=1-2", if_range=if_range).status == status


@pytest.mark.parametrize(
    ("none", "status"),
    [(TAG, 304), ('W/"v1"', 304), ('"v0", "v1"', 304), ("*", 304), ('"v2"', 206), ("v1", 206), ('"v1', 206)],
)
def test_if_none_match_comes_before_the_range(none: str, status: int) -> None:
    assert wanted("bytes=1-2", none=none).status == status


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_a_range_is_a_slice(first: int, last: int, length: int) -> None:
    body = bytes(range(length))
    part = wanted(f"bytes={first}-{last}", length=length)
    if part.status == 206:
        assert body[part.start : part.end] == body[first : last + 1] != b""
    elif part.status == 416:
        assert first >= length
    else:
        assert last < first
