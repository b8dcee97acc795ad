"""A TCP proxy that does harm on purpose, to be put between any two hops.

It knows nothing of HTTP: each direction of a connection is passed on as a `Leg` says, up to a place where something
happens. The place is met when there is more to pass on than that, so what happened has always cost something.

==============  ==================================================================================
what happens    is
==============  ==================================================================================
``cut``         both sides are closed in order (FIN); what was passed on arrives
``reset``       both sides are reset (RST); what was passed on may be lost with it
``stall``       nothing more is passed on in that direction, and nothing is read
``half-close``  that direction is closed in order (FIN); the other goes on
==============  ==================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, cast

Harm = Literal["cut", "reset", "stall", "half-close"]
Way = Literal["up", "down"]

READ = 1 << 16


@dataclass(frozen=True)
class Leg:
    """How one direction of a connection is treated.

    Attributes:
        harm: What happens at the place.
        at: The place: after so many bytes, or after so many occurrences of a text.
        piece: How many bytes are passed on at once; None for what comes.
        pause: Seconds between two pieces.
    """

    harm: Harm | None = None
    at: int | tuple[bytes, int] = 0
    piece: int | None = None
    pause: float = 0.0


SOUND = Leg()


@dataclass(frozen=True)
class Plan:
    """How a connection is treated.

    Attributes:
        up: What goes to the server.
        down: What comes from it.
    """

    up: Leg = SOUND
    down: Leg = SOUND


@dataclass(eq=False)
class Passage:
    """One connection through the proxy.

    Attributes:
        plan: What is done to it.
        up: What was passed on to the server.
        down: What was passed on from it.
        harmed: Whether the harm was done.
    """

    plan: Plan
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)
    harmed: bool = False
    _writers: dict[Way, asyncio.StreamWriter] = field(default_factory=dict)
    """By the direction that is written."""

    def do(self, harm: Harm, way: Way = "down") -> None:
        """Do it now."""
        self.harmed = True
        for writer in self._writers.values() if harm in ("cut", "reset") else ():
            if harm == "reset":
                sock = cast("socket.socket", writer.get_extra_info("socket"))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
        if harm == "half-close" and self._writers[way].can_write_eof():
            self._writers[way].write_eof()

    async def carry(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], host: str, port: int) -> None:
        """Pass on both directions until both have ended."""
        server = await asyncio.open_connection(host, port, limit=READ)
        self._writers = {"up": server[1], "down": client[1]}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on("up", client[0], server[1], self.up))
                group.create_task(self._pass_on("down", server[0], client[1], self.down))
        finally:
            for writer in self._writers.values():
                writer.transport.abort()

    async def _pass_on(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: bytearray
    ) -> None:
        leg = self.plan.up if way == "up" else self.plan.down
        try:
            while data := await reader.read(READ):
                room = _room(leg, passed, data)
                for begin in range(0, room, leg.piece or READ):
                    piece = data[begin : min(room, begin + (leg.piece or READ))]
                    writer.write(piece)
                    passed += piece
                    await writer.drain()
                    if leg.piece is not None:
                        await asyncio.sleep(leg.pause)
                if room < len(data):
                    assert leg.harm is not None
                    self.do(leg.harm, way)
                    await asyncio.Event().wait()  # to the connection's end
            writer.write_eof()
        except (OSError, RuntimeError):  # one side is gone, or was closed by us
            self._writers["up"].close()
            self._writers["down"].close()


def _room(leg: Leg, passed: bytearray, data: bytes) -> int:
    """How many of these bytes are passed on before the place."""
    if leg.harm is None:
        return len(data)
    if isinstance(leg.at, int):
        return min(len(data), leg.at - len(passed))
    text, count = leg.at
    seen, place = bytes(passed) + data, 0
    for _ in range(count):
        found = seen.find(text, place)
        if found < 0:
            return len(data)
        place = found + len(text)
    return max(0, place - len(passed))


@dataclass
class Proxy:
    """The proxy.

    Attributes:
        url: Where it listens, ``http://127.0.0.1:PORT``.
        target: Where new connections go to; it may be changed.
        plans: What is done to the first connections, in their order; the others are left alone.
        passages: The connections so far.
    """

    url: str
    target: str
    plans: list[Plan]
    passages: list[Passage] = field(default_factory=list)

    @property
    def harmed(self) -> bool:
        """Whether any harm was done."""
        return any(passage.harmed for passage in self.passages)


@contextlib.asynccontextmanager
async def fault_proxy(target: str, *plans: Plan) -> AsyncIterator[Proxy]:
    """Stand before a server, on a free port; at the end every connection is closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        tasks.add(task)
        here = len(proxy.passages)
        passage = Passage(plans[here] if here < len(plans) else Plan())
        proxy.passages.append(passage)
        try:
            host, _, port = proxy.target.removeprefix("http://").partition(":")
            await passage.carry((reader, writer), host, int(port))
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the test is over
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=READ)
    proxy = Proxy(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", target, list(plans))
    try:
        yield proxy
    finally:
        server.close()
        for task in (left := set(tasks)):
            task.cancel()
        if left:
            await asyncio.wait(left)
