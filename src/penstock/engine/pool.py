"""Connections kept for the next request to the same origin, and new ones where there is none.

The last one that came back goes out first, so that the others grow old and can be closed. An idle connection that its
server closes leaves the pool in the very callback that tells of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextlib import AbstractAsyncContextManager

from penstock.engine.connection import Connection
from penstock.engine.dial import Origin, dial
from penstock.errors import TransportError


class PoolTimeout(TransportError, TimeoutError):
    """No connection became free in time."""


class Pool:
    """The connections of one client, on one event loop.

    Args:
        max_connections: Open connections at the most, idle and busy; None for no bound.
        max_idle: Idle connections kept, all origins together.
        max_idle_per_host: Idle connections kept per origin; None for no bound but max_idle.
        idle_timeout: Seconds after which an idle connection is closed; None never.
        local_address: What to connect from.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        max_idle: int = 100,
        max_idle_per_host: int | None = None,
        idle_timeout: float | None = 90.0,
        local_address: str | None = None,
    ) -> None:
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._max_idle_per_host = max_idle if max_idle_per_host is None else max_idle_per_host
        self._idle_timeout = idle_timeout
        self._local_address = local_address
        self._idle: dict[Origin, list[Connection]] = {}
        self._origins: dict[Connection, Origin] = {}
        self._dialing = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def open(self) -> int:
        """Connections, idle and busy."""
        return len(self._origins)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return sum(map(len, self._idle.values()))

    async def acquire(
        self,
        origin: Origin,
        *,
        connect_timeout: float | None,
        pool_timeout: float | None,
        fresh: bool = False,
        dialing: AbstractAsyncContextManager[object] | None = None,
    ) -> Connection:
        """A connection to an origin, for one exchange; it comes back by itself when that is complete.

        Cancellation: nothing is held.

        Args:
            origin: Where to.
            connect_timeout: Seconds for a new connection.
            pool_timeout: Seconds to wait for a place, where there is a bound.
            fresh: Not one that was used before.
            dialing: Entered and left around the making of a new one.
        Raises:
            ConnectError: There is no new one to be had.
            PoolTimeout: max_connections are busy.
        """
        deadline = None if pool_timeout is None else asyncio.get_running_loop().time() + pool_timeout
        waited = False
        while not self._closed:
            idle = self._idle.get(origin)
            while idle and not fresh:
                connection = idle.pop()
                if connection.usable:
                    return connection
                self._drop(connection)
            if self._max_connections is None or self._has_room():
                return await self._new(origin, connect_timeout, dialing or contextlib.nullcontext())
            await self._place(deadline, first=waited)
            waited = True
        raise TransportError("the client was closed")

    async def aclose(self) -> None:
        """Close every connection, busy ones too."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        connections = list(self._origins)
        for connection in connections:
            connection.abort()
        while self._waiting:
            self._wake()
        await asyncio.gather(*(connection.gone() for connection in connections))

    # -- inside --------------------------------------------------------------------------------------------------

    async def _new(
        self, origin: Origin, timeout: float | None, dialing: AbstractAsyncContextManager[object]
    ) -> Connection:
        connection: Connection | None = None
        self._dialing += 1
        try:
            async with dialing:
                connection = await dial(origin, timeout, self._local_address)
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        finally:
            self._dialing -= 1
            if connection is None or connection.closed:
                self._wake()  # the place is free again
        if self._closed:
            connection.abort()
            raise TransportError("the client was closed")
        if not connection.closed:  # or it was lost before it was ever ours: `Exchange.start` says so
            self._origins[connection] = origin
            connection.on_idle = self._keep
            connection.on_closed = self._forget
        return connection

    def _has_room(self) -> bool:
        assert self._max_connections is not None
        if len(self._origins) + self._dialing < self._max_connections:
            return True
        if any(self._idle.values()):
            self._drop(self._oldest())  # its place is worth more than its age
            return True
        return False

    async def _place(self, deadline: float | None, *, first: bool) -> None:
        """Wait for a place to become free; first in the row where it was had before, and lost to someone quicker."""
        place = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        try:
            async with asyncio.timeout_at(deadline):
                await place
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.done() and not place.cancelled():
                self._wake()  # called, and cannot come: the next one, then
            if isinstance(error, TimeoutError):
                raise PoolTimeout(f"all {self._max_connections} connections are busy") from None
            raise

    def _drop(self, connection: Connection) -> None:
        """Close an idle connection; it gives up its place at once."""
        self._forget(connection)
        connection.abort()

    def _keep(self, connection: Connection) -> None:
        origin = self._origins.get(connection)
        if origin is None or self._closed:
            connection.abort()
            return
        idle = self._idle.setdefault(origin, [])
        idle.append(connection)
        connection.idle_since = connection.loop.time()
        if len(idle) > self._max_idle_per_host:
            idle.pop(0).abort()
        elif self.idle > self._max_idle:
            self._oldest().abort()
        if self._idle_timeout is not None and self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._idle_timeout, self._sweep)
        self._wake()

    def _oldest(self) -> Connection:
        idle = min((each for each in self._idle.values() if each), key=lambda each: each[0].idle_since)
        return idle.pop(0)

    def _forget(self, connection: Connection) -> None:
        origin = self._origins.pop(connection, None)
        idle = self._idle.get(origin) if origin is not None else None
        if idle is not None and connection in idle:
            idle.remove(connection)
        if idle is not None and not idle and origin is not None:
            del self._idle[origin]
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return

    def _sweep(self) -> None:
        self._sweeper = None
        assert self._idle_timeout is not None
        loop = asyncio.get_running_loop()
        oldest_allowed = loop.time() - self._idle_timeout
        waits: list[float] = []
        for idle in list(self._idle.values()):
            while idle and idle[0].idle_since <= oldest_allowed:
                idle.pop(0).abort()
            waits += [each.idle_since for each in idle[:1]]
        if waits:
            self._sweeper = loop.call_at(min(waits) + self._idle_timeout, self._sweep)
