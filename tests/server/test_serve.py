"""The server as a process: signals, exit codes, and what a reader sees of the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import textwrap
from collections.abc import AsyncIterator

import pytest

from tests.raw import connected, read_answer, request

pytestmark = pytest.mark.anyio

PROGRAM = """
import asyncio, sys, uvloop
from penstock.errors import PenstockError
from penstock.server import bind, serve

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    seconds = float(scope["path"][1:])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    padding = bytes(int(scope["query_string"] or 0))
    await send({"type": "http.response.body", "body": b"begun" + padding, "more_body": True})
    await asyncio.sleep(seconds)
    await send({"type": "http.response.body", "body": b"done"})

async def lifespan(receive, send):
    await receive()
    %(startup)s
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("app stopping", flush=True)
    %(shutdown)s
    await send({"type": "lifespan.shutdown.complete"})
    print("app stopped", flush=True)

def run(main):
    return uvloop.run(main) if %(uvloop)s else asyncio.run(main)

try:
    sock = bind("127.0.0.1", 0)
    sys.exit(run(serve(app, sock, grace=%(grace)s, on_listening=lambda where: print(where, flush=True))))
except PenstockError as error:
    sys.exit(f"error: {error}")
"""


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.stdout = process.stdout
        self.errors = ""
        self.output: list[str] = []

    async def line(self) -> str:
        assert self.stdout is not None
        return (await asyncio.wait_for(self.stdout.readline(), 20)).decode().strip()

    def signal(self, sig: signal.Signals) -> None:
        self._process.send_signal(sig)

    async def code(self) -> int:
        output, errors = await asyncio.wait_for(self._process.communicate(), 20)
        self.output, self.errors = output.decode().splitlines(), errors.decode()
        assert self._process.returncode is not None
        return self._process.returncode


@contextlib.asynccontextmanager
async def program(
    *, grace: float = 5, startup: str = "pass", shutdown: str = "pass", uvloop: bool = True
) -> AsyncIterator[Process]:
    text = textwrap.dedent(PROGRAM) % {"grace": grace, "startup": startup, "shutdown": shutdown, "uvloop": uvloop}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("uvloop", [True, False])
@pytest.mark.parametrize(("sig", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_quietly_with_its_exit_code(sig: signal.Signals, code: int, uvloop: bool) -> None:
    async with program(uvloop=uvloop) as server:
        await server.line()
        server.signal(sig)
        assert await server.code() == code
        assert server.output == ["app stopping", "app stopped"]
        assert server.errors == ""


async def test_the_applications_own_end_is_waited_for() -> None:
    async with program(shutdown="await asyncio.sleep(0.3)") as server:
        await server.line()
        server.signal(signal.SIGTERM)
        assert await server.code() == 143
        assert server.output == ["app stopping", "app stopped"]


async def test_a_running_stream_gets_its_grace() -> None:
    async with program() as server:
        async with connected("http://" + await server.line()) as (reader, writer):
            writer.write(request("/0.5"))
            await reader.readuntil(b"begun\r\n")
            server.signal(signal.SIGTERM)
            answer = await reader.read()
        assert answer == b"4\r\ndone\r\n0\r\n\r\n"
        assert await server.code() == 143
        assert server.errors == ""


async def test_no_new_connection_is_taken_in_the_grace() -> None:
    async with program() as server:
        where = "http://" + await server.line()
        async with connected(where) as (reader, writer):
            writer.write(request("/1"))
            await reader.readuntil(b"begun\r\n")
            server.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            with pytest.raises(OSError, match=r"refused|reset|Connect call failed"):
                async with connected(where):
                    pass
            assert (await reader.read()).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("uvloop", [True, False])
async def test_after_the_grace_a_stream_is_cut_off_and_does_not_look_complete(uvloop: bool) -> None:
    async with program(grace=0.2, uvloop=uvloop) as server:
        async with connected("http://" + await server.line()) as (reader, writer):
            writer.write(request("/600"))
            await reader.readuntil(b"\r\n\r\n")
            server.signal(signal.SIGTERM)
            rest = await reader.read()
        assert rest == b"5\r\nbegun\r\n", "and no last chunk"
        assert await server.code() == 143
        assert server.output == ["app stopping", "app stopped"]
        assert [line.split(" ", 1)[1] for line in server.errors.splitlines()] == [
            "1 unfinished request is cut off",
            "GET /600: cut off: the server is stopping and the grace is over",
        ]


async def test_a_reader_that_does_not_read_does_not_hold_the_end_up() -> None:
    async with program(grace=0.2) as server, connected("http://" + await server.line()) as (_, writer):
        writer.write(request("/600?50000000"))
        await asyncio.sleep(0.5)
        server.signal(signal.SIGTERM)
        assert await server.code() == 143


async def test_a_second_signal_forces_the_end_and_the_first_one_counts() -> None:
    async with program(grace=600) as server:
        async with connected("http://" + await server.line()) as (reader, writer):
            writer.write(request("/600"))
            await reader.readuntil(b"begun\r\n")
            server.signal(signal.SIGINT)
            await asyncio.sleep(0.3)
            server.signal(signal.SIGTERM)
            answer = await read_answer(reader)
        assert b"0\r\n\r\n" not in answer.raw_body
        assert await server.code() == 130
        assert "Traceback" not in server.errors


async def test_a_second_signal_does_not_wait_for_the_applications_end() -> None:
    async with program(shutdown="await asyncio.sleep(600)") as server:
        await server.line()
        server.signal(signal.SIGTERM)
        assert await server.line() == "app stopping"
        server.signal(signal.SIGTERM)
        assert await server.code() == 143
        assert (server.output, server.errors) == ([], "")


async def test_a_signal_while_the_application_starts_gives_the_start_up() -> None:
    async with program(startup='print("starting", flush=True); await asyncio.sleep(600)') as server:
        assert await server.line() == "starting"
        server.signal(signal.SIGTERM)
        assert await server.code() == 143
        assert (server.output, server.errors) == ([], "")


async def test_an_application_that_cannot_start_says_why_in_one_line() -> None:
    failure = 'await send({"type": "lifespan.startup.failed"}); raise PenstockError("no store")'
    async with program(startup=failure) as server:
        assert await server.code() == 1
        assert (server.output, server.errors) == ([], "error: no store\n")
