"""What a full log in Redis costs: how often the streams are counted, and who still gets in."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from penstock.errors import LimitExceeded
from penstock.eventlog.base import Producer, Retention
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.redis.scripts import BUCKETS, base_of, bucket_of
from tests.eventlog.redis_server import RedisServer, needs_redis, running
from tests.relay.peers import until

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Counts:
    """How often Redis had to count; each count goes through three indexes of each bucket."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        assert server.ask("CONFIG", "RESETSTAT") == "+OK"
        self._began = time.monotonic()

    @property
    def made(self) -> float:
        """Indexes gone through, as if all were for counts."""
        told = [line for line in self._server.info("commandstats") if line.startswith("cmdstat_zrange:calls=")]
        return int(told[0].split("=")[1].split(",")[0]) / 3 / BUCKETS if told else 0.0

    @property
    def allowed(self) -> float:
        """One a second."""
        return 2 + time.monotonic() - self._began


async def opened(log: RedisLog) -> Producer:
    _, producer = await log.open(None, "", b"")
    assert producer is not None
    producer.start()
    return producer


async def ended(log: RedisLog) -> None:
    producer = await opened(log)
    producer.end("done")
    await producer.stored(1)


async def test_an_open_in_a_full_log_costs_no_count(server: RedisServer) -> None:
    retention = Retention(max_streams=60)
    async with RedisLog(server.url, prefix=secrets.token_hex(4), lease=60, retention=retention) as log:
        await asyncio.gather(*(ended(log) for _ in range(58)))
        counts = Counts(server)
        for _ in range(30):
            await ended(log)
        await asyncio.gather(*(ended(log) for _ in range(30)))
        evictions = (30 / 3 + 3) / 3  # three streams at once; each goes through a third of what a count does
        assert counts.made <= counts.allowed + evictions + 2
        assert len(await log.streams()) <= 60


async def test_where_all_run_a_refusal_costs_no_count_and_who_can_get_in_does(server: RedisServer) -> None:
    retention = Retention(max_streams=8)
    prefix = secrets.token_hex(4)
    async with RedisLog(server.url, prefix=prefix, lease=60, retention=retention) as log:
        producers = [await opened(log) for _ in range(8)]
        counts = Counts(server)
        for _ in range(20):
            with pytest.raises(LimitExceeded, match="8 streams run"):
                await opened(log)
        assert counts.made <= counts.allowed + 20 / 3
        producers[0].end("done")
        await producers[0].stored(1)
        one = await opened(log)  # in the place of what has just ended, and is evicted
        one.end("done")
        await one.stored(1)
        name = (await log.streams())[0].id
        base = base_of(prefix, bucket_of(name))
        server.ask("DEL", f"{base}:stream:{name}", f"{base}:log:{name}")
        await opened(log)  # in the place of what was forgotten
        with pytest.raises(LimitExceeded):
            await opened(log)


async def test_who_leaves_takes_nobody_along(server: RedisServer) -> None:
    """The sweep is everybody's: it goes on when one of those who wait for it is cancelled."""
    async with RedisLog(server.url, prefix=secrets.token_hex(4), lease=60, retention=Retention(max_streams=40)) as log:
        await asyncio.gather(*(ended(log) for _ in range(40)))
        openings = [asyncio.create_task(ended(log)) for _ in range(8)]
        for opening in openings[::2]:
            await asyncio.sleep(0.001)
            opening.cancel()
        for opening in openings:
            with suppress(asyncio.CancelledError):
                await opening
        assert [opening.cancelled() for opening in openings[1::2]] == [False] * 4


async def test_a_stop_that_the_inbox_has_dropped_comes_with_the_next_count(server: RedisServer) -> None:
    prefix = secrets.token_hex(4)
    stops: list[str] = []
    retention = Retention(max_stream_bytes=16_000, max_bytes=16_000)
    async with RedisLog(server.url, prefix=prefix, lease=60, retention=retention) as log:
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        producer.watch(on_stop=lambda: stops.append("stop"))
        producer.start()
        base = base_of(prefix, bucket_of(stream.id))
        assert server.ask("HSET", f"{base}:stream:{stream.id}", "stop", "1") == ":1"
        producer.append([b"x" * 1001])  # a sixteenth of what is kept: it is time for a count
        await until(lambda: stops == ["stop"])
