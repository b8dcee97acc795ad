"""What relays do while their Redis is away: killed, frozen, for a moment or for longer than a lease; and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.replicas import Replica, Replicas, replicas
from tests.eventlog.redis_server import needs_redis
from tests.relay.peers import Peer, dial, request, until
from tests.relay.readers import EVENTS, OUR_ID, Call, Origin, fetch, origin, rest_of, since

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, needs_redis]

ROUTES = """
[[routes]]
path = "/live"
without_store = "live"
on_disconnect = "detach"

[[routes]]
path = "/mine/live"
without_store = "live"
owner = "header:X-User"

[[routes]]
path = "/mine"
owner = "header:X-User"
"""
MEBI = b"data: " + b"x" * (1 << 20) + b"\n\n"
BACKLOG = 16  # of those are held while Redis is away


@contextlib.asynccontextmanager
async def relays(folder: Path, count: int = 1, lease: float = 2.0) -> AsyncIterator[tuple[Replicas, Origin]]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PENSTOCK_SECRET", "one for all of them")
        async with origin() as asked, replicas(folder, asked.url, count, lease=lease, more=ROUTES) as cluster:
            yield cluster, asked


@contextlib.asynccontextmanager
async def begun(
    relay: Replica, asked: Origin, target: str, more: str = EVENTS, *first: bytes
) -> AsyncIterator[tuple[Peer, Call]]:
    """A stream whose head and first events have come."""
    before = len(asked.calls)
    async with dial(relay.url) as peer:
        await peer.send(request(target, more=more))
        call = await asked.call(before)
        await call.head()
        await call.send(b"data: 1\n\n", *first)
        await peer.take_head()
        assert b"data: 1\n\n" in await peer.chunk()
        yield peer, call


@contextlib.asynccontextmanager
async def asking(relay: Replica, asked: Origin, target: str) -> AsyncIterator[tuple[Peer, Call]]:
    """A request with a key, which the upstream has."""
    before = len(asked.calls)
    async with dial(relay.url) as peer:
        await peer.send(request(target, "POST", f"X-User: ann\r\nIdempotency-Key: {target}\r\n", b"?"))
        yield peer, await asked.call(before)


async def headed(peer: Peer) -> Peer:
    await peer.take_head()
    return peer


async def seconds_to(relay: Replica, target: str, more: str, status: int) -> float:
    """How long a refusal takes."""
    before = time.monotonic()
    answer = await fetch(relay.url, target, more=more)
    assert answer.status == status, answer.peer.head
    if status == 200:
        assert re.fullmatch(rb"retry: \d+\n", answer.body)
        assert not answer.whole
    else:
        assert answer.field("retry-after") is not None
    return time.monotonic() - before


async def metric(relay: Replica, name: str) -> float:
    async with dial(relay.admin) as peer:
        await peer.send(b"GET /_penstock/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        await peer.take_head()
        found = re.search(rf"^penstock_relay_{name} (\S+)$", (await rest_of(peer)).body.decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.soak)])
async def test_a_new_stream_is_refused_or_relayed_live(tmp_path: Path, how: signal.Signals) -> None:
    async with relays(tmp_path) as (cluster, asked):
        (relay,) = cluster.all
        async with cluster.without_redis(how):
            # The first one finds out; it alone waits for that.
            finding_out = asyncio.create_task(fetch(relay.url, "/kept", more=EVENTS))
            (await asked.call(0)).peer.writer.write(b"")
            await asked.calls[0].head()
            assert b"retry: " in (await finding_out).body
            await asked.calls[0].cancelled()
            # Each second one more asks, and waits; all others are told at once.
            told = await asyncio.gather(
                *(seconds_to(relay, "/kept", EVENTS, 200) for _ in range(10)),
                *(seconds_to(relay, "/_penstock/streams/" + "x" * 22, "", 503) for _ in range(10)),
            )
            assert sum(seconds > 2.5 for seconds in told) <= 1
            assert len(asked.calls) == 1, "the upstream was asked in vain"
            assert (await fetch(relay.url, "/_penstock/ready")).status == 200
            assert await metric(relay, "store_away") == 1
            async with begun(relay, asked, "/live") as (peer, call):
                assert not peer.has("penstock-stream")
                assert not peer.has("location")
                await call.send(b"data: 2\n\n")
                await call.end()
                answer = await rest_of(peer)
                assert (answer.whole, answer.body) == (True, b"data: 2\n\n")
        async with asyncio.timeout(20):  # it comes back by itself
            while True:
                async with begun(relay, asked, "/live") as (peer, call):
                    await call.end()
                    if peer.has("penstock-stream"):
                        break
                await asyncio.sleep(0.1)
            while await metric(relay, "store_away"):  # noqa: ASYNC110 – the relay is asked
                await asyncio.sleep(0.1)
        async with begun(relay, asked, "/kept") as (peer, call):
            await call.end()
            assert (await rest_of(peer)).whole


async def test_what_is_relayed_live_ends_with_its_reader_or_runs_to_its_end(tmp_path: Path) -> None:
    async with relays(tmp_path) as (cluster, asked):
        (relay,) = cluster.all
        async with cluster.without_redis():
            async with begun(relay, asked, "/live") as (_, call):
                pass  # the policy is to detach
            await call.send(b"data: 2\n\n")
            await asyncio.sleep(0.1)
            assert not call.gone.is_set()
            await call.end()


async def test_a_stream_that_runs_for_longer_than_it_can_be_held_is_ended_or_goes_on_live(tmp_path: Path) -> None:
    async with relays(tmp_path, 2) as (cluster, asked):
        relay, other = cluster.all
        async with contextlib.AsyncExitStack() as stack:
            # Those have a place in the store before the upstream has answered.
            mine, mine_call = await stack.enter_async_context(asking(relay, asked, "/mine"))
            mine_live, mine_live_call = await stack.enter_async_context(asking(relay, asked, "/mine/live"))
            kept, kept_call = await stack.enter_async_context(begun(relay, asked, "/kept"))
            live, live_call = await stack.enter_async_context(begun(relay, asked, "/live"))
            (stream,) = live.all("penstock-stream")
            elsewhere = await stack.enter_async_context(dial(other.url))
            await elsewhere.send(request(f"/_penstock/streams/{stream}", more=EVENTS))
            await elsewhere.take_head()
            first = await elsewhere.chunk()
            assert OUR_ID.sub(b"", first) == b"data: 1\n\n"
            (last,) = OUR_ID.findall(first)
            async with cluster.without_redis():
                await live_call.send(b"data: 2\n\n")
                second = await live.chunk()
                assert OUR_ID.sub(b"", second) == b"data: 2\n\n"
                lost = await rest_of(kept)
                assert b"producer_lost" in lost.body
                await kept_call.cancelled()
                assert (await rest_of(await headed(mine))).status == 503
                await mine_call.cancelled()
                await mine_live_call.head()
                await mine_live_call.send(b"data: 1\n\n")
                assert not (await headed(mine_live)).has("penstock-stream")
                assert await mine_live.chunk() == b"data: 1\n\n"
                await mine_live_call.end()
                assert (await rest_of(mine_live)).whole
                await asyncio.to_thread(relay.server.said, f"stream {stream}: the lease ran out; it goes on")
                await live_call.send(b"id: theirs\ndata: 3\n\n")
                assert await live.chunk() == b"data: 3\n\n"
            await live_call.send(b"data: 4\n\n")
            await live_call.end()
            rest = await rest_of(live)
            assert (rest.whole, rest.body) == (True, b"data: 4\n\n")
            # Who was elsewhere, or comes back, is told what is left of it.
            assert b"producer_lost" in (await rest_of(elsewhere)).body
            for at in (relay, other):
                again = await fetch(at.url, f"/_penstock/streams/{stream}", more=EVENTS + since(last.decode()))
                assert b"producer_lost" in again.body
                assert not again.whole


async def test_a_full_backlog_pauses_the_source_or_has_it_go_on_live(tmp_path: Path) -> None:
    more = 48  # beyond what sockets hold
    async with relays(tmp_path, lease=60) as (cluster, asked), contextlib.AsyncExitStack() as stack:
        (relay,) = cluster.all
        kept, kept_call = await stack.enter_async_context(begun(relay, asked, "/kept"))
        live, live_call = await stack.enter_async_context(begun(relay, asked, "/live"))
        sent = [0, 0]

        async def send(which: int, call: Call) -> None:
            for _ in range(more):
                await call.send(MEBI)
                sent[which] += 1
            await call.end()

        async with asyncio.TaskGroup() as group:
            async with cluster.without_redis():
                group.create_task(send(0, kept_call))
                reading = group.create_task(rest_of(kept))
                await until(lambda: sent[0] >= BACKLOG)
                await asyncio.sleep(0.5)
                assert sent[0] < more, "the source was not paused"
                group.create_task(send(1, live_call))
                answer = await rest_of(live)
                assert answer.whole
                assert OUR_ID.sub(b"", answer.body) == MEBI * more
                assert len(OUR_ID.findall(answer.body)) < more, "with ids that nobody can come back by"
            answer = await reading
        assert answer.whole
        assert answer.plain == MEBI * more
        (stream,) = kept.all("penstock-stream")
        again = await fetch(relay.url, f"/_penstock/streams/{stream}", more=EVENTS)
        assert again.whole or b"penstock.gap" in again.body
        (stream,) = live.all("penstock-stream")
        lost = await fetch(relay.url, f"/_penstock/streams/{stream}", more=EVENTS)
        assert b"producer_lost" in lost.body or lost.status == 410  # where not even its head was stored
