from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DecodeError, LimitExceeded
from penstock.wire.headers import is_event_stream
from penstock.wire.sse import MAX_RETRY_MS, BlockCutter, Decoder, Event, comment, encode
from tests.wire.cases import Outcome, corpus, every_split, faults, ratio, raw, reference, run, text


class Plain:
    """The interpretation as the standard words it, one character at a time over the whole text. No limits."""

    def __init__(self, body: bytes, last_event_id: str = "") -> None:
        stream = body.decode("utf-8", "replace").removeprefix("\ufeff")
        self.events: list[Event] = []
        self.comments: list[str] = []
        self.last_event_id = self._id = last_event_id
        self.retry_ms: int | None = None
        self._data = ""
        self._type = ""
        line = ""
        i = 0
        while i < len(stream):
            if stream[i] in "\r\n":
                i += 2 if stream[i : i + 2] == "\r\n" else 1
                self._line(line)
                line = ""
            else:
                line += stream[i]
                i += 1
        self.dropped = int(self._data != "" or line == "data" or line.startswith("data:"))

    def _line(self, line: str) -> None:
        if line == "":
            self.last_event_id = self._id
            if self._data != "":
                self.events.append(Event(self._type or "message", self._data[:-1], self._id))
            self._data = self._type = ""
        elif line[0] == ":":
            self.comments.append(line[1:].removeprefix(" "))
        elif ":" in line:
            self._field(line[: line.index(":")], line[line.index(":") + 1 :].removeprefix(" "))
        else:
            self._field(line, "")

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value and set(value) <= set("0123456789"):
            self.retry_ms = min(int(value.lstrip("0")[:11] or "0"), MAX_RETRY_MS)


def every_way(body: bytes, **options: Any) -> Iterator[tuple[Outcome, list[str]]]:
    """Decode in every split, each with the comments that it saw."""
    comments: list[str] = []

    def new() -> Decoder:
        comments.clear()
        return Decoder(on_comment=comments.append, **options)

    for outcome in every_split(new, body):
        yield outcome, comments


# ------------------------------------------------------------------------------------------------------------- Decoder


@pytest.mark.parametrize("case", corpus("sse"))
def test_corpus(case: dict[str, Any]) -> None:
    body = raw(case["input"])
    expected = [Event(*map(text, event)) for event in case["events"]]
    before = case.get("before", "")
    for outcome, comments in every_way(body, last_event_id=before):
        assert outcome.error is None
        assert outcome.items == expected
        assert outcome.decoder.last_event_id == case.get("last_event_id", "")
        assert outcome.decoder.retry_ms == case.get("retry_ms")
        assert outcome.decoder.dropped == case.get("dropped", 0)
        assert comments == case.get("comments", [])


@pytest.mark.parametrize("case", corpus("sse"))
def test_the_plain_decoder_of_these_tests_agrees_with_the_corpus(case: dict[str, Any]) -> None:
    plain = Plain(raw(case["input"]), case.get("before", ""))
    assert plain.events == [Event(*map(text, event)) for event in case["events"]]
    assert plain.last_event_id == case.get("last_event_id", "")
    assert (plain.retry_ms, plain.comments) == (case.get("retry_ms"), case.get("comments", []))


@pytest.mark.parametrize("case", reference("sse_vectors.json", "name"))
def test_reference_vectors(case: dict[str, Any]) -> None:
    assert is_event_stream(case["content_type"]) is not case.get("must_fail", False)
    if case.get("must_fail"):
        return  # such a body is never decoded
    expected = [Event(event["event"], event["data"], event["id"]) for event in case["expected"]]
    body = base64.b64decode(case["input_b64"])
    for outcome, comments in every_way(body, last_event_id=case.get("last_event_id_before", "")):
        assert outcome.error is None
        assert outcome.items == expected
        assert outcome.decoder.last_event_id == case["last_event_id_after"]
        assert outcome.decoder.retry_ms == case["retry_after"]
        assert comments == case.get("comments", comments)


FRAGMENTS = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b":", b": ", b" "),
    *(b"data", b"data: ", b"data:x", b"event: e", b"id: 1", b"id", b"id: \0", b"retry: 5", b"retry: x", b"other: y"),
    *(b"data: a\n\n", b"data: b\r\n\r\n", b"event: t\nid: 2\ndata: c\n\n", b": ping\n"),
    *(b"\xef\xbb\xbf", b"\xef", b"\xff", "€".encode(), b"\0", b"x"),
]


