"""Which requests are made, and what they find out about real servers that do it wrong."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.doctor.diagnose import diagnose
from penstock.doctor.examine import BROWSERS, Order, examine
from penstock.errors import InvalidURL, StatusError
from penstock.origin.app import app as origin
from penstock.relay.app import Relay
from penstock.testing.serve import serve

pytestmark = pytest.mark.anyio

COUNT, INTERVAL = 15, 0.1

Body = Callable[[Request], AsyncIterator[bytes]]


class Events:
    """Answers every request with a body, and keeps the requests."""

    def __init__(self, body: Body, headers: Callable[[Request], dict[str, str]] = lambda request: {}) -> None:
        self._body = body
        self._headers = headers
        self.asked: list[dict[str, str]] = []
        self.methods: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        self.asked.append(dict(request.headers))
        self.methods.append(request.method)
        await request.body()
        headers = {"cache-control": "no-store", **self._headers(request)}
        await StreamingResponse(self._body(request), media_type="text/event-stream", headers=headers)(
            scope, receive, send
        )


def event(number: int) -> bytes:
    return b"id: %d\ndata: event %d\n\n" % (number, number)


async def steady(request: Request) -> AsyncIterator[bytes]:
    """Events with ids, continued after Last-Event-ID."""
    first = int(request.headers.get("last-event-id", "0")) + 1
    for number in range(first, COUNT + 1):
        yield (b": keep-alive\n\n" if number == 5 else b"") + event(number)
        await asyncio.sleep(INTERVAL)


async def short(request: Request) -> AsyncIterator[bytes]:
    yield event(1)


async def examined(url: str, upstream: str | None = None, **options: Any) -> set[str]:
    found = diagnose(await examine(Order(url, upstream, **options)))
    return {f"{finding.kind} {finding.severity}" for finding in found}


async def every(*examinations: Awaitable[set[str]]) -> list[set[str]]:
    """At the same time: they mostly wait."""
    return list(await asyncio.gather(*examinations))


# -- which requests ------------------------------------------------------------------------------------------------


async def test_a_get_is_asked_for_identity_for_gzip_and_after_its_first_event() -> None:
    app = Events(short)
    said: list[str] = []
    async with serve(app) as url:
        await examine(Order(url, headers={"X-Key": "k"}), tell=said.append)
    assert [each["accept-encoding"] for each in app.asked] == ["identity", BROWSERS, "identity"]
    assert [each.get("last-event-id") for each in app.asked] == [None, None, "1"]
    assert {each["x-key"] for each in app.asked} == {"k"}
    assert {each["cache-control"] for each in app.asked} == {"no-cache"}
    assert all("text/event-stream" in each["accept"] for each in app.asked)
    assert len(said) == 3


async def test_the_upstream_comes_first_and_one_request_after_another() -> None:
    order: list[str] = []
    running = 0

    def counted(name: str) -> Body:
        async def body(request: Request) -> AsyncIterator[bytes]:
            nonlocal running
            running += 1
            order.append(f"{name} {running}")
            async for piece in short(request):
                yield piece
            running -= 1

        return body

    async with serve(Events(counted("upstream"))) as upstream, serve(Events(counted("url"))) as url:
        await examine(Order(url, upstream))
    assert order == ["upstream 1", "url 1", "url 1", "upstream 1", "url 1"]


async def test_what_may_do_something_is_sent_once_to_each() -> None:
    through, upstream = Events(short), Events(short)
    async with serve(through) as url, serve(upstream) as behind:
        order = Order(url, behind, method="POST", content=b"{}", content_type="application/json")
        await examine(order)
    for app in (through, upstream):
        assert app.methods == ["POST"]
        assert app.asked[0]["accept-encoding"] == BROWSERS
        assert (app.asked[0]["content-type"], app.asked[0]["content-length"]) == ("application/json", "2")


async def test_fields_of_ones_own_take_the_place_of_ours() -> None:
    app = Events(short)
    async with serve(app) as url:
        await examine(
            Order(url, headers={"accept-encoding": "br", "Last-Event-ID": "0", "accept": "text/event-stream"})
        )
    (asked,) = app.asked
    assert (asked["accept-encoding"], asked["last-event-id"], asked["accept"]) == ("br", "0", "text/event-stream")


async def test_a_url_that_is_none_is_refused_before_anything_is_sent() -> None:
    app = Events(short)
    async with serve(app) as url:
        with pytest.raises(InvalidURL):
            await examine(Order("nowhere", url))
    assert app.asked == []


async def test_a_failed_status_is_raised_unless_the_upstream_shows_that_it_is_the_gateways(tmp_path: Path) -> None:
    async def no(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Response("no\n", 403)(scope, receive, send)

    async with serve(no) as refusing, serve(Events(short)) as good:
        with pytest.raises(StatusError, match="answered 403"):
            await examine(Order(refusing))
        with pytest.raises(StatusError, match="answered 403"):
            await examine(Order(good, refusing))
        assert await examined(refusing, good) == {"refused problem"}


# -- what they find ------------------------------------------------------------------------------------------------


async def test_a_good_server_and_penstocks_own_relay_before_one(tmp_path: Path) -> None:
    path = f"/events?count={COUNT}&interval={INTERVAL}"
    async with serve(Events(steady)) as good, serve(origin(tmp_path)) as upstream, serve(Relay(upstream)) as url:
        assert await every(examined(good), examined(url + path, upstream + path)) == [set(), set()]


def zipped(request: Request) -> dict[str, str]:
    return {"content-encoding": "gzip"} if "gzip" in request.headers["accept-encoding"] else {}


def zipping(flush: int) -> Body:
    async def body(request: Request) -> AsyncIterator[bytes]:
        coder = zlib.compressobj(wbits=31)
        async for piece in steady(request):
            if not zipped(request):
                yield piece
            elif packed := coder.compress(piece) + coder.flush(flush):
                yield packed
        if zipped(request):
            yield coder.flush()

    return body


async def test_a_compression_that_waits_for_more_and_one_that_does_not() -> None:
    waits, flushes = Events(zipping(zlib.Z_NO_FLUSH), zipped), Events(zipping(zlib.Z_SYNC_FLUSH), zipped)
    async with serve(waits) as slow, serve(flushes) as fast, serve(Events(steady)) as upstream:
        found = await every(
            examined(slow), examined(slow, upstream), examined(fast), examined(fast, upstream, max_items=10)
        )
    assert found == [{"compressed problem"}, {"compressed problem"}, {"compressed note"}, {"compressed note"}]


async def test_a_gateway_that_parses_and_writes_events_anew() -> None:
    async def rewritten(request: Request) -> AsyncIterator[bytes]:
        async for piece in steady(request):
            yield b"data:" + piece.rpartition(b"data:")[2]

    async with serve(Events(rewritten)) as url, serve(Events(steady)) as upstream:
        found = await every(examined(url, upstream), examined(url))
    assert found == [{"ids problem", "comments warning"}, {"no-ids note"}]


def buffered(size: int) -> Body:
    async def body(request: Request) -> AsyncIterator[bytes]:
        held = b""
        async for piece in steady(request):
            held += piece
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
        yield held

    return body


async def test_a_buffer_that_goes_out_when_it_is_full() -> None:
    async with serve(Events(buffered(100))) as url, serve(Events(steady)) as upstream:
        alone, compared = await every(examined(url), examined(url, upstream))
    assert alone == {"coalesced warning"}
    # How many events fill it decides how late they are.
    assert compared in ({"buffered problem"}, {"coalesced warning"})


async def test_a_gateway_that_forgets_last_event_id_and_a_server_that_ignores_it() -> None:
    def deaf(app: ASGIApp) -> ASGIApp:
        async def without(scope: Scope, receive: Receive, send: Send) -> None:
            kept = [pair for pair in scope.get("headers", []) if pair[0] != b"last-event-id"]
            await app({**scope, "headers": kept}, receive, send)

        return without

    async with serve(Events(steady)) as upstream, serve(deaf(Events(steady))) as url:
        found = await every(examined(url, upstream), examined(url, url), examined(url))
    assert found == [{"last-event-id problem"}, {"last-event-id warning"}, {"last-event-id warning"}]
