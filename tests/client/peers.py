"""Peers: canned answers for `script`, a port where nobody listens, and a server that counts its connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from penstock import Backoff, Retry
from penstock.testing import close, wait_request
from penstock.testing.script import Step

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


def retries(count: int, *, idempotent: bool | None = None) -> Retry:
    """So many retries, without a pause."""
    return Retry(retries=count, backoff=Backoff(initial=0), idempotent=idempotent)


def answer(body: bytes = b"ok", status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """A response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


def chunked(*pieces: bytes, type: str = "text/plain", end: bool = True) -> bytes:
    """A chunked response, with or without its last chunk."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(map(chunk, pieces)) + (b"0\r\n\r\n" if end else b"")


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def once(*steps: Step) -> list[Step]:
    """A connection of one request: it is waited for, answered with the steps, and the connection closed."""
    return [wait_request(), *steps, close()]


def body_of(request: bytes) -> bytes:
    """The body of a request as it came, its chunks joined."""
    head, _, body = request.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    joined = b""
    while (size := int(body.partition(b"\r\n")[0], 16)) > 0:
        body = body.partition(b"\r\n")[2]
        joined, body = joined + body[:size], body[size + 2 :]
    return joined


def fields_of(request: bytes) -> dict[str, str]:
    """The fields of a request, names in lower case."""
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that is bound and not listened on: connections are refused, and nobody else can take it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@dataclass
class Counted:
    """A server, and what it saw."""

    url: str = ""
    open: int = 0
    """Connections that are open now."""
    served: int = 0
    """Requests that were read."""
    busiest: int = 0
    """The most that were being answered at a time."""
    answering: int = field(default=0)


Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def counting(answering: Answering) -> AsyncIterator[Counted]:
    """Serve requests without bodies, keeping connections alive, and count."""
    seen = Counted()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.served += 1
                seen.answering += 1
                seen.busiest = max(seen.busiest, seen.answering)
                reply = asyncio.ensure_future(answering(head, writer))
                gone = asyncio.ensure_future(reader.read(1))
                try:
                    await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():  # the client left; it never pipelines
                        return
                    await reply
                finally:
                    seen.answering -= 1
                    for future in (reply, gone):
                        future.cancel()
                    await asyncio.wait((reply, gone))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            seen.open -= 1
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        for task in (left := set(tasks)):
            task.cancel()
        if left:
            await asyncio.wait(left)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until it is so; fail when it never is."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 – what is waited for is on the other side of a socket
            await asyncio.sleep(0.002)
