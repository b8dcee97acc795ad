"""Readers of a relay that drains, where other relays have the same streams: they are sent there at once.

Only an event stream's reader that comes back by itself is; any other would take it for the end. It is told when, each
at another time, and its answer is broken off. A place is held for it while it is on its way, so that it is not missed:
a stream is not cancelled because all its readers are about to come back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import TypeVar

import anyio

from penstock.eventlog.reader import Reader
from penstock.relay.downstream.reader import Downstream, PutOff

SOONEST, LATEST = 1.0, 5.0
"""Seconds after which a reader comes back: enough for a balancer to see that we drain."""

HELD = 2 * LATEST
"""Seconds that its place is held."""

T = TypeVar("T")

WHY = "the relay is stopping; others go on with the stream"


class Handover:
    """Those who read here and can go on elsewhere."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()

    async def offered(self, reading: Awaitable[T]) -> T | None:
        """What reading comes to; None if the relay drains before that."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await reading
            finally:
                self._scopes.discard(scope)
        return None

    def begin(self) -> None:
        """Send all of them away; those who come from now on stay."""
        for scope in list(self._scopes):
            scope.cancel()


async def send_away(reader: Reader, downstream: Downstream) -> None:
    """Tell a reader to come back soon; it will not be to us.

    Raises:
        PutOff: The server is to break the answer off.
    """
    held = reader.stream.reader(reader.cursor)
    asyncio.get_running_loop().call_later(HELD, held.close)
    await downstream.write(b"retry: %d\n" % (random.uniform(SOONEST, LATEST) * 1000))
    await downstream.break_off(WHY)
    raise PutOff(WHY)
