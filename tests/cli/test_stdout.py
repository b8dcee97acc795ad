"""Stdout, written in the event loop: through real pipes."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Self

import pytest

from penstock.cli import output
from penstock.cli.stdout import Stdout

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="no poll there")]


class Pipe:
    """A pipe that is stdout while it is entered, and the end that its reader has."""

    def __enter__(self) -> Self:
        self._reader, writer = os.pipe()
        self.stdout = os.fdopen(writer, "w", encoding="utf-8", errors="backslashreplace")
        self._former, sys.stdout = sys.stdout, self.stdout
        return self

    def read(self, size: int = 1 << 20) -> bytes:
        """What waits in it, as far as it goes; fails where nothing does."""
        os.set_blocking(self._reader, False)
        return os.read(self._reader, size)

    def leave(self) -> None:
        """Leave, as a reader does who has enough."""
        if self._reader >= 0:
            os.close(self._reader)
        self._reader = -1

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._former
        self.leave()
        self.stdout.close()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


async def test_what_is_written_is_there_at_once(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        assert not stdout.is_terminal
        await stdout.line("é\x1b")
        await stdout.text("a")
        await stdout.raw(b"\xff")
        await stdout.record({"é": "\x9b\ud800"})
        assert pipe.read() == "é\x1b\na".encode() + b"\xff" + '{"é":"\\u009b\\ud800"}\n'.encode()


@pytest.mark.parametrize("way", ["text", "raw"])
async def test_a_reader_that_is_slow_is_waited_for_while_the_loop_goes_on(pipe: Pipe, way: str) -> None:
    with pipe:
        stdout = Stdout()
        size = 200_001
        text = "€" * (size // 3)
        writing = asyncio.create_task(stdout.text(text) if way == "text" else stdout.raw(text.encode()))
        read = b""
        while len(read) < size:
            await asyncio.sleep(0.001)
            try:
                read += pipe.read(10_000)
            except BlockingIOError:
                pass
        await writing
        assert read == text.encode()


async def test_cancelled_while_it_waits_it_writes_nothing_more(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        writing = asyncio.create_task(stdout.raw(bytes(1 << 20)))
        await asyncio.sleep(0)  # it goes on until the pipe is full
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await stdout.line("too late")
        before = len(pipe.read())
        pipe.stdout.close()
        assert before % 4096 == 0
        assert pipe.read() == b""


async def test_in_a_hurry_nobody_is_waited_for(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        stdout.hurry()
        await stdout.line("there is room")
        await stdout.raw(bytes(1 << 20))
        assert pipe.read().startswith(b"there is room\n")


async def test_a_reader_that_has_left_is_noticed_when_there_is_something_to_write(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        pipe.leave()
        with pytest.raises(output.ReaderLeft):
            await stdout.line("x")
        output.silence(sys.stdout)


async def test_a_reader_that_leaves_is_noticed_when_there_is_nothing(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        with pytest.raises(output.ReaderLeft):
            async with asyncio.timeout(20), stdout.while_read():
                pipe.leave()
                await asyncio.Event().wait()


async def test_other_ends_are_what_they_are(pipe: Pipe) -> None:
    with pipe:
        stdout = Stdout()
        with pytest.raises(TimeoutError, match="mine"):
            async with stdout.while_read():
                raise TimeoutError("mine")
        async with stdout.while_read():
            pass
        with pytest.raises(asyncio.CancelledError):
            async with stdout.while_read():
                raise asyncio.CancelledError


async def test_what_is_no_pipe_is_written_as_it_comes(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    stdout = Stdout()
    async with stdout.while_read():
        await stdout.line("a" * 100_000)
        await stdout.raw(b"\xff" * 100_000)
        await stdout.raw(b"")
    assert capsysbinary.readouterr().out == b"a" * 100_000 + b"\n" + b"\xff" * 100_000
