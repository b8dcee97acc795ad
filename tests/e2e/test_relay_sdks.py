"""The SDKs of OpenAI and Anthropic, and curl, through the relay that keeps streams: with ids, keep-alives and `retry:`.

The chats are `penstock origin`'s; what it does not speak is spoken by a server of a few lines here.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from penstock import testing
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, Server
from tests.relay.readers import origin as origin_by_hand

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

OUR_ID = re.compile(r"^id: (1[\w-]{22}\.\d+-\d+)$", re.MULTILINE)
PAUSE = 0.08  # seconds between two events; a keep-alive or two go by in it
CONFIG = """
[defaults]
upstream = "{upstream}"
ids = "ours"
keep_alive = "30ms"
on_disconnect = "{on_disconnect}"
timeout = {{ first_event = "20s", between_events = "{between}" }}
"""

Keeping = Callable[..., Server]


@pytest.fixture
def keeping(serve: Serve, tmp_path: Path) -> Keeping:
    """Start a relay that keeps streams under its own ids, and says often that it is there."""

    def start(upstream: str, *options: str, on_disconnect: str = "grace:20s", between: str = "20s") -> Server:
        config = tmp_path / "relay.toml"
        config.write_text(CONFIG.format(upstream=upstream, on_disconnect=on_disconnect, between=between))
        return serve("relay", "--config", config, *options)

    return start


# -- OpenAI -----------------------------------------------------------------------------------------------------------

QUESTION: Any = [{"role": "user", "content": "why?"}]
WORDS = "You said: why? And this is the answer, one"


def openai_at(url: str, **query: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="k", timeout=PATIENCE, max_retries=0, default_query={"tokens": 9, **query}
    )


async def test_openais_sdk_gets_every_token_and_the_usage(keeping: Keeping, origin: Server) -> None:
    async with openai_at(keeping(origin.url).url, interval=PAUSE) as client:
        wire = asyncio.create_task(on_the_wire(client))
        chat = await client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in chat]
        text = await wire
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == WORDS
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.completion_tokens, chunks[-1].usage.total_tokens) == (9, 10)
    assert len(OUR_ID.findall(text)) == 9 + 3  # the role, the tokens, the end, [DONE]
    assert text.count(": keep-alive\n") > 3


async def on_the_wire(client: openai.AsyncOpenAI) -> str:
    """The bytes of such an answer: what the SDK has to cope with."""
    ask = client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION, stream=True)
    async with ask as raw:
        return (await raw.read()).decode()


async def test_openais_sdk_raises_what_the_relay_says(keeping: Keeping, origin: Server) -> None:
    relay = keeping(origin.url, "--grace", "0.2")
    for fault in ("cut_after", "truncate_after"):
        async with openai_at(relay.url, interval=0.01, **{fault: 5}) as client:
            chat = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            text = ""
            with pytest.raises(openai.APIError, match="the stream broke off before its end"):
                async for chunk in chat:
                    text += chunk.choices[0].delta.content or ""
            assert WORDS.startswith(text)
            assert len(text.split()) == 4
    async with openai_at(relay.url, interval=0.1, tokens=10_000) as client:
        chat = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        await anext(chat)
        relay.kill(signal.SIGTERM)  # its readers are told to come back, each at another time
        with pytest.raises(openai.APIError, match="the stream was stopped"):
            async for _ in chat:
                pass
    assert relay.ended() == 143


# -- what the origin does not speak -----------------------------------------------------------------------------------

SAID = [f"word{number} " for number in range(6)]
BROKEN_AT = 5  # of the events


def event(type_: str, **value: Any) -> bytes:
    return f"event: {type_}\ndata: {json.dumps({'type': type_, **value})}\n\n".encode()


def messages() -> list[bytes]:
    """Anthropic's Messages, as they are streamed."""
    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    return [
        event("message_start", message={**message, "stop_reason": None, "stop_sequence": None}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in SAID),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 6}),
        event("message_stop"),
    ]


def responses() -> list[bytes]:
    """OpenAI's Responses, as they are streamed."""
    part = {"type": "output_text", "text": "", "annotations": []}
    item: dict[str, Any] = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    response = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "in_progress"}
    response |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    where = {"item_id": "i", "output_index": 0, "content_index": 0}
    done = {**part, "text": "".join(SAID)}
    usage = {"input_tokens": 3, "output_tokens": 6, "total_tokens": 9}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
    whole = {**item, "status": "completed", "content": [done]}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": response}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**where, "part": part}),
        *(("response.output_text.delta", {**where, "delta": word, "logprobs": []}) for word in SAID),
        ("response.output_text.done", {**where, "text": done["text"], "logprobs": []}),
        ("response.content_part.done", {**where, "part": done}),
        ("response.output_item.done", {"output_index": 0, "item": whole}),
        ("response.completed", {"response": {**response, "status": "completed", "output": [whole], "usage": usage}}),
    ]
    return [event(type_, sequence_number=number, **value) for number, (type_, value) in enumerate(events)]


