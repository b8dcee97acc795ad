from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import LimitExceeded
from penstock.eventlog.memory import MemoryLog
from penstock.relay.streams.ends import Kind
from penstock.relay.streams.feed import Feed, Ids, SseFeed, feed_for
from penstock.relay.streams.marks import Place
from penstock.wire import sse
from tests.relay.readers import plain

STREAM = "S" * 22
BODY = (
    b": hello\n\nevent: a\ndata: 1\n\nretry: 10\n\ndata: 2\r\ndata: 3\r\n\r\n\ndata: \xc3\xa4\r\r"
    b'data: {"object":"chat.completion.chunk","usage":{"total_tokens":9}}\n\ndata: [DONE]\n\n'
)


def sse_feed(ids: Ids = "ours", limit: int = 1000) -> Feed:
    return feed_for("sse", STREAM, 4, ids=ids, max_event_bytes=limit)


def fed(feed: Feed, *pieces: bytes) -> list[bytes]:
    records: list[bytes] = []
    for piece in pieces:
        records += feed.feed(piece, len(records) + 1)
    return records + feed.close(len(records) + 1)


def splits(body: bytes) -> list[list[bytes]]:
    chance = random.Random(5)
    result = [[body], [body[at : at + 1] for at in range(len(body))]]
    for _ in range(20):
        cuts = sorted(chance.sample(range(len(body)), 6))
        result.append([body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)])
    return result


@pytest.mark.parametrize("ids", ["ours", "auto", "upstream"])
@pytest.mark.parametrize("pieces", splits(BODY))
def test_blocks_go_on_byte_for_byte_but_for_the_id(ids: Ids, pieces: list[bytes]) -> None:
    records = fed(sse_feed(ids), *pieces)
    assert records == fed(sse_feed(ids), BODY)
    if ids == "upstream":
        assert b"".join(records) == BODY
    else:  # behind an id, what dispatches nothing has no blank line
        lines = BODY.replace(b"retry: 10\n\n", b"retry: 10\n").replace(b"3\r\n\r\n\n", b"3\r\n\r\n:\n")
        assert plain(b"".join(records)) == lines


def test_each_block_with_data_carries_the_sequence_of_its_record() -> None:
    records = fed(sse_feed(), BODY)
    for sequence, record in enumerate(records, 1):
        events = sse.Decoder().feed(record)
        assert record.startswith(b"id: ") == bool(events)
        if events:
            assert Place.parse(events[0].id) == Place(STREAM, 4, sequence)


def test_auto_leaves_the_ids_of_an_upstream_that_has_its_own() -> None:
    body = b"id: 1\ndata: a\n\ndata: b\n\n"
    assert b"".join(fed(sse_feed("auto"), body)) == body
    assert b"".join(fed(sse_feed("auto"), b"id: 1\n\n", b"data: a\n\n")) == b"id: 1\n\ndata: a\n\n"


def test_ours_takes_the_place_of_theirs_in_blocks_without_data_too() -> None:
    records = fed(sse_feed("ours"), b"id: 5\ndata: a\n\nid: 6\n\ndata: b\nid: 7\n\n")
    assert plain(b"".join(records)) == b"data: a\n\n:\ndata: b\n\n"
    decoder = sse.Decoder()
    ids = [Place.parse(event.id) for event in decoder.feed(b"".join(records))]
    assert ids == [Place(STREAM, 4, 1), Place(STREAM, 4, 3)]
    assert Place.parse(decoder.last_event_id) == Place(STREAM, 4, 3)


def test_a_block_with_a_type_alone_keeps_its_blank_line_which_drops_the_type() -> None:
    records = fed(sse_feed("ours"), b"data: a\n\nevent: x\nid: 3\n\ndata: b\n\n")
    assert [event.type for event in sse.Decoder().feed(b"".join(records))] == ["message", "message"]
    assert plain(b"".join(records)) == b"data: a\n\nevent: x\n\ndata: b\n\n"


def test_auto_takes_the_place_of_the_ids_of_another_relay() -> None:
    inner = b"id: %s\ndata: a\n\n" % str(Place("I" * 22, 1, 1)).encode()
    (record,) = fed(sse_feed("auto"), inner)
    assert Place.parse(sse.Decoder().feed(record)[0].id) == Place(STREAM, 4, 1)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf"])
def test_a_byte_order_mark_does_not_stand_behind_an_id(mark: bytes) -> None:
    (record,) = fed(sse_feed(), mark + b"data: a\n\n")
    assert sse.Decoder().feed(record)[0].data == "a"


def test_an_event_that_no_blank_line_ended_is_dropped() -> None:
    feed = sse_feed()
    assert plain(b"".join(fed(feed, b"data: a\n\ndata: half\n"))) == b"data: a\n\ndata: half\n"
    assert feed.unfinished


def test_what_goes_by_is_known() -> None:
    feed = sse_feed()
    fed(feed, BODY)
    assert feed.usage.total() == {"total_tokens": 9}


