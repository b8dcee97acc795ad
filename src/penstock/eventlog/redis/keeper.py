"""What is seen to by itself while the log is open: leases renewed, servers looked for, streams counted.

Leases have a task of their own, which waits for no answer: whatever else takes long, they are renewed, and taken for
lost, when it is time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from penstock.errors import StoreError
from penstock.eventlog.redis.servers import AGAIN, FAILURES, Servers

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket
    from penstock.eventlog.redis.sweep import Sweep

logger = logging.getLogger("penstock.eventlog")

LOOK_AGAIN = 0.2


class Keeper:
    """Two tasks, from `begin` to `close`.

    Args:
        servers: Where to look again, after a failure.
        lease: Seconds that a lease lasts; streams are counted each third of it.
    """

    def __init__(self, servers: Servers, lease: float) -> None:
        self._servers = servers
        self._lease = lease
        self._buckets: Sequence[Bucket] = ()
        self._sweep: Sweep
        self._to_beat = asyncio.Event()
        self._to_look = asyncio.Event()
        self._is_lost = False  # whether servers are to be looked for again
        self._located_at = float("-inf")
        self._sweep_at = float("inf")
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, buckets: Sequence[Bucket], sweep: Sweep) -> None:
        """Keep these buckets, which have just been swept."""
        self._buckets = buckets
        self._sweep = sweep
        self._sweep_at = time.monotonic() + self._lease / 3
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._go_on(turn)) for turn in (self._beat, self._look)]

    def close(self) -> None:
        """Do nothing more."""
        for task in self._tasks:
            task.cancel()

    def beat_soon(self) -> None:
        """Look when leases are due."""
        self._to_beat.set()

    def sweep_soon(self) -> None:
        """Look whether there is much to sweep."""
        self._to_look.set()

    def look_again(self) -> None:
        """A server failed: it may be another one by now."""
        self._is_lost = True
        self._to_look.set()

    async def _go_on(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Take turns for good: what nobody foresaw is logged, once, and not the end of it."""
        logged = ""
        while True:
            try:
                await turn()
            except Exception as error:
                if logged != repr(error):
                    logged = repr(error)
                    logger.exception("%s: nobody foresaw this; it goes on", self._servers.address.shown)
                await asyncio.sleep(AGAIN.initial)

    async def _beat(self) -> None:
        """Renew the leases for which it is time, and look at those of others; then wait until it is time again."""
        now = time.monotonic()
        for bucket in self._buckets:
            bucket.beat(now)
        await _until(min(now + self._lease, *(bucket.due() for bucket in self._buckets)), self._to_beat)

    async def _look(self) -> None:
        """Look for servers, and sweep, where that is due; then wait until it is again."""
        now = time.monotonic()
        try:
            if self._is_lost and now - self._located_at >= LOOK_AGAIN:
                self._located_at, self._is_lost = now, False
                await self._servers.locate()
            if now >= self._sweep_at or self._sweep.is_due:
                self._sweep_at = now + self._lease / 3
                await self._sweep.run()
        except (*FAILURES, StoreError):
            self._is_lost = True
        await _until(
            min(self._sweep_at, self._located_at + LOOK_AGAIN) if self._is_lost else self._sweep_at, self._to_look
        )


async def _until(due: float, poked: asyncio.Event) -> None:
    """Wait until then, or until somebody wants it sooner."""
    timer = asyncio.get_running_loop().call_later(max(due - time.monotonic(), 0.005), poked.set)
    try:
        await poked.wait()
    finally:
        timer.cancel()
    poked.clear()
