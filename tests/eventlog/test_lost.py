"""What a reader is told that is behind when its producer loses what it had not stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.eventlog.base import EventLog
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.sqlite.log import SqliteLog
from tests.eventlog.redis_server import BINARY, running

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "redis"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    if request.param == "sqlite":
        yield SqliteLog(tmp_path / "log.db")
    elif BINARY is None:
        pytest.skip("redis-server is not installed")
    else:
        with running(tmp_path) as server:
            yield RedisLog(server.url)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("stored", [0, 2])
async def test_who_is_behind_is_told_of_the_loss(log: EventLog, stored: int, ends: bool) -> None:
    async with log:
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        producer.start()
        if stored:
            producer.append([b"a", b"b"])
            await producer.stored(stored)
        with stream.reader(stored) as behind:
            producer.append([b"c", b"d"])
            if ends:
                producer.end("done")
            log.abort()
            async with asyncio.timeout(5):
                while (page := await behind.read()).end is None:
                    await behind.wait()
                    await asyncio.sleep(0)  # so that a loop which gets nowhere ends
            assert (page.records, page.end.reason, page.end.sequence) == ((), "producer_lost", stored + 1)
