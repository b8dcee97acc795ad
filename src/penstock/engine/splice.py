"""Bytes from one socket to another without passing through this process: Linux's `splice`, through a pipe.

Both sockets belong to asyncio transports, and a loop refuses to watch a transport's own descriptor; duplicates of them
it watches. The kernel moves pages from the source's socket into a pipe and from there to the destination's socket;
whenever one side is not ready, the loop goes about its other work.

Source:
    splice(2)
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

from penstock.errors import StreamError, StreamStalled, StreamTruncated, WriteError, WriteTimeout

PIPE_BYTES = 1024 * 1024
TURNS = 16
"""Moves in a row before the loop's other work has its turn."""

available = sys.platform == "linux" and hasattr(os, "splice")


class Splice:
    """A number of bytes to be moved from a socket to another: a piece of a request's body that nobody looks at.

    Args:
        source: A connected socket, with nothing of the bytes read from it yet.
        count: How many.
        between: Seconds to wait for more of the source; None waits for ever.
        on_received: Called with how many bytes have left the source, whenever some have.

    Attributes:
        count: How many are to be moved.
        received: How many have left the source's socket.
        moved: How many have arrived in the destination's.
        failure: What broke on the source's side, if anything did.
    """

    def __init__(
        self, source: socket.socket, count: int, between: float | None, on_received: Callable[[int], None]
    ) -> None:
        self._source = source
        self._between = between
        self._on_received = on_received
        self.count = count
        self.moved = 0
        self.received = 0
        self.failure: StreamError | None = None

    async def to(self, destination: socket.socket, timeout: float | None) -> None:
        """Move them all, or those that came before the source broke; that is then in `failure`.

        Cancellation: what was moved was moved; both connections are of no further use.

        Args:
            destination: A connected socket, with nothing waiting to be written to it.
            timeout: Seconds to wait for it to take more.
        Raises:
            WriteError, WriteTimeout: The destination was lost, or takes nothing.
        """
        try:
            await self._move(destination, timeout)
        except StreamError as error:
            self.failure = error

    async def _move(self, destination: socket.socket, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        source = os.dup(self._source.fileno())
        target = os.dup(destination.fileno())
        out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            room = _enlarged(into)
            held = 0
            turns = 0
            while self.moved < self.count:
                wanted = min(self.count - self.received, room - held)
                taken = self._take(source, into, wanted) if wanted else None
                if taken:
                    held += taken
                given = self._give(out, target, held) if held else None
                if given:
                    held -= given
                    turns += 1
                    if turns >= TURNS:
                        turns = 0
                        await asyncio.sleep(0)
                elif held and not taken:
                    await _ready(loop.add_writer, loop.remove_writer, target, timeout, _not_taken)
                elif not taken:
                    await _ready(loop.add_reader, loop.remove_reader, source, self._between, self._silent)
        finally:
            for descriptor in (source, target, out, into):
                os.close(descriptor)

    def _take(self, source: int, into: int, wanted: int) -> int | None:
        try:
            taken = os.splice(source, into, wanted, flags=_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            raise StreamTruncated(f"the connection was lost after {self.received:,} bytes of the body") from error
        if not taken:
            short = f"{self.count - self.received:,} short of its length"
            raise StreamTruncated(f"the server closed connection after {self.received:,} bytes of the body, {short}")
        self.received += taken
        self._on_received(taken)
        return taken

    def _give(self, out: int, target: int, held: int) -> int | None:
        try:
            given = os.splice(out, target, held, flags=_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            raise WriteError("the connection was lost while the request was sent") from error
        self.moved += given
        return given

    def _silent(self) -> Exception:
        return StreamStalled(f"the stream went silent after {self.received:,} bytes")


_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


def _not_taken() -> Exception:
    return WriteTimeout("the server stopped reading the request")


def _enlarged(pipe: int) -> int:
    """Make the pipe as large as the system lets us; its size."""
    import fcntl

    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # /proc/sys/fs/pipe-max-size, or the user's share of pipe memory
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


async def _ready(
    watch: Callable[..., None],
    unwatch: Callable[[int], object],
    descriptor: int,
    timeout: float | None,
    otherwise: Callable[[], Exception],
) -> None:
    ready = asyncio.get_running_loop().create_future()
    watch(descriptor, _set, ready)
    try:
        async with asyncio.timeout(timeout):
            await ready
    except TimeoutError:
        raise otherwise() from None
    finally:
        unwatch(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
