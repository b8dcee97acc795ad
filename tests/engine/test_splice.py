"""Bytes from socket to socket by the kernel: all of them, in order, the loop free meanwhile, no break untold."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engine import splice
from penstock.engine.splice import Splice
from penstock.errors import StreamStalled, StreamTruncated, WriteError, WriteTimeout

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not splice.available, reason="splice(2) is Linux's"),
]


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback, neither of which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@contextlib.asynccontextmanager
async def between() -> AsyncIterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """A source's far and near end, a destination's near and far end; every descriptor is gone afterwards."""
    before = descriptors()
    with connected() as (far_source, source), connected() as (destination, far_destination):
        yield far_source, source, destination, far_destination
    await asyncio.sleep(0)
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def moving(source: socket.socket, count: int, *, patience: float | None = 5) -> tuple[Splice, list[int]]:
    received: list[int] = []
    return Splice(source, count, patience, received.append), received


async def drain(sock: socket.socket, into: Any, *, until: int) -> None:
    loop = asyncio.get_running_loop()
    got = 0
    while got < until:
        data = await loop.sock_recv(sock, 65536)
        assert data
        got += len(data)
        into(data)


async def test_every_byte_arrives_in_order_and_the_loop_goes_on() -> None:
    size = 64 * 1024 * 1024
    block = os.urandom(1 << 20)
    sent, got = hashlib.sha256(block * (size >> 20)), hashlib.sha256()
    loop = asyncio.get_running_loop()
    turns = 0

    async def feed(sock: socket.socket) -> None:
        for _ in range(size >> 20):
            await loop.sock_sendall(sock, block)

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with between() as (far_source, source, destination, far_destination):
        piece, received = moving(source, size)
        counting = asyncio.create_task(count())
        await asyncio.gather(feed(far_source), piece.to(destination, 5), drain(far_destination, got.update, until=size))
        counting.cancel()
    assert got.digest() == sent.digest()
    assert (piece.moved, piece.received, sum(received), piece.failure) == (size, size, size, None)
    assert turns > size / splice.PIPE_BYTES / splice.TURNS


async def test_no_more_than_the_count_is_taken() -> None:
    async with between() as (far_source, source, destination, far_destination):
        far_source.send(b"12345the next response")
        piece, _ = moving(source, 5)
        await piece.to(destination, 5)
        assert far_destination.recv(100) == b"12345"
        assert source.recv(100) == b"the next response"


async def test_a_source_that_ends_early_is_told_after_what_came() -> None:
    async with between() as (far_source, source, destination, far_destination):
        far_source.send(b"123")
        far_source.shutdown(socket.SHUT_WR)
        piece, _ = moving(source, 5)
        await piece.to(destination, 5)
        assert isinstance(piece.failure, StreamTruncated)
        assert "2 short of its length" in str(piece.failure)
        assert (piece.moved, far_destination.recv(100)) == (3, b"123")


async def test_a_source_that_is_reset() -> None:
    async with between() as (far_source, source, destination, _):
        far_source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far_source.close()
        piece, _ = moving(source, 5)
        await piece.to(destination, 5)
        assert isinstance(piece.failure, StreamTruncated)


async def test_a_source_that_goes_silent() -> None:
    async with between() as (_, source, destination, _):
        piece, _ = moving(source, 5, patience=0.1)
        await piece.to(destination, 5)
        assert isinstance(piece.failure, StreamStalled)


async def test_a_destination_that_takes_nothing_stops_the_source_and_is_given_up() -> None:
    loop = asyncio.get_running_loop()
    async with between() as (far_source, source, destination, _):
        feeding = asyncio.create_task(loop.sock_sendall(far_source, bytes(64 * 1024 * 1024)))
        piece, _ = moving(source, 64 * 1024 * 1024)
        with pytest.raises(WriteTimeout):
            await piece.to(destination, 0.3)
        assert piece.received - piece.moved <= splice.PIPE_BYTES
        assert not feeding.done(), "nothing held what the destination did not take"
        feeding.cancel()
        await asyncio.wait({feeding})


async def test_a_destination_that_is_lost() -> None:
    loop = asyncio.get_running_loop()
    async with between() as (far_source, source, destination, far_destination):
        feeding = asyncio.create_task(loop.sock_sendall(far_source, bytes(64 * 1024 * 1024)))
        piece, _ = moving(source, 64 * 1024 * 1024)
        far_destination.close()
        with pytest.raises(WriteError):
            await piece.to(destination, 5)
        feeding.cancel()
        await asyncio.wait({feeding})


async def test_cancelled_while_waiting_leaves_no_descriptor_and_no_watch() -> None:
    async with between() as (far_source, source, destination, far_destination):
        piece, _ = moving(source, 5)
        task = asyncio.create_task(piece.to(destination, 5))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        far_source.send(b"12345")
        again, _ = moving(source, 5)
        await again.to(destination, 5)
        assert far_destination.recv(100) == b"12345"
