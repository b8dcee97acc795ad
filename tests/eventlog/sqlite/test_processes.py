"""The log in a file under real processes that are killed, stopped and asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.eventlog.base import Page, State, Stream
from penstock.eventlog.sqlite.log import SqliteLog
from tests.e2e.process import Running
from tests.eventlog.producer import record
from tests.eventlog.worker import record as record_of

PATIENCE = 20.0
PRODUCER = Path(__file__).parents[1] / "producer.py"
WORKER = Path(__file__).parents[1] / "worker.py"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="stops and kills processes by signals"),
]


@contextlib.contextmanager
def producing(folder: Path, id: str = "stream", *, lease: float = 30.0) -> Iterator[Running]:
    """A process that produces; it has stored something when this returns."""
    process = Running([sys.executable, str(PRODUCER), str(folder / "log"), id, str(lease)], folder / id)
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


@pytest.mark.parametrize("round", range(3))
async def test_a_killed_producer_leaves_what_it_was_told_is_stored(tmp_path: Path, round: int) -> None:
    with producing(tmp_path) as process:
        process.wrote(5 + 10 * round)
        process.kill(signal.SIGKILL)
        process.ended()
        stored = stored_by(process)
    # The lease of the dead would hold for long, but its lock file says that it is gone.
    async with SqliteLog(tmp_path / "log") as log:
        stream = await log.get("stream")
        assert stream is not None
        assert stream.state is State.ENDED
        records, page = await whole(stream)
        assert len(records) >= stored > 0
        assert records == [record(number) for number in range(1, len(records) + 1)]
        assert page.end is not None
        assert page.end.reason == "producer_lost"
        # A reader that had been sent more than was stored gets the end.
        assert (await stream.read(len(records) + 10, epoch=stream.epoch)).end == page.end
        again, producer = await log.open("key", "owner", b"head")
        assert producer is not None
        assert again.epoch != stream.epoch
    assert not list(tmp_path.glob("log-producer-*"))


async def test_a_reader_of_a_killed_producer_learns_it_while_it_waits(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log", lease=1.5) as log:
        with producing(tmp_path, lease=60.0) as process:
            stream = await log.get("stream")
            assert stream is not None
            reading = asyncio.create_task(whole(stream))
            process.kill(signal.SIGKILL)
            _, page = await reading
            assert page.end is not None
            assert page.end.reason == "producer_lost"


async def test_a_live_producer_is_left_alone_and_read_and_stopped(tmp_path: Path) -> None:
    with producing(tmp_path) as process:
        async with SqliteLog(tmp_path / "log") as log:
            joined, producer = await log.open("key", "owner", b"head")
            assert producer is None, "two processes produce one stream"
            assert joined.id == "stream"
            reading = asyncio.create_task(whole(joined))
            await joined.wait(stored_by(process) + 100)  # it goes on, and is heard
            assert await joined.request_stop()
            records, page = await reading
            assert page.end is not None
            assert (page.end.reason, page.end.detail) == ("cancelled", b"as asked")
            assert records[-1] == b"fenced"
            assert records[:-1] == [record(number) for number in range(1, len(records))]
        assert process.ended() == 0
        assert "stop" in process.out.splitlines()


async def test_a_key_is_taken_from_another_process_only_by_name(tmp_path: Path) -> None:
    with producing(tmp_path) as process:
        async with SqliteLog(tmp_path / "log") as log:
            joined, producer = await log.open("key", "owner", b"head", replacing="another")
            assert (joined.id, producer) == ("stream", None)
            taken, producer = await log.open("key", "owner", b"head", replacing="stream")
            assert producer is not None
            assert process.ended() == 0
            found = await log.find("key", "owner")
            assert found is taken


async def test_a_producer_that_was_stopped_past_its_lease_appends_nothing_more(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log", lease=30) as log:
        with producing(tmp_path, lease=2.0) as process:
            stream = await log.get("stream")
            assert stream is not None
            process.kill(signal.SIGSTOP)
            records, page = await whole(stream)
            assert page.end is not None
            assert page.end.reason == "producer_lost"
            process.kill(signal.SIGCONT)
            assert process.ended() == 0
            said = process.out.splitlines()
            assert said.count("lost") == 1
            assert "fenced" in said
            assert stored_by(process) <= len(records)
            again, last = await whole(stream)
            assert (again, last.end) == (records, page.end), "a fenced producer has appended"


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_workers_that_are_killed_at_random_leave_no_stream_wrong(tmp_path: Path) -> None:
    """Four processes share a log for half a minute; every second one is killed, or stopped past its lease."""
    draw = random.Random(4)
    path = tmp_path / "log"
    started = 0

    def start() -> Running:
        nonlocal started
        started += 1
        return Running([sys.executable, str(WORKER), str(path), str(started)], tmp_path / f"worker {started}")

    workers = [start() for _ in range(4)]
    everyone = list(workers)
    try:
        for _ in range(30):
            await asyncio.sleep(draw.uniform(0.5, 1.5))
            place = draw.randrange(4)
            if draw.random() < 0.25:
                workers[place].kill(signal.SIGSTOP)
                await asyncio.sleep(3.5)
                workers[place].kill(signal.SIGCONT)
            else:
                workers[place].kill(signal.SIGKILL)
                workers[place].ended()
                workers[place] = start()
                everyone.append(workers[place])
    finally:
        for worker in workers:
            worker.kill(signal.SIGKILL)
            worker.end()
    for worker in everyone:
        assert set(worker.out.split("\n")[:-1]) <= {"ready"}, worker.out
        assert worker.err == ""
    reasons: Counter[str] = Counter()
    async with SqliteLog(path) as log:
        infos = await log.streams()
        for info in infos:
            stream = await log.get(info.id)
            assert stream is not None
            records, page = await whole(stream)
            assert page.end is not None
            reasons[page.end.reason] += 1
            assert records == [record_of(info.id, number) for number in range(1, len(records) + 1)]
            if page.end.reason == "done":
                assert len(records) == int(stream.head)
    assert min(reasons[reason] for reason in ("done", "cancelled", "producer_lost")) > 5, reasons
