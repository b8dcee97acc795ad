"""A way around ASGI's messages for a response that has begun: ``scope["extensions"]["penstock.direct"]``.

`send` is a coroutine: whoever has bytes in a callback has to wake a task to pass them on. A `DirectWriter` writes in
the callback. It is for the application that got the server's own `send`; behind middleware that wraps `send` its bytes
would pass that middleware by, so an application asks first: ``direct.is_behind(send)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.server.cycle import Cycle

EXTENSION = "penstock.direct"


class DirectWriter:
    """Writes a response's body without a coroutine, with the socket's backpressure told by callbacks."""

    __slots__ = ("_cycle", "_on_pause", "_on_resume", "write")

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._on_pause: Callable[[], None] | None = None
        self._on_resume: Callable[[], None] | None = None
        self.write: Callable[[bytes], None] = cycle.write
        """Send a piece of the body in the response's framing. Never waits; after the reader has left it is in vain."""

    @property
    def write_chunk(self) -> Callable[[bytes], None] | None:
        """What sends one whole chunk as it is, framing and all; None for a response that does not go out in chunks."""
        return self._cycle.write_chunk if self._cycle.chunked else None

    def is_behind(self, send: Any) -> bool:
        """Whether that `send` is the server's own: nothing stands between it and the socket."""
        return bool(send == self._cycle.send)

    def open(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None:
        """Be told when the socket takes no more, and when it does again. After ``http.response.start``.

        What is written in between is held in memory: stop what brings it.
        """
        self._on_pause, self._on_resume = on_pause, on_resume
        self._cycle.direct = self
        if self._cycle.write_paused:
            on_pause()

    def close(self) -> None:
        """Go back to `send`, for the end of the body or what else may come."""
        self._cycle.direct = None

    def paused_by_socket(self) -> None:
        """The connection's: tell the writer."""
        if self._on_pause is not None:
            self._on_pause()

    def resumed_by_socket(self) -> None:
        """The connection's: tell the writer."""
        if self._on_resume is not None:
            self._on_resume()
