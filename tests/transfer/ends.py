"""Both ends of a transfer, in bytes: a destination that records, and sources that play what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 20.0

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstored"


@dataclass
class Upload:
    """One request as it came, byte for byte.

    Attributes:
        head: Request line and fields.
        body: The body's bytes, chunks undone.
        complete: Whether HTTP's own end of the body was seen.
        gone: Set when the sender has closed the connection.
    """

    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def value(self, name: str) -> str | None:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return None

    @property
    def file(self) -> bytes:
        """What stands between the last part's head and the end of the form."""
        _, _, rest = bytes(self.body).rpartition(b"\r\n\r\n")
        return rest.rpartition(b"\r\n--")[0]


@dataclass
class Recorder:
    url: str
    uploads: list[Upload] = field(default_factory=list)

    @property
    def upload(self) -> Upload:
        (upload,) = self.uploads
        return upload


Conduct = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Upload], Awaitable[None]]


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
    """Read everything, then answer."""
    await take(reader, upload)
    writer.write(ANSWER)


async def take(reader: asyncio.StreamReader, upload: Upload) -> None:
    if upload.value("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            upload.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        left = int(upload.value("content-length") or 0)
        while left:
            data = await reader.read(min(left, 1 << 18))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            upload.body += data
            left -= len(data)
    upload.complete = True


@contextlib.asynccontextmanager
async def recorder(conduct: Conduct = polite) -> AsyncIterator[Recorder]:
    """A destination that keeps what it gets, and behaves as told."""
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        upload = Upload()
        seen.uploads.append(upload)
        try:
            upload.head = await reader.readuntil(b"\r\n\r\n")
            await conduct(reader, writer, upload)
            while await reader.read(1 << 18):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
            pass
        finally:
            upload.gone.set()
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    seen = Recorder(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/upload")
    try:
        yield seen
    finally:
        server.close()
        for task in (left := set(running)):
            task.cancel()
        if left:
            await asyncio.wait(left)
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 – a condition of any kind
            await asyncio.sleep(0.005)


def stored(directory: Path) -> list[str]:
    """Every name in a directory, the hidden ones too."""
    return sorted(path.name for path in directory.iterdir())
