from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from penstock.wire.sse import Decoder, Event
from tests.raw import Answer, ask, connected, request, until

pytestmark = pytest.mark.anyio

CHAT = {"model": "m", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]}


def events(answer: Answer) -> list[Event]:
    return Decoder(max_event_bytes=1 << 20).feed(answer.body)


async def post(url: str, target: str, body: Any) -> Answer:
    return await ask(url, target, "POST", body=body if isinstance(body, bytes) else json.dumps(body).encode())


# -- /generate


async def test_generate_sends_each_chunk_at_once(url: str, log: Callable[[], list[str]]) -> None:
    answer = await ask(url, "/generate?chunks=3&interval=0.01")
    assert (answer.status, answer.headers["content-type"], answer.complete) == (200, "text/plain; charset=utf-8", True)
    *lines, end = answer.chunks
    assert end == b""
    assert [line.split(b" [")[0] for line in lines] == [b"Chunk 1", b"Chunk 2", b"Chunk 3"]
    assert all(re.fullmatch(rb"Chunk \d \[\d\d:\d\d:\d\d\.\d{3}\]\n", line) for line in lines)
    assert log() == ["GET /generate: 3 chunks sent"]


async def test_generate_begins_at_once_and_keeps_its_interval(url: str) -> None:
    async with connected(url) as (reader, writer):
        began = time.monotonic()
        writer.write(request("/generate?chunks=3&interval=0.5"))
        arrived = []
        for number in (1, 2, 3):
            await reader.readuntil(b"Chunk %d " % number)
            arrived.append(time.monotonic() - began)
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrived)]
    assert min(gaps) > 0.4, "chunks came together"
    assert arrived[0] < min(gaps), "the first one waited for its interval"


@pytest.mark.parametrize("interval", ["0", "0.02", "30"])
async def test_generate_stops_when_its_reader_leaves(url: str, log: Callable[[], list[str]], interval: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request(f"/generate?chunks=1000000&interval={interval}"))
        await reader.readuntil(b"Chunk 1 ")
    await until(log)
    assert re.fullmatch(r"GET /generate: the reader left after \d+ chunks?", log()[0])
    if interval == "30":
        assert log() == ["GET /generate: the reader left after 1 chunk"]


async def test_generate_notices_a_half_closed_reader(url: str, log: Callable[[], list[str]]) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/generate?interval=30"))
        await reader.readuntil(b"Chunk 1 ")
        writer.write_eof()
        await until(log)
    assert log() == ["GET /generate: the reader left after 1 chunk"]


async def test_no_chunks_are_an_empty_complete_body(url: str) -> None:
    answer = await ask(url, "/generate?chunks=0")
    assert (answer.status, answer.body, answer.complete) == (200, b"", True)


@pytest.mark.parametrize("query", ["chunks=-1", "chunks=x", "chunks=99999999999", "interval=-1", "interval=nan"])
async def test_generate_refuses(url: str, query: str) -> None:
    answer = await ask(url, f"/generate?{query}")
    assert answer.status == 422
    assert json.loads(answer.body)["detail"].startswith(query.partition("=")[0] + " must be ")


# -- /trigger_invocation


async def test_trigger_invocation(url: str) -> None:
    answer = await post(url, "/trigger_invocation?interval=0.01", {"query": "hello"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.chunks == [
        b'data: {"Count":1,"Data":"Event 1"}\n\n',
        b'data: {"Count":2,"Data":"Event 2"}\n\n',
        b'data: {"Count":3,"Data":"Event 3"}\n\n',
        b'data: {"Count":4,"Data":"Event 4"}\n\n',
        b'data: {"Data":"Stream completed"}\n\n',
        b"",
    ]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"", ["body"]),
        (b"{", ["body"]),
        (b"\xff", ["body"]),
        (b"[" * 100_000, ["body"]),
        (b"[]", ["body"]),
        (b"{}", ["body", "query"]),
        (b'{"query": 1}', ["body", "query"]),
    ],
)
async def test_a_bad_invocation_is_refused_with_the_reason(url: str, body: bytes, loc: list[str]) -> None:
    answer = await ask(url, "/trigger_invocation", "POST", body=body, length=len(body))
    assert answer.status == 422
    (detail,) = json.loads(answer.body)["detail"]
    assert detail["loc"] == loc
    assert detail["msg"]


