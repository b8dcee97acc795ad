"""What the engine's tests share: an exchange on a fresh connection, and a look at what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from penstock.engine.connection import Connection, Exchange, Outgoing, Patience
from penstock.engine.dial import Origin, dial
from penstock.testing import Script

GET = Outgoing(b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
HEAD = Outgoing(b"HEAD", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
SOON = Patience(5, 5, 5)


def post(body: bytes | AsyncIterator[bytes], length: int | None = None, *, expects: bool = False) -> Outgoing:
    """An upload, with a Content-Length or in chunks."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    head += b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
    head += b"Expect: 100-continue\r\n" if expects else b""
    return Outgoing(b"POST", head + b"\r\n", body, length, expects)


async def connected(server: Script | int) -> Connection:
    """A connection to a server on 127.0.0.1."""
    return await dial(Origin("127.0.0.1", server if isinstance(server, int) else server.port), 5)


async def whole(exchange: Exchange) -> bytes:
    """The body."""
    return b"".join([piece async for piece in pieces(exchange)])


async def pieces(exchange: Exchange) -> AsyncIterator[bytes]:
    """The body as it comes."""
    while piece := await exchange.read():
        yield piece


@contextlib.asynccontextmanager
async def talking(server: Script | int, request: Outgoing = GET, patience: Patience = SOON) -> AsyncIterator[Exchange]:
    """An exchange whose head has come, on a connection of its own."""
    connection = await connected(server)
    exchange = Exchange(connection, request, patience)
    try:
        await exchange.start()
        yield exchange
    finally:
        await exchange.close()
        connection.abort()
        await connection.gone()


def sockets() -> int:
    """Open sockets of this process."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found += str(link.readlink()).startswith("socket:")
    return found


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail when the block leaves a task or a socket behind."""
    await asyncio.sleep(0)
    tasks, open_before = asyncio.all_tasks(), sockets()
    yield
    for _ in range(200):
        await asyncio.sleep(0)
        if asyncio.all_tasks() <= tasks and sockets() <= open_before:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left behind: {asyncio.all_tasks() - tasks}, {sockets() - open_before} sockets")


def splits(raw: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The bytes, cut at those places."""
    at = 0
    for cut in [*sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]:
        if cut > at:
            yield raw[at:cut]
            at = cut
