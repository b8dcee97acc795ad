"""What is heard of a bucket, and read of it, when something was lost meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.errors import ProducerLost, StreamGone
from penstock.eventlog.base import Producer, Stream
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.redis.scripts import base_of, bucket_of
from penstock.eventlog.redis.stream import RedisStream
from tests.eventlog.redis_server import PATIENCE, RedisServer, needs_redis, running
from tests.relay.peers import until

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@dataclass
class Pair:
    """Two logs on one store, and a stream of the first with a record that is stored."""

    server: RedisServer
    prefix: str
    log: RedisLog
    other: RedisLog
    stream: Stream
    producer: Producer

    def key(self, kind: str, name: str) -> str:
        return f"{base_of(self.prefix, bucket_of(self.stream.id))}:{kind}:{name}"

    async def there(self) -> Stream:
        found = await self.other.get(self.stream.id)
        assert found is not None
        return found


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[Pair]:
    prefix = secrets.token_hex(4)
    async with (
        RedisLog(server.url, prefix=prefix, lease=60) as log,
        RedisLog(server.url, prefix=prefix, lease=60) as other,
    ):
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        producer.start()
        producer.append([b"one"])
        await producer.stored(1)
        yield Pair(server, prefix, log, other, stream, producer)


async def test_a_lease_that_runs_out_while_the_tail_is_taken_up_again(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        prefix = secrets.token_hex(4)
        async with RedisLog(server.url, prefix=prefix) as log, RedisLog(server.url, prefix=prefix, lease=0.5) as other:
            stream, producer = await log.open(None, "", b"")
            assert producer is not None
            producer.start()
            there = await other.get(stream.id)
            assert there is not None
            waiting = asyncio.create_task(there.wait(0))
            await until(
                lambda: "blocked_clients:2" in server.info("clients")
            )  # who produces it hears of its bucket too
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            server.kill(signal.SIGSTOP)
            await asyncio.sleep(0.7)  # the tail asks anew, and the lease of who asks runs out
            server.kill(signal.SIGCONT)
            await until(lambda: "blocked_clients:2" in server.info("clients"))
            async with asyncio.timeout(PATIENCE):
                producer.append([b"one"])
                await waiting
                assert (await there.read(0)).records == [b"one"]


async def test_what_nobody_foresaw_is_logged_once_and_the_tail_goes_on(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "penstock")
    stops: list[str] = []
    pair.producer.watch(on_stop=lambda: stops.append("stop"))
    lease = pair.server.ask("HGET", pair.key("stream", pair.stream.id), "lease", whole=True).split("\r\n")[1]
    for _ in range(2):
        pair.server.ask("XADD", pair.key("inbox", lease), "*", "readers", pair.stream.id)
    assert await (await pair.there()).request_stop()
    await until(lambda: stops == ["stop"])
    assert [record.getMessage() for record in caplog.records] == [f"{pair.server.url}: nobody foresaw this; it goes on"]


@pytest.mark.parametrize("offset", [None, 0])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_log_that_is_lost_ends_its_stream_and_is_not_skipped(
    pair: Pair, goes_on: bool, offset: int | None
) -> None:
    there = await pair.there()
    assert pair.server.ask("DEL", pair.key("log", pair.stream.id)) == ":1"
    if goes_on:  # behind the gap
        pair.producer.append([b"two"])
        await pair.producer.stored(2)
    with pytest.raises(StreamGone):
        await there.read(0, offset=offset)
    pair.producer.append([b"more"])
    with pytest.raises(ProducerLost):
        await pair.producer.stored(3 if goes_on else 2)
    assert there.ended is not None
    assert there.ended.reason == "producer_lost"


async def test_a_stream_that_was_read_is_let_go_of(pair: Pair) -> None:
    stream, producer = await pair.log.open(None, "", b"")
    assert producer is not None
    producer.start()
    with stream.reader():
        pass
    producer.end("done")
    await producer.stored(1)
    name = stream.id
    del stream, producer

    def kept() -> bool:
        gc.collect()
        return any(isinstance(each, RedisStream) and each.id == name for each in gc.get_objects())

    await until(lambda: not kept())
