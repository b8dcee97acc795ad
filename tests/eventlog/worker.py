"""One of several processes on one log: it opens keys, produces or reads what others produce, and checks what it reads.

    python worker.py PATH|URL SEED

It runs until it is killed, and says on stdout what is wrong; each stream's head tells how many records it will have.
"""

from __future__ import annotations

import asyncio
import random
import sys

from penstock.errors import PenstockError, ProducerLost
from penstock.eventlog.base import Producer, State, Stream
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.sqlite.log import SqliteLog

KEYS = 6


def record(id: str, number: int) -> bytes:
    return f"{id}:{number}:".encode() + b"x" * (number * 31 % 257)


async def produce(stream: Stream, producer: Producer, draw: random.Random) -> None:
    count = int(stream.head)
    producer.start()
    try:
        while producer.appended < count and not producer.stop_requested and stream.state is State.RUNNING:
            last = producer.appended
            producer.append(
                [record(stream.id, n) for n in range(last + 1, min(last + draw.randrange(1, 5), count) + 1)]
            )
            await asyncio.sleep(draw.choice([0, 0.001, 0.01]))
    except ProducerLost:
        return
    producer.end("done" if producer.appended == count else "cancelled")


async def read(stream: Stream, draw: random.Random) -> None:
    after = draw.choice([0, 0, draw.randrange(50)])
    while True:
        page = await stream.read(after, max_records=draw.randrange(1, 40), epoch=stream.epoch)
        for number, each in enumerate(page.records, after + 1):
            if each != record(stream.id, number):
                print("wrong", stream.id, number, each[:60], flush=True)
        after = page.after
        if page.end is not None:
            if page.end.reason == "done" and max(after, page.end.sequence - 1) < int(stream.head):
                print("a clean end too early", stream.id, after, flush=True)
            return
        if not page.records:
            await stream.wait(after)


async def work(where: str, seed: int) -> None:
    draw = random.Random(seed)

    async def one() -> None:
        while True:
            try:
                count = draw.randrange(300)
                key = f"key {draw.randrange(KEYS)}"
                latest = await log.find(key, "owner")
                replacing = latest.id if latest is not None and draw.random() < 0.1 else None
                stream, producer = await log.open(key, "owner", b"%d" % count, replacing=replacing)
                if producer is None:
                    await read(stream, draw)
                else:
                    await asyncio.gather(produce(stream, producer, draw), read(stream, draw))
            except PenstockError as error:
                print(type(error).__name__, error, flush=True)

    async with RedisLog(where, lease=3.0) if "://" in where else SqliteLog(where, lease=3.0) as log:
        print("ready", flush=True)
        await asyncio.gather(*(one() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2])))