@settings(max_examples=500)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=6).map(b"".join), max_size=12))
def test_agrees_with_the_plain_decoder(pieces: list[bytes]) -> None:
    plain = Plain(b"".join(pieces), "before")
    comments: list[str] = []
    outcome = run(Decoder(last_event_id="before", on_comment=comments.append), pieces)
    assert outcome.error is None
    assert outcome.items == plain.events
    assert comments == plain.comments
    decoder = outcome.decoder
    assert (decoder.last_event_id, decoder.retry_ms, decoder.dropped) == (
        plain.last_event_id,
        plain.retry_ms,
        plain.dropped,
    )


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=6).map(b"".join), max_size=8), st.integers(0, 12))
def test_limits_do_not_depend_on_the_split(pieces: list[bytes], limit: int) -> None:
    body = b"".join(pieces)
    whole = run(Decoder(max_event_bytes=limit), [body])
    assert run(Decoder(max_event_bytes=limit), pieces).told == whole.told
    assert run(Decoder(max_event_bytes=limit), [body[i : i + 1] for i in range(len(body))]).told == whole.told
    events = Plain(body).events
    assert whole.items == events[: len(whole.items)]
    if whole.error is None:
        assert len(whole.items) == len(events)


LIVE = [
    *(b"data: x\n\n", b"data: x\r\n\r\n", b"data: x\r\r", b"data: x\n\r\n", b"data: x\r\n\n", b"data: x\r\n\r"),
    *(b"data: \n\n", b"data: \r\n\r\n", b"data:  x\n\n", b"data: a\rb\n\n", b"data: a\rb\r\n\r\n", b"data: x\n\n\n"),
    *(b"data: \xff\n\n", "data: €\r\n\r\n".encode(), b"data: \xe2\x82\n\n", b"data: x\0\n\n", b"\n", b": c\n\n"),
    *(
        b"data: x\ndata: y\n\n",
        b"data: x\n\ndata: y\n\n",
        b"data: x\n",
        b"data: x\nid: 2\n\n",
        b"id: 3\n",
        b"event: e\n",
    ),
]


@pytest.mark.parametrize(
    "before", [b"id: 1\n\n", b"id: 1\n", b"id: 1\r\n\r", b"event: e\n", b"data: d\n", b"data: ", b"\xef\xbb"]
)
@pytest.mark.parametrize("chunk", LIVE)
def test_a_chunk_that_looks_like_one_event(before: bytes, chunk: bytes) -> None:
    for behind in LIVE:
        pieces = [before, chunk, behind]
        plain = Plain(b"".join(pieces))
        outcome = run(Decoder(), pieces)
        assert outcome.items == plain.events
        assert (outcome.decoder.last_event_id, outcome.decoder.dropped) == (plain.last_event_id, plain.dropped)


def test_an_event_is_a_tuple_with_defaults() -> None:
    assert Event() == ("message", "", "")
    [event] = Decoder().feed(b"id: 3\ndata: x\n\n")
    assert isinstance(event, Event)
    assert (event.type, event.data, event.id) == ("message", "x", "3")
    assert event._replace(data="y") == Event("message", "y", "3")


def test_events_come_as_soon_as_their_blank_line() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: 1\r") == []
    assert decoder.feed(b"\r") == [Event(data="1")]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: 2\n") == []
    assert decoder.feed(b"\n") == [Event(data="2")]


def test_an_empty_feed_is_not_the_end() -> None:
    decoder = Decoder()
    decoder.feed(b"data: 1\r")
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\n\r\n") == [Event(data="1")]


def test_a_line_takes_effect_before_its_event_is_complete() -> None:
    comments: list[str] = []
    decoder = Decoder(on_comment=comments.append)
    decoder.feed(b"data: 1\nretry: 50\n: here\nid: 8\n")
    assert decoder.retry_ms == 50
    assert comments == ["here"]
    assert decoder.last_event_id == ""
    assert decoder.feed(b"\n") == [Event(data="1", id="8")]
    assert decoder.last_event_id == "8"


def test_close_twice_counts_once() -> None:
    decoder = Decoder()
    decoder.feed(b"data: 1\ndata: 2")
    assert decoder.close() == []
    assert decoder.close() == []
    assert decoder.dropped == 1


