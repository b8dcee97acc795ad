from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from penstock.errors import PenstockError
from penstock.testing import serve
from tests.raw import ask, connected, request

pytestmark = pytest.mark.anyio


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {sorted(request.scope['extensions'])}")


APP = Starlette(routes=[Route("/", hello)])


async def test_a_real_server_with_the_raw_connection() -> None:
    async with serve(APP) as url:
        assert url.startswith("http://127.0.0.1:")
        answer = await ask(url, "/")
    assert (answer.status, answer.body) == (200, b"hello ['penstock.connection', 'penstock.direct']")
    assert "server" not in answer.headers
    with pytest.raises(ConnectionRefusedError):
        await ask(url, "/")


async def test_two_at_once() -> None:
    async with serve(APP) as one, serve(APP) as two:
        assert one != two
        assert (await ask(one, "/")).status == (await ask(two, "/")).status == 200


async def test_nothing_stays_behind_of_a_stream_that_still_runs() -> None:
    ended = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(scope["path"])

    before = asyncio.all_tasks()
    async with serve(Starlette(routes=[Route("/s", stream), Route("/", hello)])):
        pass
    async with serve(stream_only(stream)) as url, connected(url) as (reader, writer):
        writer.write(request("/s"))
        await reader.readuntil(b"x")
    assert ended == ["/s"]
    assert asyncio.all_tasks() == before


def stream_only(stream: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await stream(scope, receive, send)

    return app


async def test_an_application_that_cannot_start_raises_its_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise PenstockError("no store")

    with pytest.raises(PenstockError, match="no store"):
        async with serve(app):
            pytest.fail("it served")


async def test_an_error_of_the_test_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        async with serve(APP):
            raise ZeroDivisionError
