"""Generators of one's own, in routes: run once, whoever reads, and cleaned up after at every kind of end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio.to_thread
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from penstock.relay.app import Relay
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.relay.streams.ends import StreamEnd
from penstock.relay.streams.generator import encoder
from penstock.testing import serve
from penstock.wire.sse import Event
from tests.relay.peers import Serve, until
from tests.relay.readers import Answer, asking, fetch, plain, rest_of, settled, since, streams_of
from tests.relay.servers import EVERY_SERVER

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:9"


class Step(BaseModel):
    n: int


@pytest.mark.parametrize(
    ("item", "event", "line"),
    [
        ("hi", b"data: hi\n\n", b'"hi"\n'),
        ("a\r\nb\rc", b"data: a\ndata: b\ndata: c\n\n", b'"a\\r\\nb\\rc"\n'),
        ({"ä": [1, None]}, 'data: {"ä":[1,null]}\n\n'.encode(), '{"ä":[1,null]}\n'.encode()),
        (Step(n=1), b'data: {"n":1}\n\n', b'{"n":1}\n'),
        (7, b"data: 7\n\n", b"7\n"),
        (b": raw\n\n", b": raw\n\n", b": raw\n\n"),
    ],
)
def test_what_an_item_becomes(item: Any, event: bytes, line: bytes) -> None:
    assert encoder("sse")(item) == event
    assert encoder("ndjson")(item) == line


def test_an_event_is_that_event_and_raw_takes_bytes_only() -> None:
    assert encoder("sse")(Event("step", "1")) == b"event: step\ndata: 1\n\n"
    assert encoder("raw")(bytearray(b"x")) == b"x"
    with pytest.raises(TypeError, match="yield bytes"):
        encoder("raw")("x")
    with pytest.raises(TypeError):
        encoder("sse")(object())


class Host:
    """An application with one route that streams, and what became of it."""

    def __init__(self, factory: Callable[[], Any], *, on_disconnect: str = "detach", **options: Any) -> None:
        policy = Policy(upstream=NOWHERE, on_disconnect=OnDisconnect.parse(on_disconnect))
        self.relay = Relay(NOWHERE, store="memory://", policy=policy)
        self.ends: list[StreamEnd] = []
        self.runs = 0
        self.app = FastAPI(lifespan=self.relay.lifespan)
        relay = self.relay

        def counted() -> Any:
            self.runs += 1
            return factory()

        @self.app.post("/run/{id}")
        async def run(request: Request, id: str, owner: str = "ann", if_running: Any = "join") -> Response:
            return await relay.stream(
                request, counted, key=id, owner=owner, if_running=if_running, on_end=self.ends.append, **options
            )

        @self.app.post("/run")
        async def unnamed(request: Request) -> Response:
            return await relay.stream(request, counted, on_end=self.ends.append, **options)

        @self.app.get("/run/{id}")
        async def again(request: Request, id: str, owner: str = "ann", finished: int | None = None) -> Response:
            return await relay.resume(request, key=id, owner=owner, finished=finished)

        @self.app.post("/run/{id}/stop")
        async def stop(id: str, owner: str = "ann") -> dict[str, bool]:
            return {"stopped": await relay.stop(key=id, owner=owner)}


class Agent:
    """An async generator that goes on when it is told to."""

    def __init__(self) -> None:
        self.gate = asyncio.Semaphore(0)
        self.cleaned = 0

    async def __call__(self) -> AsyncIterator[dict[str, int]]:
        try:
            for n in range(5):
                if n:
                    await self.gate.acquire()
                yield {"n": n}
        finally:
            await asyncio.sleep(0)
            self.cleaned += 1

    def go_on(self, steps: int = 4) -> None:
        for _ in range(steps):
            self.gate.release()


ALL = b"".join(b'data: {"n":%d}\n\n' % n for n in range(5))


@asynccontextmanager
async def hosting(host: Host, served: Serve = serve) -> AsyncIterator[str]:
    async with served(host.app) as url:
        yield url
        await settled(host.relay)


@pytest.fixture(params=EVERY_SERVER)
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


async def test_it_runs_once_for_who_begins_joins_and_comes_back(served: Serve) -> None:
    agent = Agent()
    host = Host(agent)
    async with hosting(host, served) as url:
        async with asking(url, "/run/1", "POST") as first:
            await first.take_head()
            seen = await first.chunk()
            assert plain(seen) == b'data: {"n":0}\n\n'
            first.reset()
        async with asking(url, "/run/1", "POST") as joined, asking(url, "/run/1") as resumed:
            await joined.take_head()
            await resumed.take_head()
            agent.go_on()
            answers = [await rest_of(joined), await rest_of(resumed)]
        assert [(each.plain, each.whole) for each in answers] == [(ALL, True)] * 2
        id_ = since(answers[0].ids[1])
        for target, method in (("/run/1", "GET"), ("/run/1", "POST")):
            assert (await fetch(url, target, method, id_)).plain == b"".join(
                b'data: {"n":%d}\n\n' % n for n in range(2, 5)
            )
        assert host.runs == agent.cleaned == 1
        assert (await fetch(url, "/run/1?finished=204")).status == 204
        assert (await fetch(url, "/run/1")).plain == ALL
        assert (await fetch(url, "/run/2?finished=204")).status == 204
        assert (await fetch(url, "/run/2")).status == 404
        (end,) = host.ends
        assert (end.reason, end.key, end.owner, end.event_count) == ("done", "1", "ann", 5)
        assert len(await end.records()) == 5
        assert [event.json() for event in await end.events()] == [{"n": n} for n in range(5)]


async def test_a_stranger_neither_reads_nor_stops_it() -> None:
    agent = Agent()
    host = Host(agent)
    async with hosting(host) as url, asking(url, "/run/1", "POST") as first:
        await first.take_head()
        id_ = Answer(first, await first.chunk(), whole=False).ids[0]
        assert (await fetch(url, "/run/1?owner=bob")).status == 404
        assert (await fetch(url, "/run/1?owner=bob", "POST", since(id_))).status == 404
        assert (await fetch(url, "/run/1/stop?owner=bob", "POST")).body == b'{"stopped":false}'
        # Of the owner's, but of another key's stream:
        assert (await fetch(url, "/run/2", "POST", since(id_))).status == 409
        agent.go_on()
        assert (await rest_of(first)).whole


async def test_conflict_and_replace() -> None:
    agents = [Agent(), Agent()]
    made = iter(agents)

    def another() -> Any:
        return next(made)()

    host = Host(another)
    async with hosting(host) as url, asking(url, "/run/1", "POST") as first:
        await first.take_head()
        refused = await fetch(url, "/run/1?if_running=conflict", "POST")
        assert (refused.status, refused.problem["stream"]) == (409, first.all("penstock-stream")[0])
        async with asking(url, "/run/1?if_running=replace", "POST") as second:
            await second.take_head()
            replaced = await rest_of(first)
            assert not replaced.whole
            assert b"the stream was stopped" in replaced.body
            agents[1].go_on()
            assert (await rest_of(second)).plain == ALL
        assert [end.reason for end in host.ends] == ["cancelled", "done"]
        assert [agent.cleaned for agent in agents] == [1, 1]


@pytest.mark.parametrize("how", ["stop", "grace", "cancel", "shutdown"])
async def test_its_finally_runs_at_every_kind_of_end(how: str, served: Serve) -> None:
    agent = Agent()
    host = Host(agent, on_disconnect={"grace": "grace:0.05s", "cancel": "cancel"}.get(how, "detach"))
    async with served(host.app) as url, asking(url, "/run/1", "POST") as reader:
        await reader.take_head()
        await reader.chunk()
        if how == "stop":
            assert (await fetch(url, "/run/1/stop", "POST")).body == b'{"stopped":true}'
            assert not (await rest_of(reader)).whole
            assert (await fetch(url, "/run/1/stop", "POST")).body == b'{"stopped":false}'
        elif how == "shutdown":
            await streams_of(host.relay).aclose()
        else:
            reader.reset()
        await until(lambda: agent.cleaned == 1)
        await until(lambda: len(host.ends) == 1)
    assert [end.reason for end in host.ends] == ["cancelled"]
    assert host.runs == 1


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_blocking_generator_runs_beside_the_loop_and_is_closed(stopped: bool) -> None:
    gate, threads, cleaned = threading.Event(), set(), []

    def agent() -> Iterator[str]:
        try:
            yield "first"
            threads.add(threading.current_thread())
            assert gate.wait(20)
            yield "second"
        finally:
            cleaned.append(True)

    host = Host(agent)
    async with hosting(host) as url, asking(url, "/run/1", "POST") as reader:
        await reader.take_head()
        assert plain(await reader.chunk()) == b"data: first\n\n"
        if stopped:
            assert (await fetch(url, "/run/1/stop", "POST")).body == b'{"stopped":true}'
        gate.set()
        rest = await rest_of(reader)
        assert rest.whole is not stopped
        await until(lambda: cleaned == [True])
    assert threading.main_thread() not in threads


async def broken() -> AsyncIterator[str]:
    yield "one"
    raise ZeroDivisionError("secret")


async def test_one_that_raises_ends_as_an_error_that_tells_nothing_of_the_inside() -> None:
    host = Host(broken)
    async with hosting(host) as url:
        answer = await fetch(url, "/run/1", "POST")
        assert (answer.status, answer.whole) == (200, False)
        assert answer.plain.startswith(b"data: one\n\nevent: penstock.error\n")
        told = json.loads(answer.plain.partition(b"penstock.error\ndata: ")[2])
        assert told == {"error": {"type": "error", "message": "the stream failed before its end"}}
        assert b"secret" not in answer.body
        assert host.ends[0].reason == "error"


@pytest.mark.parametrize("dialect", [None, "ai-sdk"])
async def test_one_that_swallows_its_stop_adds_nothing_to_the_stream(dialect: Any) -> None:
    waiting, went_on = asyncio.Event(), asyncio.Event()

    async def stubborn() -> AsyncIterator[str]:
        yield "one"
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            went_on.set()
        yield "two"
        yield "three"

    host = Host(stubborn, dialect=dialect)
    async with hosting(host) as url, asking(url, "/run/1", "POST") as reader:
        await reader.take_head()
        await waiting.wait()
        assert (await fetch(url, "/run/1/stop", "POST")).body == b'{"stopped":true}'
        answer = await rest_of(reader)
        await until(lambda: len(host.ends) == 1)
        assert went_on.is_set()
        (end,) = host.ends
        assert (end.reason, end.event_count, end.status) == ("cancelled", 1, 200)
        assert b"two" not in answer.body
        assert b"DONE" not in answer.body
        assert not answer.whole


async def test_a_factory_that_raises_and_an_item_that_is_no_json_are_errors_too() -> None:
    def bad() -> Any:
        raise ZeroDivisionError

    for factory in (bad, lambda: [object()]):
        host = Host(factory)
        async with hosting(host) as url:
            answer = await fetch(url, "/run", "POST")
            assert (answer.whole, b"penstock.error" in answer.body) == (False, True)
            assert [end.reason for end in host.ends] == ["error"]


async def test_the_encodings_and_the_fields() -> None:
    for encoding, items, kind, body in (
        ("sse", ["a", {"b": 1}], "text/event-stream; charset=utf-8", b'data: a\n\ndata: {"b":1}\n\n'),
        ("ndjson", [{"a": 1}, "x"], "application/x-ndjson", b'{"a":1}\n"x"\n'),
        ("raw", [b"data: a\n", b"\n"], "text/event-stream; charset=utf-8", b"data: a\n\n"),
    ):
        host = Host(partial(list, items), encoding=encoding, headers={"X-Mine": "1"})
        async with hosting(host) as url:
            answer = await fetch(url, "/run", "POST")
            assert (answer.plain, answer.whole) == (body, True)
            assert answer.field("content-type") == kind
            assert answer.field("x-mine") == "1"
            assert answer.field("x-accel-buffering") == "no"


async def test_a_field_that_would_be_two_is_refused() -> None:
    relay = Relay(NOWHERE, store="memory://")
    with pytest.raises(ValueError, match=r"LF|CR"):
        await relay.stream(cast("Request", None), list, headers={"X": "a\r\nSet-Cookie: b"})


async def test_the_ai_sdks_dialect_has_its_field_its_end_and_its_error() -> None:
    host = Host(lambda: [{"type": "start"}, {"type": "finish"}], dialect="ai-sdk")
    async with hosting(host) as url:
        answer = await fetch(url, "/run/1", "POST")
        assert answer.field("x-vercel-ai-ui-message-stream") == "v1"
        assert answer.plain == b'data: {"type":"start"}\n\ndata: {"type":"finish"}\n\ndata: [DONE]\n\n'
    host = Host(broken, dialect="ai-sdk")
    async with hosting(host) as url:
        failed = (await fetch(url, "/run/1", "POST")).plain
        assert json.loads(failed.split(b"data: ")[-1])["type"] == "error"
        assert b"[DONE]" not in failed


async def test_without_a_store_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="store="):
        await Relay(NOWHERE).stream(cast("Request", None), list)


async def test_blocking_generators_leave_the_threads_of_others_alone() -> None:
    gate = threading.Event()

    def waiting() -> Iterator[str]:
        assert gate.wait(20)
        yield "x"

    others = anyio.to_thread.current_default_thread_limiter()
    before, others.total_tokens = others.total_tokens, 1
    try:
        async with hosting(Host(waiting)) as url, asking(url, "/run", "POST") as reader:
            await reader.take_head()
            async with asyncio.timeout(20):
                assert await anyio.to_thread.run_sync(lambda: "done") == "done"
            assert others.borrowed_tokens == 0
            gate.set()
            assert (await rest_of(reader)).whole
    finally:
        gate.set()
        others.total_tokens = before
