"""A client of bytes: it sends what it is told to, and shows what came back and how the connection ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

FORM = "Content-Type: multipart/form-data; boundary=XX\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    raw_body: bytes
    reset: bool

    @property
    def chunks(self) -> list[bytes]:
        """The HTTP chunks that arrived whole, the last one (empty) included."""
        found, rest = [], self.raw_body
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            try:
                length = int(size, 16)
            except ValueError:
                break
            found.append(rest[:length])
            rest = rest[length + 2 :]
        return found

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks) if self.chunked else self.raw_body

    @property
    def complete(self) -> bool:
        """Whether HTTP's own end of the body was seen."""
        if self.chunked:
            return self.raw_body.endswith(b"0\r\n\r\n")
        return len(self.raw_body) == int(self.headers["content-length"])


def request(target: str, method: str = "GET", headers: str = "", body: bytes = b"", length: int | None = None) -> bytes:
    if body or length is not None:
        headers += f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n".encode() + body


def form(*files: tuple[str, bytes]) -> bytes:
    parts = (
        f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    )
    return b"".join(parts) + b"--XX--\r\n"


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 22)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read to the connection's end, whichever it is."""
    raw, reset = bytearray(), False
    try:
        while data := await reader.read(1 << 20):
            raw += data
    except ConnectionResetError:
        reset = True
    head, _, body = bytes(raw).partition(b"\r\n\r\n")
    if not head:
        return Answer(0, {}, b"", reset)
    status_line, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), fields, body, reset)


async def ask(
    url: str, target: str, method: str = "GET", headers: str = "", body: bytes = b"", length: int | None = None
) -> Answer:
    async with connected(url) as (reader, writer):
        writer.write(request(target, method, headers, body, length))
        return await read_answer(reader)


async def until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait until it is true; fail when it never is."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 – what is waited for tells nobody
            await asyncio.sleep(0.005)
