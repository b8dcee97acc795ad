"""`penstock tail` on a real terminal: the line at the bottom, and what a server may not do to it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.canned import Canned
from tests.e2e.process import PATIENCE, PENSTOCK, Server

pytestmark = pytest.mark.e2e

WIDTH = 60


class Terminal:
    """A command on a terminal of its own, and all that was written there."""

    def __init__(self, *arguments: str, stdout: int | None = None, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
        self.process = subprocess.Popen(
            [*PENSTOCK, *arguments],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 – no threads here
            env={**os.environ, "TERM": "xterm", **env},
        )
        os.close(slave)
        self.written = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def until(self, said: Callable[[str], object], what: str) -> str:
        """Read until what was written has it; fail when it does not in time."""
        deadline = time.monotonic() + PATIENCE
        while not said(self.written):
            assert time.monotonic() < deadline, f"no {what} in {self.written!r}"
            if select.select([self._master], [], [], 0.1)[0] and not self._read():
                assert said(self.written), f"no {what} in {self.written!r}"
        return self.written

    def ended(self) -> int:
        """Read to the end; the exit code."""
        self.until(lambda _: self.process.poll() is not None, "end")
        while select.select([self._master], [], [], 0)[0] and self._read():
            pass
        return self.process.wait()

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # what Linux says when the other side is closed
            time.sleep(0.01)
            return self.process.poll() is None
        self.written += data.decode()
        return True

    def end(self) -> None:
        """Make sure that it is gone."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def screen(written: str) -> list[str]:
    """The lines that a person sees in the end; fails on an escape sequence that is none of ours."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]|\x1b", written):
        if token == "\x1b[2K":
            lines[-1] = ""
        elif re.fullmatch(r"\x1b\[[0-9;]*m", token):
            continue
        elif token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
        else:
            assert token != "\x1b", f"an escape sequence: {written!r}"
            assert not token.startswith("\x1b"), token
            lines[-1] = lines[-1][:column].ljust(column) + token + lines[-1][column + 1 :]
            column += 1
    return lines


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:

        def start(*arguments: str, **options: object) -> Terminal:
            started = Terminal(*arguments, **options)  # type: ignore[arg-type]
            stack.callback(started.end)
            return started

        yield start


Start = Callable[..., Terminal]


def test_the_line_at_the_bottom_tells_and_makes_way(terminal: Start, origin: Server) -> None:
    tail = terminal("tail", f"{origin.url}/events?count=6&interval=0.25&cut_after=4")
    tail.until(lambda written: re.search(r"\d event.*/s · the last \d", written), "status line")
    tail.until(lambda written: re.search(r" · attempt 2 in \d\.\d s", written), "pause in it")
    assert tail.ended() == 0
    lines = screen(tail.written)
    assert [line for line in lines if line.startswith("{")] == [f'{{"n":{number}}}' for number in range(1, 7)]
    assert not [line for line in lines if "/s · " in line], "it was left behind"
    assert lines[-2] == "Stream completed successfully"
    assert "Total Events: 6" in lines


def test_it_is_never_wider_than_the_terminal(terminal: Start, closed_port: str) -> None:
    # Each pause is drawn by lot, and one that is too short is not seen: of three there is one that is not.
    tail = terminal("tail", closed_port, "--breaker", "9", "--retries", "3")
    assert tail.ended() == 1
    drawn = re.findall(r"(0 events[^\r]*)\r", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", tail.written))
    assert drawn
    assert max(map(len, drawn)) < WIDTH


@pytest.mark.parametrize("options", [{"stdout": subprocess.PIPE}, {"TERM": "dumb"}], ids=["a pipe", "a dumb terminal"])
def test_where_there_is_no_such_line(terminal: Start, origin: Server, options: dict[str, object]) -> None:
    tail = terminal("tail", f"{origin.url}/events?count=3&interval=0.3", **options)
    if tail.process.stdout is not None:
        with tail.process.stdout:
            assert len(tail.process.stdout.readlines()) == 3
    assert tail.ended() == 0
    assert "\x1b" not in tail.written
    assert "/s · " not in tail.written


def test_ctrl_c_ends_it_and_tells_what_was_measured(terminal: Start, origin: Server) -> None:
    tail = terminal("tail", "-v", f"{origin.url}/events?count=1000&interval=0.05")
    tail.until(lambda written: '{"n":3}' in written, "third event")
    assert "Press Ctrl+C to stop" in tail.written
    tail.type("\x03")
    assert tail.ended() == 130
    lines = screen(tail.written)
    assert lines[-2] == "penstock: interrupted"
    assert "Reason: cancelled" in lines
    assert any(line.startswith("Total Events: ") for line in lines)


def test_a_chat_streams_onto_it(terminal: Start, origin: Server) -> None:
    question = '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    tail = terminal("tail", "--text", f"{origin.url}/v1/chat/completions?tokens=100000&interval=0.05", "-d", question)
    tail.until(lambda written: written.startswith("You said: hi And"), "text on its way")
    tail.type("\x03")
    assert tail.ended() == 130
    assert "\x1b" not in tail.written, "a status line would stand in its way"
    assert re.match(r"You said: [^\r\n]*\r\n\r\n=== Streaming Metrics", tail.written)


EVIL = "a\x1b[31m\x1b]0;title\x07\x9b31m\x08\u202eb"
TAME = "a\ufffd[31m\ufffd]0;title\ufffd\ufffd31m\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("content_type", "body", "options"),
    [
        ("text/event-stream", f"data: {EVIL}\ndata: 👩‍👩‍👧\tc\n\n", ()),
        ("text/event-stream", f"data: {EVIL}\ndata: 👩‍👩‍👧\tc\n\n", ("--collect",)),
        ("text/event-stream", f": {EVIL}\ndata: {EVIL}\ndata: 👩‍👩‍👧\tc\n\n", ("-v",)),
        ("text/plain", f"{EVIL}\n👩‍👩‍👧\tc\n", ("--raw",)),
        ("text/plain", f"{EVIL}\n👩‍👩‍👧\tc\n", ()),
    ],
    ids=["event", "collected", "verbose", "raw", "line"],
)
def test_a_server_cannot_tell_the_terminal_anything(
    terminal: Start, prepared: Canned, content_type: str, body: str, options: tuple[str, ...]
) -> None:
    url = prepared.answer("/evil", content_type, body.encode())
    tail = terminal("tail", url, *options)
    assert tail.ended() == 0
    lines = screen(tail.written)
    assert TAME in lines
    assert "👩‍👩‍👧\tc" in lines
    for harmful in ("\x07", "\x08", "\x9b", "\u202e"):
        assert harmful not in tail.written


def test_nor_by_its_json_its_chat_or_its_error(terminal: Start, prepared: Canned) -> None:
    url = prepared.answer("/evil-records", "application/x-ndjson", '{"a":"\\u001b[31m\x9b"}\n'.encode())
    for options, shown in (("--json",), r'{"record":{"a":"\u001b[31m\u009b"}}'), ((), '{"a":"\\u001b[31m\ufffd"}'):
        tail = terminal("tail", url, *options)
        assert tail.ended() == 0
        assert shown in screen(tail.written)
    url = prepared.answer("/evil-error", "text/plain", EVIL.encode(), 404)
    tail = terminal("tail", url)
    assert tail.ended() == 1
    assert TAME in " ".join(screen(tail.written))
    chat = 'data: {"choices":[{"delta":{"content":"\\u001b[31m\\n"}}]}\n\ndata: [DONE]\n\n'
    tail = terminal("tail", "--text", prepared.answer("/evil-chat", "text/event-stream", chat.encode()))
    assert tail.ended() == 0
    assert screen(tail.written)[0] == "\ufffd[31m"
