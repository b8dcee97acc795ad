"""The relay in the routes of others: forward, and under middleware."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.types import ASGIApp

from penstock.relay.app import Relay
from penstock.testing import serve
from tests.relay.peers import (
    CHUNKED,
    LAST_CHUNK,
    SERVERS,
    Peer,
    Serve,
    answering,
    ask,
    chunk,
    dial,
    request,
    response,
    until,
    upstream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest) -> Serve:
    return SERVERS[request.param]


# -- a route of one's own


class Chat(BaseModel):
    text: str


@asynccontextmanager
async def host(
    play: Callable[[Peer], Awaitable[None]],
    route: Callable[[Relay], Callable[..., Any]],
    *,
    served: Serve = serve,
    methods: tuple[str, ...] = ("GET", "POST", "PUT", "HEAD"),
    wrap: Callable[[FastAPI], Any] = lambda app: app,
    base: str = "",
    **settings: Any,
) -> AsyncIterator[tuple[str, list[Peer]]]:
    """A FastAPI application with one route, /chat, before an upstream."""
    async with upstream(play) as up:
        relay = Relay(up.url + base, **settings)
        app = FastAPI(lifespan=relay.lifespan)
        app.add_api_route("/chat", route(relay), methods=list(methods), response_model=None)
        async with served(wrap(app)) as url:
            yield url, up.peers


def passing(**keywords: Any) -> Callable[[Relay], Callable[..., Any]]:
    """A route that forwards with these arguments."""

    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request) -> Response:
            return await relay.forward(request, **keywords)

        return chat

    return route


async def test_json_goes_to_the_path_that_the_route_says() -> None:
    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request, body: Chat) -> Response:
            return await relay.forward(request, "POST", "/v1/chat?x=%2F", json={"text": body.text, "stream": True})

        return chat

    got: list[bytes] = []

    async def play(peer: Peer) -> None:
        await peer.take_head()
        got.append(await peer.body())
        await peer.send(CHUNKED + chunk(b"data: 1\n\n") + LAST_CHUNK)

    async with host(play, route, base="/base", headers={"Authorization": "Bearer k"}) as (url, peers):
        more = "Content-Type: application/json\r\nCookie: a=1\r\nAuthorization: mine\r\nAccept: text/event-stream\r\n"
        reader, body = await ask(url, "/chat", "POST", more, '{"text":"é"}'.encode())
        assert (reader.status, body) == (200, chunk(b"data: 1\n\n") + LAST_CHUNK)
        assert peers[0].head.startswith(b"POST /base/v1/chat?x=%2F HTTP/1.1\r\n")
        assert json.loads(got[0]) == {"text": "é", "stream": True}
        assert sorted(peers[0].fields) == [
            ("accept", "text/event-stream"),
            ("authorization", "Bearer k"),
            ("content-length", str(len(got[0]))),
            ("content-type", "application/json"),
            ("host", peers[0].all("host")[0]),
        ]


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"content": b"raw"}, b"raw"),
        ({"content": b""}, b""),
        ({"json": []}, b"[]"),
        ({"json": "\u20ac"}, '"\u20ac"'.encode()),
        ({}, b'{"text":"own"}'),
    ],
)
async def test_the_body_that_goes_on(keywords: dict[str, Any], expected: bytes) -> None:
    got: list[bytes] = []

    async def play(peer: Peer) -> None:
        await peer.take_head()
        got.append(await peer.body())
        await peer.send(response())

    async with host(play, passing(**keywords)) as (url, peers):
        reader, _ = await ask(url, "/chat", "POST", body=b'{"text":"own"}')
        assert reader.status == 200
        assert got == [expected]
        assert peers[0].all("content-length") == [str(len(expected))]


async def test_a_body_that_the_route_has_read_goes_on_all_the_same() -> None:
    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request, body: Chat) -> Response:
            assert body.text == "own"
            return await relay.forward(request)

        return chat

    got: list[bytes] = []

    async def play(peer: Peer) -> None:
        await peer.take_head()
        got.append(await peer.body())
        await peer.send(response())

    async with host(play, route) as (url, _):
        await ask(url, "/chat", "POST", "Content-Type: application/json\r\n", b'{"text": "own"}')
        assert got == [b'{"text": "own"}']


async def test_a_body_that_the_route_has_used_up_is_an_error_and_no_silence() -> None:
    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request) -> Response:
            async for _ in request.stream():
                pass
            return await relay.forward(request)

        return chat

    async with host(answering(response()), route) as (url, _):
        reader, _body = await ask(url, "/chat", "POST", body=b"used up")
        assert reader.status == 500


async def test_only_the_callers_fields_that_were_asked_for_go_on() -> None:
    keywords = {
        "pass_headers": ["X-Trace", "accept", "Content-Length", "Host"],
        "headers": {"X-Own": "1", "Accept": "a/b"},
    }
    async with host(answering(response()), passing(content=b"abc", **keywords)) as (url, peers):
        more = "X-Trace: t\r\nX-Other: o\r\nAccept: */*\r\nConnection: x-trace2\r\n"
        reader, _ = await ask(url, "/chat", "POST", more, b"longer than what goes on")
        assert reader.status == 200
        fields = sorted(pair for pair in peers[0].fields if pair[0] != "host")
        assert fields == [("accept", "a/b"), ("content-length", "3"), ("x-own", "1"), ("x-trace", "t")]
        assert len(peers[0].all("host")) == 1


async def test_a_content_type_of_the_routes_own_stands_beside_json() -> None:
    keywords = {"json": {}, "headers": {"Content-Type": "application/vnd.api+json"}}
    async with host(answering(response()), passing(**keywords)) as (url, peers):
        await ask(url, "/chat", "POST", "Content-Type: text/plain\r\n")
        assert peers[0].all("content-type") == ["application/vnd.api+json"]


@pytest.mark.parametrize("path", ["v1", "http://evil.test/", "/a b", "/é", "/a\r\nX: 1"])
async def test_a_path_that_is_none_is_the_routes_mistake(path: str) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    with pytest.raises(ValueError, match="path"):
        await Relay("http://x").forward(StarletteRequest(scope), "GET", path)


async def test_the_fields_that_the_route_sets_stand_in_the_answer() -> None:
    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request) -> Response:
            answer = await relay.forward(request)
            answer.headers["X-Served-By"] = "route"
            answer.headers["Cache-Control"] = "no-store"
            return answer

        return chat

    play = answering(response(more="Cache-Control: public\r\nX-Up: 1\r\n"))
    async with host(play, route) as (url, _):
        reader, _body = await ask(url, "/chat")
        assert reader.all("x-served-by") == ["route"]
        assert reader.all("cache-control") == ["no-store"]
        assert reader.all("x-up") == ["1"]


async def test_a_background_task_runs_after_the_stream() -> None:
    ended = asyncio.Event()
    ran: list[bool] = []

    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request, tasks: BackgroundTasks) -> Response:
            tasks.add_task(lambda: ran.append(ended.is_set()))
            return await relay.forward(request)

        return chat

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        ended.set()
        await peer.send(LAST_CHUNK)

    async with host(play, route) as (url, _):
        await ask(url, "/chat")
        await until(lambda: bool(ran))
        assert ran == [True]


async def test_a_request_with_an_ambiguous_end_is_refused_in_a_route_too() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
    }
    answer = await Relay("http://x").forward(StarletteRequest(scope))
    assert answer.status_code == 400
    assert json.loads(bytes(answer.body))["status"] == 400


async def test_a_dead_upstream_in_a_route() -> None:
    async def play(peer: Peer) -> None:
        peer.reset()

    async with host(play, passing()) as (url, _):
        reader, body = await ask(url, "/chat")
        assert reader.problem(body)["status"] == reader.status == 502


# -- under middleware


def bare(app: FastAPI) -> ASGIApp:
    return app


def base_http(app: FastAPI) -> ASGIApp:
    async def dispatch(request: StarletteRequest, call_next: Callable[..., Awaitable[Any]]) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return app


def base_http_twice(app: FastAPI) -> ASGIApp:
    return base_http(base_http(app))  # type: ignore[arg-type]


def zipped(app: FastAPI) -> ASGIApp:
    app.add_middleware(GZipMiddleware)
    return app


MIDDLEWARE = [bare, base_http, base_http_twice]


@pytest.mark.parametrize("wrap", [*MIDDLEWARE, zipped])
async def test_chunks_come_one_by_one_through_a_route(wrap: Callable[[FastAPI], ASGIApp], served: Serve) -> None:
    received = asyncio.Semaphore(0)

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)
        for number in range(5):
            await peer.send(chunk(b"data: %d\n\n" % number))
            async with asyncio.timeout(20):
                await received.acquire()
        await peer.send(LAST_CHUNK)

    async with host(play, passing(), wrap=wrap, served=served) as (url, _), dial(url) as reader:
        await reader.send(request("/chat"))
        await reader.take_head()
        for number in range(5):
            assert await reader.chunk() == b"data: %d\n\n" % number
            received.release()
        assert await reader.chunk() == b""


@pytest.mark.parametrize("wrap", [*MIDDLEWARE, zipped])
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_broken_upstream_never_looks_complete_through_a_route(
    wrap: Callable[[FastAPI], ASGIApp], end: str, served: Serve
) -> None:
    seen = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"partial"))
        await seen.wait()
        if end == "reset":
            peer.reset()

    async with host(play, passing(), wrap=wrap, served=served) as (url, _), dial(url) as reader:
        await reader.send(request("/chat"))
        await reader.take_head()
        assert await reader.chunk() == b"partial"
        seen.set()
        assert await reader.rest() == b""  # and no last chunk


@pytest.mark.parametrize("wrap", [*MIDDLEWARE, zipped])
@pytest.mark.parametrize("stage", ["before the headers", "before the first byte", "in mid-body"])
@pytest.mark.parametrize("own", [{}, {"json": {"q": 1}}], ids=["own body", "json"])
async def test_the_upstream_is_cancelled_when_the_reader_of_a_route_leaves(
    wrap: Callable[[FastAPI], ASGIApp], stage: str, own: dict[str, Any], served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    up_to_here, felt = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.body()
        if stage != "before the headers":
            await peer.send(CHUNKED)
        if stage == "in mid-body":
            await peer.send(chunk(b"1"))
        up_to_here.set()
        await peer.gone()
        felt.set()

    async with host(play, passing(**own), wrap=wrap, served=served) as (url, _):
        before = asyncio.all_tasks()
        async with dial(url) as reader:
            await reader.send(request("/chat", "POST", body=b'{"text": "x"}'))
            async with asyncio.timeout(20):
                await up_to_here.wait()
            if stage != "before the headers":
                await reader.take_head()
            if stage == "in mid-body":
                assert await reader.chunk() == b"1"
            assert not felt.is_set()
        async with asyncio.timeout(20):
            await felt.wait()
        await until(lambda: asyncio.all_tasks() <= before)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]  # it is no failure


@pytest.mark.parametrize("wrap", MIDDLEWARE)
async def test_a_background_task_runs_for_a_reader_that_left_too(wrap: Callable[[FastAPI], ASGIApp]) -> None:
    ran = asyncio.Event()

    def route(relay: Relay) -> Callable[..., Any]:
        async def chat(request: Request, tasks: BackgroundTasks) -> Response:
            tasks.add_task(ran.set)
            return await relay.forward(request)

        return chat

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        await peer.gone()

    async with host(play, route, wrap=wrap) as (url, _):
        async with dial(url) as reader:
            await reader.send(request("/chat"))
            await reader.take_head()
            await reader.chunk()
            assert not ran.is_set()
        async with asyncio.timeout(20):
            await ran.wait()


@pytest.mark.parametrize("names", [{"key": "a\ud800"}, {"key": "k", "owner": "\udfff"}])
async def test_a_name_that_is_no_text_is_told_to_who_wrote_it(names: dict[str, Any]) -> None:
    relay = Relay("http://up.test", store="memory://")
    asked = StarletteRequest({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""})
    for calling in (
        relay.forward(asked, **names),
        relay.stream(asked, list, **names),
        relay.resume(asked, **names),
        relay.stop(**names),
    ):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            await calling


@pytest.mark.parametrize(
    ("verb", "keywords", "said"),
    [
        ("forward", {"if_running": "repalce"}, "if_running is one of join, conflict, replace; got 'repalce'"),
        ("stream", {"if_running": None}, "if_running is one of"),
        ("stream", {"encoding": "json"}, "encoding is one of sse, ndjson, raw; got 'json'"),
        ("stream", {"dialect": "open-ai"}, "dialect is one of penstock, openai"),
        ("resume", {"key": "k", "finished": 99999}, "finished is a status from 200 to 599, as 204; got 99999"),
        ("resume", {"key": "k", "finished": "204"}, "finished is a status"),
    ],
)
async def test_a_word_that_is_none_is_told_to_who_wrote_it(verb: str, keywords: dict[str, Any], said: str) -> None:
    relay = Relay("http://127.0.0.1:9", store="memory://")
    asked = StarletteRequest({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""})
    more: tuple[Any, ...] = (list,) if verb == "stream" else ()
    with pytest.raises(ValueError, match=said):
        await getattr(relay, verb)(asked, *more, **keywords)
