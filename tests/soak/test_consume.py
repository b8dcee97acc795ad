"""Two minutes of an origin that cuts, stalls, refuses and is killed: nothing lost, nothing doubled, nothing leaked."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock import AsyncClient, Backoff, Retry, Timeout

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS", "120"))
SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))
STREAMS = 200


class Life:
    """An origin that is killed now and then, and comes back on the same port."""

    def __init__(self, chance: random.Random) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.deaths = 0
        self._chance = chance

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        process = await self._started()
        living = asyncio.create_task(self._live(process))
        try:
            yield
        finally:
            living.cancel()
            await asyncio.wait({living})

    async def _live(self, process: asyncio.subprocess.Process) -> None:
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(2, 6))
                process.kill()
                await process.wait()
                self.deaths += 1
                await asyncio.sleep(self._chance.uniform(0, 0.3))
                process = await self._started()
        finally:
            process.kill()
            await asyncio.shield(process.wait())

    async def _started(self) -> asyncio.subprocess.Process:
        seed = str(self._chance.randrange(2**32))
        command = [sys.executable, "-m", "tests.soak.faulty_origin", str(self.port), seed]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process


async def test_every_stream_that_can_complete_does() -> None:
    print(f"seed {SEED}, {SECONDS:g} s")
    chance = random.Random(SEED)
    origin = Life(chance)
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    until = time.monotonic() + SECONDS
    completed = 0
    memory: list[int] = []

    async def read_on(number: int, client: AsyncClient) -> None:
        nonlocal completed
        mine = random.Random(SEED * 1000 + number)
        while time.monotonic() < until:
            name, events = f"s{number}-{mine.randrange(10**9)}", mine.randrange(1, 300)
            result = await client.get(f"/{name}").param("events", events).collect()
            assert [event.id for event in result.events] == [str(n) for n in range(1, events + 1)]
            assert all(event.data.split()[:2] == [name, event.id] for event in result.events)
            completed += 1

    async def watch() -> None:
        while True:
            await asyncio.sleep(SECONDS / 20)
            memory.append(resident())

    retry = Retry(retries=40, backoff=Backoff(initial=0.02, maximum=0.3), budget=None)
    async with (
        origin.running(),
        AsyncClient(
            f"http://127.0.0.1:{origin.port}",
            retry=retry,
            timeout=Timeout(connect=5, first_event=10, between_events=1.5),
        ) as client,
    ):
        watching = asyncio.create_task(watch())
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(read_on(number, client))
        watching.cancel()
        metrics = client.metrics
    await asyncio.sleep(0.2)
    gc.collect()
    print(f"{completed} streams, {metrics}; killed {origin.deaths} times; RSS {[each >> 20 for each in memory]} MiB")
    assert completed >= STREAMS
    assert (metrics.streams, metrics.total - metrics.failed) == (completed, metrics.successful)
    assert metrics.reconnects > completed / 10
    assert origin.deaths >= SECONDS / 8
    assert len(asyncio.all_tasks()) <= tasks
    assert open_sockets() <= sockets
    early, late = sorted(memory[3:9]), sorted(memory[-6:])
    assert late[3] - early[3] < 16 << 20, "memory grows"


def open_sockets() -> int:
    links = (os.path.realpath(each) for each in Path("/proc/self/fd").iterdir())
    return sum("socket:" in link for link in links)


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
