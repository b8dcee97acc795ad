r"""A server that plays a script: raw bytes, silences and ends, one script a connection.

It knows no HTTP but how to tell where a request ends, so it can answer what no server would. ::

    async with script(wait_request(), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", close()) as server:
        ...  # ask server.url
    assert server.requests[0].startswith(b"GET / HTTP/1.1\r\n")

A script that has been played to its end is silent and keeps its connection open: say ``close()`` or ``reset()``.
Several connections are several scripts, given as lists: ``script([reset()], [wait_request(), b"...", close()])``. A
connection beyond the last one is reset, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import cast


@dataclass(frozen=True)
class Pause:
    """Silence for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """The connection is reset (RST), after the peer has acknowledged what was sent."""


@dataclass(frozen=True)
class Close:
    """The connection is closed cleanly (FIN), after what was sent."""


@dataclass(frozen=True)
class WaitRequest:
    """Nothing is sent until a whole request has come: its headers and its body."""


Step = bytes | Pause | Reset | Close | WaitRequest


def pause(seconds: float) -> Pause:
    """Be silent for so many seconds."""
    return Pause(seconds)


def reset() -> Reset:
    """Reset the connection (RST)."""
    return Reset()


def close() -> Close:
    """Close the connection cleanly (FIN)."""
    return Close()


def wait_request() -> WaitRequest:
    """Wait until a request's headers and body have arrived."""
    return WaitRequest()


@dataclass
class Script:
    """What a scripted server has seen.

    Attributes:
        url: The base URL, ``http://127.0.0.1:PORT``.
        port: The port.
        requests: The requests that :func:`wait_request` waited for, as raw bytes, in the order of their arrival.
        connections: How many connections were made, those beyond the last script included.
    """

    url: str
    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextlib.asynccontextmanager
async def script(*steps: Step | Sequence[Step], repeat: bool = False) -> AsyncIterator[Script]:
    """Play scripts to the connections that come, on a free port of 127.0.0.1.

    Args:
        steps: One script, step by step; or several, each a list or tuple of steps, for the connections in turn.
        repeat: Whether connections beyond the last script get the last one again, instead of a reset.
    Raises:
        TypeError: Steps and scripts are mixed, or a step is none.
    """
    scripts = _scripts(steps)
    running: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        running.add(task)
        number = seen.connections
        seen.connections += 1
        chosen = scripts[min(number, len(scripts) - 1)] if number < len(scripts) or repeat else [Reset()]
        try:
            for step in chosen:
                await _play(step, reader, writer, seen)
            while await reader.read(65536):  # silence, for as long as the peer stays
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the peer left, or the test did: either way the play is over
        finally:
            writer.transport.abort()
            running.discard(task)

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    seen = Script(f"http://127.0.0.1:{port}", port)
    try:
        yield seen
    finally:
        server.close()
        for task in (playing := set(running)):
            task.cancel()
        if playing:
            await asyncio.wait(playing)
        await asyncio.sleep(0)


def _scripts(steps: Sequence[Step | Sequence[Step]]) -> list[list[Step]]:
    many = [list(each) for each in steps if isinstance(each, list | tuple)]
    if many and len(many) != len(steps):
        raise TypeError("script() takes the steps of one connection, or lists of steps for several: not both")
    scripts: list[list[Step]] = many or [cast("list[Step]", list(steps))]
    for step in (step for each in scripts for step in each):
        if not isinstance(step, Step):
            raise TypeError(f"{step!r} is not a step: bytes, pause(), reset(), close() or wait_request()")
    return scripts


async def _play(step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Script) -> None:
    match step:
        case bytes():
            writer.write(step)
            await writer.drain()
        case Pause(seconds):
            await asyncio.sleep(seconds)
        case WaitRequest():
            seen.requests.append(await _read_request(reader))
        case Close():
            writer.close()
            await writer.wait_closed()
            raise ConnectionAbortedError
        case Reset():
            sock = cast("socket.socket", writer.get_extra_info("socket"))
            await _acknowledged(writer, sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError


async def _acknowledged(writer: asyncio.StreamWriter, sock: socket.socket) -> None:
    """Wait until the peer has what was sent (a reset takes back what is still on its way), for 5 s at most."""
    with contextlib.suppress(ImportError, TimeoutError):
        import fcntl
        import termios

        async with asyncio.timeout(5):
            while (  # noqa: ASYNC110 – the kernel tells nobody
                writer.transport.get_write_buffer_size()
                or struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
            ):
                await asyncio.sleep(0.001)


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request as it stands, its body by Content-Length or by chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return head + await _read_chunks(reader)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    raw = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        raw += line
        if size:
            raw += await reader.readexactly(size + 2)
            continue
        while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
            raw += trailer
        return raw + b"\r\n"
