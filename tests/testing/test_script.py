from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from penstock.testing import Script, close, pause, reset, script, wait_request

pytestmark = pytest.mark.anyio


async def talk(server: Script, *sent: bytes) -> tuple[bytes, bool]:
    """Send pieces one by one, read to the end: what came, and whether the end was a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    got, was_reset = bytearray(), False
    try:
        for piece in sent:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        while data := await reader.read(65536):
            got += data
    except ConnectionResetError:
        was_reset = True
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return bytes(got), was_reset


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_bytes_then_a_clean_close() -> None:
    async with script(wait_request(), b"not ", b"HTTP", close()) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert await talk(server, GET) == (b"not HTTP", False)
    assert server.requests == [GET]


async def test_a_reset_comes_after_what_was_sent() -> None:
    async with script(b"x" * 3_000_000, reset()) as server:
        got, was_reset = await talk(server)
    assert (len(got), was_reset) == (3_000_000, True)


async def test_a_pause_is_silence() -> None:
    async with script(b"a", pause(0.2), b"b", close()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.readexactly(1)
        began = time.monotonic()
        assert await reader.read() == b"b"
        assert time.monotonic() - began > 0.15
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [GET],
        [GET[:5], GET[5:]],
        [b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"he", b"llo"],
        [b"POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n", b"3;x=y\r\na\r\n", b"\r\n0\r\nTrailer: 1\r\n\r\n"],
    ],
)
async def test_a_request_is_waited_for_to_its_end(pieces: list[bytes]) -> None:
    async with script(wait_request(), b"ok", close()) as server:
        assert await talk(server, *pieces) == (b"ok", False)
    assert server.requests == [b"".join(pieces)]


async def test_an_unfinished_request_is_not_answered() -> None:
    async with script(wait_request(), b"ok", close()) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(talk(server, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell"), 0.2)
    assert server.requests == []


async def test_the_end_of_a_script_is_silence_not_a_close() -> None:
    async with script(b"a") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.readexactly(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.close()


async def test_connections_get_their_scripts_in_turn_and_then_a_reset() -> None:
    async with script([b"one", close()], [b"two", close()]) as server:
        assert [await talk(server) for _ in range(3)] == [(b"one", False), (b"two", False), (b"", True)]
        assert server.connections == 3


async def test_the_last_script_may_be_repeated() -> None:
    async with script([b"one", close()], [b"two", close()], repeat=True) as server:
        assert [(await talk(server))[0] for _ in range(4)] == [b"one", b"two", b"two", b"two"]


@pytest.mark.parametrize("steps", [[b"a", [b"b"]], ["text"], [None], [[b"a", "b"]]])
async def test_what_is_no_step_is_refused(steps: list[Any]) -> None:
    with pytest.raises(TypeError):
        async with script(*steps):
            pass


async def test_nothing_stays_behind() -> None:
    before = asyncio.all_tasks()
    async with script(pause(60)) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
