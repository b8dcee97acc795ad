"""SIGINT and SIGTERM on every command, at work and idle: a clean end, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import penstock_command
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import SIGNALS, Running, Server, alive, children_of, eventually, needs_proc, one_line

pytestmark = [pytest.mark.e2e, pytest.mark.parametrize(("signum", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])]

CURL = ("curl", "-sN", "--max-time", "60")


def ends(running: Running, signum: int, code: int) -> None:
    running.kill(signum)
    assert running.ended() == code
    assert "Traceback" not in running.err
    assert "Exception" not in running.err


def test_servers_at_rest(serve: Serve, closed_port: str, signum: int, code: int, word: str) -> None:
    for server in (serve("origin"), serve("relay", closed_port)):
        ends(server, signum, code)
        assert server.err == ""
        assert len(server.out.splitlines()) == 1


def test_servers_at_work_let_their_streams_end(serve: Serve, start: Start, signum: int, code: int, word: str) -> None:
    origin = serve("origin")
    relay = serve("relay", origin.url, "--grace", "20")
    curl = start(f"{relay.url}/generate?chunks=30&interval=0.02", program=CURL)
    curl.wrote(2)
    relay.kill(signum)
    assert relay.ended() == code
    assert curl.ended() == 0
    assert len(curl.out.splitlines()) == 30
    assert "Traceback" not in relay.err
    origin.said("GET /generate: 30 chunks sent")


def test_servers_at_work_cut_off_after_their_grace(
    serve: Serve, start: Start, signum: int, code: int, word: str
) -> None:
    origin = serve("origin", "--grace", "0.1")
    curl = start(f"{origin.url}/generate?chunks=100000&interval=0.01", program=CURL)
    curl.wrote(2)
    ends(origin, signum, code)
    assert curl.ended() == 18, "the answer looked complete"
    assert "1 unfinished request is cut off" in origin.err


@pytest.mark.parametrize("command", ["origin", "relay"])
def test_a_second_signal_ends_a_server_at_once(
    serve: Serve, start: Start, command: str, signum: int, code: int, word: str
) -> None:
    origin = serve("origin", "--grace", "60")
    server = origin if command == "origin" else serve("relay", origin.url, "--grace", "60")
    curl = start(f"{server.url}/generate?chunks=100000&interval=0.01", program=CURL)
    curl.wrote(2)
    server.kill(signum)
    curl.wrote(len(curl.out.splitlines()) + 20)  # it goes on in its grace
    assert server.process.poll() is None
    server.kill(signum)
    assert server.ended(within=5) == code
    assert curl.ended() == 18
    assert "Traceback" not in server.err


def test_an_upload_that_is_cut_off_leaves_no_file(
    serve: Serve, start: Start, uploads: Path, signum: int, code: int, word: str
) -> None:
    origin = serve("origin", "--directory", uploads, "--grace", "0.1")
    pipe = start("pipe", "/dev/zero", f"{origin.url}/upload", "--limit-rate", "2M")
    eventually(lambda: list(uploads.glob(".penstock-*")), "temporary file")
    ends(origin, signum, code)
    assert list(uploads.iterdir()) == []
    assert pipe.ended() == 1
    one_line(pipe.err)


def test_tail_at_work(start: Start, origin: Server, signum: int, code: int, word: str) -> None:
    tail = start("tail", f"{origin.url}/events?count=100000&interval=0.01")
    tail.wrote(3)
    ends(tail, signum, code)
    assert one_line(tail.err) == word
    assert "Total Events: " in tail.err
    assert "Stream completed" not in tail.err
    assert all(line.startswith('{"n":') for line in tail.out.splitlines())


def test_tail_waiting_for_an_answer(serve: Serve, start: Start, signum: int, code: int, word: str) -> None:
    origin = serve("origin")
    tail = start("tail", f"{origin.url}/events?stall_after=0", "--json")
    origin.said("stall_after=0")
    ends(tail, signum, code)
    last = tail.out.splitlines()[-1]
    assert f'"message":"{word}"' in last
    assert last.startswith('{"error":{"category":"application","type":"Interrupted"')
    origin.said("the reader left after 0 chunks")


def test_tail_waiting_for_its_next_attempt(start: Start, origin: Server, signum: int, code: int, word: str) -> None:
    tail = start("tail", f"{origin.url}/events?status=503&retry_after=50")
    tail.said("attempt 2 in 50.0 s")
    ends(tail, signum, code)
    assert tail.err.endswith(f"penstock: {word}\n")


def test_tail_waiting_for_stdin(start: Start, origin: Server, signum: int, code: int, word: str) -> None:
    tail = start("tail", origin.url, "-v", "-d", "@-", stdin=subprocess.PIPE)
    assert tail.process.stdin is not None
    tail.process.stdin.write(bytes(1 << 20))  # more than a pipe holds: it has begun to read when this returns
    tail.process.stdin.flush()
    ends(tail, signum, code)
    assert tail.err == f"penstock: {word}\n"


def test_pipe_at_work(serve: Serve, start: Start, uploads: Path, signum: int, code: int, word: str) -> None:
    origin = serve("origin", "--directory", uploads)
    pipe = start("pipe", f"{origin.url}/file", f"{origin.url}/upload", "--limit-rate", "4M", "--digest", "sha256")
    eventually(lambda: list(uploads.glob(".penstock-*")), "temporary file")
    ends(pipe, signum, code)
    assert pipe.out == ""
    assert one_line(pipe.err) == word
    origin.said("GET /file: the reader left after")
    origin.said("POST /upload: the sender left before its request was complete")
    eventually(lambda: list(uploads.iterdir()) == [], "empty directory")


def test_pipe_waiting_for_stdin(serve: Serve, start: Start, uploads: Path, signum: int, code: int, word: str) -> None:
    origin = serve("origin", "--directory", uploads)
    pipe = start("pipe", "-", f"{origin.url}/upload", stdin=subprocess.PIPE)
    assert pipe.process.stdin is not None
    pipe.process.stdin.write(b"the first bytes")
    pipe.process.stdin.flush()
    eventually(lambda: list(uploads.glob(".penstock-*")), "temporary file")
    ends(pipe, signum, code)
    assert one_line(pipe.err) == word
    eventually(lambda: list(uploads.iterdir()) == [], "empty directory")


@needs_proc
def test_demo_at_work(start: Start, tmp_path: Path, signum: int, code: int, word: str) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    demo = start("demo", env={**os.environ, "TMPDIR": str(folder)})
    demo.said("1. pipe: " if signum == signal.SIGINT else "2. relay: ")
    children = eventually(lambda: found if len(found := children_of(demo.pid)) == 3 else None, "children")
    assert list(folder.iterdir()) != []
    ends(demo, signum, code)
    assert demo.err.endswith(f"penstock: {word}\n")
    assert demo.out == ""
    assert not [pid for pid in children if alive(pid)]
    assert list(folder.iterdir()) == []


def test_a_fifo_that_nobody_writes_to(
    serve: Serve, start: Start, tmp_path: Path, signum: int, code: int, word: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    origin = serve("origin")
    pipe = start("pipe", fifo, f"{origin.url}/upload")
    pipe.said("Sending request")
    tail = start("tail", "-v", "-d", f"@{fifo}", f"{origin.url}/trigger_invocation")
    eventually(lambda: len(list(Path(f"/proc/{tail.pid}/fd").iterdir())) > 5, "an open FIFO")
    ends(pipe, signum, code)
    ends(tail, signum, code)
    assert list(tmp_path.glob("**/.penstock*")) == []


def test_the_first_moment_while_the_package_is_still_loading(tmp_path: Path, signum: int, code: int, word: str) -> None:
    (tmp_path / "penstock").mkdir()
    (tmp_path / "penstock" / "__init__.py").write_text(f"import os\nos.kill(os.getpid(), {int(signum)})\n")
    command = Path(penstock_command.__file__).read_text()
    (tmp_path / "penstock_command.py").write_text(command)
    done = subprocess.run(
        [sys.executable, "-c", "import penstock_command; penstock_command.main()"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
