"""What `asyncio.Event` is, at a tenth of its size.

An `asyncio.Event` makes a deque of 760 bytes for those who wait, whether anybody does or not. A reader of a stream that
nothing comes on has six such flags, and waits on two: with thousands of readers that is a fifth of what they take.
"""

from __future__ import annotations

import asyncio


class Flag:
    """A flag that tasks of one event loop wait for.

    Args:
        up: Whether it is set to begin with.
    """

    __slots__ = ("_up", "_waiters")

    def __init__(self, *, up: bool = False) -> None:
        self._up = up
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._up

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._up = True
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Take it back; whoever was woken stays so."""
        self._up = False

    async def wait(self) -> None:
        """Wait until it is set; at once, if it is.

        Cancellation: Nothing is held.
        """
        if self._up:
            return
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
