"""The event loop that may be forked: uvloop's, where it exists, without libuv's pool of threads.

uvloop resolves names in that pool, addresses too when it connects a socket, and the pool does not outlive a fork: a
child whose parent had used it crashes at its end, in libuv's own, which joins threads that are not there; and one that
was forked in the midst of two look-ups waits for them for ever before its first.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import partial
from typing import Any


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make one."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    class Loop(uvloop.Loop):
        async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> list[Any]:
            numeric = {**hints, "flags": hints.get("flags", 0) | socket.AI_NUMERICHOST}
            try:
                return socket.getaddrinfo(host, port, **numeric)
            except (OSError, UnicodeError):  # a name
                return await self.run_in_executor(None, partial(socket.getaddrinfo, host, port, **hints))

    return Loop()
