"""The blocking client in processes of its own: Ctrl-C, exits, forks, and many threads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from penstock import Client, Metrics
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, Finished, Running, Server, eventually, needs_proc

pytestmark = pytest.mark.e2e

BEGIN = """\
import gc, os, signal, sys, threading, time
from penstock import Client
client, url = Client(sys.argv[1]), sys.argv[1]
"""
EXAMPLE = Path(__file__).parents[2] / "examples" / "blocking_client.py"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def program(text: str) -> tuple[str, ...]:
    # From 3.12 on Python warns of every fork with threads; that these bear it is what is tested.
    return (
        sys.executable,
        "-uWdefault",
        "-Wignore:This process:DeprecationWarning",
        "-c",
        BEGIN + textwrap.dedent(text),
    )


def run(text: str, url: str) -> Finished:
    done = subprocess.run([*program(text), url], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


# -- many threads


def test_many_threads_share_a_client_and_its_metrics_add_up(origin: Server) -> None:
    threads, streams, events = 16, 50, 5
    seen: list[Metrics] = []

    def work() -> None:
        for _ in range(streams):
            with client.get("/events?count=5&interval=0").events() as stream:
                assert [event.id for event in stream] == ["1", "2", "3", "4", "5"]
            seen.append(stream.metrics)

    with Client(origin.url) as client:
        running = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for each in running:
            each.start()
        for each in running:
            each.join()
        total = client.metrics
    assert [each.reason for each in seen] == ["complete"] * threads * streams
    assert (total.streams, total.total, total.failed) == (threads * streams, threads * streams * events, 0)
    assert (total.retries, total.bytes) == (0, sum(each.bytes for each in seen))
    assert total.duration == pytest.approx(sum(each.duration for each in seen))


# -- Ctrl-C

# What is waited for, and how the server tells that we are there, and that we have left.
INTERRUPTED = {
    "a stream": ("for event in client.get('/events?stall_after=1').events(): print(event.id)", "", "the reader left"),
    "a response": ("for piece in client.get('/events?stall_after=1').send(): print(1)", "", "the reader left"),
    "the headers": ("print(1); client.get('/events?stall_after=0').send()", "stall_after=0", "the reader left"),
    "everything": ("print(1); client.get('/events?stall_after=1').collect()", "stall_after=1", "the reader left"),
    "a pause": (
        """
        def told(notice):
            if type(notice).__name__ == "Reconnecting": print(1)
        next(client.get("/events?status=503&retry_after=50").events(on_notice=told))
        """,
        "",
        "",
    ),
    "the body": (
        """
        def rows():
            while True:
                yield b'row'
                print(1)
                time.sleep(50)
        client.put('/upload/rows').content(rows()).read()
        """,
        "",
        "the sender left before its request was complete",
    ),
    "a graceful end": (
        """
        def closing():
            try:
                while True: client.get("/").read()
            except RuntimeError:
                print(1)
        events = client.get('/events?stall_after=1').events()
        next(events)
        threading.Thread(target=closing).start()
        client.close(grace=50)
        """,
        "",
        "the reader left",
    ),
}


@pytest.mark.parametrize("waiting_for", INTERRUPTED)
def test_ctrl_c_is_raised_at_once_and_lets_go(waiting_for: str, serve: Serve, start: Start) -> None:
    work, there, left = INTERRUPTED[waiting_for]
    origin = serve("origin")
    text = f"""
try:
{textwrap.indent(textwrap.dedent(work), "    ")}
except KeyboardInterrupt:
    print("interrupted")
