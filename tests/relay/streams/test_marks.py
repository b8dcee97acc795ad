from __future__ import annotations

import pytest

from penstock.eventlog.base import new_stream_id
from penstock.relay.streams import marks
from penstock.relay.streams.marks import Place
from penstock.wire import sse

STREAM = "A" * 22


def test_a_place_comes_back_as_it_was_given() -> None:
    place = Place(STREAM, 3, 1532)
    assert str(place) == f"1{STREAM}.3-1532"
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize(
    "token",
    [
        "",
        "42",
        f"2{STREAM}.3-1",
        f"1{STREAM[1:]}.3-1",
        f"1{STREAM}.3-",
        f"1{STREAM}.-1-1",
        f"1{STREAM}.3-1\n",
        f" 1{STREAM}.3-1",
        f"1{STREAM}.3-{'9' * 16}",
        f"1{STREAM}.3-٣",
        "1../../../../etc/passwd..3-1",
    ],
)
def test_what_is_not_ours_is_no_place(token: str) -> None:
    assert Place.parse(token) is None


def test_a_name_of_the_logs_is_a_stream_id_and_no_name_from_outside_is_one() -> None:
    assert all(
        marks.is_stream_id(each) and Place.parse(f"1{each}.1-1") for each in (new_stream_id() for _ in range(100))
    )
    assert not marks.is_stream_id("../../etc/passwd".ljust(22, "x"))


def test_an_id_line_makes_an_event_that_carries_its_place() -> None:
    block = b"%b%d\ndata: x\n\n" % (marks.id_line(STREAM, 2), 7)
    (event,) = sse.Decoder().feed(block)
    assert Place.parse(event.id) == Place(STREAM, 2, 7)


@pytest.mark.parametrize(
    ("block", "has"),
    [
        (b"data: x\n\n", True),
        (b"data\n\n", True),
        (b"data\r\r", True),
        (b": c\r\ndata:x\r\n\r\n", True),
        (b"event: e\rdata:x\r\r", True),
        (b"id: 1\n\n", False),
        (b": data: x\n\n", False),
        (b"metadata: x\n\n", False),
        (b"datax: x\n\n", False),
        (b"\n", False),
    ],
)
def test_only_data_dispatches_an_event(block: bytes, has: bool) -> None:
    assert marks.has_data(block) is has


@pytest.mark.parametrize(
    ("block", "less"),
    [
        (b"id: 1\ndata: x\n\n", b"data: x\n\n"),
        (b"data: x\r\nid:1\r\n\r\n", b"data: x\r\n\r\n"),
        (b"id\ndata: x\n\n", b"data: x\n\n"),
        (b"data: a\rid: 2\rdata: b\r\r", b"data: a\rdata: b\r\r"),
        (b"id: 1\nid: 2\ndata: x\n\n", b"data: x\n\n"),
    ],
)
def test_an_id_of_the_upstreams_is_taken_out_and_nothing_else(block: bytes, less: bytes) -> None:
    assert marks.has_id(block)
    assert marks.without_id(block) == less


@pytest.mark.parametrize("block", [b"data: id: 1\n\n", b"idea: x\ndata: y\n\n", b": id: 1\n\n", b"data: x\nidle\n\n"])
def test_what_only_looks_like_an_id_stays(block: bytes) -> None:
    assert not marks.has_id(block)
    assert marks.without_id(block) == block
