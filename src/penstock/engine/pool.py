"""Connections kept for the next request to the same origin, and new ones where there is none.

The last one that came back goes out first, so that the others grow old and can be closed. An idle connection that its
server closes leaves the pool in the very callback that tells of it.
"""

from __future__ import annotations

import asyncio
from collections import deque

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
        self, origin: Origin, *, connect_timeout: float | None, pool_timeout: float | None, fresh: bool = False
    ) -> Connection:
        """A connection to an origin, for one exchange; it comes back by itself when that is complete.

        Cancellation: nothing is held.

        Args:
            origin: Where to.
            connect_timeout: Seconds for a new connection.
            pool_timeout: Seconds to wait for a place, where there is a bound.
            fresh: Not one that was used before.
        Raises:
            ConnectError: There is no new one to be had.
            PoolTimeout: max_connections are busy.
        """
        while True:
            idle = self._idle.get(origin)
            while idle and not fresh:
                connection = idle.pop()
                if not connection.closed:
                    return connection
            if self._max_connections is None or self._has_room():
                break
            await self._place(pool_timeout)
        self._dialing += 1
        try:
            connection = await dial(origin, connect_timeout, self._local_address)
        finally:
            self._dialing -= 1
        if self._closed:
            connection.abort()
            raise TransportError("the client was closed")
        self._origins[connection] = origin
        connection.on_idle = self._keep
        connection.on_closed = self._forget
        return connection

    async def aclose(self) -> None:
        """Close every connection, busy ones too."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        gone = [connection.gone() for connection in self._origins]
        for connection in list(self._origins):
            connection.abort()
        await asyncio.gather(*gone)

    # -- inside --------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        assert self._max_connections is not None
        if len(self._origins) + self._dialing < self._max_connections:
            return True
        for idle in self._idle.values():
            if idle:
                idle.pop(0).abort()  # its place is worth more than its age
                return True
        return False

    async def _place(self, timeout: float | None) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(timeout):
                await place
        except TimeoutError:
            raise PoolTimeout(f"all {self._max_connections} connections are busy") from None
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

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
