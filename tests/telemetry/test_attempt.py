from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

import penstock
from penstock import AsyncClient
from penstock.client.request import Request, Send
from penstock.client.response import Response
from penstock.telemetry.attempt import Outcome, known_method, watched
from penstock.testing import Script, close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import answer, chunked, counting, until

pytestmark = pytest.mark.anyio


def watching(told: list[Outcome]) -> Callable[[Request, Send], Awaitable[Response]]:
    async def middleware(request: Request, send: Send) -> Response:
        return await watched(request, send, told.append)

    return middleware


Act = Callable[[AsyncClient, Script], Awaitable[None]]


async def read(client: AsyncClient, server: Script) -> None:
    await client.get("/").read()


async def fail(client: AsyncClient, server: Script) -> None:
    with pytest.raises(penstock.PenstockError):
        await client.get("/").read()


async def leave(client: AsyncClient, server: Script) -> None:
    async with client.get("/").send() as response:
        async for _ in response:
            break


async def be_cancelled_before_the_headers(client: AsyncClient, server: Script) -> None:
    reading = asyncio.create_task(client.get("/").read())
    await until(lambda: bool(server.requests))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def be_cancelled_in_the_body(client: AsyncClient, server: Script) -> None:
    response = await client.get("/").send()
    reading = asyncio.create_task(response.read())
    await until(lambda: response.bytes_received > 0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize(
    ("steps", "act", "expected"),
    [
        ([answer(b"12345")], read, ("complete", 5, 200, None)),
        ([answer(b"")], read, ("complete", 0, 200, None)),
        ([answer(b"no", "404 Not Found")], read, ("complete", 2, 404, None)),
        ([answer(b"12", length=5), close()], fail, ("failed", 2, 200, penstock.StreamTruncated)),
        ([reset()], fail, ("failed", 0, None, penstock.ReadError)),
        ([chunked(b"123", end=False)], leave, ("cancelled", 3, 200, None)),
        ([chunked(b"123", end=False)], be_cancelled_in_the_body, ("cancelled", 3, 200, None)),
        ([], be_cancelled_before_the_headers, ("cancelled", 0, None, None)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_attempt_is_told_of_once_however_it_ends(
    steps: list[Step],
    act: Act,
    expected: tuple[str, int, int | None, type[Exception] | None],
) -> None:
    told: list[Outcome] = []
    async with script(wait_request(), *steps) as server, AsyncClient(server.url, retry=0) as client:
        await act(client.use(watching(told)), server)
    (outcome,) = told
    error = None if outcome.error is None else type(outcome.error)
    assert (outcome.reason, outcome.bytes, outcome.status, error) == expected
    assert (outcome.first_byte is not None) == (outcome.bytes > 0)
    assert 0 <= (outcome.first_byte or 0) <= outcome.seconds


async def test_nothing_is_told_before_the_end_of_the_body() -> None:
    told: list[Outcome] = []
    async with (
        script(wait_request(), chunked(b"1")) as server,
        AsyncClient(server.url).use(watching(told)) as client,
        client.get("/").send() as response,
    ):
        body = aiter(response)
        assert await anext(body) == b"1"
        assert told == []
        assert [piece async for piece in body] == []
        assert [outcome.reason for outcome in told] == ["complete"]
    assert len(told) == 1


async def test_a_body_that_is_pushed_tells_no_first_byte_that_came_late() -> None:
    gate, came = asyncio.Event(), asyncio.Event()
    told: list[Outcome] = []

    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"12", end=False))
        await gate.wait()
        writer.write(b"0\r\n\r\n")

    async with counting(slow) as server, AsyncClient(server.url).use(watching(told)) as client:
        started_at = time.monotonic()
        response = await client.get("/").send()
        pushing = asyncio.create_task(response.push(lambda piece: came.set(), lambda pause, resume: None))
        await came.wait()
        to_first_byte = time.monotonic() - started_at
        await asyncio.sleep(2 * to_first_byte)  # what is told at the end is then more, whatever began when
        gate.set()
        await pushing
    (outcome,) = told
    assert (outcome.reason, outcome.bytes) == ("complete", 2)
    assert outcome.first_byte is None or outcome.first_byte <= to_first_byte


async def test_a_middleware_within_that_refuses_a_response_makes_the_attempt_fail() -> None:
    async def refuse(request: Request, send: Send) -> Response:
        await send(request)
        raise ValueError("not this one")

    told: list[Outcome] = []
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        with pytest.raises(ValueError, match="not this one"):
            await client.use(watching(told), refuse).get("/").read()
    assert [(outcome.reason, type(outcome.error)) for outcome in told] == [("failed", ValueError)]


async def test_a_middleware_around_that_refuses_a_response_has_left_it() -> None:
    async def refuse(request: Request, send: Send) -> Response:
        await send(request)
        raise ValueError("not this one")

    told: list[Outcome] = []
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        with pytest.raises(ValueError, match="not this one"):
            await client.use(refuse, watching(told)).get("/").read()
    assert [(outcome.reason, outcome.status) for outcome in told] == [("cancelled", 200)]


async def test_an_attempt_that_the_breaker_refuses_is_none() -> None:
    told: list[Outcome] = []
    async with (
        script([wait_request(), reset()]) as server,
        AsyncClient(server.url, retry=0, breaker=penstock.Breaker(failure_threshold=1)) as client,
    ):
        client.use(watching(told))
        await fail(client, server)
        with pytest.raises(penstock.CircuitOpenError):
            await client.get("/").read()
        assert server.connections == 1
    assert len(told) == 1


def test_methods_that_nobody_knows_share_a_name() -> None:
    assert [known_method(method) for method in ("GET", "PATCH", "PROPFIND", "get")] == [
        "GET",
        "PATCH",
        "_OTHER",
        "_OTHER",
    ]


def test_which_methods_are_known_can_be_set_in_the_environment() -> None:
    code = "from penstock.telemetry.attempt import METHODS; print(sorted(METHODS))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "GET,PROPFIND"},
    )
    assert done.stdout.strip() == "['GET', 'PROPFIND']"


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("penstock.telemetry.opentelemetry", "opentelemetry", "penstock[opentelemetry]"),
        ("penstock.telemetry.prometheus", "prometheus_client", "penstock[prometheus]"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_its_extra(module: str, library: str, extra: str) -> None:
    # None in sys.modules is how the import system itself notes that there is no such module.
    code = f"import sys; sys.modules[{library!r}] = None; import penstock.telemetry; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {module} needs ")
    assert last.endswith(f"pip install '{extra}'")


def test_neither_library_is_loaded_with_the_room_or_the_door() -> None:
    code = """if True:
        import sys, penstock, penstock.telemetry
        print(sorted({"opentelemetry", "prometheus_client"} & {*sys.modules}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
