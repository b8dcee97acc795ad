"""What the relay refuses: for good with a status and a reason, for now so that an EventSource comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.app import Relay
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import OnDisconnect, Policy, RelayLimits
from penstock.relay.streams.head import Head
from penstock.relay.streams.marks import Place
from penstock.resilience.breaker import Breaker
from penstock.testing import serve
from tests.relay.peers import until, upstream
from tests.relay.readers import EVENTS, Answer, asking, fetch, rest_of, saying, settled, since, streams_of
from tests.relay.test_gateway import FIVE, began, owned, relayed, relaying, user

pytestmark = pytest.mark.anyio

ONE = RelayLimits(max_streams=1)


async def put_off(url: str, target: str = "/e", more: str = "", *, status: int, reason: str) -> Answer:
    """Ask as an EventSource, which must come back, and as anybody, who is told so; the latter's answer."""
    again = await fetch(url, target, more=EVENTS + more)
    assert (again.status, again.whole) == (200, False), again.body
    assert again.field("content-type") == "text/event-stream"
    name, wait = again.body.split(b" ")
    assert (name, wait[-1:]) == (b"retry:", b"\n")
    assert 1000 <= int(wait) <= 40_000
    refused = await fetch(url, target, more=more)
    assert (refused.status, refused.whole) == (status, True)
    assert reason in refused.problem["detail"]
    assert 1 <= int(refused.field("retry-after") or 0) <= 40
    return refused


# -- for now


async def test_as_many_streams_of_the_route_as_may() -> None:
    async with relaying(limits=ONE) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        await put_off(url, status=503, reason="as many streams run here as may")
        await call.end()
        assert (await rest_of(reader)).whole
        assert len(up.calls) == 1


async def test_a_log_that_is_full() -> None:
    store = MemoryLog(retention=Retention(max_streams=1))
    async with relaying(store=store) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        asked = asyncio.create_task(put_off(url, status=503, reason="cannot keep another stream now"))
        await (await up.call(1)).head()  # that it is a stream is known once the upstream has answered...
        await up.calls[1].cancelled()
        await asked
        early = await fetch(url, "/e", "POST", EVENTS, b"one")  # ...or from who asks for one
        assert (early.status, early.field("retry-after") is not None) == (503, True)
        assert len(up.calls) == 2
        await call.end()
        assert (await rest_of(reader)).whole


async def test_bytes_of_all_streams_are_bounded_at_the_cost_of_those_that_have_ended() -> None:
    store = MemoryLog(retention=Retention(max_stream_bytes=60_000, max_bytes=100_000))
    big = b"data: " + b"x" * 20_000 + b"\n\n"
    async with relaying(store=store) as (url, up, relay):
        ended: list[str] = []
        for number in range(4):  # each ends with as much as it may keep
            async with asking(url) as reader:
                call = await up.call(number)
                await call.head()
                await call.send(big, big)
                await call.end()
                await reader.take_head()
                answer = await rest_of(reader)
                assert (answer.plain, answer.whole) == (big * 2, True)
                ended.append(answer.stream)
        assert store.held <= 100_000
        gone = await fetch(url, f"/_penstock/streams/{ended[0]}")
        assert (gone.status, gone.problem["earliest"]) == (410, 2)
        assert (await fetch(url, f"/_penstock/streams/{ended[-1]}")).plain == big * 2
        await settled(relay)


async def test_a_relay_that_drains() -> None:
    async with relaying() as (url, up, relay):
        await relay.drain(0)
        await put_off(url, status=503, reason="the relay is stopping")
        assert up.calls == []


async def test_as_many_readers_of_a_stream_as_its_route_may_have() -> None:
    """Also where they come by its id, which does not tell the route."""
    async with relaying() as (_, up, _relay):
        limits = RelayLimits(max_readers=1)
        route = Policy(upstream=up.url, match=Match("/e"), limits=limits, on_disconnect=OnDisconnect("detach"))
        relay = relayed(up.url, routes=[route])
        async with serve(relay) as url, asking(url, "/e") as reader:
            call = await up.call()
            await began(call, reader, "mid-stream")
            target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
            await put_off(url, target, status=429, reason="as many read this stream as may")
            await call.end()
            assert (await rest_of(reader)).whole
            await settled(relay)


