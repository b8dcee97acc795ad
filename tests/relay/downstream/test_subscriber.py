"""One reader of a log, on a real socket: at the tail, behind, overtaken, silent."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from penstock.eventlog.base import Producer, Retention, Stream
from penstock.eventlog.memory import MemoryLog
from penstock.relay.downstream.answer import attended, give
from penstock.relay.downstream.reader import Downstream
from penstock.relay.streams.ends import Kind
from penstock.relay.streams.head import Head
from penstock.testing import serve
from tests.relay.peers import Serve, until
from tests.relay.readers import asking, rest_of
from tests.relay.servers import behind_middleware

pytestmark = pytest.mark.anyio


class Served:
    """An application that gives one stream to whoever asks."""

    def __init__(self, kind: Kind = "sse", keep_alive: float = 0.0, max_bytes: int = 1 << 20) -> None:
        self.log = MemoryLog(retention=Retention(max_stream_bytes=max_bytes))
        self.head = Head(200, [], kind)
        self.keep_alive = keep_alive

    async def open(self) -> None:
        stream, producer = await self.log.open(None, "", b"")
        assert producer is not None
        self.stream: Stream = stream
        self.producer: Producer = producer
        producer.start(self.head.encoded())

    @property
    def readers(self) -> int:
        return cast("int", cast("Any", self.stream).readers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        async with Downstream(Request(scope, receive), receive, send) as downstream, attended(downstream):
            with self.stream.reader() as reader:
                await give(reader, self.head, downstream, more_headers=[], keep_alive=self.keep_alive)


@pytest.fixture(params=[pytest.param(serve, id="direct"), pytest.param(behind_middleware, id="middleware")])
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


@pytest.mark.parametrize("before", [0, 1, 3000])
async def test_what_was_and_what_comes_without_a_seam(before: int, served: Serve) -> None:
    app = Served()
    await app.open()
    records = [b"%d\n" % number for number in range(before + 50)]
    for record in records[:before]:
        app.producer.append([record])
    async with served(app) as url, asking(url) as reader:
        await reader.take_head()
        for record in records[before:]:
            app.producer.append([record])
            await asyncio.sleep(0)
        app.producer.end("done")
        answer = await rest_of(reader)
        assert (answer.body, answer.whole) == (b"".join(records), True)
        await until(lambda: app.readers == 0)


async def test_a_reader_that_turns_slow_and_comes_back_has_everything(served: Serve) -> None:
    app = Served(max_bytes=64 << 20)
    await app.open()
    async with served(app) as url, asking(url, receive_buffer=4096) as reader:
        await reader.take_head()
        records = [b"%06d" % number * 3000 for number in range(600)]
        got: list[bytes] = []
        for number, record in enumerate(records):
            app.producer.append([record])
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number == 400:
                while sum(map(len, got)) < 300 * len(record):
                    got.append(await reader.chunk())
        app.producer.end("done")
        rest = await rest_of(reader)
        assert rest.whole
        assert b"".join(got) + rest.body == b"".join(records)
        await until(lambda: app.readers == 0)


@pytest.mark.parametrize("kind", ["sse", "ndjson", "bytes"])
async def test_one_that_the_log_overtakes_is_told_or_broken_off(kind: Kind, served: Serve) -> None:
    app = Served(kind, max_bytes=100_000)
    await app.open()
    async with served(app) as url, asking(url, receive_buffer=4096) as stuck:
        await stuck.take_head()
        with app.stream.reader() as fastest:  # which has all there is, so that nobody else is waited for
            for _ in range(2000):
                app.producer.append([b"x" * 9999 + b"\n"])
                fastest.seek(app.stream.sequence)
                await asyncio.sleep(0)
            app.producer.end("done")
            answer = await rest_of(stuck)
        assert answer.whole is (kind == "sse")
        assert (b"event: penstock.gap\n" in answer.body) is (kind == "sse")
        await until(lambda: app.readers == 0)


async def test_silence_is_broken_by_comments_until_something_comes(served: Serve) -> None:
    app = Served(keep_alive=0.05)
    await app.open()
    async with served(app) as url, asking(url) as reader:
        await reader.take_head()
        assert await reader.chunk() == b": keep-alive\n"
        assert await reader.chunk() == b": keep-alive\n"
        app.producer.append([b"data: x\n\n"])
        while (piece := await reader.chunk()) == b": keep-alive\n":
            pass
        assert piece == b"data: x\n\n"
        app.producer.end("done")
        assert (await rest_of(reader)).whole


async def test_a_busy_stream_needs_none(served: Serve) -> None:
    app = Served(keep_alive=0.2)
    await app.open()
    async with served(app) as url, asking(url) as reader:
        await reader.take_head()
        for _ in range(60):
            app.producer.append([b"data: x\n\n"])
            await asyncio.sleep(0.01)
        app.producer.end("done")
        assert (await rest_of(reader)).body == b"data: x\n\n" * 60


async def test_a_reader_that_leaves_leaves_nothing(served: Serve) -> None:
    app = Served(keep_alive=0.01)
    await app.open()
    async with served(app) as url:
        async with asking(url) as reader:
            await reader.take_head()
            await reader.chunk()
            assert app.readers == 1
            reader.reset()
        try:
            await until(lambda: app.readers == 0)
        finally:
            app.producer.end("done")