@pytest.mark.parametrize(
    ("body", "events", "what"),
    [
        (b"data: 3456\n\n", ["3456"], None),
        (b"data: 34567\n\n", [], "a line"),
        (b"data: 34567", [], "a line"),
        (b"data: 3456\r\n\r\n", ["3456"], None),
        (b"data: 34567\r\n\r\n", [], "a line"),
        (b"data:34567\n\n", ["34567"], None),
        (b"data:345678\n\n", [], "a line"),
        (b"data: 1\n\ndata: 34567\n\n", ["1"], "a line"),
        (b": 1\n: 3456789ab\n\n", [], "a line"),
        (b": 1\ndata: 1\n\n: 3456789ab", ["1"], "a line"),
        (b"data: 1234\ndata: 6789\n\n", ["1234\n6789"], None),
        (b"data: 1234\ndata: 6789\ndata\n\n", ["1234\n6789\n"], None),
        (b"data: 1234\ndata: 6789\ndata\ndata\n\n", [], "the data of an event"),
        (b"data: 1234\ndata: 6789\ndata: b", ["unfinished"], None),
        (b"data: 1234\ndata: 6789\ndata: b\n", [], "the data of an event"),
        (b"data: 1\n\n" + b"data\n" * 12 + b"\n", ["1"], "the data of an event"),
        (b"data\n" * 11 + b"\n", ["\n" * 10], None),
        (b"data: 1\nid: 2\nevent: a\n: 12345678\nretry: 12\nx\ndata: 2\n\n", ["1\n2"], None),
        (b"\xef\xbb\xbfdata: 3456\n\n", ["3456"], None),
        (b"\xef\xbb\xbfdata: 34567\n\n", [], "a line"),
        ("data: ää\ndata: ää\n\n".encode(), ["ää\nää"], None),
        ("data: ää\ndata: ää\ndata: ä\n\n".encode(), [], "the data of an event"),
        (b"data: \xff\xff\xff\n\n", ["\ufffd\ufffd\ufffd"], None),
        (b"data: \xff\xff\xff\xff\n\n", [], "the data of an event"),
    ],
)
def test_the_limit(body: bytes, events: list[str], what: str | None) -> None:
    for outcome, _ in every_way(body, max_event_bytes=10):
        assert [event.data for event in outcome.items] == (events if events != ["unfinished"] else [])
        if what is None:
            assert outcome.error is None
        else:
            assert isinstance(outcome.error, LimitExceeded)
            assert outcome.error.limit == "max_event_bytes"
            assert str(outcome.error).startswith(f"{what} is longer than 10 bytes")


def test_an_event_of_ten_megabytes_passes_where_it_is_allowed() -> None:
    body = b"data: " + b"x" * 10_000_000 + b"\n\n"
    pieces = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
    [event] = run(Decoder(max_event_bytes=11_000_000), pieces).items
    assert len(event.data) == 10_000_000
    with pytest.raises(LimitExceeded):
        Decoder().feed(body)


def test_events_before_a_fault_come_first_and_the_fault_stays() -> None:
    decoder = Decoder(max_event_bytes=10)
    assert decoder.feed(b"id: 1\ndata: 1\n\nid: 2\ndata: much too long\n\ndata: 3\n\n") == [Event(data="1", id="1")]
    assert decoder.last_event_id == "1"
    first, *others = faults(
        lambda: decoder.feed(b"data: 4\n\n"), lambda: decoder.feed(b""), decoder.close, decoder.close
    )
    assert isinstance(first, LimitExceeded)
    assert all(fault is first for fault in others)


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("start", [b"data: ", b": ", b"data: 1\ndata: "])
def test_an_endless_line_takes_linear_time(start: bytes, size: int) -> None:
    piece = b"x" * size

    def work(count: int) -> None:
        decoder = Decoder(max_event_bytes=count * size + 10)
        decoder.feed(start)
        for _ in range(count):
            decoder.feed(piece)

    assert ratio(work, 20_000, 8) < 24


@pytest.mark.parametrize("split", [1, 7, 1 << 30])
def test_an_event_of_endless_lines_takes_linear_time(split: int) -> None:
    def work(count: int) -> None:
        body = b"data: x\n" * count
        decoder = Decoder(max_event_bytes=len(body))
        for i in range(0, len(body), split):
            decoder.feed(body[i : i + split])
        [event] = decoder.feed(b"\n")
        assert event.data.count("x") == count

    assert ratio(work, 4_000, 8) < 24


# --------------------------------------------------------------------------------------------------- Event.json, encode


def test_json_of_the_data() -> None:
    assert Event(data='{"Count": 1, "Data": "Event 1"}').json() == {"Count": 1, "Data": "Event 1"}