sys.stdin.read()  # the process goes on: what was let go of was let go of by us
print(Client(url).get("/events?count=2").collect().metrics.total)
"""
    running = start(origin.url, program=program(text), stdin=subprocess.PIPE)
    running.wrote(1)
    if there:
        origin.said(there)
    running.kill(signal.SIGINT)
    running.wrote(2)
    if left:
        origin.said(left)
    finish(running)
    assert running.out.splitlines() == ["1", "interrupted", "2"]
    assert running.err == ""


def finish(running: Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert running.ended() == 0, running.err


def test_ctrl_c_that_nobody_catches_ends_the_process(start: Start, origin: Server) -> None:
    text = "for event in client.get('/events?stall_after=1').events(): print(event.id)"
    running = start(origin.url, program=program(text))
    running.wrote(1)
    running.kill(signal.SIGINT)
    assert running.ended() == -signal.SIGINT
    assert running.err.rstrip().endswith("KeyboardInterrupt")
    assert running.err.count("Traceback") == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no way to signal a thread")
def test_a_signal_that_is_sent_to_the_process_never_waits_with_the_loops_thread(origin: Server) -> None:
    """Wherever the kernel delivers it: a handler runs in the main thread, which must wake for it."""
    text = """
    class Late(Exception): pass
    def late(signum, frame): raise Late
    signal.signal(signal.SIGUSR1, late)
    client.get("/").read()
    blocked = []
    async def look(request, send):
        blocked.append(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return await send(request)
    client.use(look)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        client.get("/events?stall_after=0").collect()
    except Late:
        print("late", blocked)
    """
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, "late [True]\n", "")


# -- the end of the process


def test_an_exit_with_open_streams_is_quiet_and_closes_them(serve: Serve) -> None:
    text = """
    def read(what):
        pieces = iter(what)
        next(pieces)
        barrier.wait()
        next(pieces)
    barrier = threading.Barrier(3)
    for what in (client.get("/events?stall_after=1").events(), client.get("/events?stall_after=1").send()):
        threading.Thread(target=read, args=(what,), daemon=True).start()
    events = client.get("/events?stall_after=1").events()
    response = client.get("/events?stall_after=1").send()
    next(events), next(iter(response))
    barrier.wait()
    print("over")
    """
    origin = serve("origin")
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, "over\n", "")
    eventually(lambda: origin.err.count("the reader left") == 4)


def test_what_runs_at_exit_may_use_a_client(origin: Server) -> None:
    text = """
    import atexit
    atexit.register(client.close)
    atexit.register(lambda: print(len(client.get("/events?count=2&interval=0").collect().events)))
    print(len(client.get("/events?count=1").collect().events))
    """
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, "1\n2\n", "")


def test_no_thread_is_started_before_there_is_something_to_do(origin: Server) -> None:
    text = """
    client.get("/").header("A", "1"); client.metrics; client.circuits
    print(threading.active_count())
    client.get("/").read()
    print(threading.active_count())
    """
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, "1\n2\n", "")


# -- forks


@needs_fork
@pytest.mark.parametrize("leaving", ["sys.exit(0)", "os._exit(0)", "client.close(); sys.exit(0)", "del client"])
def test_a_client_works_on_both_sides_of_a_fork(leaving: str, origin: Server) -> None:
    """The child has connections of its own, and its end takes nothing from the parent's streams."""
    text = f"""
    request = client.get("/events?count=20&interval=0.02")
    events, response = request.events(), request.send()
    pieces = iter(response)
    got = [next(events).id, next(pieces)]
    idle = client.get("/").read()
    pid = os.fork()
    if pid == 0:
        assert threading.active_count() == 1
        for stale in (lambda: next(events), lambda: next(pieces), lambda: response.read(), lambda: events.restart()):
            try:
                stale()
            except RuntimeError as error:
                assert "forked" in str(error)
            else:
                sys.exit("the parent's stream was read")
        events.close(), response.close()
        del events, response, pieces
        gc.collect()
        assert client.metrics.streams == 0
        assert len(request.collect().events) == 20
        assert client.metrics.streams == 1
        del request, stale
        {leaving}
        gc.collect()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(1 + len(list(events)), events.metrics.reason)
    print(len(b"".join(pieces)) > 0, response.end.reason, client.get("/").read().status)
    client.close()
    """
    done = run(text, origin.url.replace("127.0.0.1", "localhost"))
    assert (done.err, done.out, done.code) == ("", "20 complete\nTrue complete 200\n", 0)


@needs_fork
def test_a_fork_while_other_threads_are_at_work(origin: Server) -> None:
    text = """
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert len(client.get("/events?count=3&interval=0").collect().events) == 3
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    ended = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = len(client.get("/events?count=3&interval=0").collect().events) != 3
            finally:
                os._exit(code)
        ended.append(os.waitpid(pid, 0)[1])
    stop.set()
    for thread in threads: thread.join()
    print(ended)
    """
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, f"{[0] * 10}\n", "")


@needs_fork
def test_what_cannot_be_made_anew_says_so_after_a_fork(origin: Server) -> None:
    text = """
    import httpx2
    own = Client(url, http_client=httpx2.AsyncClient())
    closed = Client(url)
    closed.close()
    pid = os.fork()
    if pid == 0:
        for broken in (own, closed):
            try:
                broken.get("/").read()
            except RuntimeError as error:
                print(error)
        own.close()
    else:
        os.waitpid(pid, 0)
        print(own.get("/").read().status)
        own.close()
    """
    done = run(text, origin.url)
    assert (done.code, done.err) == (0, "")
    first, second, third = done.out.splitlines()
    assert "after the fork" in first
    assert "client was closed" in second
    assert third == "200"


# -- descriptors and threads


@needs_proc
def test_nothing_is_left_of_clients_that_came_and_went(origin: Server) -> None:
    text = """
    def descriptors():
        return len(os.listdir("/proc/self/fd"))
    def come_and_go():
        events = Client(url).get("/events?count=100&interval=0").events()
        next(events)
        response = Client(url).get("/events?count=100&interval=0").send()
        Client(url).get("/").read()
    def settled(most):
        deadline = time.monotonic() + 10
        while gc.collect() >= 0 and descriptors() > most and time.monotonic() < deadline:
            time.sleep(0.01)
        return descriptors() - most
    client.get("/").read()
    client.close()
    before = descriptors(), threading.active_count()
    for _ in range(50):
        come_and_go()
    print(max(0, settled(before[0])), threading.active_count() - before[1])
    """
    done = run(text, origin.url)
    assert (done.code, done.out, done.err) == (0, "0 0\n", "")


# -- the example


def test_the_example_reads_uploads_and_shares_its_client(serve: Serve, uploads: Path) -> None:
    origin = serve("origin", "--directory", uploads)
    done = subprocess.run(
        [sys.executable, EXAMPLE, origin.url], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.sub(r"\d+\.\d\d s", "… s", done.stdout).splitlines() == [
        "Event 1",
        "Event 2",
        "Event 3",
        "Event 4",
        "Stream completed",
        "4 workers read 40 events",
        "File report.csv uploaded and saved",
        "5 streams, 45 events, 0 failed, in … s of streaming",
    ]
    assert (uploads / "report.csv").read_text().splitlines()[:2] == ["n,square", "0,0"]


def test_the_example_tells_a_failure(closed_port: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, closed_port], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Failed (network): ")
    assert done.stderr.count("\n") == 1
