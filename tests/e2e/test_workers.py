"""`penstock relay --workers`: one address, several processes; what the death of each of them does to the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Serve, Start
from tests.e2e.process import (
    PATIENCE,
    PENSTOCK,
    SIGNALS,
    Running,
    Server,
    alive,
    children_of,
    eventually,
    needs_proc,
    one_line,
    penstock,
    served_by,
)

pytestmark = [pytest.mark.e2e, needs_proc]

SCRIPT = (str(Path(sys.executable).with_name("penstock")),)
TWO_WORKERS = ("--listen", "127.0.0.1:0", "--workers", "2", "--store", "none", "--json")
ENDLESS = "/generate?chunks=100000&interval=0.01"
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Stream:
    """A reader of one stream over a connection of its own."""

    def __init__(self, url: str, target: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._sock = socket.create_connection((address.hostname, address.port), timeout=PATIENCE)
        self._sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        self.relay, self.port = address.port, self._sock.getsockname()[1]
        self.read = b""
        while b"Chunk 1 " not in self.read:
            self.go_on()

    def go_on(self) -> None:
        """Read what comes next; fail when it has ended."""
        piece = self._sock.recv(65536)
        assert piece, "it has ended"
        self.read += piece

    def rest(self) -> bytes:
        """Read to its end, whichever that is; all that came."""
        with contextlib.suppress(ConnectionResetError):
            while piece := self._sock.recv(65536):
                self.read += piece
        return self.read

    @property
    def whole(self) -> bool:
        return self.rest().endswith(LAST_CHUNK)

    def close(self) -> None:
        self._sock.close()


Read = Callable[[Running, str, int], dict[int, Stream]]


@pytest.fixture
def read() -> Iterator[Read]:
    """Open streams until as many workers have one: by the pid of the worker."""
    with contextlib.ExitStack() as stack:

        def read(relay: Running, target: str, workers: int) -> dict[int, Stream]:
            streams: dict[int, Stream] = {}
            for _ in range(200):
                if len(streams) == workers:
                    return streams
                stream = stack.enter_context(contextlib.closing(Stream(url_of(relay), target)))
                pid = served_by(children_of(relay.pid), stream.relay, stream.port)
                if streams.setdefault(pid, stream) is not stream:
                    stream.close()
            raise AssertionError(f"200 connections reached the workers {sorted(streams)} only")

        yield read


def url_of(relay: Running) -> str:
    url: str = json.loads(relay.wrote(1)[0])["listening"]["url"]
    return url


def gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def test_requests_are_served_by_all_workers_and_by_nobody_else(serve: Serve, origin: Server, read: Read) -> None:
    relay = serve("relay", origin.url, "--workers", "3", "--store", "none")
    assert json.loads(relay.out) == {
        "listening": {"url": relay.url, "upstream": origin.url, "workers": 3, "store": "none"}
    }
    workers = children_of(relay.pid)
    streams = read(relay, ENDLESS, 3)
    assert sorted(streams) == sorted(workers)
    assert len(workers) == 3


@pytest.mark.parametrize("program", [PENSTOCK, SCRIPT], ids=["module", "script"])
def test_it_says_once_what_it_does_and_ends_without_a_word(
    start: Start, closed_port: str, tmp_path: Path, program: tuple[str, ...]
) -> None:
    if program is SCRIPT:  # what lies in the folder that it is started in is not what the workers run
        (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong pickle')")
    relay = start(
        "relay",
        closed_port,
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "2",
        "--store",
        "none",
        program=program,
        cwd=tmp_path,
    )
    line = relay.said("penstock relay on http://127.0.0.1:")
    assert line.endswith(f" to {closed_port}, with 2 workers")
    workers = children_of(relay.pid)
    assert len(workers) == 2
    relay.kill(signal.SIGTERM)
    assert relay.ended() == 143
    assert relay.out == ""
    first, *rest = relay.err.splitlines()
    assert first == line
    assert rest
    assert all(each.startswith("  ") for each in rest), "more than what it keeps and promises"
    assert gone(workers)


def test_it_leaves_nothing_open_that_python_would_warn_of(start: Start, origin: Server) -> None:
    strict = (sys.executable, "-W", "error", "-m", "penstock")
    relay = start("relay", origin.url, *TWO_WORKERS, program=strict)
    url = url_of(relay)
    assert all(b"-W" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(relay.pid))
    with contextlib.closing(Stream(url, "/generate?chunks=2&interval=0.01")) as stream:
        assert stream.whole
    relay.kill(signal.SIGTERM)
    assert relay.ended() == 143
    assert relay.err == ""
    assert len(relay.out.splitlines()) == 1


def test_a_stream_survives_the_death_of_another_worker_which_is_replaced(
    serve: Serve, origin: Server, read: Read
) -> None:
    relay = serve("relay", origin.url, "--workers", "2", "--store", "none")
    streams = read(relay, "/generate?chunks=150&interval=0.02", 2)
    (killed, broken), (other, surviving) = streams.items()
    os.kill(killed, signal.SIGKILL)
    assert not broken.whole
    relay.said(f"worker {killed} was killed by SIGKILL; another takes its place now")
    new = int(relay.said("takes requests").split()[2])
    assert sorted(children_of(relay.pid)) == sorted([other, new])
    assert new in read(relay, ENDLESS, 2)
    assert surviving.whole
    assert surviving.read.count(b"Chunk ") == 150
    assert len(relay.out.splitlines()) == 1


@pytest.mark.parametrize(("signum", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("to_all", [False, True], ids=["to-the-parent", "to-all"])
def test_a_signal_lets_the_streams_end(
    start: Start, origin: Server, read: Read, to_all: bool, signum: int, code: int, word: str
) -> None:
    relay = start("relay", origin.url, *TWO_WORKERS, "--grace", "20", process_group=0)
    streams = read(relay, "/generate?chunks=40&interval=0.02", 2)
    (os.killpg if to_all else os.kill)(relay.pid, signum)
    assert all(stream.whole for stream in streams.values())
    assert [stream.read.count(b"Chunk ") for stream in streams.values()] == [40, 40]
    assert relay.ended() == code
    assert gone(list(streams))
    assert "Traceback" not in relay.err
    assert "worker" not in relay.err
    assert len(relay.out.splitlines()) == 1


@pytest.mark.parametrize(("signum", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_a_second_signal_cuts_the_streams_off(
    start: Start, origin: Server, read: Read, signum: int, code: int, word: str
) -> None:
    relay = start("relay", origin.url, *TWO_WORKERS, "--grace", "600", process_group=0)
    streams = read(relay, ENDLESS, 2)
    os.killpg(relay.pid, signum)
    eventually(lambda: refuses(url_of(relay)), "refusal")
    for stream in streams.values():
        chunks = stream.read.count(b"Chunk ")
        while stream.read.count(b"Chunk ") < chunks + 20:  # it goes on in its grace
            stream.go_on()
    assert relay.process.poll() is None
    os.killpg(relay.pid, signum)
    assert not any(stream.whole for stream in streams.values())
    assert relay.ended() == code
    assert gone(list(streams))
    assert "Traceback" not in relay.err


def test_after_the_grace_the_streams_are_cut_off_and_the_lines_say_by_whom(
    serve: Serve, origin: Server, read: Read
) -> None:
    relay = serve("relay", origin.url, "--workers", "2", "--store", "none", "--grace", "0.1")
    streams = read(relay, ENDLESS, 2)
    relay.kill(signal.SIGTERM)
    assert not any(stream.whole for stream in streams.values())
    assert relay.ended() == 143
    cut_off = [line for line in relay.err.splitlines() if line.endswith("1 unfinished request is cut off")]
    assert sorted(line.split()[1] for line in cut_off) == sorted(f"[{pid}]" for pid in streams)


@pytest.mark.parametrize("when", ["serving", "starting"])
def test_nothing_outlives_a_parent_that_is_killed(
    serve: Serve, start: Start, origin: Server, read: Read, when: str
) -> None:
    if when == "serving":
        relay: Running = serve("relay", origin.url, "--workers", "2", "--store", "none", "--grace", "600")
        streams = read(relay, ENDLESS, 2)
    else:
        relay, streams = start("relay", origin.url, *TWO_WORKERS), {}
    workers = eventually(lambda: found if len(found := children_of(relay.pid)) == 2 else None, "workers")
    relay.kill(signal.SIGKILL)
    relay.ended()
    eventually(lambda: gone(workers), "end of the workers")
    assert not any(stream.whole for stream in streams.values())


def test_a_port_in_use_is_one_error(serve: Serve, origin: Server) -> None:
    relay = serve("relay", origin.url, "--workers", "2", "--store", "none")
    for server in (origin, relay):
        where = server.url.removeprefix("http://")
        done = penstock("relay", origin.url, "--listen", where, "--workers", "2", "--store", "none")
        assert (done.code, done.out) == (1, "")
        assert one_line(done.err).startswith(f"cannot listen on {where}: the address is already in use")
    done = penstock("relay", origin.url, "--listen", relay.url.removeprefix("http://"), "--json")
    assert (done.code, done.error["type"]) == (1, "ListenError")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("0", "0 is not a number of processes from 1 to 256"),
        ("-1", "-1 is not a number of processes from 1 to 256"),
        ("257", "257 is not a number of processes from 1 to 256"),
        ("many", "valid integer"),
    ],
)
def test_what_is_no_number_of_workers_is_refused(number: str, reason: str) -> None:
    done = penstock("relay", "http://localhost", "--workers", number)
    assert (done.code, done.out) == (2, "")
    assert reason in one_line(done.err)


def refuses(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # the listener closed while this connection waited in its queue: ask again
    return False