def chat(*between: bytes) -> list[bytes]:
    """OpenAI's chats as some providers stream them, with more between the events."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [{**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in SAID]
    events = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    return [*(each for event in events for each in (event, *between)), b"data: [DONE]\n\n"]


def speaking(events: list[bytes]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        breaks = "break" in request.query_params
        await request.body()

        async def body() -> AsyncIterator[bytes]:
            for number, each in enumerate(events):
                if breaks and number == BROKEN_AT:
                    raise ConnectionResetError("on purpose")
                yield each
                await asyncio.sleep(PAUSE)

        return StreamingResponse(body(), media_type="text/event-stream")

    return answer


@pytest.fixture
async def provider() -> AsyncIterator[str]:
    app = Starlette(
        routes=[
            Route("/v1/messages", speaking(messages()), methods=["POST"]),
            Route("/v1/responses", speaking(responses()), methods=["POST"]),
            Route("/v1/chat/completions", speaking(chat(b": PROCESSING\n\n", b"\n")), methods=["POST"]),
        ]
    )
    async with testing.serve(app) as url:
        yield url


async def test_openais_responses(keeping: Keeping, provider: str) -> None:
    async with openai_at(keeping(provider).url) as client:
        async with client.responses.stream(model="m", input="why?") as stream:
            deltas = [each.delta async for each in stream if each.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert deltas == SAID
        assert final.output_text == "".join(SAID)
        assert final.usage is not None
        assert final.usage.total_tokens == 9
        broken = await client.responses.create(model="m", input="why?", stream=True, extra_query={"break": "1"})
        with pytest.raises(openai.APIError, match="the stream broke off before its end"):
            async for _ in broken:
                pass


async def test_openais_sdk_copes_with_comments_and_empty_lines_of_the_upstreams_too(
    keeping: Keeping, provider: str
) -> None:
    for url in (provider, keeping(provider).url):
        async with openai_at(url) as client:
            stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == SAID


async def test_anthropics_messages(keeping: Keeping, provider: str) -> None:
    url = keeping(provider).url
    ask: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "why?"}]}
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", timeout=PATIENCE, max_retries=0) as client:
        async with client.messages.stream(**ask) as stream:
            words = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert words == SAID
        assert (final.usage.input_tokens, final.usage.output_tokens) == (3, 6)
        assert final.stop_reason == "end_turn"
        broken = await client.messages.create(**ask, stream=True, extra_query={"break": "1"})
        seen = []
        with pytest.raises(anthropic.APIStatusError, match="the stream broke off before its end") as raised:
            async for each in broken:
                seen.append(each.type)  # noqa: PERF401 – what came before the error
        assert seen == ["message_start", "content_block_start", "content_block_delta", "content_block_delta"]
        assert raised.value.body["error"]["type"] == "api_error"  # type: ignore[index]


# -- curl -------------------------------------------------------------------------------------------------------------

CURL = ("curl", "-sN", "--max-time", "60")


async def test_curl_sees_each_event_by_itself_and_goes_on_where_it_was(keeping: Keeping, start: Start) -> None:
    async with origin_by_hand() as upstream:
        url = f"{keeping(upstream.url).url}/events"
        curl = await asyncio.create_subprocess_exec(*CURL, url, stdout=asyncio.subprocess.PIPE)
        try:
            call = await upstream.call()
            await call.head()
            text = ""
            for number in range(8):
                await call.send(b"data: %d\n\n" % number)
                text += await until_said(curl, f"data: {number}\n\n")  # before there is another
            await until_said(curl, ": keep-alive\n")
        finally:
            curl.kill()
            await curl.wait()
        await call.send(b"data: 8\n\n", b"data: 9\n\n")
        await call.end()
        place = OUR_ID.findall(text)[3]
        rest = start("-H", f"Last-Event-ID: {place}", url, program=CURL)
        assert rest.ended() == 0
        assert re.findall(r"data: (\d)\n", rest.out) == ["4", "5", "6", "7", "8", "9"]
        nothing = start("-i", "-H", f"Last-Event-ID: {OUR_ID.findall(rest.out)[-1]}", url, program=CURL)
        assert nothing.ended() == 0
        assert nothing.out.startswith("HTTP/1.1 204 ")
        assert len(upstream.calls) == 1


async def until_said(process: asyncio.subprocess.Process, what: str) -> str:
    """What it says up to that."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readuntil(what.encode())).decode()
