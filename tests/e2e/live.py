"""A server that a test plays by hand: each request is handed to the test, which answers it piece by piece.

``await server.asked()`` is the next `Asked`, over however many connections they come. What a script cannot do, because
it depends on what the client has made of what came before, is done with this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.client.peers import SSE, chunk, fields_of

PATIENCE = 20.0  # seconds that anything here may take that takes none on an idle machine


@dataclass(eq=False)
class Asked:
    """A request, and the answer to it.

    Attributes:
        raw: The request as it came, body included.
        connection: Which connection it came on, from 1.
        over: Set when the test has said all.
        gone: Set when the client has closed the connection first.
    """

    raw: bytes
    connection: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: asyncio.StreamWriter = field(kw_only=True)

    @property
    def method(self) -> str:
        return self.raw.partition(b" ")[0].decode()

    @property
    def fields(self) -> dict[str, str]:
        """Its header fields, names in lower case."""
        return fields_of(self.raw)

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def last_event_id(self) -> str | None:
        return self.fields.get("last-event-id")

    def open(self, *headers: str, status: str = "200 OK", type: str = SSE) -> None:
        """Send the headers of a stream."""
        lines = (f"HTTP/1.1 {status}", f"Content-Type: {type}", "Transfer-Encoding: chunked", *headers, "", "")
        self._writer.write("\r\n".join(lines).encode())

    async def send(self, data: bytes | str) -> None:
        """Send a piece of the body, as one chunk."""
        self._writer.write(chunk(data.encode() if isinstance(data, str) else data))
        await self._writer.drain()

    def end(self) -> None:
        """End the body as HTTP does; the connection stays for the next request."""
        self._writer.write(b"0\r\n\r\n")
        self.over.set()

    def cut(self) -> None:
        """Close the connection in the middle of the body."""
        self._writer.close()
        self.over.set()

    async def left(self) -> None:
        """Wait until the client has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            await self.gone.wait()


@dataclass
class Live:
    """The server.

    Attributes:
        url: Its URL, ``http://127.0.0.1:PORT``.
        open: How many connections are open.
        connections: How many there have been.
        requests: How many requests have come.
    """

    url: str = ""
    open: int = 0
    connections: int = 0
    requests: int = 0
    _waiting: asyncio.Queue[Asked] = field(default_factory=asyncio.Queue)

    async def asked(self) -> Asked:
        """Wait for the next request; fails when none comes."""
        async with asyncio.timeout(PATIENCE):
            return await self._waiting.get()

    async def opened(self, *headers: str) -> Asked:
        """Wait for the next request and open a stream in answer."""
        asked = await self.asked()
        asked.open(*headers)
        return asked

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand out the requests of one connection."""
        self.open += 1
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(fields_of(head).get("content-length", 0)))
                asked = Asked(head + body, number, _writer=writer)
                self.requests += 1
                self._waiting.put_nowait(asked)
                over = asyncio.ensure_future(asked.over.wait())
                left = asyncio.ensure_future(reader.read(1))  # it never pipelines: what comes now is the end
                try:
                    await asyncio.wait((over, left), return_when=asyncio.FIRST_COMPLETED)
                    if left.done():
                        asked.gone.set()
                        return
                finally:
                    over.cancel()
                    left.cancel()
                    await asyncio.wait((over, left))
                if writer.is_closing():
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left between two requests
        finally:
            self.open -= 1
            writer.transport.abort()


@contextlib.asynccontextmanager
async def live() -> AsyncIterator[Live]:
    """Serve on a free port of 127.0.0.1; at the end every connection is closed."""
    here = Live()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await here.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    here.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        for task in (left := set(tasks)):
            task.cancel()
        if left:
            await asyncio.wait(left)
