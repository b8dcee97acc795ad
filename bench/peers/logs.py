"""One process on an event log: `logs.py COMMAND STORE …`.

append   STREAMS RATE WARMUP SECONDS  append to all at a pace; the events that were appended
fill     STREAMS EVENTS               append so many to each, as they are taken; then read them again
produce  STREAMS RATE                 append to all at a pace until it is ended; records have the instant of appending
follow   WARMUP SECONDS STREAM…       read those in another process; how old records are when they are read

What it has to say is JSON, one object per line of stdout, with the CPU seconds used so far. STORE is as for
`penstock relay --store`; with `none` nothing is appended, and what is left is the loop.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import uvloop

from penstock.eventlog.base import EventLog, Producer, Stream
from penstock.relay.settings.store import Store

STAMP = 19  # digits of the nanoseconds since 1970, at a record's beginning
REST = b"." * 200
RECORD = b"." * STAMP + REST
STEP = 0.002

Append = Callable[[Sequence[bytes]], object]


def say(**what: object) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**what, "user": used.ru_utime, "system": used.ru_stime}), flush=True)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[EventLog]:
    log = Store(url).log()
    assert log is not None
    async with log:
        yield log


async def running(log: EventLog, streams: int) -> tuple[list[Stream], list[Producer]]:
    made = [await log.open(None, "", b"{}") for _ in range(streams)]
    producers = [producer for _, producer in made if producer is not None]
    for producer in producers:
        producer.start()
    return [stream for stream, _ in made], producers


class Pace:
    """Appends to streams in turn, one record at a time and evenly over the time."""

    def __init__(self, appends: Sequence[Append], rate: int) -> None:
        self.appended = 0
        self._appends = appends
        self._per_second = rate * len(appends)

    async def keep(self, seconds: float, record: Callable[[], bytes]) -> None:
        clock = asyncio.get_running_loop().time
        appends, streams = self._appends, len(self._appends)
        before, started = self.appended, clock()
        while (passed := clock() - started) < seconds:
            due = before + int(passed * self._per_second)
            while self.appended < due:
                appends[self.appended % streams]([record()])
                self.appended += 1
            await asyncio.sleep(STEP)


async def append(url: str, streams: int, rate: int, warmup: float, seconds: float) -> None:
    async def measured(appends: list[Append]) -> None:
        pace = Pace(appends, rate)
        await pace.keep(warmup, lambda: RECORD)
        before = pace.appended
        say(phase="begin")
        await pace.keep(seconds, lambda: RECORD)
        say(phase="end", events=pace.appended - before)

    if url == "none":
        await measured([len] * streams)
        return
    async with opened(url) as log:
        _, producers = await running(log, streams)
        await measured([producer.append for producer in producers])


async def fill(url: str, streams: int, events: int) -> None:
    async with opened(url) as log:
        filled, producers = await running(log, streams)
        resumed = asyncio.Event()
        for producer in producers:
            producer.watch(on_resume=resumed.set)
        say(phase="begin")
        started = time.perf_counter()
        for _ in range(events):
            for producer in producers:
                while producer.paused:
                    resumed.clear()
                    await resumed.wait()
                producer.append([RECORD])
            await asyncio.sleep(0)
        for producer in producers:
            producer.end("done")
        for producer in producers:
            await producer.stored(events + 1)
        say(phase="stored", seconds=time.perf_counter() - started)
        started = time.perf_counter()
        for stream in filled:
            if (found := await read(log, stream.id)) != events * len(RECORD):
                raise RuntimeError(f"{found:,} bytes came of {events * len(RECORD):,}")
        say(phase="read", seconds=time.perf_counter() - started)


async def read(log: EventLog, id_: str) -> int:
    """Read a stream that has ended, each page into one piece, as it would be sent; how many bytes it has."""
    stream = await log.get(id_)
    assert stream is not None
    cursor = count = 0
    while True:
        page = await stream.read(cursor)
        count += len(b"".join(page.records))
        if page.end is not None:
            return count
        cursor = page.after


async def produce(url: str, streams: int, rate: int) -> None:
    def stamped() -> bytes:
        return b"%019d" % time.time_ns() + REST

    async with opened(url) as log:
        made, producers = await running(log, streams)
        say(streams=[stream.id for stream in made])
        await Pace([producer.append for producer in producers], rate).keep(float("inf"), stamped)


async def follow(url: str, warmup: float, seconds: float, ids: list[str]) -> None:
    delays: list[float] = []

    async def run(stream: Stream) -> None:
        cursor = 0
        while True:
            page = await stream.read(cursor)
            now = time.time_ns()
            delays.extend((now - int(record[:STAMP])) / 1e6 for record in page.records)
            if page.end is not None:
                raise RuntimeError(f"a stream ended: {page.end.reason}")
            if page.after != cursor + len(page.records):
                raise RuntimeError(f"{page.after - cursor} records are {len(page.records)}")
            cursor = page.after
            if not page.records:
                await stream.wait(cursor)

    async with opened(url) as log, asyncio.TaskGroup() as group:
        tasks = []
        for id_ in ids:
            stream = await log.get(id_)
            assert stream is not None
            tasks.append(group.create_task(run(stream)))
        await asyncio.sleep(warmup)
        delays.clear()
        await asyncio.sleep(seconds)
        found = sorted(delays)
        for task in tasks:
            task.cancel()
    last = len(found) - 1
    say(
        events=len(found),
        p50_ms=found[len(found) // 2],
        p99_ms=found[min(last, int(0.99 * len(found)))],
        max_ms=found[last],
    )


if __name__ == "__main__":
    command, where, *more = sys.argv[1:]
    match command:
        case "append":
            uvloop.run(append(where, int(more[0]), int(more[1]), float(more[2]), float(more[3])))
        case "fill":
            uvloop.run(fill(where, int(more[0]), int(more[1])))
        case "produce":
            uvloop.run(produce(where, int(more[0]), int(more[1])))
        case "follow":
            uvloop.run(follow(where, float(more[0]), float(more[1]), more[2:]))
        case _:
            sys.exit(f"logs.py: no such command: {command}")
