"""A second application in the same loop: there as long as its block runs, and then gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from penstock.errors import PenstockError
from penstock.server.listen import bind, bound_to
from penstock.server.serve import beside

pytestmark = pytest.mark.anyio


async def test_it_answers_until_the_block_ends() -> None:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))])
    sock = bind("127.0.0.1", 0)
    host, port = bound_to(sock).split(":")
    before = asyncio.all_tasks()
    async with beside(app, sock):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"here")
        writer.close()
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_what_keeps_it_from_its_start_is_raised() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise PenstockError("there is no page")

    sock = bind("127.0.0.1", 0)
    entered = False
    with pytest.raises(PenstockError, match="there is no page"):
        async with beside(app, sock):
            entered = True
    assert not entered
    assert sock.fileno() == -1