def test_the_dialect_is_heard_in_the_first_block_with_data() -> None:
    feed = sse_feed()
    feed.feed(b": c\n\n", 1)
    assert feed.dialect is None
    feed.feed(b'data: {"object":"chat.completion.chunk"}\n\n', 2)
    assert feed.dialect == "openai"


@pytest.mark.parametrize(("kind", "piece"), [("sse", b"data: x"), ("ndjson", b'{"x":1')])
def test_an_endless_record_meets_its_limit(kind: Kind, piece: bytes) -> None:
    feed = feed_for(kind, STREAM, 1, ids="ours", max_event_bytes=1000)
    with pytest.raises(LimitExceeded):
        for _ in range(1000):
            assert feed.feed(piece, 1) == []


@pytest.mark.parametrize("body", [b'{"a":1}\r\n\n{"b":2}\n', b'{"a":1}\n{"usage":{"n":1}}', b"", b"\n"])
def test_lines_go_on_byte_for_byte(body: bytes) -> None:
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        feed = feed_for("ndjson", STREAM, 1, ids="ours", max_event_bytes=1000)
        records = fed(feed, *pieces)
        assert b"".join(records) == body
        assert len(records) == body.count(b"\n") + (1 if body and not body.endswith(b"\n") else 0)
        assert feed.dialect == "ndjson"


def test_bytes_are_records_as_they_come() -> None:
    feed = feed_for("bytes", STREAM, 1, ids="ours", max_event_bytes=2)
    assert fed(feed, b"data: x\n\n", b"\x1f\x8b") == [b"data: x\n\n", b"\x1f\x8b"]


@pytest.mark.parametrize("ids", ["ours", "auto"])
def test_from_when_on_nobody_can_come_back_blocks_have_no_ids(ids: Ids) -> None:
    feed = feed_for("sse", STREAM, 4, ids=ids, max_event_bytes=1000)
    assert isinstance(feed, SseFeed)
    assert fed(feed, b"data: 1\n\n")[0].startswith(b"id: 1S")
    feed.unmark()
    assert feed.feed(b"data: 2\n\n", 2) == [b"data: 2\n\n"]
    assert feed.feed(b"id: theirs\ndata: 3\n\n:\n\n", 3) == [b"data: 3\n\n", b":\n\n"]
    assert not feed.marked


def test_ids_of_the_upstreams_stay_when_ours_go() -> None:
    for first in (b"id: a\ndata: 1\n\n", b""):
        feed = feed_for("sse", STREAM, 4, ids="auto", max_event_bytes=1000)
        assert isinstance(feed, SseFeed)
        feed.feed(first, 1)
        feed.unmark()
        assert feed.feed(b"id: b\ndata: 2\n\n", 2) == [b"id: b\ndata: 2\n\n"]


CHUNKS = [
    b"data: a\n\n",
    b"data:\n\n",
    b"data\n\n",
    b'data: {"usage":{"n":1}}\n\n',
    b"data: " + b"l" * 60 + b"\n\n",
    b"data: a\r\n\r\n",
    b"data: a\r\r",
    b"data: a\ndata: b\n\n",
    b"data: a\n\ndata: b\n\n",
    b"data: a\r\n\n",
    b"data: a\n\n\n",
    b"data: a\n",
    b"datum: a\n\n",
    b"event: x\ndata: a\n\n",
    b"id: 7\ndata: a\n\n",
    b": c\n\n",
    b"\n",
    b"\n\n",
    b"d",
]


@given(
    ids=st.sampled_from(["ours", "auto", "upstream"]),
    chunks=st.lists(st.sampled_from(CHUNKS), max_size=12),
    unmarked_at=st.integers(0, 20),
)
def test_what_is_taken_is_appended_as_it_is_fed(ids: Ids, chunks: list[bytes], unmarked_at: int) -> None:
    refused: list[Exception] = []
    fed, taken = (feed_for("sse", STREAM, 4, ids=ids, max_event_bytes=50) for _ in range(2))
    assert isinstance(fed, SseFeed)
    assert isinstance(taken, SseFeed)
    records: list[bytes] = []

    async def take() -> None:
        async with MemoryLog() as log:
            stream, producer = await log.open(None, "", b"")
            assert producer is not None
            producer.start()
            taken.into(producer, refused.append)
            for number, chunk in enumerate(chunks):
                if number == unmarked_at:
                    fed.unmark()
                    taken.unmark()
                taken.take(chunk)
                try:
                    records.extend(fed.feed(chunk, len(records) + 1))
                except LimitExceeded:
                    assert refused
                    break
                assert not refused
                assert list((await stream.read(0)).records) == records
                assert taken.appended == producer.appended == len(records)
                assert plain(taken.last) == plain(fed.last)
                assert taken.usage.total() == fed.usage.total()
                assert (taken.first_at is not None) == bool(records)

    asyncio.run(take())
