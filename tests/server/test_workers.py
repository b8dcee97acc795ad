"""The supervisor in this process, its workers in theirs; the applications below are what they serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import PenstockError
from penstock.server.listen import ListenError, bind, bind_beside, bound_to, hold
from penstock.server.workers import Supervisor, WorkerError, supervise
from tests.e2e.process import alive, children_of, needs_proc
from tests.raw import connected, read_answer, request

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="has one process only")]

PATIENCE = 20.0


# -- what the workers serve --------------------------------------------------------------------------------------------


async def tells_its_pid(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the worker's pid; /stream goes on until it is cut off, /hang stops the worker's loop."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid(), "more_body": True})
    if scope["path"] == "/stream":
        await asyncio.sleep(600)
    if scope["path"] == "/hang":
        time.sleep(600)
    await send({"type": "http.response.body", "body": b""})


def healthy() -> Any:
    return tells_its_pid


def refused_while(flag: Path, starts: Path) -> Any:
    """An application that cannot be made while there is such a file."""
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if flag.exists():
        raise PenstockError("the store\nis down")
    return tells_its_pid


def buggy() -> Any:
    raise KeyError("nobody foresaw it")


def kills_itself() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> Any:
    sys.exit(3)


def refused_at_its_start() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    return app


# -- helpers -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def supervised(
    make_app: Callable[[], Any] = healthy, *, workers: int = 2, grace: float = 5.0
) -> AsyncIterator[tuple[Supervisor, asyncio.Task[None], str]]:
    """A supervisor all of whose workers take requests; the task it runs in, and its URL."""
    sock = hold("127.0.0.1", 0)
    url = f"http://{bound_to(sock)}"
    supervisor = Supervisor(make_app, sock, workers=workers, grace=grace)
    listening = asyncio.Event()
    task = asyncio.create_task(supervisor.run_until_stopped(listening.set))
    waiting = asyncio.create_task(listening.wait())
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield supervisor, task, url
    finally:
        waiting.cancel()
        if not task.done():
            supervisor.stop()
            supervisor.stop()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({task})


async def answered_by(url: str) -> int:
    """The pid of the worker that answers."""
    async with connected(url) as (reader, writer):
        writer.write(request("/"))
        return int((await read_answer(reader)).body)


async def until(look: Callable[[], Any]) -> Any:
    """Look again and again until there is something."""
    async with asyncio.timeout(PATIENCE):
        while not (found := look()):  # noqa: ASYNC110 – another process tells nobody
            await asyncio.sleep(0.005)
    return found


def workers_of_this_process() -> set[int]:
    return set(children_of(os.getpid()))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "penstock.server"]


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.server")


# -- the address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_socket_each", [True, False])
async def test_a_held_address_is_nobody_elses_and_takes_nobody_in_until_one_listens(one_socket_each: bool) -> None:
    if one_socket_each and sys.platform != "linux":
        pytest.skip("one socket gets all connections")
    with hold("127.0.0.1", 0) as held:
        host, port = held.getsockname()
        for claim in (hold, bind):
            with pytest.raises(ListenError, match="already in use"):
                claim(host, port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=5)
        with bind_beside(held, one_socket_each=one_socket_each) as sock:
            with bind_beside(held, one_socket_each=one_socket_each) as other:
                assert bound_to(sock) == bound_to(other) == f"{host}:{port}"
            sock.listen()
            socket.create_connection((host, port), timeout=5).close()


async def test_an_address_that_is_listened_on_cannot_be_held() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(ListenError, match="already in use"):
        hold(*sock.getsockname())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket is the holder's")
async def test_beside_one_who_does_not_share_nobody_binds() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(ListenError, match="already in use"):
        bind_beside(sock)


# -- a start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_app", "reason"),
    [
        (refused_at_its_start, "the application cannot start: no disk"),
        (buggy, "KeyError: 'nobody foresaw it'"),
        (kills_itself, "it was killed by SIGKILL before it took requests"),
        (leaves, "it ended with exit code 3 before it took requests"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_workers_that_cannot_start_are_one_error(make_app: Callable[[], Any], reason: str) -> None:
    before = workers_of_this_process()
    with pytest.raises(WorkerError) as failed:
        await supervise(make_app, hold("127.0.0.1", 0), workers=2)
    assert str(failed.value) == f"a worker cannot start: {reason}"
    assert workers_of_this_process() <= before


async def test_a_failed_start_is_not_tried_again(tmp_path: Path) -> None:
    flag, starts = tmp_path / "down", tmp_path / "starts"
    flag.touch()
    listening: list[str] = []
    with pytest.raises(WorkerError, match=r"^a worker cannot start: the store is down$"):
        await supervise(
            partial(refused_while, flag, starts), hold("127.0.0.1", 0), workers=3, on_listening=listening.append
        )
    assert len(starts.read_text().splitlines()) <= 3
    assert listening == []


async def test_an_application_that_cannot_be_sent_to_a_worker_is_refused() -> None:
    with hold("127.0.0.1", 0) as sock, pytest.raises((AttributeError, TypeError), match="pickle"):
        await supervise(lambda: tells_its_pid, sock, workers=2)


async def test_what_is_raised_when_all_listen_ends_all() -> None:
    def fail(where: str) -> None:
        raise BrokenPipeError(where)

    before = workers_of_this_process()
    sock = hold("127.0.0.1", 0)
    where = bound_to(sock)
    with pytest.raises(BrokenPipeError, match=where):
        await supervise(healthy, sock, workers=2, on_listening=fail)
    assert workers_of_this_process() <= before


# -- a worker's death --------------------------------------------------------------------------------------------------


@needs_proc
async def test_a_short_lived_worker_is_replaced_after_a_pause_that_grows(caplog: pytest.LogCaptureFixture) -> None:
    killed = []
    async with supervised(workers=1) as (_, _, url):
        for _ in range(3):
            killed.append(await answered_by(url))
            os.kill(killed[-1], signal.SIGKILL)
            await until(lambda: len([line for line in lines(caplog) if "takes requests" in line]) == len(killed))
        last = await answered_by(url)
    assert len({*killed, last}) == 4
    assert not [pid for pid in (*killed, last) if alive(pid)]
    assert [line for line in lines(caplog) if "takes requests" not in line] == [
        f"worker {killed[0]} was killed by SIGKILL; another takes its place now",
        f"worker {killed[1]} was killed by SIGKILL; another takes its place in 0.5 s",
        f"worker {killed[2]} was killed by SIGKILL; another takes its place in 1 s",
    ]


@needs_proc
async def test_a_worker_that_gets_a_sigterm_lets_its_stream_end_and_another_takes_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with supervised(workers=1, grace=0.3) as (_, _, url), connected(url) as (reader, writer):
        writer.write(request("/stream"))
        pid = int((await reader.readuntil(b"\r\n\r\n"), await reader.readline(), await reader.readline())[2])
        os.kill(pid, signal.SIGINT)  # the supervisor's affair
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGTERM)  # no cut before the grace is over
        began = time.monotonic()
        assert await reader.read() == b"", "it looked complete"
        assert time.monotonic() - began > 0.2
        await until(lambda: any("takes requests" in line for line in lines(caplog)))
        assert await answered_by(url) != pid
    assert f"worker {pid} was stopped by SIGTERM; another takes its place now" in lines(caplog)


@needs_proc
async def test_a_replacement_that_cannot_start_is_tried_again_while_others_serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag, starts = tmp_path / "down", tmp_path / "starts"
    async with supervised(partial(refused_while, flag, starts)) as (_, task, url):
        flag.touch()
        killed = await answered_by(url)
        os.kill(killed, signal.SIGKILL)
        await until(
            lambda: "a worker cannot start: the store is down; another takes its place in 0.5 s" in lines(caplog)
        )
        assert await answered_by(url) != killed
        flag.unlink()
        await until(lambda: any("takes requests" in line for line in lines(caplog)))
        assert not task.done()
        assert len(await seen_pids(url, 2)) == 2


@needs_proc
async def test_when_nobody_serves_and_nobody_can_start_that_is_the_end(tmp_path: Path) -> None:
    flag, starts = tmp_path / "down", tmp_path / "starts"
    async with supervised(partial(refused_while, flag, starts)) as (_, task, url):
        both = await seen_pids(url, 2)
        flag.touch()
        for pid in both:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({task})
        with pytest.raises(WorkerError, match="a worker cannot start: the store is down"):
            task.result()
    assert len(starts.read_text().splitlines()) <= 2 + 4


async def seen_pids(url: str, count: int) -> set[int]:
    """Ask until so many workers have answered."""
    seen: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while len(seen) < count:
            seen.add(await answered_by(url))
    return seen


# -- the end -----------------------------------------------------------------------------------------------------------


@needs_proc
async def test_stopped_once_the_streams_have_their_grace_and_stopped_twice_they_are_cut_off() -> None:
    async with supervised(grace=600) as (supervisor, task, url), connected(url) as (reader, writer):
        before = workers_of_this_process()
        writer.write(request("/stream"))
        await reader.readuntil(b"\r\n\r\n")
        supervisor.stop()
        await until(lambda: len(workers_of_this_process()) < len(before))  # the one without a stream
        with pytest.raises(OSError, match=r"refused|reset|Connect call failed"):
            await answered_by(url)
        assert not task.done()
        supervisor.stop()
        assert (await reader.read()).count(b"\r\n") == 2, "it looked complete"
        await asyncio.wait_for(task, PATIENCE)


@needs_proc
async def test_a_worker_that_hangs_is_killed_when_it_is_to_be_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async with supervised() as (supervisor, task, url), connected(url) as (reader, writer):
        writer.write(request("/hang"))
        pid = int((await reader.readuntil(b"\r\n\r\n"), await reader.readline(), await reader.readline())[2])
        supervisor.stop()
        supervisor.stop()
        await asyncio.wait_for(task, PATIENCE)
        assert not alive(pid)
    assert f"worker {pid} does not end and is killed" in lines(caplog)


@needs_proc
async def test_cancelled_it_leaves_no_worker_behind() -> None:
    before, tasks = workers_of_this_process(), asyncio.all_tasks()
    async with supervised(grace=600) as (_, task, url), connected(url) as (reader, writer):
        writer.write(request("/stream"))
        await reader.readuntil(b"\r\n\r\n")
        assert len(workers_of_this_process() - before) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert workers_of_this_process() <= before
        assert asyncio.all_tasks() <= tasks


@needs_proc
async def test_cancelled_while_the_workers_start_it_leaves_none_behind() -> None:
    before = workers_of_this_process()
    task = asyncio.create_task(supervise(healthy, hold("127.0.0.1", 0), workers=2))
    await until(lambda: len(workers_of_this_process() - before) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers_of_this_process() <= before
