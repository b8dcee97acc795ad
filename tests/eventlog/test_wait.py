from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_who_waits_for_the_head_waits_until_the_stream_starts(kind: str, tmp_path: Path) -> None:
    async with MemoryLog() if kind == "memory" else SqliteLog(tmp_path / "log.db") as log:
        stream, producer = await log.open(None, "", b"")
        assert producer is not None
        waiting = asyncio.create_task(stream.wait(-1))
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not waiting.done()
        producer.start(b"head")
        await waiting
        assert (await stream.read(-1)).records == (b"head",)
        producer.end("done")