@pytest.mark.parametrize("data", ["", "[DONE]", '{"a": NaN}', "[" * 100_000, "9" * 5_000, "{'a': 1}"])
def test_json_of_what_is_none(data: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Event("delta", data).json()
    assert "'delta'" in str(caught.value)
    assert repr(data[:20]).strip("'") in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("event", "retry_ms", "expected"),
    [
        (Event(), None, b"data: \n\n"),
        (Event(data="x"), None, b"data: x\n\n"),
        (Event("gate", "x", "7"), 250, b"event: gate\nid: 7\nretry: 250\ndata: x\n\n"),
        (Event(data="a\nb\r\nc\rd"), None, b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (Event(data="\n"), None, b"data: \ndata: \n\n"),
        (Event(data="a\n\rb"), None, b"data: a\ndata: \ndata: b\n\n"),
        (Event(data="data: x\n\nid: 1"), None, b"data: data: x\ndata: \ndata: id: 1\n\n"),
        (Event(data="a\u2028b\x85c\x0bd\0"), None, "data: a\u2028b\x85c\x0bd\0\n\n".encode()),
        (Event("", "x"), 0, b"retry: 0\ndata: x\n\n"),
        (Event(" t ", "x", " i "), None, b"event:  t \nid:  i \ndata: x\n\n"),
    ],
)
def test_encode(event: Event, retry_ms: int | None, expected: bytes) -> None:
    assert encode(event, retry_ms=retry_ms) == expected


@pytest.mark.parametrize(("character", "name"), [("\n", "LF"), ("\r", "CR"), ("\0", "NUL")])
def test_encode_refuses_what_would_inject(character: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} at character 1 of the event's type"):
        encode(Event(type=f"a{character}data: evil"))
    with pytest.raises(ValueError, match=f"{name} at character 2 of the event's id"):
        encode(Event(id=f"ab{character}"))
    with pytest.raises(ValueError, match=f"{name} at character 0 of the event's comment"):
        comment(character)


def test_a_message_shows_the_beginning_of_a_long_type_only() -> None:
    with pytest.raises(DecodeError) as caught:
        Event("t" * 10_000, "x").json()
    assert len(str(caught.value)) < 300


def test_encode_refuses_a_negative_retry() -> None:
    with pytest.raises(ValueError, match="-1"):
        encode(Event(), retry_ms=-1)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


@given(
    st.lists(
        st.tuples(
            WORDS.filter(bool),
            st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n: ")),
            WORDS.filter(bool),
        ),
        max_size=5,
    ),
    st.none() | st.integers(0, MAX_RETRY_MS),
)
def test_what_is_encoded_is_decoded(fields: list[tuple[str, str, str]], retry_ms: int | None) -> None:
    events = [Event(*field) for field in fields]
    body = b"".join(encode(event, retry_ms=retry_ms) for event in events)
    outcome = run(Decoder(), [body])
    assert outcome.items == [
        event._replace(data=event.data.replace("\r\n", "\n").replace("\r", "\n")) for event in events
    ]
    assert outcome.decoder.retry_ms == (retry_ms if events else None)
    assert run(BlockCutter(), [body]).items == [encode(event, retry_ms=retry_ms) for event in events]


@given(WORDS)
def test_a_comment_is_told_and_dispatches_nothing(words: str) -> None:
    told: list[str] = []
    decoder = Decoder(on_comment=told.append)
    assert decoder.feed(b"data: x\n" + comment(words) + b"\n") == [Event(data="x")]
    assert told == [words]


# --------------------------------------------------------------------------------------------------------- BlockCutter


def plain_blocks(body: bytes) -> tuple[list[bytes], bool]:
    """The cutter's rule, line by line over the whole body; and whether the last block is unfinished."""
    blocks: list[bytes] = []
    block = b""
    crlf_before = False
    for line in body.splitlines(keepends=True):  # of bytes, that is CR, LF and CRLF only
        if line == b"\r\n" and not crlf_before:
            blocks += [block + b"\r", b"\n"]
            block = b""
        elif line in (b"\n", b"\r", b"\r\n"):
            blocks.append(block + line)
            block = b""
        else:
            block += line
        crlf_before = line.endswith(b"\r\n")
    return ([*blocks, block], True) if block else (blocks, False)


@pytest.mark.parametrize("case", corpus("sse_blocks"))
def test_block_corpus(case: dict[str, Any]) -> None:
    body = raw(case["input"])
    expected = [raw(block) for block in case["blocks"]]
    assert plain_blocks(body) == (expected, case.get("unfinished", False))
    for outcome in every_split(BlockCutter, body):
        assert outcome.error is None
        assert outcome.items == expected
        assert outcome.decoder.unfinished is case.get("unfinished", False)


@settings(max_examples=500)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=5).map(b"".join), max_size=12))
def test_blocks_joined_are_what_was_fed(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    outcome = run(BlockCutter(), pieces)
    assert b"".join(outcome.items) == body
    assert all(outcome.items)
    assert (outcome.items, outcome.decoder.unfinished) == plain_blocks(body)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join))
