"""Several processes that serve one address: a supervisor, and its workers.

The supervisor serves nothing. It holds the address, starts the workers and keeps their number; each worker is a Python
of its own with its own loop, its own application and one :class:`penstock.server.serve.Server`.

============================  =========================================================================================
what happens                  then
============================  =========================================================================================
all workers serve             the supervisor says so, once
a worker cannot start         the end, with its reason; later, while others live, it is tried again after a pause
a worker dies                 another takes its place: at once, after a pause that grows when it was short-lived again
first SIGINT or SIGTERM       every worker stops listening and lets its running streams end, for its grace
second SIGINT or SIGTERM      every worker cuts off what still runs; one that does not end by that is killed
the supervisor is killed      every worker cuts off what still runs
a worker gets a SIGTERM       it alone stops, with its grace, and another takes its place
============================  =========================================================================================

A terminal's Ctrl-C reaches all of them at once, and so does a service manager's SIGTERM: counted together with what
the supervisor passes on, that would be two signals to a worker, and its streams would be cut off. So the second signal
is the supervisor's to count, and what it wants is told through a *channel*, a pair of sockets: one byte for each order,
and its end, which the kernel sees to, for the death of either side. A SIGINT means nothing to a worker.

A worker is a new interpreter, never a fork of a running one, and it knows nothing of the program that the supervisor
runs in: on its standard input it reads where modules are found, then what to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from penstock.errors import PenstockError
from penstock.resilience.backoff import Backoff
from penstock.server.listen import bind_beside, bound_to
from penstock.server.serve import Server, logged_to_stderr, signals_told

logger = logging.getLogger("penstock.server")

PAUSES = Backoff(initial=0.5, maximum=30.0, jitter="none")
"""Before a short-lived worker's place is filled again: none the first time, then 0.5 s, 1 s, 2 s … 30 s."""

_SETTLED = 10.0  # seconds after which a worker that dies was not short-lived
_AFTER_CUT_OFF = 3.0  # seconds that a worker may take to end once it was told to at once

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_DRAIN, _CUT_OFF = b"d", b"c"  # the orders
_SERVING = b"serving\n"  # what a worker says once it takes requests; or why it never will, in a line

# Run with -P: until the supervisor's path has been read, no module is taken from the folder that it happens to be in.
_BEGIN = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import penstock.server.workers as workers; "
    "workers.work()"
)

Run = Callable[[Coroutine[Any, Any, int]], int]


class WorkerError(PenstockError):
    """No worker can serve; the message has the reason of the one that was tried."""


@dataclass(frozen=True)
class _Task:
    """What a worker is to do: sent to it, pickled."""

    make_app: Callable[[], Any]
    grace: float
    run: Run


async def supervise(
    make_app: Callable[[], Any],
    sock: socket.socket,
    *,
    workers: int,
    grace: float = 10.0,
    run: Run = asyncio.run,
    on_listening: Callable[[str], None] | None = None,
) -> int:
    """Serve an application from several processes until a signal, and tell the exit code.

    While they serve, SIGINT and SIGTERM are the supervisor's own (in the main thread), and the lines of the
    ``penstock`` loggers go to stderr unless logging is set up already; a worker's say its process id.

    Args:
        make_app: Makes each worker's ASGI application, in that worker; it is pickled, so it comes from a module that
            can be imported, not from ``__main__``.
        sock: The address, as by :func:`penstock.server.listen.hold`; it is closed in the end.
        workers: How many.
        grace: Seconds that running requests have to end by themselves after the first signal.
        run: Runs a worker's coroutine to its result, on an event loop of its choice; it is pickled too.
        on_listening: Called once all take requests, with the ``HOST:PORT`` that is listened on.
    Returns:
        130 after SIGINT, 143 after SIGTERM, else 0.
    Cancellation: as if stopped twice; no worker is left.
    Raises:
        WorkerError: No worker can serve.
        Exception: What cannot be pickled, or what on_listening raised.
    """
    where = bound_to(sock)
    supervisor = Supervisor(make_app, sock, workers=workers, grace=grace, run=run)
    with logged_to_stderr(), signals_told(supervisor.handle_signal):
        await supervisor.run_until_stopped(lambda: on_listening(where) if on_listening else None)
    return 0 if supervisor.signal is None else 128 + supervisor.signal


# -- the supervisor ----------------------------------------------------------------------------------------------------