@asynccontextmanager
async def a_store_that_has_failed(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """A relay with routes of its own, whose store ended under it, and a stream that was kept there."""
    log = SqliteLog(tmp_path / "log")
    async with upstream(saying(*FIVE)) as up:
        relay = relayed(up.url, store=log, **owned())

        async def again(request: Request) -> Response:
            return await relay.resume(request, key="k")

        async def own(request: Request) -> Response:
            return await relay.stream(request, lambda: ["x"], key="k")

        routes = [Route("/again", again), Route("/own", own), Mount("/", app=relay)]
        async with serve(Starlette(routes=routes, lifespan=relay.lifespan)) as url:
            stream = (await fetch(url, "/e", more=user("ann"))).stream
            await settled(relay)
            await log.aclose()
            yield url, stream


async def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    async with a_store_that_has_failed(tmp_path) as (url, stream):
        said = "the store does not answer"
        ann = user("ann")
        for target, more in (
            (f"/_penstock/streams/{stream}", ann),
            ("/e", ann + since(str(Place(stream, 1, 2)))),
            ("/again", ""),
        ):
            await put_off(url, target, more, status=503, reason=said)
        deleted = await fetch(url, f"/_penstock/streams/{stream}", "DELETE", ann)
        assert (deleted.status, deleted.problem["detail"]) == (503, said)
        for target, more in (("/own", ""), ("/e", ann + "Idempotency-Key: k\r\n")):
            await put_off(url, target, more, status=503, reason="cannot keep another stream now")


@pytest.mark.parametrize("store", ["memory://", "none"])
async def test_an_upstream_that_is_given_time_to_recover(store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with serve(relayed(closed, store=store, breaker=Breaker(failure_threshold=2, recovery_timeout=30))) as url:
        for more in ("", EVENTS):  # what became of a request is told as it is, whoever asks
            failed = await fetch(url, more=more)
            assert (failed.status, failed.field("retry-after")) == (502, None)
            assert failed.field("proxy-status") == "penstock; error=connection_refused"
        refused = await put_off(url, status=503, reason="is given time to recover")
        assert refused.field("proxy-status") == "penstock; error=destination_unavailable"
        assert 25 <= int(refused.field("retry-after") or 0) <= 36  # in vain before


# -- once the upstream has been asked


async def lost(url: str, more: str = "", target: str = "/e") -> None:
    """Ask by POST; whoever is answered like that does not do so again by itself."""
    answer = await fetch(url, target, "POST", more, b"one")
    assert (answer.status, answer.field("retry-after")) == (502, None), answer.body
    assert "the request was passed on, and its answer is lost" in answer.problem["detail"]


async def test_a_log_that_was_found_full_too_late_sends_nobody_to_ask_twice() -> None:
    store = MemoryLog(retention=Retention(max_streams=1))
    async with relaying(store=store) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        asked = asyncio.create_task(lost(url))
        await (await up.call(1)).head()
        await asked
        keyed = asyncio.create_task(fetch(url, "/e", "POST", "Idempotency-Key: k\r\n", b"one"))
        await (await up.call(2)).head()
        again = await keyed  # that may be asked twice
        assert (again.status, again.field("retry-after") is not None) == (503, True)
        await call.end()
        assert (await rest_of(reader)).whole


async def test_a_store_that_was_found_away_too_late_does_not_either(tmp_path: Path) -> None:
    async with a_store_that_has_failed(tmp_path) as (url, _):
        await lost(url, user("ann"))


async def test_a_relay_that_stops_while_the_upstream_works_does_not_either() -> None:
    async with relaying(**owned()) as (url, up, relay):
        more = user("ann")
        named = more + "Idempotency-Key: k\r\n"
        asked = [
            asyncio.create_task(lost(url, more)),
            asyncio.create_task(fetch(url, "/e", "POST", named, b"one")),
            asyncio.create_task(fetch(url, "/e", more=more)),
            asyncio.create_task(fetch(url, "/e", more=more + EVENTS)),
        ]
        await up.call(3)
        await relay.drain(0)
        await asked[0]
        for each, status in zip(asked[1:], (503, 503, 200), strict=True):
            answer = await each
            assert answer is not None
            assert (answer.status, answer.whole) == (status, status == 503)


# -- for good


async def test_who_waits_for_a_stream_that_is_stopped_is_told_so_for_good_and_who_comes_later_too() -> None:
    """An EventSource that came back would begin it anew."""
    more = user("ann") + EVENTS + "Idempotency-Key: k\r\n"
    async with relaying(**owned()) as (url, up, relay):
        one = asyncio.create_task(fetch(url, more=more))
        await up.call()
        (session,) = streams_of(relay).sessions
        target = f"/_penstock/streams/{session.stream.id}"
        two = asyncio.create_task(fetch(url, target, more=user("ann") + EVENTS))
        await until(lambda: session.readers == 2)
        assert (await fetch(url, target, "DELETE", user("ann"))).status == 204
        for answer in (await one, await two):
            assert (answer.status, answer.problem["detail"]) == (410, "the stream was stopped before it began")
        await up.calls[0].cancelled()
        await settled(relay)
        late = await fetch(url, target, more=user("ann"))
        assert (late.status, late.problem["detail"]) == (410, "the stream ended before it began: nothing of it is kept")


async def test_a_stream_whose_upstream_failed_before_its_head_is_gone(tmp_path: Path) -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    for store in (MemoryLog(), SqliteLog(tmp_path / "log")):
        async with relaying(**owned(store=store)) as (url, up, relay):
            asked = asyncio.create_task(fetch(url, more=more))
            call = await up.call()
            (session,) = streams_of(relay).sessions
            call.reset()
            assert (await asked).status == 502
            await settled(relay)
            late = await fetch(url, f"/_penstock/streams/{session.stream.id}", more=user("ann") + EVENTS)
            assert late.status == 410
            async with asking(url, more=more) as again:  # the key is free
                call = await up.call(1)
                await began(call, again, "mid-stream")
                assert again.status == 200
                await call.end()


async def test_who_waits_for_a_stream_that_is_lost_elsewhere_hears_what_a_later_one_hears(tmp_path: Path) -> None:
    async with (
        SqliteLog(tmp_path / "log") as elsewhere,
        relaying(store=SqliteLog(tmp_path / "log")) as (url, _, _relay),
    ):
        stream, producer = await elsewhere.open(None, "", b"")
        assert producer is not None
        target = f"/_penstock/streams/{stream.id}"
        waiting = asyncio.create_task(fetch(url, target))
        await until(lambda: producer.readers == 1)
        producer.end("producer_lost")
        for answer in (await waiting, await fetch(url, target)):
            reason = "the stream ended before it began: nothing of it is kept"
            assert (answer.status, answer.problem["detail"]) == (410, reason)


async def test_who_has_more_bytes_than_come_elsewhere_is_not_told_that_it_has_them_all(tmp_path: Path) -> None:
    async with (
        SqliteLog(tmp_path / "log") as elsewhere,
        relaying(store=SqliteLog(tmp_path / "log")) as (url, _, _relay),
    ):
        stream, producer = await elsewhere.open(None, "", b"")
        assert producer is not None
        producer.start(Head(200, [(b"content-type", b"application/x-ndjson")], "ndjson").encoded())
        producer.append([b"{}\n"])
        target = f"/_penstock/streams/{stream.id}?offset="
        waiting = [asyncio.create_task(fetch(url, f"{target}{offset}")) for offset in (3, 4)]
        await until(lambda: producer.readers == 2)
        producer.end("done")
        enough, short = [await each for each in waiting]
        assert (enough.status, enough.whole) == (200, True)
        assert (short.status, short.whole) == (200, False)
        late = await fetch(url, f"{target}4")
        assert (late.status, late.problem["offset"]) == (416, 3)


@pytest.mark.parametrize("method", ["PUT", "POST", "OPTIONS", "PATCH"])
async def test_a_method_that_is_not_allowed_is_told_which_are(method: str) -> None:
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url)) as url:
        stream = (await fetch(url)).stream
        for target, allowed in (
            (f"/_penstock/streams/{stream}", "GET, HEAD, DELETE"),
            ("/_penstock/health", "GET, HEAD"),
            ("/_penstock/ready", "GET, HEAD"),
            ("/_penstock/client.js", "GET, HEAD"),
        ):
            answer = await fetch(url, target, method)
            assert (answer.status, answer.field("allow")) == (405, allowed)


