"""Where streams are kept: a URL, and the server behind it where there is one; each new, and gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from bench import build
from bench.processes import HOST, Cpu, Process, free_address

MEMORY = "memory"
SQLITE = "SQLite, synchronous=NORMAL"
REDIS = "Redis, AOF every second"


@dataclass(frozen=True, slots=True)
class Kept:
    """One place for streams.

    Attributes:
        url: What names it to Penstock.
        server: Its server, for what that uses; None where it has none.
    """

    url: str
    server: Process | None = None

    @property
    def cpu(self) -> Cpu:
        """What its server has used so far."""
        return self.server.cpu if self.server else Cpu()


@contextmanager
def memory() -> Iterator[Kept]:
    """In the process's memory."""
    yield Kept("memory://")


@contextmanager
def sqlite() -> Iterator[Kept]:
    """In a file on this disk."""
    with _directory() as directory:
        yield Kept(f"sqlite:///{directory}/streams.db")


@contextmanager
def redis(cores: Collection[int] = ()) -> Iterator[Kept]:
    """In a Redis of our own, which writes its log as it does by default: to the disk every second."""
    server = build.redis_server()
    build.needs("redis")
    host, _, port = free_address().rpartition(":")
    with _directory() as directory:
        # It says little, for nobody reads what it says.
        settings = {
            "bind": host,
            "port": port,
            "dir": directory,
            "save": "",
            "appendonly": "yes",
            "loglevel": "warning",
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with Process([server, *arguments], cores=cores) as process:
            process.wait_for_port(f"{HOST}:{port}")
            yield Kept(f"redis://{host}:{port}", process)


STORES: dict[str, Callable[[], AbstractContextManager[Kept]]] = {MEMORY: memory, SQLITE: sqlite, REDIS: redis}


def _directory() -> tempfile.TemporaryDirectory[str]:
    build.BUILD.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=build.BUILD)
