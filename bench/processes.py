"""Peers as processes: started, watched and ended by their own pids.

What a process used is read over the process and all that it started: user time from /proc, in ticks of 10 ms, and user
and system together from the process's CPU clock, in nanoseconds.

A process is the leader of a session of its own: a Ctrl-C reaches the measurement, which then ends its processes in
turn, and nothing is left of a peer that has children. Should the measurement itself be killed, the kernel ends them.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

PATIENCE = 90.0
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
HOST = "127.0.0.1"

_PR_SET_PDEATHSIG = 1
_CPUCLOCK_SCHED = 2  # with a pid, what clock_getcpuclockid(3) gives


class PeerFailed(Exception):
    """A peer did not do what it was started for; the message ends in what it said."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user - other.user, self.system - other.system)

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.user + other.user, self.system + other.system)


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process had used when it ended.

    Attributes:
        seconds: From its start to its end.
        cpu: Its own, and that of the children it waited for.
        peak_rss: The most memory that it held, as last seen [bytes].
        output: Its stdout.
    """

    seconds: float
    cpu: Cpu
    peak_rss: int
    output: str


class Process:
    """One process; a context manager that ends it.

    Args:
        arguments: Program and arguments.
        env: Variables besides our own.
        interactive: Whether its stdin is a pipe that stays open until the process is stopped.
        cores: Where it and its children may run; everywhere, if none is named.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
        cores: Collection[int] = (),
    ) -> None:
        self._name = Path(arguments[0]).name + " " + " ".join(map(str, arguments[1:3]))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._held = b""
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.PIPE if interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=partial(_begun, cores) if sys.platform == "linux" else None,  # noqa: PLW1509 (there are no threads)
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and its children: politely, and after two seconds by force."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            # Not reaped before the last signal: until then its pid, which is its session's, is nobody else's.
            os.killpg(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + 2.0
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(self.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._errors.close()

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    # -- what it says --------------------------------------------------------------------------------------------

    def say(self, timeout: float = PATIENCE) -> Any:
        """The next line of its stdout, which is JSON.

        Raises:
            PeerFailed: It ended, or said nothing in time.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._held:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self.failure(f"said nothing for {timeout:.0f} s")
            more = os.read(descriptor, 65536)
            if not more:
                raise self.failure("ended too early")
            self._held += more
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def wait(self, timeout: float = PATIENCE) -> Ended:
        """Wait for its end.

        Raises:
            PeerFailed: It failed, or took too long.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        os.set_blocking(descriptor, False)
        output = self._held
        peak = 0
        while True:
            peak = max(peak, memory(self.pid, "VmHWM"))
            output += _available(descriptor)
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - self.started > timeout:
                raise self.failure(f"took more than {timeout:.0f} s")
            time.sleep(0.01)
        seconds = time.perf_counter() - self.started
        self._process.returncode = os.waitstatus_to_exitcode(status)
        output += _available(descriptor)
        if self._process.returncode:
            raise self.failure(f"ended with {self._process.returncode}")
        return Ended(seconds, Cpu(used.ru_utime, used.ru_stime), peak, output.decode(errors="replace"))

    def wait_for_port(self, address: str, timeout: float = 20.0) -> None:
        """Wait until it listens."""
        host, _, port = address.rpartition(":")
        deadline = time.monotonic() + timeout
        while True:
            try:
                socket.create_connection((host, int(port)), 1.0).close()
                return
            except OSError:
                if self._process.poll() is not None:
                    raise self.failure("ended at its start") from None
                if time.monotonic() > deadline:
                    raise self.failure(f"does not listen on {address}") from None
                time.sleep(0.02)

    def failure(self, what: str) -> PeerFailed:
        """The error that says so, with the end of its stderr."""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return PeerFailed(f"{self._name}: {what}" + (f": {said[-1]}" if said else ""))

    # -- what it used --------------------------------------------------------------------------------------------

    @property
    def cpu(self) -> Cpu:
        """So far, with its children's."""
        return sum((_cpu_of(pid) for pid in family(self.pid)), Cpu())

    @property
    def rss(self) -> int:
        """Memory held now, with its children's [bytes]."""
        return memory(self.pid, "VmRSS")

    @property
    def peak_rss(self) -> int:
        """The most memory held so far; of each process its own peak [bytes]."""
        return memory(self.pid, "VmHWM")


def memory(pid: int, field: str) -> int:
    """A field of /proc/PID/status, summed over a process and its children [bytes]; 0 where it has ended."""
    return sum(_status(each, field) for each in family(pid))


def family(pid: int) -> list[int]:
    """A process and all that descends from it."""
    found = [pid]
    for each in found:
        for task in _listed(Path(f"/proc/{each}/task")):
            found += [int(child) for child in _text(Path(f"/proc/{each}/task/{task}/children")).split()]
    return found


def free_address() -> str:
    """An address to listen on that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return f"{HOST}:{probe.getsockname()[1]}"


@contextmanager
def many_files() -> Iterator[int]:
    """As many open files as may be had, here and in all processes started meanwhile."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = hard
    for wanted in (65536, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            raised = wanted
            break
        except (ValueError, OSError):
            continue
    try:
        yield raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(raised, hard)))


def _begun(cores: Collection[int]) -> None:
    """What a process does first: it ends with us, and stays on its cores."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, cores)


def _available(descriptor: int) -> bytes:
    found = b""
    try:
        while more := os.read(descriptor, 65536):
            found += more
    except BlockingIOError:
        pass
    return found


def _cpu_of(pid: int) -> Cpu:
    # Behind the name, which may hold anything, the fields are numbers: state is the third of all, utime the 14th.
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if not fields:
        return Cpu()
    user = int(fields[11]) / TICK
    try:
        return Cpu(user, time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) - user)
    except OSError:
        return Cpu(user, int(fields[12]) / TICK)


def _status(pid: int, field: str) -> int:
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _listed(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir()]
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
