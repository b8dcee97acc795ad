"""Who asks for events is answered before the upstream has; on every server."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from anthropic import APIStatusError, AsyncAnthropic

from penstock.client.settings import Timeout
from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.downstream.early import Ahead
from penstock.relay.settings.policy import OnDisconnect, RelayLimits
from penstock.relay.settings.rules import HeaderRules
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker
from penstock.resilience.retry import Retry
from penstock.testing import serve
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, Serve, chunk, response, until, upstream
from tests.relay.readers import (
    EVENTS,
    NDJSON,
    Answer,
    asking,
    fetch,
    origin,
    plain,
    rest_of,
    settled,
    since,
    streams_of,
)
from tests.relay.servers import EVERY_SERVER
from tests.relay.test_gateway import FIVE, owned, relayed, relaying, user

pytestmark = pytest.mark.anyio

STREAM = b'{"model":"m","stream":true}'
AT_ONCE: dict[str, Any] = {"early_headers": 0.0}
WAIT = re.compile(rb"(?:^|\n)retry: (\d+)\n")


@pytest.fixture(params=EVERY_SERVER)
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


def told(answer: Answer) -> dict[str, Any]:
    """The error that the stream ends with."""
    assert not answer.whole
    (data,) = (line for line in answer.body.split(b"\n") if line.startswith(b"data: "))
    return cast("dict[str, Any]", json.loads(data[6:]))


# -- as it should be


async def test_the_head_is_there_before_the_upstreams_and_silence_is_broken(served: Serve) -> None:
    async with (
        relaying(served, **AT_ONCE, keep_alive=0.05) as (url, up, _),
        asking(url, "/v1/chat", "POST", body=STREAM) as reader,
    ):
        call = await up.call()
        await reader.take_head()
        stream = reader.all("penstock-stream")[0]
        assert reader.status == 200
        assert reader.all("content-type") == ["text/event-stream; charset=utf-8"]
        assert reader.all("location") == [f"/_penstock/streams/{stream}"]
        assert reader.all("cache-control") == ["no-store, no-transform"]
        assert reader.all("x-accel-buffering") == ["no"]
        body = b""
        while body.count(b": keep-alive\n") < 2:
            body += await reader.chunk()
        assert plain(body) == b""
        await call.head(CHUNKED[:-2] + b"Set-Cookie: a=1\r\nX-Late: 1\r\n\r\n")
        await call.send(*FIVE)
        await call.end()
        rest = await rest_of(reader)
        assert (rest.plain, rest.whole, len(rest.ids)) == (b"".join(FIVE), True, 5)
        assert (call.body, call.peer.all("accept-encoding"), len(up.calls)) == (STREAM, ["identity"], 1)
        again = await fetch(url, "/v1/chat", "POST", since(rest.ids[1]), STREAM)
        assert (again.stream, again.plain, again.whole) == (stream, b"".join(FIVE[2:]), True)
        assert len(up.calls) == 1


async def test_others_join_and_resume_it_while_the_upstream_is_silent() -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with (
        relaying(**owned(**AT_ONCE)) as (url, up, relay),
        asking(url, "/e", "POST", more, STREAM) as first,
    ):
        call = await up.call()
        await first.take_head()
        target = f"/_penstock/streams/{first.all('penstock-stream')[0]}"
        async with asking(url, "/e", "POST", more, STREAM) as second, asking(url, target, more=user("ann")) as third:
            for reader in (second, third):
                await reader.take_head()
                assert reader.all("penstock-stream") == first.all("penstock-stream")
            assert (await fetch(url, "/e", "POST", more, STREAM + b" ")).status == 422
            first.reset()
            await until(lambda: [session.readers for session in streams_of(relay).sessions] == [2])
            await call.head()
            await call.send(*FIVE)
            await call.end()
            for reader in (second, third):
                answer = await rest_of(reader)
                assert (answer.plain, answer.whole) == (b"".join(FIVE), True)
        assert len(up.calls) == 1


async def test_it_is_read_at_another_relay_of_the_store_while_the_upstream_is_silent(tmp_path: Path) -> None:
    async with origin() as up:
        here, there = (relayed(up.url, **AT_ONCE, keep_alive=0.05, store=SqliteLog(tmp_path / "log")) for _ in range(2))
        async with serve(here) as url, serve(there) as other_url, asking(url, "/e", "POST", body=STREAM) as first:
            call = await up.call()
            await first.take_head()
            target = f"/_penstock/streams/{first.all('penstock-stream')[0]}"
            async with asking(other_url, target) as second:
                await second.take_head()
                assert second.status == 200
                assert await second.chunk() == b": keep-alive\n"
                await call.head(response(b"", status="401 Unauthorized"))
                answers = [await rest_of(first), await rest_of(second)]
                call.over.set()
        for answer in answers:
            assert told(answer)["error"]["status"] == 401
        assert answers[0].ids == answers[1].ids
        assert len(answers[0].ids) == 1


async def test_retries_go_on_behind_it() -> None:
    bodies: list[bytes] = []
    answer_now = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        bodies.append(await peer.body())
        await answer_now.wait()
        if len(bodies) == 1:
            peer.reset()
        elif len(bodies) == 2:
            await peer.send(response(b"busy", "Connection: close\r\n", status="503 Service Unavailable"))
        else:
            await peer.send(CHUNKED + chunk(FIVE[0]) + LAST_CHUNK)

    retry = Retry(retries=2, backoff=Backoff(initial=0.0, maximum=0.0), idempotent=True)
    async with upstream(play) as up, serve(relay := relayed(up.url, **AT_ONCE, retry=retry)) as url:
        async with asking(url, "/e", "POST", body=STREAM) as reader:
            await reader.take_head()
            assert reader.status == 200
            answer_now.set()
            answer = await rest_of(reader)
        assert (answer.plain, answer.whole) == (FIVE[0], True)
        assert bodies == [STREAM] * 3
        await settled(relay)


async def test_who_does_not_ask_for_events_waits_for_the_upstream() -> None:
    refusal = response(b"no", status="401 Unauthorized")

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.body()
        await asyncio.sleep(0.05)
        await peer.send(refusal)

    async with upstream(play) as up, serve(relayed(up.url, **AT_ONCE, limits=RelayLimits(max_replay_bytes=40))) as url:
        for method, more, body in (
            ("POST", "", b'{"stream":false}'),
            ("POST", "", b'{"stream":1}'),
            ("POST", "", b'{"say":"\\"stream\\": true"}'),
            ("POST", "", b'["stream", true]'),
            ("POST", "", b'{"stream": true'),
            ("POST", "", b'"stream"' + b"[" * 30),
            ("POST", "Accept: application/json\r\n", b"{}"),
            ("POST", EVENTS, b" " * 41),  # longer than what is held
            ("HEAD", EVENTS, b""),
            ("GET", "", b""),
        ):
            answer = await fetch(url, "/e", method, more, body)
            assert answer.status == 401, (method, more, body)


async def test_an_upstream_that_is_quick_enough_is_not_forestalled() -> None:
    async with relaying(early_headers=20.0) as (url, up, _):
        for number, head in enumerate((response(b"no", status="401 Unauthorized"), NDJSON + LAST_CHUNK)):
            async with asking(url, more=EVENTS) as reader:
                await (await up.call(number)).head(head)
                await reader.take_head()
                assert reader.status == (200 if number else 401)
                assert reader.has("penstock-stream") is bool(number)
            up.calls[number].over.set()
        async with asking(url, "/e", "POST", EVENTS + "Content-Length: 4\r\n") as reader:
            await reader.send(b"half")
            call = await up.call(2)
            await call.head()
            await reader.take_head()
            await call.end()
            assert (await rest_of(reader)).whole


# -- what the upstream says too late

JSON = "Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (
            response(b'{"error":{"message":"Incorrect\\n API key","type":"x"}}', JSON, "401 Unauthorized"),
            401,
            "the upstream answered 401 Unauthorized: Incorrect API key",
        ),
        (response(b'{"detail":"later"}', JSON, "429 Slow"), 429, "the upstream answered 429 Slow: later"),
        (response(b"<p>", status="500 No"), 500, "the upstream answered 500 No"),
        (
            response(b"", "Location: https://elsewhere.test/\r\n", "307 Temporary Redirect"),
            307,
            "the upstream answered 307 Temporary Redirect",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 502, "the upstream answered 204 with no content in the place of an event"),
        (response(b"{}", JSON), 502, "the upstream answered 200 with application/json in the place of an event stream"),
        (NDJSON + LAST_CHUNK, 502, "the upstream answered 200 with application/x-ndjson in the place of"),
        (
            response(gzip.compress(FIVE[0]), "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"),
            502,
            "the upstream answered 200 with text/event-stream in gzip in the place of",
        ),
        (b"nonsense\r\n\r\n", 502, "what the upstream answered is not proper HTTP"),
        (b"", 502, "the upstream closed the connection before it answered"),
    ],
)
async def test_a_refusal_is_said_in_the_stream(raw: bytes, status: int, message: str) -> None:
    async with relaying(**AT_ONCE) as (url, up, _), asking(url, "/e", "POST", EVENTS, b"{}") as reader:
        call = await up.call()
        await reader.take_head()
        assert reader.status == 200
        if raw:
            await call.head(raw)
        call.peer.writer.close()
        call.over.set()
        answer = await rest_of(reader)
        error = told(answer)["error"]
        assert b"event: penstock.error\ndata: {" in answer.body
        assert (error["type"], error["status"]) == ("upstream_error", status)
        assert error["message"].startswith(message)
        assert up.url[7:].encode() not in answer.body


async def test_a_refusal_never_has_the_last_chunk_and_lets_the_upstream_go(served: Serve) -> None:
    endless = CHUNKED.replace(b"200 OK", b"401 Unauthorized") + chunk(b"x" * 100_000)
    async with relaying(served, **AT_ONCE) as (url, up, relay), asking(url, "/e", "POST", body=STREAM) as reader:
        call = await up.call()
        await reader.take_head()
        await call.head(endless)  # and no end of it
        answer = await rest_of(reader)
        assert told(answer)["error"]["status"] == 401
        await call.cancelled()
        (info,) = await streams_of(relay).log.streams()
        assert info.ended is not None
        assert info.ended.reason == "error"
        again = await fetch(url, f"/_penstock/streams/{answer.stream}")
        assert (again.body, again.whole) == (answer.body, False)


@pytest.mark.parametrize(
    ("dialect", "more", "said"),
    [
        (None, "Anthropic-Version: 2023-06-01\r\n", b'event: error\ndata: {"type":"error","error":{"type":"not_found'),
        (None, "", b'data: {"error":{"message":"the upstream answered 404 Gone","type":"upstream_error"'),
        ("ai-sdk", "", b'data: {"type":"error","errorText":"the upstream answered 404 Gone"}'),
        ("ag-ui", "", b'data: {"type":"RUN_ERROR","message":"the upstream answered 404 Gone"'),
        ("penstock", "", b"event: penstock.error\n"),
    ],
)
async def test_it_is_said_in_the_routes_dialect_or_the_requests(dialect: Any, more: str, said: bytes) -> None:
    async with (
        relaying(**AT_ONCE, dialect=dialect) as (url, up, _),
        asking(url, "/e", "POST", more, STREAM) as reader,
    ):
        call = await up.call()
        await reader.take_head()
        await call.head(response(b"", status="404 Gone"))
        answer = await rest_of(reader)
        call.over.set()
        assert answer.plain.startswith(said)
        told(answer)


async def test_the_sdks_raise_it() -> None:
    async with relaying(**AT_ONCE) as (url, up, _):

        async def refuse(number: int) -> None:
            call = await up.call(number)
            await asyncio.sleep(0.05)
            await call.head(response(b'{"error":{"message":"too fast"}}', JSON, "429 Too Many Requests"))
            call.over.set()

        said = "the upstream answered 429 Too Many Requests: too fast"
        refusing = asyncio.create_task(refuse(0))
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.APIError, match=said) as raised:
                async for _ in await client.chat.completions.create(model="m", messages=[], stream=True):
                    pass
        assert cast("dict[str, Any]", raised.value.body)["status"] == 429
        await refusing
        refusing = asyncio.create_task(refuse(1))
        async with AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as anthropic:
            with pytest.raises(APIStatusError, match=said) as failed:
                async for _ in await anthropic.messages.create(model="m", max_tokens=1, messages=[], stream=True):
                    pass
        assert cast("dict[str, Any]", failed.value.body)["error"]["type"] == "rate_limit_error"
        await refusing


async def test_an_event_source_stops_where_it_would_fare_no_better_and_else_comes_back() -> None:
    async with relaying(**AT_ONCE) as (url, up, _):
        for number, (raw, ends, least) in enumerate(
            (
                (response(b"", status="404 Not Found"), True, 0),
                (response(b"", "Retry-After: 7\r\n", "503 Busy"), False, 8000),
                (response(b"", "Retry-After: 100000\r\n", "429 Slow"), False, 61_000),
            )
        ):
            async with asking(url, "/e", more=EVENTS) as reader:
                call = await up.call(number)
                await reader.take_head()
                await call.head(raw)
                answer = await rest_of(reader)
                call.over.set()
            told(answer)
            assert bool(answer.ids) is ends
            waits = [int(each) for each in WAIT.findall(answer.body)]
            if ends:
                assert waits == []
                assert (await fetch(url, "/e", more=EVENTS + since(answer.ids[0]))).status == 204
            else:
                assert len(waits) == 1
                assert least <= waits[0] <= least + 4000
        assert len(up.calls) == 3


async def test_an_upstream_that_is_silent_for_too_long_or_left_alone_is_told_as_such() -> None:
    policy: dict[str, Any] = {"timeout": Timeout(connect=5.0, first_event=0.1), "breaker": Breaker(failure_threshold=1)}
    async with relaying(**AT_ONCE, **policy) as (url, up, _):
        late = await fetch(url, "/e", "POST", body=STREAM)
        assert (told(late)["error"]["status"], len(up.calls)) == (504, 1)
        up.calls[0].over.set()
        open_ = await fetch(url, "/e", "POST", body=STREAM)
        assert open_.status == 503  # at once, and so before the answer
        assert int(open_.field("retry-after") or 0) > 25


# -- who leaves, and what is full


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_reader_that_leaves_before_the_upstreams_head_cancels_it(served: Serve, reset: bool) -> None:
    async with relaying(served, **AT_ONCE, on_disconnect=OnDisconnect("cancel")) as (url, up, _):
        async with asking(url, "/e", "POST", body=STREAM) as reader:
            call = await up.call()
            await reader.take_head()
            assert not call.gone.is_set()
            if reset:
                reader.reset()
        await call.cancelled()


async def test_one_that_is_stopped_before_the_upstreams_head_is_not_begun_anew() -> None:
    async with relaying(**AT_ONCE) as (url, up, _), asking(url, "/e", more=EVENTS) as reader:
        call = await up.call()
        await reader.take_head()
        target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
        assert (await fetch(url, target, "DELETE")).status == 204
        await call.cancelled()
        answer = await rest_of(reader)
        assert told(answer)["error"]["type"] == "cancelled"
        assert (await fetch(url, "/e", more=EVENTS + since(answer.ids[0]))).status == 204
        assert len(up.calls) == 1


async def test_a_log_without_room_is_said_with_a_status_and_the_upstream_is_let_go() -> None:
    store = MemoryLog(retention=Retention(max_streams=1))
    async with relaying(store=store, **AT_ONCE) as (url, up, _), asking(url, "/e", "POST", body=STREAM) as first:
        call = await up.call()
        await first.take_head()
        refused = await fetch(url, "/e", "POST", body=STREAM)
        assert (refused.status, refused.field("retry-after")) == (502, None)  # it may have been asked
        assert (await fetch(url, "/e", "POST", EVENTS, STREAM)).status == 503  # it was not
        for other in up.calls[1:]:
            await other.cancelled()
        await call.head()
        await call.end()
        assert (await rest_of(first)).whole


async def test_the_routes_rules_hold_for_its_fields_and_a_body_that_is_too_long_is_refused() -> None:
    policy: dict[str, Any] = {
        "response_headers": HeaderRules({"X-Ours": "1"}),
        "limits": RelayLimits(max_body_bytes=50),
    }
    async with relaying(**AT_ONCE, **policy) as (url, up, _):
        async with asking(url, "/e", "POST", body=STREAM) as reader:
            await reader.take_head()
            assert reader.all("x-ours") == ["1"]
            call = await up.call()
            await call.head()
            await call.end()
            assert (await rest_of(reader)).whole
        long = b" " * 60 + STREAM
        async with asking(url, "/e", "POST", "Transfer-Encoding: chunked\r\n") as reader:
            await reader.send(chunk(long) + LAST_CHUNK)
            await reader.take_head()
            assert reader.status == 413
        assert len(up.calls) == 1


async def test_ahead_reads_as_much_as_it_may_and_gives_all_of_it_once() -> None:
    pieces = [b"ab", b"cd", b"ef"]

    async def body() -> Any:
        while pieces:
            yield pieces.pop(0)

    ahead = Ahead(body, 3)
    assert await ahead.read() is None
    assert pieces == [b"ef"]
    first = ahead.open()
    assert await anext(first) == b"ab"
    assert [piece async for piece in ahead.open()] == [b"cd", b"ef"]
    assert await Ahead(body, 3).read() == b""