# -- each route by itself


async def test_the_streams_of_one_route_leave_those_of_another_their_room() -> None:
    async with relaying() as (_, up, _relay):
        routes = [
            Policy(upstream=up.url, match=Match("/small"), limits=ONE, on_disconnect=OnDisconnect("detach")),
            Policy(upstream=up.url, match=Match("/other"), limits=ONE, on_disconnect=OnDisconnect("detach")),
        ]
        relay = relayed(up.url, routes=routes)
        async with serve(relay) as url:
            async with asking(url, "/small") as small, asking(url, "/other") as other, asking(url, "/") as one:
                readers = [small, other, one]
                await until(lambda: len(up.calls) == len(readers))
                for target in ("/small", "/other"):
                    assert (await fetch(url, target)).status == 503
                async with asking(url, "/") as another:  # the default's limit is its own
                    await up.call(3)
                    for call in up.calls:
                        await call.head()
                        await call.send(FIVE[0])
                        await call.end()
                    for reader in (*readers, another):
                        await reader.take_head()
                        assert (await rest_of(reader)).plain == FIVE[0]
            await settled(relay)
            async with asking(url, "/small") as small:  # what has ended gives its place back
                call = await up.call(4)
                await began(call, small, "mid-stream")
                assert small.status == 200
                await call.end()


