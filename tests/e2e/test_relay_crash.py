"""A relay that is killed in the midst of its streams, and started again on the same file: what its readers are told."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.lives import MANY, SEED, Lives, Origin, Reader, parted, prefix_of, told
from tests.e2e.process import children_of, needs_proc
from tests.relay.peers import PATIENCE, until, upstream
from tests.relay.readers import EVENTS, fetch, since

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def read_until_killed(lives: Lives, name: str, chance: random.Random, *, short: int) -> list[Reader]:
    """Several readers of several streams, and short streams that begin and end all the time; then a SIGKILL."""
    over = asyncio.Event()
    readers: list[Reader] = []

    async def one(number: int) -> None:
        first = Reader(f"{name}-{number}", MANY)
        readers.append(first)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.read(lives.url, over))
            await first.has_begun.wait()
            for asleep in (False, True):
                await asyncio.sleep(chance.uniform(0, 0.05))
                readers.append(joined := Reader(first.stream, first.blocks, first.id, asleep=asleep))
                group.create_task(joined.read(lives.url, over))

    async def some(number: int) -> None:
        for each in itertools.count():
            reader = Reader(f"{name}-{number}-{each}", chance.randint(1, 3))
            await reader.read(lives.url, over)
            if not reader.id:
                return
            readers.append(reader)

    enough = chance.randint(1, 400)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(one(number))
        for number in range(short):
            group.create_task(some(3 + number))
        await until(lambda: sum(reader.events for reader in readers) >= enough)
        await asyncio.sleep(chance.uniform(0, 0.02))
        lives.kill()
        over.set()
    return readers


async def after_the_crash(lives: Lives, readers: list[Reader]) -> int:
    """Every reader comes back; how many were ahead of what is left."""
    ahead = 0
    for reader in readers:
        if not reader.id:
            continue  # not even a head came
        left, lost = await told(lives.url, reader)
        had = prefix_of(reader.kept, reader.stream)
        assert had == reader.blocks or not reader.whole, "a clean end of what is not whole"
        assert not (lives.durable and had > left), f"{had} blocks were sent, and {left} stored"
        assert not (lives.durable and reader.whole and lost), "a reader saw the end, and it is gone"
        ahead += had > left
    return ahead


async def play_lives(serve: Serve, folder: Path, promise: str, *, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    async with upstream(Origin().play) as up:
        lives = Lives(serve, folder, up.url, promise)
        await lives.begin()
        for life in range(kills):
            readers = await read_until_killed(lives, f"{seed}-{life}", chance, short=life % 3)
            await lives.begin()
            ahead = await after_the_crash(lives, readers)
            print(f"seed {seed}, life {life}: {len(readers)} readers, {ahead} ahead of what was stored")


@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_readers_of_a_relay_that_was_killed(serve: Serve, tmp_path: Path, promise: str) -> None:
    await play_lives(serve, tmp_path, promise, seed=SEED, kills=2)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_readers_of_a_relay_that_is_killed_again_and_again(serve: Serve, tmp_path: Path, promise: str) -> None:
    for seed in range(SEED + 1, SEED + 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        await play_lives(serve, folder, promise, seed=seed, kills=6)


@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_what_cannot_be_stored_is_sent_as_the_promise_says(serve: Serve, tmp_path: Path, promise: str) -> None:
    origin = Origin()
    async with upstream(origin.play) as up, asyncio.TaskGroup() as group:
        lives = Lives(serve, tmp_path, up.url, promise)
        await lives.begin()
        reader = Reader("one", MANY)
        reading = group.create_task(reader.read(lives.url))
        await until(lambda: reader.events > 5)
        with lives.locked():
            had = origin.sent["one"]
            await until(lambda: (origin.sent["one"] if lives.durable else reader.events) > had + 20)
            lives.kill()
        await reading
        await lives.begin()
        assert await after_the_crash(lives, [reader]) == (0 if lives.durable else 1)
        assert prefix_of(reader.kept, "one") + 20 <= origin.sent["one"] or not lives.durable


@needs_proc
async def test_a_worker_that_is_killed_loses_its_own_streams_and_no_other(serve: Serve, tmp_path: Path) -> None:
    origin = Origin()
    async with upstream(origin.play) as up:
        lives = Lives(serve, tmp_path, up.url, "durable")
        await lives.begin("--workers", "2")
        workers = tuple(children_of(lives.relay.pid))
        producers: dict[str, int] = {}
        readers: list[Reader] = []

        async with asyncio.timeout(3 * PATIENCE), asyncio.TaskGroup() as group:

            async def read(reader: Reader) -> Reader:
                readers.append(reader)
                group.create_task(reader.read(lives.url))
                await reader.has_begun.wait()
                return reader

            # A stream of each worker, and of each stream a reader at each worker.
            for number in range(100):
                if set(producers.values()) == set(workers):
                    break
                first = await read(Reader(f"w{number}", MANY, workers=workers))
                producers[first.stream] = first.worker
                at = {first.worker}
                for _ in range(100):
                    if at == set(workers):
                        break
                    at.add((await read(Reader(first.stream, MANY, first.id, workers=workers))).worker)
            assert set(producers.values()) == set(workers)
            await until(lambda: all(reader.events for reader in readers))
            killed = workers[0]
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(lives.relay.said, f"worker {killed} was killed by SIGKILL")
            here = [reader for reader in readers if producers[reader.stream] != killed and reader.worker != killed]
            before = {id(reader): reader.events for reader in here}
            await until(lambda: all(reader.events > before[id(reader)] + 50 for reader in here))
            await asyncio.to_thread(lives.relay.said, "takes requests")
            lost = [reader for reader in readers if producers[reader.stream] == killed]
            await until(lambda: all(reader.told for reader in lost if reader.worker != killed))
            origin.enough.set()
        for reader in readers:
            sent = origin.sent[reader.stream]
            if reader in lost:
                assert reader.told == (reader.worker != killed)
                assert not reader.whole
                if reader.told:
                    left, _, last = parted(await fetch(lives.url, f"/_penstock/streams/{reader.id}"))
                    assert (reader.kept, reader.last) == (left, last)
                    assert (await fetch(lives.url, reader.target, more=EVENTS + since(last))).status == 204
                else:
                    blocks, lost_too = await told(lives.url, reader)
                    assert lost_too
                    assert prefix_of(reader.kept, reader.stream) <= blocks <= sent
            else:
                if reader.worker == killed:
                    assert not reader.whole
                    reader.workers = ()
                    await reader.read(lives.url)
                assert reader.whole
                assert prefix_of(reader.kept, reader.stream) == sent
