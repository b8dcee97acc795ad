"""Many streams read by one Python process: `readers.py KIND URL STREAMS WARMUP SECONDS`.

Prints one JSON object: the events that came in so many seconds, and the CPU seconds that this took, user and system;
or null, where the first streams already keep it too busy to open the last ones.

Every kind runs on uvloop and reads the same bytes. The raw ones count the events' ends, the others decode.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn
from urllib.parse import urlsplit

END = b"\n\n"
OPEN_AT_ONCE = 20
OPEN_WITHIN = 6.0


class Reader:
    """One stream, and what has come of it."""

    events = 0


Run = Callable[[Reader], Coroutine[Any, Any, None]]


def httpx2_client(transport: Any = None) -> Any:
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    if transport is not None:
        return httpx2.AsyncClient(timeout=None, transport=transport)
    return httpx2.AsyncClient(timeout=None, limits=limits, trust_env=False)


def penstock_transport() -> Any:
    from penstock.engine.transport import Transport

    return Transport()


def httpx2_raw(url: str, transport: Any = None) -> Run:
    client = httpx2_client(transport)

    async def run(reader: Reader) -> None:
        async with client.stream("GET", url) as response:
            async for piece in response.aiter_raw():
                reader.events += piece.count(END)

    return run


def httpx2_sse(url: str, transport: Any = None) -> Run:
    client = httpx2_client(transport)

    async def run(reader: Reader) -> None:
        async with client.sse(url) as events:
            async for _ in events:
                reader.events += 1

    return run


def penstock_events(url: str) -> Run:
    import penstock

    client = penstock.AsyncClient(timeout=None)

    async def run(reader: Reader) -> None:
        async with client.get(url).events() as events:
            async for _ in events:
                reader.events += 1

    return run


def aiohttp_session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


def aiohttp_raw(url: str) -> Run:
    session = aiohttp_session()

    async def run(reader: Reader) -> None:
        async with session.get(url) as response:
            async for piece in response.content.iter_any():
                reader.events += piece.count(END)

    return run


def aiohttp_lines(url: str) -> Run:
    """What one writes by hand with aiohttp, which has no decoder: line by line."""
    session = aiohttp_session()

    async def run(reader: Reader) -> None:
        async with session.get(url) as response:
            async for line in response.content:
                if line.startswith(b"data:"):
                    line[5:].strip().decode()
                    reader.events += 1

    return run


def openai_chat(url: str, transport: Any = None) -> Run:
    import openai

    parts = urlsplit(url)
    query = dict(pair.split("=") for pair in parts.query.split("&") if pair)
    http = None if transport is None else openai.DefaultAsyncHttpxClient(transport=transport)
    client = openai.AsyncOpenAI(
        api_key="bench", base_url=f"{parts.scheme}://{parts.netloc}/v1", http_client=http, timeout=None, max_retries=0
    )

    async def run(reader: Reader) -> None:
        chunks = await client.chat.completions.create(
            model="bench", messages=[{"role": "user", "content": "hello"}], stream=True, extra_query=query
        )
        async for _ in chunks:
            reader.events += 1

    return run


KINDS: dict[str, Callable[[str], Run]] = {
    "httpx2-raw": httpx2_raw,
    "httpx2-raw-penstock": lambda url: httpx2_raw(url, penstock_transport()),
    "httpx2-sse": httpx2_sse,
    "httpx2-sse-penstock": lambda url: httpx2_sse(url, penstock_transport()),
    "penstock-events": penstock_events,
    "aiohttp-raw": aiohttp_raw,
    "aiohttp-lines": aiohttp_lines,
    "openai": openai_chat,
    "openai-penstock": lambda url: openai_chat(url, penstock_transport()),
}


async def main(kind: str, url: str, streams: int, warmup: float, seconds: float) -> None:
    run = KINDS[kind](url)
    readers = [Reader() for _ in range(streams)]
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(OPEN_WITHIN):
            for index, reader in enumerate(readers):  # in turn, so that no listen queue overflows
                tasks.append(asyncio.create_task(run(reader)))
                if index >= OPEN_AT_ONCE:
                    await begun(readers[index - OPEN_AT_ONCE], tasks)
            for reader in readers:
                await begun(reader, tasks)
    except TimeoutError:
        end(None)
    await asyncio.sleep(warmup)
    before, cpu_before, started = events(readers), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.sleep(seconds)
    after, cpu_after, stopped = events(readers), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    check(tasks)
    measured = {
        "events": after - before,
        "seconds": stopped - started,
        "user": cpu_after.ru_utime - cpu_before.ru_utime,
        "system": cpu_after.ru_stime - cpu_before.ru_stime,
    }
    end(measured)


def end(measured: dict[str, float] | None) -> NoReturn:
    print(json.dumps(measured), flush=True)
    os._exit(0)  # the streams never end, and how they are given up is not what is measured


async def begun(reader: Reader, tasks: list[asyncio.Task[None]]) -> None:
    while not reader.events:
        check(tasks)
        await asyncio.sleep(0.002)


def check(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise RuntimeError("a stream ended")


def events(readers: list[Reader]) -> int:
    return sum(reader.events for reader in readers)


if __name__ == "__main__":
    import uvloop

    which, where, count, warm, length = sys.argv[1:]
    uvloop.run(main(which, where, int(count), float(warm), float(length)))
