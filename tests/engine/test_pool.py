from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from penstock.engine.connection import Connection, Exchange
from penstock.engine.dial import Origin
from penstock.engine.pool import Pool, PoolTimeout
from penstock.errors import ConnectError, TransportError
from penstock.testing import Script, close, pause, reset, script, wait_request
from penstock.testing.script import Step
from tests.engine.talk import GET, SOON, nothing_left, whole

pytestmark = pytest.mark.anyio

OKAY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STEADY: list[Step] = [wait_request(), OKAY] * 400  # how many a connection gets is not for the test to say


def to(server: Script, name: str = "127.0.0.1") -> Origin:
    return Origin(name, server.port)


async def take(pool: Pool, origin: Origin, *, wait: float | None = 1, fresh: bool = False) -> Connection:
    return await pool.acquire(origin, connect_timeout=5, pool_timeout=wait, fresh=fresh)


async def use(connection: Connection) -> None:
    """One exchange: the connection goes back to its pool."""
    exchange = Exchange(connection, GET, SOON)
    await exchange.start()
    assert await whole(exchange) == b"ok"
    await exchange.close()


@contextlib.asynccontextmanager
async def pooled(*scripts: Sequence[Step], **settings: float | None) -> AsyncIterator[tuple[Pool, Script]]:
    """A pool, and a server that answers every request unless it has scripts."""
    async with (
        nothing_left(),
        script(*(scripts or [STEADY]), repeat=True) as server,
    ):
        pool = Pool(**settings)  # type: ignore[arg-type]
        try:
            yield pool, server
        finally:
            await pool.aclose()


async def test_a_connection_is_used_again() -> None:
    async with pooled() as (pool, server):
        for _ in range(5):
            await use(await take(pool, to(server)))
        assert (server.connections, pool.open, pool.idle) == (1, 1, 1)


async def test_the_last_one_that_came_back_goes_out_first() -> None:
    async with pooled() as (pool, server):
        one, two = await take(pool, to(server)), await take(pool, to(server))
        await use(one)
        await use(two)
        assert await take(pool, to(server)) is two
        assert await take(pool, to(server)) is one
        assert (pool.open, pool.idle) == (2, 0)


async def test_origins_are_kept_apart() -> None:
    async with pooled() as (pool, server):
        await use(await take(pool, to(server)))
        other = await take(pool, to(server, "localhost"))
        assert (server.connections, pool.open, pool.idle) == (2, 2, 1)
        await use(other)


async def test_the_bounds_on_idle_ones() -> None:
    for settings, origins, kept in (({"max_idle": 2}, 2, 2), ({"max_idle_per_host": 1}, 2, 2), ({"max_idle": 0}, 1, 0)):
        async with pooled(**settings) as (pool, server):
            names = ["127.0.0.1", "localhost"][:origins]
            taken = [await take(pool, to(server, name)) for name in names for _ in range(3)]
            for connection in taken:
                await use(connection)
            await asyncio.sleep(0.02)
            assert (pool.open, pool.idle) == (kept, kept)
            assert all(connection.closed for connection in taken[: len(taken) - 5])


async def test_idle_ones_grow_old() -> None:
    async with pooled(idle_timeout=0.1) as (pool, server):
        one, two = await take(pool, to(server)), await take(pool, to(server))
        await use(one)
        await asyncio.sleep(0.06)
        await use(two)
        await asyncio.sleep(0.06)
        assert (one.closed, two.closed, pool.open) == (True, False, 1)
        await asyncio.sleep(0.1)
        assert (two.closed, pool.open, pool.idle) == (True, 0, 0)
        await use(await take(pool, to(server)))
        assert server.connections == 3


@pytest.mark.parametrize("ending", [close(), reset(), b"unasked"])
async def test_one_that_dies_while_idle_leaves_the_pool(ending: Step) -> None:
    async with pooled([wait_request(), OKAY, pause(0.02), ending]) as (pool, server):
        await use(await take(pool, to(server)))
        assert pool.idle == 1
        await asyncio.sleep(0.1)
        assert (pool.open, pool.idle) == (0, 0)


async def test_a_fresh_one_is_new() -> None:
    async with pooled(max_connections=1) as (pool, server):
        await use(await take(pool, to(server)))
        await use(await take(pool, to(server), fresh=True))
        assert (server.connections, pool.open) == (2, 1)


async def test_no_more_than_the_bound() -> None:
    async with pooled(max_connections=2) as (pool, server):
        one, two = await take(pool, to(server)), await take(pool, to(server))
        with pytest.raises(PoolTimeout, match="all 2 connections are busy"):
            await take(pool, to(server), wait=0.05)
        waiter = asyncio.create_task(take(pool, to(server)))
        await asyncio.sleep(0.02)
        assert not waiter.done()
        await use(one)
        assert await waiter is one
        one.abort()
        await use(two)
        assert server.connections == 2


async def test_first_come_first_served() -> None:
    async with pooled(max_connections=1) as (pool, server):
        order: list[int] = []

        async def work(number: int) -> None:
            connection = await take(pool, to(server))
            order.append(number)
            await asyncio.sleep(0)
            await use(connection)

        await asyncio.gather(*(work(number) for number in range(20)))
        assert order == list(range(20))
        assert server.connections == 1