async def test_a_body_that_is_no_question_but_a_flood_is_413(url: str) -> None:
    answer = await post(url, "/trigger_invocation", b" " * (2 << 20))
    assert (answer.status, answer.headers["connection"]) == (413, "close")


# -- /events


async def test_events_have_ids_and_ask_for_a_retry(url: str) -> None:
    answer = await ask(url, "/events?count=3&interval=0")
    decoder = Decoder(max_event_bytes=1000)
    assert decoder.feed(answer.body) == [Event(data=f'{{"n":{n}}}', id=str(n)) for n in (1, 2, 3)]
    assert decoder.retry_ms == 1000
    assert len(answer.chunks) == 4, "each event is sent on its own"


async def test_events_continue_after_the_last_event_id(url: str) -> None:
    answer = await ask(url, "/events?count=5&interval=0", headers="Last-Event-ID: 3\r\n")
    assert [event.id for event in events(answer)] == ["4", "5"]


@pytest.mark.parametrize("cursor", ["5", "6", "1000000"])
async def test_nothing_follows_the_end(url: str, cursor: str) -> None:
    assert (await ask(url, "/events?count=5", headers=f"Last-Event-ID: {cursor}\r\n")).status == 204


async def test_a_strange_cursor_is_refused_not_restarted(url: str) -> None:
    assert (await ask(url, "/events", headers="Last-Event-ID: abc\r\n")).status == 422


# -- /v1/chat/completions


async def test_a_streamed_completion(url: str) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = await post(url, "/v1/chat/completions?interval=0&tokens=3", body)
    *chunks, done = [event.data for event in events(answer)]
    assert done == "[DONE]"
    first, *tokens, last, usage = [json.loads(chunk) for chunk in chunks]
    assert {chunk["object"] for chunk in (first, *tokens, last, usage)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (first, *tokens, last, usage)}) == 1
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in tokens] == ["You", " said:", " hello"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in (first, *tokens)} == {None}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)
    assert first["usage"] is None


async def test_without_usage_there_is_no_usage_chunk(url: str) -> None:
    answer = await post(url, "/v1/chat/completions?interval=0&tokens=1", {**CHAT, "stream": True})
    assert "usage" not in answer.body.decode()
    assert len(events(answer)) == 4


async def test_the_plain_completion_says_what_the_streamed_one_says(url: str) -> None:
    plain = json.loads((await post(url, "/v1/chat/completions", CHAT)).body)
    streamed = await post(url, "/v1/chat/completions?interval=0", {**CHAT, "stream": True})
    deltas = [json.loads(event.data)["choices"][0]["delta"] for event in events(streamed)[:-1]]
    assert plain["object"] == "chat.completion"
    assert plain["choices"][0]["message"]["content"] == "".join(delta.get("content", "") for delta in deltas)
    assert plain["choices"][0]["message"]["content"].startswith("You said: hello And")
    assert plain["usage"]["completion_tokens"] == len(deltas) - 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        ([], None),
        ({"messages": []}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["hi"]}, "messages[0]"),
        ({**CHAT, "stream": "yes"}, "stream"),
    ],
)
async def test_a_bad_completion_is_refused_in_the_dialect(url: str, body: Any, param: str | None) -> None:
    answer = await post(url, "/v1/chat/completions", body)
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


async def test_other_readers_are_served_meanwhile(url: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/file?lines=1000000000"))
        await reader.readuntil(b"Line 1:")
        eater = asyncio.create_task(_eat(reader))
        answer = await asyncio.wait_for(ask(url, "/generate?chunks=3&interval=0"), 20)
        eater.cancel()
    assert answer.complete


async def _eat(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 20):
        pass
