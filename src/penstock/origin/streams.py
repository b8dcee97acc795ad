"""The sample streams: a counting generator, an agent's events, a resumable sequence, and OpenAI's chat completions.

Each yields one chunk or one event at a time, the first at once, and holds nothing back. What stops them when a reader
leaves is :mod:`penstock.origin.exchange`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from penstock.origin.exchange import Refusal, Stream, json_body, seconds, whole
from penstock.wire.sse import Event, encode

RETRY_MS = 1000
"""What ``/events`` asks its readers to wait before they come back [ms]."""

_EVENT_STREAM = "text/event-stream"


async def generate(request: Request) -> Response:
    """``GET /generate``: numbered and timestamped chunks of text."""
    chunks = whole(request.query_params, "chunks", 100)
    interval = seconds(request.query_params, "interval", 0.1)

    async def body() -> AsyncGenerator[bytes, None]:
        for number in range(1, chunks + 1):
            if number > 1:
                await asyncio.sleep(interval)
            yield f"Chunk {number} [{datetime.now().astimezone():%H:%M:%S.%f}".encode()[:-3] + b"]\n"

    return Stream(body(), media_type="text/plain")


async def trigger_invocation(request: Request) -> Response:
    """``POST /trigger_invocation``: four events and a closing message, as the FastAPI server that it stands for."""
    interval = seconds(request.query_params, "interval", 0.1)
    try:
        body = await json_body(request)
    except ValueError as error:
        raise Refusal(422, [_invalid("json_invalid", ["body"], f"JSON decode error: {error}")]) from error
    if not isinstance(body, dict):
        raise Refusal(422, [_invalid("model_attributes_type", ["body"], "Input should be a JSON object")])
    if "query" not in body:
        raise Refusal(422, [_invalid("missing", ["body", "query"], "Field required")])
    if not isinstance(body["query"], str):
        raise Refusal(422, [_invalid("string_type", ["body", "query"], "Input should be a valid string")])

    async def events() -> AsyncGenerator[bytes, None]:
        for count in range(1, 5):
            yield _data({"Count": count, "Data": f"Event {count}"})
            await asyncio.sleep(interval)
        yield _data({"Data": "Stream completed"})

    return Stream(events(), media_type=_EVENT_STREAM)


def _invalid(type: str, loc: list[str], msg: str) -> dict[str, Any]:
    return {"type": type, "loc": loc, "msg": msg}


async def sequence(request: Request) -> Response:
    """``GET /events``: numbered events with ids, which a reader that comes back continues where it was.

    At the end there is nothing more to come, and 204 tells an EventSource so: to any other end it would come back.
    """
    count = whole(request.query_params, "count", 10)
    interval = seconds(request.query_params, "interval", 0.1)
    cursor = request.headers.get("last-event-id", "") or "0"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise Refusal(422, f"Last-Event-ID must be an id of this stream, a whole number, not {cursor[:40]!r}")
    first = int(cursor) + 1
    if first > count:
        return Response(status_code=204, headers={"cache-control": "no-store"})

    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(first, count + 1):
            if number > first:
                await asyncio.sleep(interval)
            event = Event(data=_json({"n": number}), id=str(number))
            yield encode(event, retry_ms=RETRY_MS if number == first else None)

    return Stream(events(), media_type=_EVENT_STREAM)


class _BadChat(Exception):
    """A chat request that OpenAI would refuse: a message, the parameter, a code."""

    def response(self) -> Response:
        message, param, code = self.args
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        return JSONResponse({"error": error}, 400)


async def chat_completions(request: Request) -> Response:
    """``POST /v1/chat/completions``: OpenAI's format, streamed or plain; the answer is a function of the question."""
    interval = seconds(request.query_params, "interval", 0.02)
    limit = whole(request.query_params, "tokens", None, high=10**6)
    try:
        try:
            body = await json_body(request)
        except ValueError as error:
            raise _BadChat(f"We could not parse the JSON body of your request: {error}", None, None) from error
        question = _question(body)
    except _BadChat as bad:
        return bad.response()
    tokens = _tokens(question, limit)
    head = {
        "id": "chatcmpl-" + hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:24],
        "object": "chat.completion.chunk" if body.get("stream") else "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
    }
    asked = sum(len(_text(message).split()) for message in body["messages"])
    usage = {"prompt_tokens": asked, "completion_tokens": len(tokens), "total_tokens": asked + len(tokens)}
    if not body.get("stream"):
        message = {"role": "assistant", "content": "".join(tokens)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return JSONResponse({**head, "choices": [choice], "usage": usage})
    options = body.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    chunks = _chunks(head, tokens, usage if with_usage else None)

    async def events() -> AsyncGenerator[bytes, None]:
        for number, chunk in enumerate(chunks):
            if 1 < number <= len(tokens):
                await asyncio.sleep(interval)
            yield chunk

    return Stream(events(), media_type=_EVENT_STREAM)


def _question(body: Any) -> str:
    """The last user message of a chat request, checked."""
    if not isinstance(body, dict):
        raise _BadChat("The body of the request must be a JSON object.", None, None)
    for name, kind in (("model", str), ("messages", list)):
        if name not in body:
            raise _BadChat(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        if not isinstance(body[name], kind) or not body[name]:
            raise _BadChat(f"Invalid type or empty value for '{name}'.", name, "invalid_type")
    if not isinstance(body.get("stream", False), bool | None):
        raise _BadChat("Invalid type for 'stream': expected a boolean.", "stream", "invalid_type")
    for index, message in enumerate(body["messages"]):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _BadChat(f"Invalid value for 'messages[{index}]'.", f"messages[{index}]", "invalid_type")
    return next((_text(each) for each in reversed(body["messages"]) if each["role"] == "user"), "")


def _text(message: dict[str, Any]) -> str:
    """A message's text: a string, or the text parts of a list."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tokens(question: str, limit: int | None) -> list[str]:
    words = f"You said: {question} And this is the answer, one token at a time, the same for the same question.".split()
    chosen = words if limit is None else list(itertools.islice(itertools.cycle(words), limit))
    return [word if index == 0 else " " + word for index, word in enumerate(chosen)]


def _chunks(head: dict[str, Any], tokens: list[str], usage: dict[str, int] | None) -> Iterator[bytes]:
    """The events of a streamed completion: the role, the tokens, the reason of the end, the usage if asked, [DONE]."""

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**head, "choices": [choice], **({} if usage is None else {"usage": None})})

    yield chunk({"role": "assistant", "content": ""})
    for token in tokens:
        yield chunk({"content": token})
    yield chunk({}, "stop")
    if usage is not None:
        yield _data({**head, "choices": [], "usage": usage})
    yield encode(Event(data="[DONE]"))


def _data(value: Any) -> bytes:
    return encode(Event(data=_json(value)))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
