from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.errors import StoreError
from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.settings.policy import OnDisconnect
from penstock.relay.settings.store import Store
from penstock.relay.streams import store_breaker
from penstock.relay.streams import streams as streams_module
from penstock.relay.streams.session import Session
from penstock.relay.streams.store_breaker import StoreBreaker
from penstock.relay.streams.streams import IfRunning, NoRoom, Running, Streams
from tests.eventlog.redis_server import RedisServer, needs_redis
from tests.relay.peers import until
from tests.relay.streams.test_session import for_ever, head, saying

pytestmark = pytest.mark.anyio


def session() -> Session:
    return Session(on_disconnect=OnDisconnect("detach"))


async def begun(streams: Streams, key: str | None, owner: str = "ann", if_running: IfRunning = "join") -> Session:
    mine = session()
    assert await streams.claim(mine, key, owner, if_running=if_running) is None
    streams.start(mine, saying(b"data: x\n\n", then=for_ever))
    await mine.opened
    return mine


async def test_a_key_is_joined_refused_or_taken_over() -> None:
    streams = Streams(MemoryLog())
    first = await begun(streams, "k")
    assert await streams.claim(session(), "k", "ann") is first.stream
    with pytest.raises(Running) as running:
        await streams.claim(session(), "k", "ann", if_running="conflict")
    assert running.value.stream is first.stream
    second = await begun(streams, "k", if_running="replace")
    await until(lambda: first.end is not None)
    assert first.end is not None
    assert first.end.reason == "cancelled"
    assert await streams.find("k", "ann") is second.stream
    assert await streams.find("k", "bob") is None
    await streams.aclose()


@pytest.mark.parametrize("if_running", ["join", "conflict"])
async def test_whoever_asks_behind_a_stop_gets_another_stream_however_long_the_first_takes_to_end(
    tmp_path: Path, if_running: IfRunning
) -> None:
    here, there = (Streams(SqliteLog(tmp_path / "log.db")) for _ in range(2))
    done = asyncio.Event()

    async def slow(session: Session) -> None:
        session.begin(head())
        try:
            await for_ever()
        finally:
            await done.wait()

    first = session()
    assert await here.claim(first, "k", "ann") is None
    here.start(first, slow)
    await first.opened
    stopped = await there.find("k", "ann")
    assert stopped is not None
    assert await there.stop(stopped)
    second = await begun(there, "k", if_running=if_running)
    assert second.stream.id != first.stream.id
    third = session()
    assert await there.claim(third, "k", "ann") is second.stream
    done.set()
    await until(lambda: first.end is not None)
    for each in (here, there):
        await each.aclose()


async def test_a_stream_is_its_owners_and_one_of_nobody_is_who_knows_its_ids() -> None:
    streams = Streams(MemoryLog())
    mine, nobodys = await begun(streams, None), await begun(streams, None, "")
    assert await streams.get(mine.stream.id, "ann") is mine.stream
    assert await streams.get(mine.stream.id, "bob") is None
    assert await streams.get(mine.stream.id, None) is None
    assert await streams.get(nobodys.stream.id, "bob") is nobodys.stream
    await streams.aclose()


async def test_a_stop_is_told_whether_there_was_something_to_stop() -> None:
    streams = Streams(MemoryLog())
    mine = await begun(streams, "k")
    assert await streams.stop(mine.stream)
    await until(lambda: streams.running == 0)
    assert not await streams.stop(mine.stream)
    assert streams.session(mine.stream) is None


async def test_a_log_that_is_full_has_no_room() -> None:
    streams = Streams(MemoryLog(retention=Retention(max_streams=1)))
    await begun(streams, None)
    with pytest.raises(NoRoom):
        await streams.claim(session(), None, "")
    await streams.aclose()


async def test_a_store_that_cannot_be_opened_has_no_room(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database, and never was one" * 100)
    store = Store(f"sqlite:///{path}").log()
    assert store is not None
    streams = Streams(store)
    with pytest.raises(NoRoom) as full:
        await streams.claim(session(), None, "")
    assert str(tmp_path) not in str(full.value)
    with pytest.raises(StoreError):
        await streams.get("A" * 22, None)
    await streams.aclose()


async def test_what_is_relayed_without_a_store_has_its_bounds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "UNKEPT", Retention(age=0.0, max_streams=1))
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database, and never was one" * 100)
    store = Store(f"sqlite:///{path}").log()
    assert store is not None
    streams = Streams(store)
    first = session()
    assert await streams.claim(first, None, "", without_store="live") is None
    streams.start(first, saying(b"data: x\n\n", then=for_ever))
    with pytest.raises(NoRoom, match="without it"):
        await streams.claim(session(), None, "", without_store="live")
    await streams.aclose()


@needs_redis
async def test_a_store_that_is_away_is_missed_only_by_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_breaker, "RECOVERY", 0.02)
    server = RedisServer(tmp_path)
    server.end()
    streams = Streams(RedisLog(server.url))
    try:
        for _ in range(2):
            with pytest.raises(NoRoom):
                await streams.claim(session(), "k", "ann")
        server.start()
        await asyncio.sleep(0.05)
        mine = await begun(streams, "k")  # which the first use had found away
        monkeypatch.setattr(store_breaker, "RECOVERY", 600.0)
        streams.breaker = StoreBreaker()
        server.end()
        with pytest.raises(StoreError):
            await streams.look("A" * 22)
        assert await streams.get(mine.stream.id, "ann") is mine.stream
        assert await streams.get(mine.stream.id, "bob") is None
        assert await streams.find("k", "ann") is mine.stream
        for nobodys in (streams.find("k", "bob"), streams.listed()):
            with pytest.raises(StoreError, match="is not asked"):
                await nobodys
        assert await streams.stop(mine.stream)
        assert streams.breaker.away, "nobody has asked it since"
        await until(lambda: streams.running == 0)
        monkeypatch.setattr(store_breaker, "RECOVERY", 0.0)
        streams.breaker = StoreBreaker()
        with pytest.raises(StoreError):
            await streams.look("A" * 22)
        assert await streams.look(mine.stream.id) is mine.stream, "its end is yet to be stored"
        assert streams.breaker.away
    finally:
        await streams.aclose()
        server.end()


async def test_draining_waits_for_what_runs_and_no_longer_than_it_may() -> None:
    streams = Streams(MemoryLog())
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    mine = session()
    await streams.claim(mine, None, "")
    streams.start(mine, saying(then=wait))
    await mine.opened
    await streams.drain(0.01)
    assert streams.draining
    assert streams.running == 1
    gate.set()
    await streams.aclose(20)
    assert mine.end is not None
    assert mine.end.reason == "done"


async def test_on_settled_hears_of_every_end_once() -> None:
    streams = Streams(MemoryLog())
    heard: list[str] = []
    streams.on_settled.append(lambda end: heard.append(end.reason))
    mine = session()
    await streams.claim(mine, None, "")
    streams.start(mine, saying(b"data: x\n\n"))
    await until(lambda: heard == ["done"])
    await begun(streams, None)
    await streams.aclose()
    await until(lambda: heard == ["done", "cancelled"])