def test_lines_between_blocks_change_no_event(body: bytes) -> None:
    # What the relay does with keep-alives: single lines, without a blank one, between items.
    items = run(BlockCutter(), [body]).items
    told: list[str] = []
    decoder = Decoder(on_comment=told.append)
    with_lines = b"".join(item + (b"" if i == len(items) - 1 else b": keep-alive\n") for i, item in enumerate(items))
    assert run(decoder, [with_lines]).items == Plain(body).events
    assert told.count("keep-alive") == max(0, len(items) - 1)


def test_a_block_goes_out_with_its_blank_line() -> None:
    cutter = BlockCutter()
    assert cutter.feed(b"data: 1\n") == []
    assert cutter.feed(b"\n") == [b"data: 1\n\n"]
    assert cutter.feed(b"data: 2\r\r") == [b"data: 2\r\r"]
    assert cutter.feed(b"\n") == [b"\n"]
    assert cutter.feed(b"data: 3\r\n\r") == []
    assert cutter.feed(b"\n") == [b"data: 3\r\n\r\n"]


def test_a_chunk_that_is_one_block_is_not_copied() -> None:
    chunk = b"data: " + b"x" * 100 + b"\n\n"
    [block] = BlockCutter().feed(chunk)
    assert block is chunk


@pytest.mark.parametrize(
    ("body", "blocks", "fails"),
    [
        (b"12345678\n\n12345678\r\r", [b"12345678\n\n", b"12345678\r\r"], False),
        (b"123456789\n\n", [], True),
        (b"1234567890", [b"1234567890"], False),
        (b"12345678901", [], True),
        (b"1\n\n123456789\n\n2\n\n", [b"1\n\n"], True),
        (b"1\n\n2\n3456789\n\n", [b"1\n\n"], True),
        (b"123456\r\n\r\n", [b"123456\r\n\r\n"], False),
        (b"1234567\r\n\r\n", [], True),
        (b"1234567\r\n\rx", [b"1234567\r\n\r", b"x"], False),
    ],
)
def test_the_limit_of_a_block(body: bytes, blocks: list[bytes], fails: bool) -> None:
    for outcome in every_split(lambda: BlockCutter(max_block_bytes=10), body):
        assert outcome.items == blocks
        assert isinstance(outcome.error, LimitExceeded) is fails
        if isinstance(outcome.error, LimitExceeded):
            assert outcome.error.limit == "max_block_bytes"


def test_after_a_fault_the_cutter_raises_it_again() -> None:
    cutter = BlockCutter(max_block_bytes=10)
    assert cutter.feed(b"1\n\n12345678901\n\n") == [b"1\n\n"]
    first, *others = faults(lambda: cutter.feed(b"1\n\n"), cutter.close, cutter.close)
    assert isinstance(first, LimitExceeded)
    assert all(fault is first for fault in others)


@pytest.mark.parametrize("piece", [b"x", b"x" * 64, b"x\n", b"x\r", b"x\r\n"])
def test_an_endless_block_takes_linear_time(piece: bytes) -> None:
    def work(count: int) -> None:
        cutter = BlockCutter(max_block_bytes=count * len(piece))
        for _ in range(count):
            cutter.feed(piece)
        assert cutter.close() == [piece * count]

    assert ratio(work, 10_000, 8) < 24


LINES = [b"\n", b"\r", b"\r\n", b"x\n\n", b"x\r\n\r\n", b"x\r\r", b"x\n", b"x\r", b"x\r\n"]


@pytest.mark.parametrize(
    ("first", "line"), [*((b"", line) for line in LINES), *((b"y\r\n", line) for line in LINES[:3])]
)
def test_a_chunk_of_short_lines_takes_linear_time(first: bytes, line: bytes) -> None:
    def work(count: int) -> None:
        cutter = BlockCutter(max_block_bytes=1 << 30)
        cutter.feed(first + line * count)

    assert ratio(work, 10_000, 8) < 24


def test_json_module_agrees_about_the_data() -> None:
    value = {"delta": "ü\n", "n": [1, 2.5, None]}
    [event] = Decoder().feed(encode(Event(data=json.dumps(value, indent=1))))
    assert event.json() == value
