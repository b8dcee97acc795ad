"""Commands that are forked off a process which has loaded Penstock: to load it is most of what a short one does.

They are real processes, with arguments, an environment and standard streams of their own, and begin and end as
`python -m penstock` does. What a test has to say of the start itself, or of memory, has a process started instead.

Whoever runs tests has one process that waits for orders until its orderer is gone. For each order it forks a keeper,
which forks the command, waits for it, and tells its pid and how it ended.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

AVAILABLE = sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in os.environ
"""Elsewhere a fork is not to be relied upon; and what is measured has to be measured from its start."""


class Forked:
    """A command, which can be waited for and ended as a `subprocess.Popen` can."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None

    def __init__(self, arguments: list[str], stdin: int, stdout: int, stderr: int) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._told = b""
        self._reply, theirs = socket.socketpair()
        with theirs:
            _loaded().order(arguments, [stdin, stdout, stderr, theirs.fileno()])
        self.pid = self._number(None)

    def poll(self) -> int | None:
        """Its exit code, if it has ended; less than 0 for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code."""
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._reply.close()
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _number(self, timeout: float | None) -> int:
        """What the keeper tells next."""
        while b"\n" not in self._told:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            piece = self._reply.recv(64)
            assert piece, "the process that has loaded Penstock is gone"
            self._told += piece
        line, _, self._told = self._told.partition(b"\n")
        return int(line)


def run(arguments: list[str], input: bytes, stdin: int | None, timeout: float) -> tuple[int, str, str]:
    """Run a command to its end, with pipes for its standard streams: its exit code, and what it wrote to each.

    Args:
        arguments: Those of `penstock`.
        input: What it may read, if there is no `stdin`.
        stdin: A descriptor to read from.
        timeout: How long it may take.
    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    theirs, feed = os.pipe()
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    try:
        command = Forked(arguments, theirs if stdin is None else stdin, stdout, stderr)
    finally:
        for descriptor in (theirs, stdout, stderr):
            os.close(descriptor)
    with ThreadPoolExecutor(3) as threads:
        threads.submit(_write, feed, input)
        read_out, read_err = threads.submit(_read, out), threads.submit(_read, err)
        try:
            code = command.wait(timeout)
        except subprocess.TimeoutExpired:
            command.kill()
            raise
        return code, read_out.result(), read_err.result()


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as file:
        file.write(data)


def _read(descriptor: int) -> str:
    with open(descriptor, "rb") as file:
        return file.read().decode()


class _Loaded:
    """The process that has loaded Penstock, for those who give it orders."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # the standard streams are pipes, as they mostly are for the commands
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def order(self, arguments: list[str], descriptors: list[int]) -> None:
        """Have a command forked with these standard streams; the fourth descriptor is for the keeper to tell."""
        order = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
        with self._lock:
            socket.send_fds(self._control, [json.dumps(order).encode() + b"\n"], descriptors)

    def _end(self) -> None:
        self._control.close()
        self._process.communicate()


@functools.cache
def _loaded() -> _Loaded:
    return _Loaded()


# -- the process itself


def _serve(control: socket.socket) -> None:
    """Have each order carried out; returns in the processes that are to be the command, with all as it should be."""
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 4)
        while told and not told.endswith(b"\n"):
            told += control.recv(1 << 16)
        if not told:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, reply = descriptors
    if (pid := os.fork()) != 0:
        for descriptor in (*streams, 0, 1, 2):  # else they would not end with the command
            os.close(descriptor)
        os.write(reply, b"%d\n" % pid)
        os.write(reply, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    order = json.loads(told)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["penstock", *order["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _load() -> None:
    """Load the commands, and what they load when they run."""
    from penstock.cli import main

    for module in ("anyio._backends._asyncio", "uvloop", "penstock.eventlog.redis.log"):
        importlib.import_module(module)
    with contextlib.redirect_stdout(None):
        for command in main.COMMANDS:
            main.run([command, "--help"], as_json=False)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with who gives the orders
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
    _load()
    _serve(socket.socket(fileno=int(sys.argv[1])))

    from penstock.cli.main import main

    main()
