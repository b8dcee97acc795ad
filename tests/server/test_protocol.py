from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.errors import PenstockError, StreamTruncated
from penstock.server import Server, bind, bound_to
from penstock.testing import serve
from tests.raw import ask, connected, read_answer, request, until

pytestmark = pytest.mark.anyio

Handler = Callable[[Any, Any, Any], Awaitable[None]]


def http(handler: Handler) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await handler(scope, receive, send)

    return app


async def begin(send: Any, body: bytes = b"x") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_abort_resets() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await begin(send)
        connection = scope["extensions"]["penstock.connection"]
        await until(lambda: connection.unsent() == 0)
        connection.abort()
        connection.abort()
        assert connection.left()
        await gone(receive)

    async with serve(http(handler)) as url:
        answer = await ask(url, "/")
    assert (answer.reset, answer.chunks, answer.complete) == (True, [b"x"], False)


async def test_close_and_write_are_outside_of_the_framing() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await begin(send)
        connection = scope["extensions"]["penstock.connection"]
        connection.write(b"raw")
        connection.close()
        await gone(receive)

    async with serve(http(handler)) as url:
        answer = await ask(url, "/")
    assert (answer.reset, answer.raw_body) == (False, b"1\r\nx\r\nraw")


async def test_unsent_and_left_are_told_without_reading() -> None:
    seen: dict[str, Any] = {}

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen["connection"] = scope["extensions"]["penstock.connection"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000, "more_body": True})
        await gone(receive)

    async with serve(http(handler)) as url:
        async with connected(url) as (_, writer):
            writer.write(request("/"))
            await until(lambda: seen)
            connection = seen["connection"]
            await asyncio.sleep(0.1)
            assert connection.unsent() > 1_000_000, "nobody read it"
            assert not connection.left()
            writer.transport.abort()
        await until(connection.left)


async def test_the_raw_connection_is_not_there_unless_it_is_asked_for() -> None:
    seen: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("extensions"))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    sock = bind("127.0.0.1", 0)
    url = f"http://{bound_to(sock)}"
    server, listening = Server(http(handler), sock), asyncio.Event()
    task = asyncio.create_task(server.run_until_stopped(listening.set))
    await listening.wait()
    assert (await ask(url, "/")).status == 204
    server.stop()
    await task
    assert not (seen[0] or {}).get("penstock.connection")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StreamTruncated("the upstream http://u\nended early, 100%s"), "the upstream http://u ended early, 100%s"),
        (ExceptionGroup("many", [PenstockError("one"), PenstockError("two")]), "one"),
    ],
)
async def test_a_named_error_is_one_line(caplog: pytest.LogCaptureFixture, error: Exception, line: str) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await begin(send)
        raise error

    async with serve(http(handler)) as url:
        answer = await ask(url, "/a%20b%0A%25s?x=1")
    assert not answer.complete
    (record,) = [record for record in caplog.records if record.name == "penstock.server"]
    assert record.getMessage() == f"GET /a%20b%0A%25s: {line}"
    assert record.exc_info is None


async def test_a_bug_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async with serve(http(handler)) as url:
        assert (await ask(url, "/x")).status == 500
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "GET /x: the application failed"
    assert record.exc_info


async def test_an_unfinished_response_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await begin(send)

    async with serve(http(handler)) as url:
        assert not (await ask(url, "/x")).complete
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "GET /x: the application left the response unfinished; the connection is closed"


async def test_what_is_no_http_is_400_and_upgrades_are_ignored_without_noise(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serve(http(handler)) as url:
        async with connected(url) as (reader, writer):
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            assert (await read_answer(reader)).status == 400
        async with connected(url) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 204")
    assert [record.getMessage() for record in caplog.records] == [
        "a request from 127.0.0.1 is refused: 400, the request is malformed: Invalid method encountered"
    ]
