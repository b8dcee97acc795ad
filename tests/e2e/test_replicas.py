"""Three relays on one Redis are one relay: to read, to join, to stop, to leave, to list, and to drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.replicas import Replica, Replicas, replicas
from tests.eventlog.redis_server import needs_redis
from tests.relay.peers import Peer, dial, request, until
from tests.relay.readers import EVENTS, Answer, Call, Origin, fetch, origin, rest_of, since

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, needs_redis]

ANN = "X-User: ann\r\n"
BOB = "X-User: bob\r\n"

ROUTES = """
[[routes]]
path = "/cancel"
on_disconnect = "cancel"

[[routes]]
path = "/owned"
owner = "header:X-User"
"""


class Here(NamedTuple):
    """Three relays and what they relay to."""

    cluster: Replicas
    origin: Origin

    @property
    def relays(self) -> list[Replica]:
        return self.cluster.all

    async def next_call(self, before: int) -> Call:
        """The call to the upstream that comes after so many."""
        return await self.origin.call(before)


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Here]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PENSTOCK_SECRET", "one for all of them")
        async with (
            origin() as asked,
            replicas(tmp_path_factory.mktemp("replicas"), asked.url, more=ROUTES) as cluster,
        ):
            yield Here(cluster, asked)


@contextlib.asynccontextmanager
async def reading(
    relay: Replica, target: str, method: str = "GET", more: str = EVENTS, body: bytes = b""
) -> AsyncIterator[Peer]:
    """A reader whose answer has begun."""
    async with dial(relay.url) as peer:
        await peer.send(request(target, method, more, body))
        await peer.take_head()
        yield peer


def id_of(peer: Peer) -> str:
    (stream,) = peer.all("penstock-stream")
    return stream


def by_id(stream: str) -> str:
    return f"/_penstock/streams/{stream}"


async def begun(here: Here, relay: Replica, target: str, stack: contextlib.AsyncExitStack) -> tuple[Peer, Call]:
    """A stream with one event, and its first reader."""
    before = len(here.origin.calls)
    asking = asyncio.create_task(stack.enter_async_context(reading(relay, target, more=EVENTS + ANN)))
    call = await here.next_call(before)
    await call.head()
    await call.send(b"data: 1\n\n")
    peer = await asking
    assert b"data: 1\n\n" in await peer.chunk()
    return peer, call


async def listed(relay: Replica) -> dict[str, dict[str, Any]]:
    """What the operator of a relay sees, by id."""
    answer = await operate(relay, "/_penstock/streams")
    return {each["id"]: each for each in json.loads(answer.body)["streams"]}


async def operate(relay: Replica, target: str, method: str = "GET") -> Answer:
    """Ask the operator's side, by its own name."""
    async with dial(relay.admin) as peer:
        host = relay.admin.removeprefix("http://")
        await peer.send(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await peer.take_head()
        return await rest_of(peer)


async def has_readers(relay: Replica, stream: str, count: int) -> None:
    async with asyncio.timeout(20):
        while (await listed(relay))[stream]["readers"] != count:  # noqa: ASYNC110 – the relay is asked
            await asyncio.sleep(0.02)


async def test_a_stop_anywhere_reaches_the_upstream(here: Here) -> None:
    first, second, third = here.relays
    async with contextlib.AsyncExitStack() as stack:
        peer, call = await begun(here, first, "/any", stack)
        stream = id_of(peer)
        other = await stack.enter_async_context(reading(third, by_id(stream)))
        assert b"data: 1\n\n" in await other.chunk()
        assert (await fetch(second.url, by_id(stream), "DELETE")).status == 204
        await call.cancelled()
        for each in (peer, other):
            answer = await rest_of(each)
            assert b'"type":"cancelled"' in answer.body
            assert not answer.whole
    assert (await fetch(second.url, by_id(stream), "DELETE")).status == 204  # it has its end already


@pytest.mark.parametrize("last_is_elsewhere", [True, False])
async def test_the_last_reader_is_the_last_one_anywhere(here: Here, last_is_elsewhere: bool) -> None:
    first, second, _ = here.relays
    async with contextlib.AsyncExitStack() as stack:
        async with contextlib.AsyncExitStack() as at_owner:
            peer, call = await begun(here, first, "/cancel", at_owner)
            elsewhere = contextlib.AsyncExitStack()
            other = await elsewhere.enter_async_context(reading(second, by_id(id_of(peer))))
            assert b"data: 1\n\n" in await other.chunk()
            await has_readers(first, id_of(peer), 2)
            if last_is_elsewhere:
                stack.push_async_exit(elsewhere)
            else:
                await elsewhere.aclose()
                await has_readers(first, id_of(peer), 1)
                await call.send(b"data: 2\n\n")
                assert b"data: 2\n\n" in await peer.chunk()
        if last_is_elsewhere:
            await call.send(b"data: 2\n\n")
            assert b"data: 2\n\n" in await other.chunk()
            await has_readers(first, id_of(peer), 1)
            assert not call.gone.is_set()
        left = time.monotonic()
        await stack.aclose()
        await call.cancelled()
    print(f"the upstream was cancelled {time.monotonic() - left:.3f} s after its last reader had left")


async def test_of_two_requests_with_a_key_at_two_relays_one_asks_the_upstream(here: Here) -> None:
    first, second, third = here.relays
    for number in range(5):
        before = len(here.origin.calls)
        same = ("POST", f"{EVENTS}{ANN}Idempotency-Key: twice-{number}\r\n", b"what?")

        joined = asyncio.Event()

        async def ask(relay: Replica, same: Any = same, joined: asyncio.Event = joined) -> Any:
            async with reading(relay, "/owned", *same) as peer:
                if relay is third:
                    joined.set()
                return id_of(peer), await rest_of(peer)

        asked = [asyncio.create_task(ask(relay)) for relay in (first, second)]
        call = await here.next_call(before)
        await call.head()
        await call.send(b"data: 1\n\n")
        asked.append(asyncio.create_task(ask(third)))  # it joins what runs
        other = await fetch(third.url, "/owned", same[0], same[1], b"something else?")
        assert other.status == 422
        await joined.wait()
        await call.send(b"data: 2\n\n")
        await call.end()
        answers = await asyncio.gather(*asked)
        assert len({stream for stream, _ in answers}) == 1
        assert all(answer.whole and answer.plain == b"data: 1\n\ndata: 2\n\n" for _, answer in answers)
        assert len(here.origin.calls) == before + 1


async def test_owners_are_asked_for_at_every_relay(here: Here) -> None:
    async with contextlib.AsyncExitStack() as stack:
        peer, call = await begun(here, here.relays[0], "/owned", stack)
        stream = id_of(peer)
        (last,) = re.findall(rb"id: (\S+)", (await _two(call, peer)))
        for relay in here.relays:
            for stranger in (BOB, ""):
                for method in ("GET", "DELETE"):
                    assert (await fetch(relay.url, by_id(stream), method, stranger)).status == 404
                again = await fetch(relay.url, "/owned", more=EVENTS + stranger + since(last.decode()))
                assert again.status == 404
        for relay in here.relays:
            async with reading(relay, "/owned", more=EVENTS + ANN + since(last.decode())) as back:
                assert id_of(back) == stream
        await call.send(b"data: 3\n\n")
        await call.end()
        assert (await rest_of(peer)).whole
        for relay in here.relays:
            assert (await fetch(relay.url, by_id(stream), more=ANN)).plain == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"


async def _two(call: Call, peer: Peer) -> bytes:
    await call.send(b"data: 2\n\n")
    return await peer.chunk()


async def test_an_operator_sees_and_stops_all_streams_at_any_relay(here: Here) -> None:
    async with contextlib.AsyncExitStack() as stack:
        streams = [await begun(here, relay, "/any", stack) for relay in here.relays]
        ids = {id_of(peer) for peer, _ in streams}
        for relay in here.relays:
            seen = await listed(relay)
            assert ids <= seen.keys()
            assert all(seen[id_]["state"] == "running" and seen[id_]["readers"] == 1 for id_ in ids)
        for relay, (peer, call) in zip([*here.relays[1:], here.relays[0]], streams, strict=True):
            assert (await operate(relay, by_id(id_of(peer)), "DELETE")).status == 204
            await call.cancelled()
            await rest_of(peer)


# -- what ends relays, so each with some of its own


async def ready(relay: Replica) -> int:
    return (await fetch(relay.url, "/_penstock/ready")).status


async def test_a_relay_that_drains_hands_its_readers_over(tmp_path: Path) -> None:
    async with origin() as asked, replicas(tmp_path, asked.url, 2, grace=15) as cluster:
        here = Here(cluster, asked)
        draining, other = cluster.all
        async with contextlib.AsyncExitStack() as stack:
            own, own_call = await begun(here, draining, "/own", stack)
            theirs, their_call = await begun(here, other, "/theirs", stack)
            visitor = await stack.enter_async_context(reading(draining, by_id(id_of(theirs))))
            assert b"data: 1\n\n" in await visitor.chunk()
            plain = await stack.enter_async_context(reading(draining, by_id(id_of(own)), more=""))  # no EventSource
            assert b"data: 1\n\n" in await plain.chunk()
            draining.server.kill(signal.SIGTERM)
            backs = []
            for peer, stream in ((own, id_of(own)), (visitor, id_of(theirs))):
                sent_away = await rest_of(peer)
                assert re.fullmatch(rb"retry: \d{4}\n", sent_away.body)
                assert not sent_away.whole
                backs.append(await stack.enter_async_context(reading(other, by_id(stream), more=EVENTS)))
                assert b"data: 1\n\n" in await backs[-1].chunk()
            assert (await ready(draining), await ready(other)) == (503, 200)
            for call in (own_call, their_call):
                await call.send(b"data: 2\n\n")
                await call.end()
            for back in backs:
                answer = await rest_of(back)
                assert (answer.whole, answer.plain) == (True, b"data: 2\n\n")
            assert (await rest_of(plain)).whole
            assert await asyncio.to_thread(draining.server.ended) == 143
            assert (await rest_of(theirs)).whole


async def test_what_does_not_end_while_its_relay_drains_is_ended_and_says_so(tmp_path: Path) -> None:
    async with origin() as asked, replicas(tmp_path, asked.url, 2, grace=0.5) as cluster:
        draining, other = cluster.all
        async with contextlib.AsyncExitStack() as stack:
            peer, call = await begun(Here(cluster, asked), draining, "/own", stack)
            reader = await stack.enter_async_context(reading(other, by_id(id_of(peer))))
            assert b"data: 1\n\n" in await reader.chunk()
            draining.server.kill(signal.SIGTERM)
            await call.cancelled()
            answer = await rest_of(reader)
            assert b'"type":"cancelled"' in answer.body
            assert b"retry: " in answer.body
            assert not answer.whole
            assert await asyncio.to_thread(draining.server.ended) == 143
            assert (await fetch(other.url, by_id(id_of(peer)))).plain.startswith(b"data: 1\n\n")


async def test_a_readers_place_is_held_while_it_is_sent_to_another_relay(tmp_path: Path) -> None:
    cancel = '\n[[routes]]\npath = "/cancel"\non_disconnect = "cancel"\n'
    async with origin() as asked, replicas(tmp_path, asked.url, 2, grace=15, more=cancel) as cluster:
        draining, other = cluster.all
        async with contextlib.AsyncExitStack() as stack:
            peer, call = await begun(Here(cluster, asked), draining, "/cancel", stack)
            draining.server.kill(signal.SIGTERM)
            assert (await rest_of(peer)).body.startswith(b"retry: ")
            back = await stack.enter_async_context(reading(other, by_id(id_of(peer))))
            assert not call.gone.is_set()
            await call.send(b"data: 2\n\n")
            await until(lambda: not call.gone.is_set())
            await call.end()
            assert (await rest_of(back)).plain == b"data: 1\n\ndata: 2\n\n"
