"""A process that produces a stream in a log, and says on stdout what the log tells it.

python producer.py PATH|URL ID LEASE
"""

from __future__ import annotations

import asyncio
import sys

from penstock.errors import ProducerLost
from penstock.eventlog.base import State
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.sqlite.log import SqliteLog


def say(*words: object) -> None:
    print(*words, flush=True)


def record(number: int) -> bytes:
    return b"%d:" % number + b"x" * (number % 97)


async def produce(where: str, id: str, lease: float) -> None:
    async with RedisLog(where, lease=lease) if "://" in where else SqliteLog(where, lease=lease) as log:
        stream, producer = await log.open("key", "owner", b"head", id=id)
        assert producer is not None
        producer.start()
        producer.watch(
            on_stop=lambda: say("stop"),
            on_lost=lambda: say("lost"),
            on_stored=lambda cursor: say("stored", cursor),
        )
        while not producer.stop_requested and stream.state is State.RUNNING:
            try:
                producer.append([record(producer.appended + 1), record(producer.appended + 2)])
            except ProducerLost:
                break
            await asyncio.sleep(0.001)
        try:
            producer.append([b"fenced"])
            say("appended")
        except ProducerLost:
            say("fenced")
        producer.end("cancelled", b"as asked")


if __name__ == "__main__":
    asyncio.run(produce(sys.argv[1], sys.argv[2], float(sys.argv[3])))