async def test_an_idle_one_of_another_origin_makes_room() -> None:
    async with pooled(max_connections=2) as (pool, server):
        one, two = await take(pool, to(server)), await take(pool, to(server))
        await use(one)
        await use(two)
        other = await take(pool, to(server, "localhost"))
        assert (one.closed, two.closed) == (True, False)
        await use(other)
        assert (pool.open, pool.idle) == (2, 2)


async def test_a_place_is_free_again_when_dialing_fails_or_is_cancelled() -> None:
    async with pooled(max_connections=1) as (pool, server):
        with contextlib.closing(dead_end()) as sock:
            for how in ("refused", "cancelled", "timeout"):
                nowhere = Origin("127.0.0.1", 1 if how == "refused" else sock.getsockname()[1])
                fill = [] if how == "refused" else await full(sock)
                first = asyncio.create_task(
                    pool.acquire(nowhere, connect_timeout=0.1 if how == "timeout" else None, pool_timeout=None)
                )
                await asyncio.sleep(0 if how == "refused" else 0.02)
                second = asyncio.create_task(take(pool, to(server)))
                await asyncio.sleep(0)
                if how == "cancelled":
                    first.cancel()
                async with asyncio.timeout(20):
                    await use(await second)
                assert isinstance(await asyncio.gather(first, return_exceptions=True), list)
                for each in fill:
                    each.close()


def dead_end() -> Any:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(0)
    return sock


async def full(sock: Any) -> list[socket.socket]:
    """Fill a listener's queue, so that the next connection to it is neither made nor refused."""
    taken = []
    for _ in range(4):
        each = socket.socket()
        each.setblocking(False)
        with contextlib.suppress(OSError):
            each.connect(sock.getsockname())
        taken.append(each)
    await asyncio.sleep(0.02)
    return taken


async def test_a_waiter_that_was_called_and_cannot_come_calls_the_next() -> None:
    async with pooled(max_connections=1) as (pool, server):
        one = await take(pool, to(server))
        first = asyncio.create_task(take(pool, to(server)))
        second = asyncio.create_task(take(pool, to(server)))
        await asyncio.sleep(0)
        exchange = Exchange(one, GET, SOON)
        await exchange.start()
        assert await whole(exchange) == b"ok"  # gives the connection back, and calls the first
        first.cancel()
        async with asyncio.timeout(20):
            assert await second is one
        assert first.cancelled()
        await use(one)


async def test_cancelled_waiters_hold_nothing() -> None:
    async with pooled(max_connections=1) as (pool, server):
        one = await take(pool, to(server))
        waiters = [asyncio.create_task(take(pool, to(server))) for _ in range(10)]
        await asyncio.sleep(0)
        for waiter in waiters[::2]:
            waiter.cancel()
        await use(one)
        for waiter in waiters[1::2]:
            await use(await waiter)
        assert (server.connections, pool.open, pool.idle) == (1, 1, 1)


async def test_the_wait_is_no_longer_than_promised_however_often_it_is_called_in_vain() -> None:
    async with pooled(max_connections=1) as (pool, server):
        one = await take(pool, to(server))
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiter = asyncio.create_task(take(pool, to(server), wait=0.15))
        while not waiter.done() and loop.time() < began + 1:
            await asyncio.sleep(0.01)
            if not waiter.done():
                await use(one)
                one = await pool.acquire(to(server), connect_timeout=1, pool_timeout=0)
        with pytest.raises(PoolTimeout):
            await waiter
        assert loop.time() < began + 0.5


async def test_a_server_that_closes_at_once_takes_no_place_for_ever() -> None:
    async with pooled([reset()], max_connections=1) as (pool, server):
        for _ in range(5):
            with contextlib.suppress(ConnectError, TransportError):
                connection = await take(pool, to(server))
                await connection.gone()
        await asyncio.sleep(0.01)
        assert pool.open == 0


async def test_a_lost_busy_one_frees_its_place() -> None:
    async with pooled([wait_request(), reset()], max_connections=1) as (pool, server):
        connection = await take(pool, to(server))
        with pytest.raises(TransportError):
            await use(connection)
        async with asyncio.timeout(20):
            assert await take(pool, to(server)) is not connection


async def test_closing_ends_busy_ones_and_waiters() -> None:
    async with pooled([wait_request(), b"HTTP/1.1 200 OK\r\n\r\n"], max_connections=1) as (pool, server):
        exchange = Exchange(await take(pool, to(server)), GET, SOON)
        await exchange.start()
        reader = asyncio.create_task(exchange.read())
        waiter = asyncio.create_task(take(pool, to(server), wait=None))
        await asyncio.sleep(0.01)
        await pool.aclose()
        for task in (reader, waiter):
            with pytest.raises(Exception, match=r"lost|closed"):
                await task
        with pytest.raises(TransportError, match="the client was closed"):
            await take(pool, to(server))
        assert pool.open == 0


async def test_many_at_once() -> None:
    async with pooled(max_connections=10) as (pool, server):

        async def work() -> None:
            await use(await take(pool, to(server), wait=20))

        await asyncio.gather(*(work() for _ in range(300)))
        assert server.connections == 10
        assert (pool.open, pool.idle) == (10, 10)
