"""What goes on by itself: while Sentinels hang, and in spite of what nobody foresaw."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.eventlog.base import Retention, Stream, new_stream_id
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.redis.scripts import base_of, bucket_of, id_in
from tests.eventlog.redis_server import PATIENCE, RedisServer, needs_redis, running
from tests.relay.peers import until

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def sentinels(server: RedisServer, tmp_path: Path) -> Iterator[list[RedisServer]]:
    with ExitStack() as ends:
        found = []
        for name in ("first", "second"):
            said = tmp_path / f"{name}.conf"
            said.write_text(f"sentinel monitor streams 127.0.0.1 {server.port} 2\n")
            found.append(ends.enter_context(running(tmp_path / name, configured=said)))
        yield found


async def test_leases_are_looked_after_while_sentinels_hang(server: RedisServer, sentinels: list[RedisServer]) -> None:
    prefix = secrets.token_hex(4)
    url = "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in sentinels) + "/streams"
    sentinels[0].kill(signal.SIGSTOP)
    async with (
        asyncio.timeout(PATIENCE),
        RedisLog(server.url, prefix=prefix, lease=300) as other,  # whose count would find it out too
        RedisLog(server.url, prefix=prefix, lease=300) as third,
        RedisLog(url, prefix=prefix, timeout=3 * PATIENCE) as log,  # by the Sentinel that does answer
    ):
        first = await running_elsewhere(other, log, new_stream_id())
        number = bucket_of(first.id)
        second = await running_elsewhere(third, log, id_in(number, new_stream_id))
        following = asyncio.create_task(first.wait(0))
        await until(lambda: "blocked_clients:3" in server.info("clients"))
        sentinels[1].kill(signal.SIGSTOP)
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: log.trouble is not None)  # so the Sentinels are being asked
        await until(lambda: "blocked_clients:3" in server.info("clients"))
        base = base_of(prefix, number)
        token = server.ask("HGET", f"{base}:stream:{second.id}", "lease", whole=True).split("\r\n")[1]
        assert server.ask("DEL", f"{base}:lease:{token}") == ":1"
        await second.wait(0)
        assert second.ended is not None
        assert second.ended.reason == "producer_lost"
        following.cancel()


async def running_elsewhere(producing: RedisLog, reading: RedisLog, id: str) -> Stream:
    _, producer = await producing.open(None, "", b"", id=id)
    assert producer is not None
    producer.start()
    stream = await reading.get(id)
    assert stream is not None
    return stream


async def test_what_nobody_foresaw_is_logged_once_and_the_sweeping_goes_on(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = secrets.token_hex(4)
    stops: list[str] = []
    caplog.set_level(logging.ERROR, "penstock")
    retention = Retention(max_stream_bytes=16_000, max_bytes=16_000)
    async with RedisLog(server.url, prefix=prefix, lease=60, retention=retention) as log:
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        producer.watch(on_stop=lambda: stops.append("stop"))
        producer.start()
        base = base_of(prefix, bucket_of(stream.id))
        foul = f"{base}:running", f"{base}:stream:"
        token = server.ask("HGET", f"{base}:stream:{stream.id}", "lease", whole=True).split("\r\n")[1]
        make = "local id = string.char(255); redis.call('ZADD', ARGV[1], 1, id); redis.call('HSET', ARGV[2] .. id, "
        server.ask("EVAL", make + "'lease', ARGV[3], 'offset', 0, 'dropped_offset', 0)", "0", *foul, token)
        producer.append([b"x" * 1001])  # a sixteenth of what is kept: it is time to sweep
        await until(lambda: len(caplog.records) > 0)
        server.ask("HSET", f"{base}:stream:{stream.id}", "stop", "1")
        server.ask("EVAL", "redis.call('ZREM', ARGV[1], string.char(255))", "0", *foul)
        while not stops:
            producer.append([b"x" * 1001])
            await asyncio.sleep(0.01)
        assert [record.getMessage() for record in caplog.records] == [f"{server.url}: nobody foresaw this; it goes on"]