class Supervisor:
    """Keeps so many workers on one address; the arguments are :func:`supervise`'s.

    Attributes:
        signal: The first signal that was handled.
    """

    def __init__(
        self,
        make_app: Callable[[], Any],
        sock: socket.socket,
        *,
        workers: int,
        grace: float = 10.0,
        run: Run = asyncio.run,
    ) -> None:
        self._task = pickle.dumps(_Task(make_app, grace, run))
        self._sock = sock
        self._places = workers
        self._living: set[_Worker] = set()
        self._serving: set[_Worker] = set()
        self._begun = asyncio.Event()  # all serve, or none is to
        self._stopping = asyncio.Event()
        self._cut_off = False
        self._killer: asyncio.TimerHandle | None = None
        self.signal: int | None = None

    def handle_signal(self, signum: int) -> None:
        """Take a signal: the first begins the end, the second forces it."""
        self.signal = self.signal or signum
        self.stop()

    def stop(self) -> None:
        """Begin to stop; called again, cut off what still runs."""
        if self._cut_off:
            return
        self._cut_off = self._stopping.is_set()
        self._stopping.set()
        self._begun.set()
        self._sock.close()  # whoever asks from now on is refused, as soon as the workers have closed theirs
        for worker in self._living:
            worker.order(_CUT_OFF if self._cut_off else _DRAIN)
        if self._cut_off:
            self._killer = asyncio.get_running_loop().call_later(_AFTER_CUT_OFF, self._kill)

    async def run_until_stopped(self, on_listening: Callable[[], None]) -> None:
        """Keep the workers until :meth:`stop`; on return nothing is left of them.

        Args:
            on_listening: Called once, when all workers take requests.
        Cancellation: as if stopped twice.
        Raises:
            WorkerError: No worker can serve.
        """
        tasks = [asyncio.create_task(self._fill(), name="penstock worker") for _ in range(self._places)]
        tasks.append(asyncio.create_task(self._announce(on_listening)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            if not all(task.done() for task in tasks):
                self.stop()
                self.stop()
                await asyncio.wait(tasks)
            self._sock.close()
            if self._killer is not None:
                self._killer.cancel()
            failures = [error for task in tasks if (error := task.exception())]  # all looked at: none is reported
        if failures:
            raise failures[0]

    async def _announce(self, on_listening: Callable[[], None]) -> None:
        await self._begun.wait()
        if not self._stopping.is_set():
            on_listening()

    async def _fill(self) -> None:
        """Keep one place filled, with one worker after the other."""
        now = asyncio.get_running_loop().time
        short_lived = 0
        while not self._stopping.is_set():
            began = now()
            try:
                end = await self._live()
            except WorkerError as error:
                if not (self._begun.is_set() and self._living):
                    raise
                began, end = now(), str(error)  # however long it tried, it has not lived
            if self._stopping.is_set():
                return
            short_lived = short_lived + 1 if now() - began < _SETTLED else 0
            pause = PAUSES.delay(short_lived - 1, 0.0) if short_lived > 1 else 0.0
            logger.warning("%s; another takes its place %s", end, f"in {pause:g} s" if pause else "now")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self) -> str:
        """One worker, from its start to its end; what is to be said of that.

        Raises:
            WorkerError: It ended before it served, without having been told to.
        """
        try:
            worker = _Worker(self._task, self._sock)
        except OSError as error:
            raise WorkerError(f"a worker cannot start: {error.strerror or error}") from error
        self._living.add(worker)
        try:
            said = await worker.says()
            if said == _SERVING:
                self._serves(worker)
                await worker.says()  # nothing, until it ends
            await worker.ended()
        finally:
            self._living.discard(worker)
            self._serving.discard(worker)
            worker.end()
        if self._stopping.is_set() or said == _SERVING or worker.was_terminated:
            return f"worker {worker.pid} {worker.how}"
        reason = said.decode().rstrip() or f"it {worker.how} before it took requests"
        raise WorkerError(f"a worker cannot start: {reason}")

    def _serves(self, worker: _Worker) -> None:
        if self._begun.is_set():
            logger.info("worker %d takes requests", worker.pid)
            return
        self._serving.add(worker)
        if len(self._serving) == self._places:
            self._begun.set()

    def _kill(self) -> None:
        for worker in self._living:
            logger.warning("worker %d does not end and is killed", worker.pid)
            worker.process.kill()


class _Worker:
    """A worker, as its supervisor sees it: started when made.

    Raises:
        OSError: The system has no room for another process.
    """

    def __init__(self, task: bytes, sock: socket.socket) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        descriptors = (theirs.fileno(), sock.fileno())
        try:
            with theirs, _signals_held_back():
                self.process = subprocess.Popen(
                    [sys.executable, *_interpreter_options(), "-P", "-c", _BEGIN],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,  # data only, and a worker has none
                    pass_fds=descriptors,
                )
        except OSError:
            self._channel.close()
            raise
        self.pid = self.process.pid
        stdin: Any = self.process.stdin
        with contextlib.suppress(BrokenPipeError), stdin:  # it is gone already, which shows in a moment
            stdin.write(pickle.dumps(sys.path) + pickle.dumps(descriptors) + task)

    def order(self, what: bytes) -> None:
        """Tell it what to do; nothing happens where it is gone."""
        with contextlib.suppress(OSError):
            self._channel.send(what)

    async def says(self) -> bytes:
        """Wait for a line of it; what there is of one when it ends."""
        loop = asyncio.get_running_loop()
        line = b""
        with contextlib.suppress(ConnectionError):
            while not line.endswith(b"\n") and (piece := await loop.sock_recv(self._channel, 4096)):
                line += piece
        return line

    async def ended(self) -> None:
        """Wait until the process is gone: a moment, for its side of the channel is closed with it."""
        while self.process.poll() is None:  # noqa: ASYNC110 – the moment is too short for anything else
            await asyncio.sleep(0.002)

    def end(self) -> None:
        """Make sure that it is gone, and let go of it."""
        self._channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def was_terminated(self) -> bool:
        """Whether it has ended because somebody wanted it to."""
        return self.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)

    @property
    def how(self) -> str:
        """How it has ended."""
        code = self.process.returncode
        if self.was_terminated:
            return "was stopped by SIGTERM"
        if code < 0:
            name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
            return f"was killed by {name}"
        return f"ended with exit code {code}"


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block SIGINT and SIGTERM meanwhile: whoever is started now keeps them waiting until it can handle them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _interpreter_options() -> list[str]:
    """The options that this interpreter was started with (-W, -X, -O …), as multiprocessing passes them on."""
    options: Any = subprocess
    given: list[str] = options._args_from_interpreter_flags()
    return given


