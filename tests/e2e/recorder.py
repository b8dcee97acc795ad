"""An upstream that records what it is asked, byte by byte, and takes nothing that could be read in two ways."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

HEAD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.1")
FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*")
CHUNK = re.compile(rb"([0-9a-f]{1,15})\r\n")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Ambiguous(Exception):
    """Bytes that two servers could read differently."""


@dataclass
class Arrived:
    """A request as it came to the upstream; `whole` once its body has come to its end."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    whole: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode()


@dataclass
class Recorder:
    """The upstream: reads requests strictly, records them, and answers each; targets with `early` before the body."""

    url: str = ""
    requests: list[Arrived] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    reading: int = 0
    """Requests whose body has not come to its end, nor its connection."""

    def of(self, reader: str) -> list[Arrived]:
        """What came from the reader of an address."""
        return [each for each in self.requests if reader.encode() in each.all(b"x-forwarded-for")]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._request(reader, writer)
        except (OSError, EOFError):
            pass
        except (Ambiguous, asyncio.LimitOverrunError) as error:
            self.strange.append(str(error))
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Ambiguous(f"half a head: {error.partial!r}") from None
            raise
        line, *lines = raw[:-4].split(b"\r\n")
        if not HEAD.fullmatch(line) or not all(map(FIELD.fullmatch, lines)):
            raise Ambiguous(f"no proper head: {raw!r}")
        arrived = Arrived(line, [tuple(each.split(b": ", 1)) for each in lines])  # type: ignore[misc]
        self.requests.append(arrived)
        lengths, codings = arrived.all(b"content-length"), arrived.all(b"transfer-encoding")
        if len(lengths) + len(codings) > 1 or codings not in ([], [b"chunked"]) or not all(map(bytes.isdigit, lengths)):
            raise Ambiguous(f"no single framing: {raw!r}")
        if arrived.all(b"host") != [self.url.removeprefix("http://").encode()]:
            raise Ambiguous(f"not our host: {raw!r}")
        if early := b"early" in line:
            writer.write(ANSWER)
        self.reading += 1
        try:
            await self._body(arrived, reader, int(lengths[0]) if lengths else None if codings else 0)
        finally:
            self.reading -= 1
        arrived.whole = True
        if not early:
            writer.write(ANSWER)

    async def _body(self, arrived: Arrived, reader: asyncio.StreamReader, length: int | None) -> None:
        if length is not None:
            arrived.body = await reader.readexactly(length)
            return
        while size := await self._chunk_size(reader):
            arrived.body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise Ambiguous("a chunk is longer than it says")
        if await reader.readexactly(2) != b"\r\n":
            raise Ambiguous("there are trailers")

    async def _chunk_size(self, reader: asyncio.StreamReader) -> int:
        line = await reader.readuntil(b"\n")
        match = CHUNK.fullmatch(line)
        if match is None:
            raise Ambiguous(f"no chunk size: {line!r}")
        return int(match[1], 16)


@contextlib.asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    """Serve on a free port of 127.0.0.1; at the end every connection is closed."""
    recorder, tasks = Recorder(), set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(task := asyncio.ensure_future(recorder.connected(reader, writer)))
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    recorder.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        server.close()
        for task in (left := set(tasks)):
            task.cancel()
        if left:
            await asyncio.wait(left)