async def test_who_asks_at_a_time_does_not_find_the_same_place_free(tmp_path: Path) -> None:
    """The store takes its time to open a stream."""
    limits = RelayLimits(max_streams=2)
    async with relaying(**owned(store=SqliteLog(tmp_path / "log"), limits=limits)) as (url, up, relay):
        asked = [
            asyncio.create_task(fetch(url, "/e", "POST", f"{user('ann')}Idempotency-Key: {number}\r\n"))
            for number in range(10)
        ]
        await until(lambda: sum(task.done() for task in asked) == 8)
        await up.call(1)
        assert len(up.calls) == streams_of(relay).running == 2
        for number, call in enumerate(up.calls):
            await call.head()
            await call.send(FIVE[number])
            await call.end()
        answers = [await task for task in asked]
        assert sorted(answer.status for answer in answers) == [200] * 2 + [503] * 8


async def test_a_generators_streams_are_the_defaults() -> None:
    go = asyncio.Event()

    async def items() -> AsyncIterator[str]:
        await go.wait()
        yield "x"

    relay = Relay("http://127.0.0.1:9", store="memory://", policy=Policy(upstream="http://127.0.0.1:9", limits=ONE))

    async def own(request: Request) -> Response:
        make: Callable[[], Any] = items
        return await relay.stream(request, make)

    async with serve(Starlette(routes=[Route("/", own)], lifespan=relay.lifespan)) as url, asking(url) as reader:
        await reader.take_head()
        assert (await fetch(url)).status == 503
        go.set()
        assert (await rest_of(reader)).plain == b"data: x\n\n"
        await settled(relay)
        assert (await fetch(url)).whole
