"""The log in Redis under real processes that are killed, stopped and asked to stop, and servers that are too."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.eventlog.base import Page, Stream
from penstock.eventlog.redis.log import RedisLog
from tests.e2e.process import Running
from tests.eventlog.producer import record
from tests.eventlog.redis_server import RedisServer, needs_redis, running
from tests.eventlog.worker import record as record_of

PATIENCE = 30.0
PRODUCER = Path(__file__).parents[1] / "producer.py"
WORKER = Path(__file__).parents[1] / "worker.py"

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, needs_redis]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis") as server:
        yield server


@contextlib.contextmanager
def producing(url: str, folder: Path, *, lease: float) -> Iterator[Running]:
    """A process that produces; it has stored something when this returns."""
    process = Running([sys.executable, str(PRODUCER), url, "stream", str(lease)], folder / "producer")
    try:
        process.wrote(3)
        yield process
    finally:
        if process.process.poll() is None:
            process.kill(signal.SIGCONT)
            process.kill(signal.SIGKILL)
        process.end()


def stored_by(process: Running) -> int:
    """The last cursor that it was told is stored, and had written down."""
    return max(int(line.split()[1]) for line in process.out.split("\n")[:-1] if line.startswith("stored "))


async def whole(stream: Stream) -> tuple[list[bytes], Page]:
    records: list[bytes] = []
    while True:
        page = await stream.read(len(records))
        records += page.records
        if page.end is not None:
            return records, page
        if not page.records:
            async with asyncio.timeout(PATIENCE):
                await stream.wait(len(records))


async def test_a_producer_that_was_stopped_past_its_lease_appends_nothing_more(
    server: RedisServer, tmp_path: Path
) -> None:
    """Two processes that both believe to own a key: only one of them can have appended, to any stream."""
    async with RedisLog(server.url, lease=30) as log:
        with producing(server.url, tmp_path, lease=2.0) as process:
            stream = await log.get("stream")
            assert stream is not None
            readers = [asyncio.create_task(whole(stream)) for _ in range(5)]
            process.kill(signal.SIGSTOP)
            stopped = time.monotonic()
            (records, page), *others = await asyncio.gather(*readers)
            assert all(other == (records, page) for other in others)
            assert page.end is not None
            assert page.end.reason == "producer_lost"
            assert time.monotonic() - stopped < 2.0 + 1.0 + 8.0, "told too late; 8 s are for a machine that is busy"
            again, producer = await log.open("key", "owner", b"head")
            assert producer is not None, "a key is held by one that is gone"
            producer.start()
            producer.append([b"the other's"])
            process.kill(signal.SIGCONT)
            assert process.ended() == 0
            said = process.out.splitlines()
            assert said.count("lost") == 1
            assert "fenced" in said
            assert "appended" not in said
            assert stored_by(process) <= len(records)
            back, last = await whole(stream)
            assert (back, last.end) == (records, page.end), "a fenced producer has appended"
            assert records == [record(number) for number in range(1, len(records) + 1)]
            # A reader that had been sent more than was stored gets the end.
            assert (await stream.read(len(records) + 10, epoch=stream.epoch)).end == page.end
            producer.end("done")
            assert (await whole(again))[0] == [b"the other's"]


async def test_a_killed_producer_leaves_what_it_was_told_is_stored(server: RedisServer, tmp_path: Path) -> None:
    async with RedisLog(server.url, lease=30) as log:
        with producing(server.url, tmp_path, lease=1.5) as process:
            stream = await log.get("stream")
            assert stream is not None
            reading = asyncio.create_task(whole(stream))
            process.wrote(20)
            process.kill(signal.SIGKILL)
            process.ended()
            stored = stored_by(process)
            records, page = await reading
        assert page.end is not None
        assert page.end.reason == "producer_lost"
        assert len(records) >= stored > 0
        assert records == [record(number) for number in range(1, len(records) + 1)]
        assert [info.ended for info in await log.streams()] == [page.end]


async def test_a_live_producer_is_joined_and_read_and_stopped(server: RedisServer, tmp_path: Path) -> None:
    with producing(server.url, tmp_path, lease=30) as process:
        async with RedisLog(server.url) as log:
            joined, producer = await log.open("key", "owner", b"head")
            assert producer is None, "two processes produce one stream"
            assert joined.id == "stream"
            reading = asyncio.create_task(whole(joined))
            await joined.wait(stored_by(process) + 100)  # it goes on, and is heard
            server.kill(signal.SIGSTOP)  # for a moment, in which nobody loses anything
            await asyncio.sleep(0.3)
            server.kill(signal.SIGCONT)
            assert await joined.request_stop()
            records, page = await reading
            assert page.end is not None
            assert (page.end.reason, page.end.detail) == ("cancelled", b"as asked")
            assert records[-1] == b"fenced"
            assert records[:-1] == [record(number) for number in range(1, len(records))]
        assert process.ended() == 0
        assert "stop" in process.out.splitlines()


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_workers_and_servers_that_die_at_random_leave_no_stream_wrong(
    server: RedisServer, tmp_path: Path
) -> None:
    """Four processes share a log for a minute; each second one is killed or stopped past its lease, or Redis is."""
    draw = random.Random(4)
    started = 0
    everyone: list[Running] = []

    def start() -> Running:
        nonlocal started
        started += 1
        worker = Running([sys.executable, str(WORKER), server.url, str(started)], tmp_path / f"worker {started}")
        everyone.append(worker)
        worker.wrote(1, within=PATIENCE)  # it begins only where there is a server
        return worker

    workers: list[Running] = []
    try:
        workers += [start() for _ in range(4)]
        for _ in range(40):
            await asyncio.sleep(draw.uniform(0.5, 1.5))
            place = draw.randrange(4)
            match draw.choice(["kill", "kill", "stop", "restart", "freeze"]):
                case "kill":
                    workers[place].kill(signal.SIGKILL)
                    workers[place].ended()
                    workers[place] = start()
                case "stop":
                    workers[place].kill(signal.SIGSTOP)
                    await asyncio.sleep(3.5)
                    workers[place].kill(signal.SIGCONT)
                case "restart":
                    server.end()
                    await asyncio.sleep(draw.uniform(0, 1))
                    server.start()
                case _:
                    server.kill(signal.SIGSTOP)
                    await asyncio.sleep(draw.uniform(0.1, 1.5))
                    server.kill(signal.SIGCONT)
    finally:
        for worker in everyone:
            worker.process.kill()
            worker.end()
    for worker in everyone:
        said = {line for line in worker.out.split("\n")[:-1] if not line.startswith("StoreError ")}
        assert said <= {"ready"}, worker.out
        assert worker.err == ""
    reasons: Counter[str] = Counter()
    async with RedisLog(server.url, lease=3) as log:
        for info in await log.streams():
            stream = await log.get(info.id)
            assert stream is not None
            records, page = await whole(stream)
            assert page.end is not None
            reasons[page.end.reason] += 1
            assert records == [record_of(info.id, number) for number in range(1, len(records) + 1)]
            if page.end.reason == "done":
                assert len(records) == int(stream.head)
    assert min(reasons[reason] for reason in ("done", "cancelled", "producer_lost")) > 5, reasons
