"""A coroutine run to its end, or to a signal's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from penstock.cli.run import SIGNALS, Interrupted, new_event_loop, run, run_server


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_the_result_comes_back() -> None:
    assert run(answer()) == 42
    assert run_server(answer()) == 42


@pytest.mark.parametrize(("signum", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_cancels_and_lets_clean_up(signum: int, code: int, word: str) -> None:
    seen = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signum)
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=word) as caught:
        run(work())
    assert caught.value.exit_code == code
    assert seen == ["cleaned up"]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_error_comes_through() -> None:
    async def fail() -> None:
        raise ValueError("this")

    async def cancel() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ValueError, match="this"):
        run(fail())
    with pytest.raises(asyncio.CancelledError):
        run(cancel())


def test_a_second_signal_ends_at_once() -> None:
    program = """
import asyncio, os, signal
from penstock.cli.run import run
async def stubborn():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(20)
    finally:
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(20)
        print("never")
run(stubborn())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"first\n", b"")


def test_a_server_keeps_its_signals() -> None:
    async def handlers() -> list[object]:
        return [signal.getsignal(each) for each in SIGNALS]

    during = run_server(handlers())
    assert during[1] == signal.getsignal(signal.SIGTERM)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop")
def test_the_loop_is_uvloops() -> None:
    loop = new_event_loop()
    try:
        assert type(loop).__module__.startswith("uvloop")
    finally:
        loop.close()
