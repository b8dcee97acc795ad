"""The text of a chat stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.cli.tail.chat import TERMINATOR, Chat
from penstock.errors import DecodeError
from penstock.wire.sse import Event
from penstock.wire.terminator import Failure


def event(value: Any, type: str = "message") -> Event:
    return Event(data=value if isinstance(value, str) else json.dumps(value), type=type)


def chunk(**delta: Any) -> Event:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})


def block(text: str, kind: str = "text_delta") -> Event:
    delta = {"type": kind, "text" if kind == "text_delta" else "partial_json": text}
    return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


STREAMS = {
    "openai": [
        event({"choices": [], "prompt_filter_results": []}),
        chunk(role="assistant", content=""),
        chunk(content="a"),
        chunk(tool_calls=[{"function": {"arguments": "{}"}}]),
        chunk(content=None),
        event({"choices": [{"index": 1, "delta": {"content": "another"}}, {"index": 0, "delta": {"content": "b\n"}}]}),
        event({"choices": [{"index": 0, "text": "c"}]}),
        event({"choices": ["odd", {"delta": "odd"}, {"delta": {"content": 3}}]}),
        event({"choices": [], "usage": {}}),
        event("[DONE]"),
    ],
    "anthropic": [
        event({"type": "ping"}, "ping"),
        event({"type": "message_start", "message": {}}, "message_start"),
        event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, "content_block_start"),
        block("a"),
        event({"type": "ping"}, "ping"),
        block('{"', "input_json_delta"),
        event(
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
            "content_block_delta",
        ),
        block("b\n"),
        event({"type": "content_block_stop"}, "content_block_stop"),
        block("c")._replace(type="message"),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
    ],
    "openai-responses": [
        event({"type": "response.created", "response": {}}, "response.created"),
        event({"type": "response.output_text.delta", "delta": "a"}, "response.output_text.delta"),
        event(
            {"type": "response.reasoning_summary_text.delta", "delta": "hm"}, "response.reasoning_summary_text.delta"
        ),
        event({"delta": "b\n"}, "response.output_text.delta"),
        event({"type": "response.output_text.delta", "delta": "c"}),
        event({"type": "response.output_text.done", "text": "ab\nc"}, "response.output_text.done"),
        event({"type": "response.completed", "response": {}}, "response.completed"),
    ],
}


@pytest.mark.parametrize("protocol", STREAMS)
def test_the_text_and_the_end_of_each_protocol(protocol: str) -> None:
    chat = Chat("http://x/")
    *before, last = STREAMS[protocol]
    assert [chat.text(each) for each in before if chat.text(each)] == ["a", "b\n", "c"]
    assert chat.text(last) == ""
    assert {TERMINATOR.judge(each) for each in before} <= {"content", "ping"}
    assert TERMINATOR.judge(last) == "end"


@pytest.mark.parametrize(
    "failed",
    [
        event({"error": {"message": "no", "type": "server_error"}}),
        event({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "error"),
        event({"type": "response.failed", "response": {"error": {"message": "no"}}}, "response.failed"),
    ],
)
def test_each_protocol_says_that_it_failed(failed: Event) -> None:
    judged = TERMINATOR.judge(failed)
    assert isinstance(judged, Failure)
    assert judged.message == "no"


@pytest.mark.parametrize("data", ["", "text", "{", '"choices"', "[1]", '{"choices": 1}', '{"n": 1}', "[" * 100_000])
def test_what_is_no_chat_is_told_at_once(data: str) -> None:
    with pytest.raises(DecodeError, match=r"^http://x/y: this is no chat .* leave --text out") as caught:
        Chat("http://x/y").text(event(data))
    assert caught.value.url == "http://x/y"
    assert len(str(caught.value)) < 300


def test_what_a_known_chat_says_besides_is_left_out() -> None:
    chat = Chat("http://x/")
    assert chat.text(chunk(content="a")) == "a"
    assert chat.text(event("")) == ""
    assert chat.text(event("anything", "ping")) == ""
    assert chat.text(event("anything", "debug")) == ""
    assert chat.text(event({"n": 1})) == ""


@pytest.mark.parametrize("type", ["message", "content_block_delta", "response.output_text.delta"])
@pytest.mark.parametrize("data", ["anything", '{"choices":[{"index":0,"delta":{"content":"NOT ', "[" * 100_000])
def test_a_piece_of_a_known_chat_that_is_no_json_is_not_passed_over(type: str, data: str) -> None:
    chat = Chat("http://x/y")
    assert chat.text(chunk(content="a")) == "a"
    with pytest.raises(DecodeError, match=r"^http://x/y: a piece of the chat is no JSON") as caught:
        chat.text(event(data, type))
    assert (caught.value.category, caught.value.url) == ("application", "http://x/y")
    assert len(str(caught.value)) < 300