# -- a worker ----------------------------------------------------------------------------------------------------------


def work() -> None:
    """Be a worker: read what to do from stdin, do it, and leave with the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also after the server had a handler of its own; SIGTERM still waits
    channel, held = (socket.socket(fileno=descriptor) for descriptor in pickle.load(sys.stdin.buffer))
    with logged_to_stderr(pid=True), channel:
        try:
            task: _Task = pickle.load(sys.stdin.buffer)
            app = task.make_app()
            with held:
                sock = bind_beside(held)
            code = task.run(_serve(app, sock, channel, task.grace))
        except Exception as error:
            code = 1
            _report(error, channel)
    sys.exit(code)


def _report(error: Exception, channel: socket.socket) -> None:
    """Tell the supervisor in a line; a bug also leaves its traceback, for that line is all that is heard of it."""
    reason = " ".join(str(error).split())
    if not isinstance(error, PenstockError):
        reason = f"{type(error).__name__}: {reason}"
        logger.error("the worker failed", exc_info=error)
    with contextlib.suppress(OSError):
        channel.sendall(reason.encode() + b"\n")


async def _serve(app: Any, sock: socket.socket, channel: socket.socket, grace: float) -> int:
    server = _Server(app, sock, grace=grace)
    channel.setblocking(False)
    obeying = asyncio.create_task(_obey(channel, server))
    try:
        with server.signals_handled():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            await server.run_until_stopped(lambda: _say_serving(channel))
    finally:
        obeying.cancel()
        await asyncio.wait({obeying})
    return 0 if server.signal is None else 128 + server.signal


def _say_serving(channel: socket.socket) -> None:
    with contextlib.suppress(OSError):  # nobody listens: the end of the channel tells that too
        channel.send(_SERVING)


async def _obey(channel: socket.socket, server: _Server) -> None:
    """Carry out what the supervisor orders, until the last order; its end is one."""
    loop = asyncio.get_running_loop()
    orders = b""
    while _CUT_OFF not in orders:
        try:
            orders = await loop.sock_recv(channel, 16) or _CUT_OFF
        except ConnectionError:
            orders = _CUT_OFF
        server.drain()
    server.stop()


class _Server(Server):
    """A worker's server: a signal drains it, and only the supervisor cuts it off."""

    def drain(self) -> None:
        """Begin to stop, unless it has begun."""
        if not self.should_exit:
            self.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a SIGTERM as the wish that this worker ends; a SIGINT is the supervisor's."""
        if sig == signal.SIGTERM and not self.should_exit:
            super().handle_exit(sig, frame)
