from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

import pytest

import penstock
from penstock import AsyncClient, ConcurrencyLimit, Logging, Progress
from penstock.client.middleware import Update
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import answer, chunk, chunked, counting, free_port, once, retries, until

pytestmark = pytest.mark.anyio

Log = Callable[[str], list[str]]


def timeless(lines: list[str]) -> list[str]:
    """The lines with their durations, which differ, replaced."""
    return [re.sub(r"duration=\d+\.\d{3}s", "duration=T", line) for line in lines]


# -- Logging


async def test_a_line_before_at_the_headers_and_at_the_end(log: Log) -> None:
    async with (
        script(wait_request(), answer(b"12345")) as server,
        AsyncClient(server.url.replace("//", "//me:secret@"), name="server1") as client,
    ):
        client.use(Logging())
        response = await client.get("/a?b=c").send()
        before = len(log("penstock.client"))
        await response.read()
    assert before == 2
    assert timeless(log("penstock.client")) == [
        f"Sending request server1.method=GET server1.url={server.url}/a?b=c",
        "Response received server1.status=200 server1.duration=T",
        "Body complete server1.bytes=5 server1.duration=T",
    ]


async def test_without_a_name_there_is_no_prefix_and_each_attempt_has_its_lines(log: Log) -> None:
    async with (
        script(once(answer(b"no", "503 Busy")), once(answer(b"12"))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        await client.use(Logging()).get("/").read()
    assert timeless(log("penstock.client")) == [
        f"Sending request method=GET url={server.url}/",
        "Response received status=503 duration=T",
        "Body cancelled bytes=0 duration=T",
        f"Sending request method=GET url={server.url}/",
        "Response received status=200 duration=T",
        "Body complete bytes=2 duration=T",
    ]


async def test_what_fails_is_a_warning(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with free_port() as port:
        async with AsyncClient(f"http://127.0.0.1:{port}", name="a", retry=0) as client:
            with pytest.raises(penstock.ConnectError) as caught:
                await client.use(Logging()).get("/").read()
    assert timeless(log("penstock.client"))[1] == f'Request failed a.error="{caught.value}" a.duration=T'
    async with (
        script(wait_request(), answer(b"12", length=5), close()) as server,
        AsyncClient(server.url, name="b", retry=0) as client,
    ):
        with pytest.raises(penstock.StreamTruncated) as broken:
            await client.use(Logging()).get("/").read()
    assert timeless(log("penstock.client"))[4] == f'Body failed b.bytes=2 b.duration=T b.error="{broken.value}"'
    levels = [record.levelno for record in caplog.records if record.name == "penstock.client"]
    assert levels == [logging.INFO, logging.WARNING, logging.INFO, logging.INFO, logging.WARNING]


async def test_a_reader_who_leaves_is_no_failure(log: Log) -> None:
    async with (
        script(wait_request(), chunked(b"12", end=False)) as server,
        AsyncClient(server.url) as client,
        client.use(Logging()).get("/").send() as response,
    ):
        async for _ in response:
            break
    assert timeless(log("penstock.client"))[-1] == "Body cancelled bytes=2 duration=T"


async def test_a_logger_and_a_level_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mine")
    caplog.set_level(logging.DEBUG, "mine")
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(Logging(logger, logging.DEBUG)).get("/").read()
    assert {(record.name, record.levelno) for record in caplog.records} == {("mine", logging.DEBUG)}


# -- ConcurrencyLimit


async def test_no_more_than_the_limit_until_the_end_of_their_bodies() -> None:
    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"1", end=False))
        await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    async with counting(slow) as server, AsyncClient(server.url) as client:
        client.use(ConcurrencyLimit(3))
        await asyncio.gather(*(client.get("/").read() for _ in range(12)))
        assert (server.served, server.busiest) == (12, 3)


async def refused(client: AsyncClient) -> None:
    with pytest.raises(penstock.ReadError):
        await client.get("/").retry(0).read()


async def broken(client: AsyncClient) -> None:
    with pytest.raises(penstock.StreamTruncated):
        await client.get("/").retry(0).read()


async def completed(client: AsyncClient) -> None:
    await client.get("/").read()


async def left(client: AsyncClient) -> None:
    async with client.get("/").send():
        pass


async def cancelled_before_the_headers(client: AsyncClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.get("/").read()


async def cancelled_in_the_body(client: AsyncClient) -> None:
    with pytest.raises(TimeoutError):
        async with client.get("/").send() as response, asyncio.timeout(0.05):
            await response.read()


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        ([reset()], refused),
        ([answer(b"1", length=5), close()], broken),
        ([answer(b""), close()], completed),
        ([answer(b"12", "503 Busy"), close()], completed),
        ([answer(b"1", length=5)], left),
        ([], cancelled_before_the_headers),
        ([chunked(b"1", end=False)], cancelled_in_the_body),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_place_is_given_back_once_however_it_ends(
    steps: list[Step], end: Callable[[AsyncClient], Awaitable[None]]
) -> None:
    never: list[Step] = [wait_request(), chunked(end=False)]
    async with (
        script([wait_request(), *steps], never, never, never) as server,
        AsyncClient(server.url, retry=0) as client,
    ):
        client.use(ConcurrencyLimit(1))
        await end(client)
        held = await client.get("/").send()  # there is a place …
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.get("/").send()  # … and not two
        await held.aclose()
        async with client.get("/").send():
            pass


async def test_one_who_is_cancelled_while_waiting_takes_no_place() -> None:
    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    async with counting(ok) as server, AsyncClient(server.url) as client:
        client.use(ConcurrencyLimit(1))
        held = await client.get("/").send()
        waiting = [asyncio.create_task(client.get("/").read()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting[:2]:
            task.cancel()
        await held.aclose()
        assert (await waiting[2]).content == b"ok"
        assert [task.cancelled() for task in waiting] == [True, True, False]
        assert server.served == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_lets_somebody_through(limit: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        ConcurrencyLimit(limit)


# -- Progress


async def test_progress_is_told_at_an_interval_and_at_the_end() -> None:
    updates: list[Update] = []
    gate = asyncio.Event()

    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"123", length=5))
        await gate.wait()
        writer.write(b"45")

    async with counting(slow) as server, AsyncClient(server.url) as client:
        client.use(Progress(updates.append, interval=0.01))
        async with client.get("/x").send() as response:
            body = aiter(response)
            await anext(body)
            await until(lambda: len([update for update in updates if update.bytes == 3]) >= 2)
            gate.set()
            assert [piece async for piece in body] == [b"45"]
        told = len(updates)
        await asyncio.sleep(0.05)
        assert len(updates) == told, "nothing is told after the end"
    assert {(update.url, update.total) for update in updates} == {(server.url + "/x", 5)}
    assert [update.ended for update in updates] == [False] * (told - 1) + [True]
    assert updates[-1].bytes == 5
    assert [update.bytes for update in updates] == sorted(update.bytes for update in updates)
    assert [update.seconds for update in updates] == sorted(update.seconds for update in updates)


@pytest.mark.parametrize("end", ["complete", "failed", "cancelled"])
async def test_every_end_is_the_last_word(end: str) -> None:
    updates: list[Update] = []
    lasts: dict[str, list[Step]] = {"complete": [b"0\r\n\r\n"], "failed": [close()], "cancelled": []}
    async with (
        script(wait_request(), chunked(b"123", end=False), *lasts[end]) as server,
        AsyncClient(server.url, retry=0).use(Progress(updates.append, interval=60)) as client,
    ):
        try:
            async with client.get("/").send() as response:
                async for _ in response:
                    if end == "cancelled":
                        break
        except penstock.StreamTruncated:
            assert end == "failed"
        else:
            assert end != "failed"
    assert [(update.bytes, update.total, update.ended) for update in updates] == [(3, None, True)]


async def test_a_callback_that_raises_does_not_keep_a_place() -> None:
    def broken_pipe(update: Update) -> None:
        raise BrokenPipeError

    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"1", end=False) + chunk(b"2") + b"0\r\n\r\n")

    async with counting(ok) as server, AsyncClient(server.url) as client:
        client.use(ConcurrencyLimit(1), Progress(broken_pipe, interval=60))
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                await client.get("/").read()
        assert server.served == 3
