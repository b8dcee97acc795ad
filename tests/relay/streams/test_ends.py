from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.relay.streams import ends
from penstock.relay.streams.ends import DIALECTS, Dialect, StreamEnd, Usage
from penstock.wire import sse
from penstock.wire.terminator import PROFILES, Failure

WRONG = 'it "broke"\noff – \x00'


def the_event(block: bytes) -> sse.Event:
    (event,) = sse.Decoder().feed(block)
    return event


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_a_bad_end_in_one_record(dialect: Dialect) -> None:
    block = ends.said(dialect, "error", WRONG)
    if dialect == "ndjson":
        assert block.count(b"\n") == 1
        assert json.loads(block)["error"]["message"] == WRONG
        return
    assert block.endswith(b"\n\n")
    assert WRONG in leaves(json.loads(the_event(block).data))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [value]


def values(dialect: Dialect, reason: Any = "error") -> tuple[str, Any]:
    event = the_event(ends.said(dialect, reason, "broke"))
    return event.type, json.loads(event.data)


def test_the_words_of_each_dialect() -> None:
    assert values("penstock") == ("penstock.error", {"error": {"type": "upstream_error", "message": "broke"}})
    assert values("penstock", "producer_lost")[1]["error"]["type"] == "producer_lost"
    assert values("penstock", "cancelled")[1]["error"]["type"] == "cancelled"
    type_, value = values("openai")
    assert type_ == "message"
    assert value["error"]["message"] == "broke"
    assert values("anthropic") == ("error", {"type": "error", "error": {"type": "api_error", "message": "broke"}})
    assert values("ai-sdk") == ("message", {"type": "error", "errorText": "broke"})
    assert values("ag-ui") == ("message", {"type": "RUN_ERROR", "message": "broke", "code": "upstream_error"})


@pytest.mark.parametrize(("dialect", "profile"), [("openai", "openai"), ("anthropic", "anthropic")])
def test_a_client_of_the_protocol_takes_it_for_a_failure(dialect: Dialect, profile: str) -> None:
    judged = PROFILES[profile].judge(the_event(ends.said(dialect, "error", "broke")))
    assert isinstance(judged, Failure)
    assert judged.message == "broke"


@pytest.mark.parametrize(
    ("block", "dialect"),
    [
        (b'data: {"id":"x","object":"chat.completion.chunk"}\n\n', "openai"),
        (b'data: {"object": "text_completion"}\n\n', "openai"),
        (b'event: message_start\ndata: {"type": "message_start"}\n\n', "anthropic"),
        (b'data: {"type":"message_start"}\n\n', "anthropic"),
        (b'data: {"type":"RUN_STARTED"}\n\n', "ag-ui"),
        (b"data: hello\n\n", None),
    ],
)
def test_a_dialect_is_heard_in_the_first_block(block: bytes, dialect: Dialect | None) -> None:
    assert ends.spoken(block) == dialect


def test_a_dialect_is_read_from_the_fields() -> None:
    assert ends.spoken_in([(b"x-vercel-ai-ui-message-stream", b"v1")]) == "ai-sdk"
    assert ends.spoken_in([(b"content-type", b"text/event-stream")]) is None


def test_a_gap_tells_what_is_missed() -> None:
    event = the_event(ends.gap(3, 10))
    assert (event.type, json.loads(event.data)) == ("penstock.gap", {"requested": 3, "earliest": 10})


def test_usage_is_put_together_of_the_first_and_the_last() -> None:
    usage = Usage()
    usage.saw(b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n')
    usage.saw(b'event: message_delta\ndata: {"usage":{"output_tokens":40}}\n\n')
    assert usage.total() == {"input_tokens": 7, "output_tokens": 40}


@pytest.mark.parametrize(
    ("block", "total"),
    [
        (b'data: {"usage":null}\n\n', None),
        (b'data: {"usage":{"total_tokens":3}}\n\n', {"total_tokens": 3}),
        (b'data: {"response":{"usage":{"total_tokens":3}}}\n\n', {"total_tokens": 3}),
        (b'{"usage":{"total_tokens":3}}\n', {"total_tokens": 3}),
        (b'data: {"usage" is what\n\n', None),
        (b'data: ["usage"]\n\n', None),
        (b"data: " + b"[" * 100_000 + b'"usage"\n\n', None),
    ],
)
def test_usage_is_found_where_it_is_and_nowhere_else(block: bytes, total: dict[str, int] | None) -> None:
    usage = Usage()
    usage.saw(block)
    assert usage.total() == total


@pytest.mark.anyio
async def test_an_end_that_was_not_logged_has_no_records() -> None:
    end = StreamEnd("x", None, None, "done", "", 1, 2, 0.1, 0.2)
    assert await end.records() == []
    assert await end.events() == []
