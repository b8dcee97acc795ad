"""Several relays on one Redis: real processes that can be killed, frozen and started again, each by its own pid."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.process import Server, alive
from tests.eventlog.redis_server import RedisServer

LEASE = 2.0

CONFIG = """
store = "{store}"
lease = "{lease}s"
grace = "{grace}s"

[defaults]
upstream = "{upstream}"
owner = "{owner}"
ids = "ours"
promise = "{promise}"
on_disconnect = "{on_disconnect}"
without_store = "{without_store}"
"""


@dataclass(eq=False)
class Replica:
    """One relay after the other, under one number.

    Attributes:
        died_at: When the one that runs, or has run, was killed or frozen; None while it is well.
    """

    number: int
    server: Server
    died_at: float | None = None

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def admin(self) -> str:
        return self.server.listening["admin"]


@dataclass
class Away:
    """Times at which Redis, or a relay, was not there, for bounds that it is a part of."""

    since: float | None = None
    times: list[tuple[float, float]] = field(default_factory=list)

    def begin(self) -> None:
        self.since = time.monotonic()

    def end(self) -> None:
        assert self.since is not None
        self.times.append((self.since, time.monotonic()))
        self.since = None

    def within(self, start: float, end: float) -> float:
        """Seconds of it that lie between two instants."""
        times = [*self.times, (self.since, end)] if self.since is not None else self.times
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in times)


class Replicas:
    """A Redis, and relays on it. Made by `replicas`.

    Attributes:
        all: The relays; each may be dead at the moment.
        redis: The store.
        away: When it was not there.
        stood: When a relay stood still, by its process.
    """

    def __init__(self, folder: Path, redis: RedisServer, config: str) -> None:
        self.redis = redis
        self.away = Away()
        self.stood: defaultdict[Server, Away] = defaultdict(Away)
        self.all: list[Replica] = []
        self._folder = folder
        self._config = folder / "relay.toml"
        self._config.write_text(config)
        self._begun: list[Server] = []
        self._numbers = itertools.count()

    async def begin(self, count: int) -> None:
        """Start so many, beside each other."""
        for number, server in enumerate(await asyncio.gather(*(self._new() for _ in range(count)))):
            self.all.append(Replica(number, server))

    def kill(self, replica: Replica) -> None:
        """Have it gone at once."""
        replica.server.kill(signal.SIGKILL)
        replica.died_at = time.monotonic()

    async def again(self, replica: Replica) -> None:
        """Start another one in its place, and wait until it takes requests."""
        await asyncio.to_thread(replica.server.ended)
        replica.server = await self._new()
        replica.died_at = None

    @contextlib.asynccontextmanager
    async def frozen(self, replica: Replica) -> AsyncIterator[None]:
        """Nothing of it moves meanwhile."""
        stood = self.stood[replica.server]
        stood.begin()
        replica.server.kill(signal.SIGSTOP)
        replica.died_at = time.monotonic()
        try:
            yield
        finally:
            replica.server.kill(signal.SIGCONT)
            stood.end()
            replica.died_at = None

    @contextlib.asynccontextmanager
    async def without_redis(self, signum: int = signal.SIGKILL) -> AsyncIterator[None]:
        """Redis is not there meanwhile: killed, ended (SIGTERM) or frozen (SIGSTOP)."""
        self.away.begin()
        if signum == signal.SIGSTOP:
            self.redis.kill(signum)
        else:
            await asyncio.to_thread(self.redis.end, signum)
        try:
            yield
        finally:
            if signum == signal.SIGSTOP:
                self.redis.kill(signal.SIGCONT)
            else:
                await asyncio.to_thread(self.redis.start)
            self.away.end()

    def end(self) -> None:
        """Leave no process behind, whatever state it is in."""
        for server in self._begun:
            if server.process.poll() is None:
                server.kill(signal.SIGCONT)
                server.kill(signal.SIGKILL)
                server.ended()
            server.end()
            assert not alive(server.pid)

    async def _new(self) -> Server:
        folder = self._folder / f"relay-{next(self._numbers)}"
        options = ("--config", self._config, "--admin-listen", "127.0.0.1:0")
        server = await asyncio.to_thread(lambda: Server("relay", *options, folder=folder))
        self._begun.append(server)
        await asyncio.to_thread(server.started)
        return server


@contextlib.asynccontextmanager
async def replicas(
    folder: Path,
    upstream: str,
    count: int = 3,
    *,
    promise: str = "fast",
    on_disconnect: str = "grace:60s",
    without_store: str = "refuse",
    owner: str = "none",
    lease: float = LEASE,
    grace: float = 5.0,
    more: str = "",
) -> AsyncIterator[Replicas]:
    """So many relays on a Redis of their own, until the block ends.

    Args:
        folder: Where all of them have their files.
        upstream: What they relay to.
        more: Lines of the configuration that come last, in its ``[defaults]``.
    """
    redis = await asyncio.to_thread(RedisServer, folder / "redis")
    try:
        config = CONFIG.format(
            store=redis.url, lease=lease, grace=grace, upstream=upstream, owner=owner,
            promise=promise, on_disconnect=on_disconnect, without_store=without_store,
        )  # fmt: skip
        cluster = Replicas(folder, redis, config + more)
        try:
            await cluster.begin(count)
            yield cluster
        finally:
            cluster.end()
    finally:
        redis.end()
