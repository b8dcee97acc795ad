"""Real `penstock` processes: started, watched, and ended by their own pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.e2e import preloaded

PENSTOCK = (sys.executable, "-m", "penstock")
PATIENCE = 20.0  # seconds that anything here may take that takes none on an idle machine

T = TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The objects of a ``--json`` output; fails where a line is none."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """What the last object says of the failure."""
        error: dict[str, Any] = self.records[-1]["error"]
        return error


def _may_be_forked(command: list[str], options: object) -> bool:
    """Whether nothing is asked of the process itself."""
    return preloaded.AVAILABLE and tuple(command[:3]) == PENSTOCK and not options


def penstock(
    *arguments: str | Path,
    input: bytes = b"",
    stdin: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    forked: bool = True,
) -> Finished:
    """Run a command to its end.

    Args:
        arguments: Those of `penstock`.
        input: What it may read, unless `stdin` is a descriptor to read from.
        stdin: See there.
        env: Added to the environment.
        timeout: How long it may take.
        forked: Whether it may be forked off a process that has loaded Penstock: not where its memory is looked at.
    """
    command = [*PENSTOCK, *map(str, arguments)]
    if forked and _may_be_forked(command, env):
        return Finished(*preloaded.run(command[3:], input, stdin, timeout))
    given: dict[str, Any] = {"input": input} if stdin is None else {"stdin": stdin}
    done = subprocess.run(
        command,
        **given,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


class Running:
    """A process with its output in files, so that it never waits for us to read."""

    def __init__(self, command: list[str], folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        self.process: subprocess.Popen[bytes] | preloaded.Forked
        with self._out.open("wb") as out, self._err.open("wb") as err, Path(os.devnull).open("rb") as nothing:
            if _may_be_forked(command, options):
                self.process = preloaded.Forked(command[3:], nothing.fileno(), out.fileno(), err.fileno())
            else:
                self.process = subprocess.Popen(command, **{"stdin": nothing, "stdout": out, **options}, stderr=err)
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text()

    def said(self, text: str, *, within: float = PATIENCE) -> str:
        """Wait for a text on stderr; the line that it stands in."""
        return eventually(
            lambda: next((line for line in self.err.splitlines() if text in line), None), f"{text!r} on stderr", within
        )

    def wrote(self, lines: int, *, within: float = PATIENCE) -> list[str]:
        """Wait until stdout has so many whole lines."""
        return eventually(
            lambda: whole if len(whole := self.out.split("\n")[:-1]) >= lines else None, f"{lines} lines", within
        )

    def kill(self, signum: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def ended(self, *, within: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(within)

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Server(Running):
    """A `penstock` command that serves on a free port."""

    def __init__(self, command: str, *arguments: str | Path, folder: Path) -> None:
        super().__init__(
            [*PENSTOCK, command, *map(str, arguments), "--listen", "127.0.0.1:0", "--json"], folder / command
        )
        self.listening: dict[str, str] = {}

    def started(self) -> None:
        """Wait until it listens."""
        first = eventually(
            lambda: self.out.split("\n")[:-1] or ([self.err] if self.process.poll() is not None else None), "a start"
        )[0]
        self.listening = json.loads(first)["listening"]

    @property
    def url(self) -> str:
        return self.listening["url"]


def eventually(look: Callable[[], T | None], what: str = "it", within: float = PATIENCE) -> T:
    """Look again and again until there is something; fail when there is nothing in time."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {within:g} s"
        time.sleep(0.002)


def one_line(text: str) -> str:
    """The one line that a failure is told in; fails where there are more, or a traceback."""
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("penstock: ")]
    assert len(lines) == 1, text
    assert text.rstrip().endswith(lines[0]), text
    return lines[0].removeprefix("penstock: ")


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def served_by(pids: Iterable[int], port: int, reader: int) -> int:
    """Which of these processes has the serving end of a connection.

    Args:
        pids: The processes.
        port: What they listen on.
        reader: The port of the connection's other end.
    """
    wanted = f":{port:04X}", f":{reader:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    (inode,) = [row[9] for row in rows if (row[1][-5:], row[2][-5:]) == wanted]
    (pid,) = [pid for pid in pids if f"socket:[{inode}]" in open_files(pid)]
    return pid


def open_files(pid: int) -> set[str]:
    """What a process has open, as /proc names it."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
