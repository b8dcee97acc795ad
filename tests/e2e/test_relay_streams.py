"""Streams that outlive their readers, with real processes: the gateway's, and the examples'."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import openai
import pytest

from penstock import Client, InBandError, StreamTruncated
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, Running, Server, penstock
from tests.e2e.test_examples import EXAMPLES, PYTHON, url_of

pytestmark = pytest.mark.e2e


def post(url: str, value: Any = None, **headers: str) -> Any:
    body = b"" if value is None else json.dumps(value).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}, method="POST")
    return urllib.request.urlopen(request, timeout=PATIENCE)


def get(url: str, **headers: str) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE)


def lines(response: Any) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line.decode().removeprefix("data: ").strip()


@pytest.fixture
def example(start: Start) -> Any:
    def run(name: str, **env: str) -> Running:
        arguments = ("-m", "uvicorn", "--app-dir", EXAMPLES, f"{name}:app", "--port", "0")
        return start(*arguments, program=(*PYTHON, "-u"), env={**os.environ, **env})

    return run


def test_the_gateways_ids_keep_alives_and_ends_are_nothing_to_the_openai_sdk(serve: Serve, origin: Server) -> None:
    relay = serve("relay", origin.url)
    with openai.OpenAI(base_url=f"{relay.url}/v1", api_key="k", timeout=PATIENCE, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(model="m", stream=True, messages=[{"role": "user", "content": "why?"}])
        )
    assert "why?" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_who_asks_for_events_is_answered_before_an_upstream_that_never_answers(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"http://127.0.0.1:{silent.getsockname()[1]}"
        relay = serve("relay", upstream, "--early-headers", "--timeout-first", "0.5")
        with openai.OpenAI(base_url=f"{relay.url}/v1", api_key="k", timeout=PATIENCE, max_retries=0) as client:
            answered = client.chat.completions.create(model="m", stream=True, messages=[])
            assert answered.response.status_code == 200
            with pytest.raises(openai.APIError, match="the upstream did not answer in time"):
                list(answered)


def test_a_reader_that_is_cut_off_resumes_at_the_gateway(serve: Serve, origin: Server) -> None:
    relay = serve("relay", origin.url)
    with Client(relay.url) as client:
        events = client.get("/events?count=30&interval=0.02").header("Accept", "text/event-stream")
        with events.send() as cut:
            stream = cut.headers["penstock-stream"]
            next(iter(cut))
    with get(f"{relay.url}/_penstock/streams/{stream}") as rest:
        assert len(list(lines(rest))) == 30


@pytest.mark.parametrize("read", ["collect", "resume", "tail"])
def test_a_stream_that_broke_off_behind_a_relay_is_whole_to_none_of_our_readers(
    serve: Serve, origin: Server, read: str
) -> None:
    url = f"{serve('relay', origin.url, '--ids', 'ours').url}/events?cut_after=3&interval=0"
    if read == "tail":
        done = penstock("tail", url, "--format", "sse")
        assert (done.code, done.out.count("\n")) == (1, 3)
        assert "the stream itself said that it failed: the stream broke off before its end" in done.err
        return
    with Client(retry=2) as client:
        if read == "collect":
            with pytest.raises(InBandError, match="broke off before its end") as broken:
                client.get(url).collect()
            assert [event.json() for event in broken.value.collected] == [{"n": n} for n in (1, 2, 3)]
            return
        body = b""  # as it is to one that knows nothing of the relay: its place is behind the failure
        with client.get(url).header("Accept", "text/event-stream").send() as response, suppress(StreamTruncated):
            for piece in response:
                body += piece
        last = [line for line in body.splitlines() if line.startswith(b"id: ")][-1].removeprefix(b"id: ").decode()
        again = urljoin(url, response.headers["location"])
        with pytest.raises(InBandError, match="which ended as error"):
            client.get(again).header("Last-Event-ID", last).collect()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_gateway_that_drains_lets_its_streams_end(serve: Serve, origin: Server, tmp_path: Path, store: str) -> None:
    where = "memory://" if store == "memory" else f"sqlite:///{tmp_path / 'log.db'}"
    relay = serve("relay", origin.url, "--grace", "20", "--store", where)
    with get(f"{relay.url}/events?count=20&interval=0.05") as stream:
        events = lines(stream)
        next(events)
        relay.kill(signal.SIGTERM)
        assert len(list(events)) == 19
    assert relay.ended() == 143


def test_the_agent_runs_once_and_is_watched_again_after_a_reload(example: Any) -> None:
    server = example("agent_in_fastapi", STEP_SECONDS="0.05")
    url = url_of(server)
    with post(f"{url}/api/agent/1", {"goal": "tea"}) as first:
        assert json.loads(next(lines(first)))["number"] == 1
    with get(f"{url}/api/agent/1") as again:
        assert [json.loads(line)["number"] for line in lines(again)] == list(range(1, 11))
    server.said("agent:1: done after 10 steps")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/api/agent/1", **{"X-User": "somebody else"})
    with post(f"{url}/api/agent/2", {"goal": "coffee"}) as stopped:
        events = lines(stopped)
        next(events)
        assert json.load(post(f"{url}/api/agent/2/stop")) == {"stopped": True}
        server.said("the agent puts its tools down: coffee")
    server.said("agent:2: cancelled after")


def test_the_openai_sdk_reads_the_chat_which_goes_on_without_it_and_can_be_stopped(
    example: Any, origin: Server
) -> None:
    server = example(
        "chat_with_stop", UPSTREAM=origin.url, UPSTREAM_PATH="/v1/chat/completions?tokens=40&interval=0.05"
    )
    url = url_of(server)
    mine = {"Authorization": "Bearer me"}

    def ask(chat: str) -> Any:
        return client.chat.completions.create(
            model="sample", stream=True, messages=[{"role": "user", "content": "why?"}], extra_headers={"X-Chat": chat}
        )

    with openai.OpenAI(base_url=f"{url}/v1", api_key="me", timeout=PATIENCE, max_retries=0) as client:
        first = ask("1")
        text = next(iter(first)).choices[0].delta.content or ""
        first.close()  # the page is reloaded
        with pytest.raises(openai.ConflictError):
            ask("1")
        with get(f"{url}/chats/1/stream", **mine) as again:
            payloads = list(lines(again))
        assert payloads[-1] == "[DONE]"
        chunks = [json.loads(payload) for payload in payloads[:-1]]
        whole = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        assert whole.startswith(text)
        assert len(whole) > len(text)
        assert get(f"{url}/chats/1/stream", **mine).status == 204
        server.said("chat:1: done after")
        second = ask("2")
        threading.Timer(0.3, lambda: post(f"{url}/chats/2/stop", None, **mine).close()).start()
        with pytest.raises(openai.APIError, match="the stream was stopped"):
            list(second)
        server.said("chat:2: cancelled after")


def test_use_chat_finds_what_it_expects(example: Any) -> None:
    url = url_of(example("ai_sdk_route", WORD_SECONDS="0.1"))
    assert get(f"{url}/api/chat/1/stream").status == 204
    asked = {"id": "1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "one two three"}]}]}
    with post(f"{url}/api/chat", asked) as first:
        assert first.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert json.loads(next(lines(first)))["type"] == "start"
    with get(f"{url}/api/chat/1/stream") as again:
        assert again.headers["x-vercel-ai-ui-message-stream"] == "v1"
        *parts, done = lines(again)
    assert done == "[DONE]"
    parsed = [json.loads(part) for part in parts]
    assert [part["type"] for part in parsed][:2] == ["start", "text-start"]
    assert "".join(part.get("delta", "") for part in parsed) == "You said: one two three "
    assert parsed[-1]["type"] == "finish"
    assert get(f"{url}/api/chat/1/stream").status == 204
