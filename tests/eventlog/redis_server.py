"""Real Redis servers for tests: one, or the nodes of a cluster, on free ports, with their data in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

BINARY = shutil.which("redis-server")
PATIENCE = 20.0
KEPT = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")

needs_redis = pytest.mark.skipif(BINARY is None, reason="redis-server is not installed")


class RedisServer:
    """A server; it can be killed, stopped and started again, on the same port and data.

    Args:
        folder: Where its data are.
        options: Its configuration, beside what every one here has.
        port: Where to listen; by default on a free one.
        configured: A Sentinel's configuration.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, configured: Path | None = None) -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self._command = [
            BINARY or "", *([str(configured)] if configured else ()), "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(folder), "--daemonize", "no", *(("--sentinel",) if configured else KEPT), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it has its data."""
        with (self.folder / "stdout").open("ab") as out:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, ValueError):
                if self.ask("PING") in ("+PONG", "-NOAUTH Authentication required."):
                    return
            assert self._process.poll() is None, (self.folder / "stdout").read_text()
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(signum)

    def end(self, signum: int = signal.SIGKILL) -> None:
        """End it, whatever state it is in, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(PATIENCE)
            self._process = None

    def info(self, section: str) -> list[str]:
        """What it tells of itself."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock, sock.makefile("rb") as file:
            sock.sendall(f"INFO {section}\r\n".encode())
            size = int(file.readline()[1:])
            return file.read(size).decode().splitlines()

    def offset(self) -> str:
        """How far its data are replicated, or it is itself."""
        return next(line for line in self.info("replication") if line.startswith("master_repl_offset:"))

    def ask(self, *command: str, whole: bool = False) -> str:
        """Send a command; the first line of its answer, or all of it, which takes as long as there might be more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            parts = [f"*{len(command)}\r\n", *(f"${len(part.encode())}\r\n{part}\r\n" for part in command)]
            sock.sendall("".join(parts).encode())
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while more := sock.recv(65536):
                answer += more
        if not answer:
            raise OSError("the server closed the connection")
        return answer.decode() if whole else answer.decode().split("\r\n")[0]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; below the ephemeral ones a cluster's bus has its own, 10000 higher."""
    found: list[int] = []
    taken = []
    try:
        while len(found) < count:
            sock = socket.socket()
            taken.append(sock)
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1] % 20000 + 10000
            with contextlib.suppress(OSError):
                for each in (port, port + 10000):
                    probe = socket.socket()
                    taken.append(probe)
                    probe.bind(("127.0.0.1", each))
                found.append(port)
    finally:
        for sock in taken:
            sock.close()
    return found


@contextlib.contextmanager
def running(folder: Path, *options: str, configured: Path | None = None) -> Iterator[RedisServer]:
    """A server for as long as it is needed; a Sentinel, if it has a file for its configuration."""
    server = RedisServer(folder, *options, configured=configured)
    try:
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def running_cluster(folder: Path, nodes: int = 3, *more: str) -> Iterator[list[RedisServer]]:
    """A cluster whose nodes have equal parts of the slots."""
    servers: list[RedisServer] = []
    try:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *more)
        for port in free_ports(nodes):
            servers.append(RedisServer(folder / str(port), *options, port=port))  # noqa: PERF401 - to be ended if one fails
        for number, server in enumerate(servers):
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            assert server.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last)) == "+OK"
            assert server.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)) == "+OK"
        for server in servers[1:]:
            assert server.ask("CLUSTER", "MEET", "127.0.0.1", str(servers[0].port)) == "+OK"
        deadline = time.monotonic() + PATIENCE
        for server in servers:
            while not _is_whole(server, nodes):
                assert time.monotonic() < deadline, "the cluster did not come together"
                time.sleep(0.02)
        yield servers
    finally:
        for server in servers:
            server.end()


@contextlib.contextmanager
def running_sentinels(folder: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a Sentinel that calls them ``streams``."""
    with contextlib.ExitStack() as ends:
        master = ends.enter_context(running(folder / "master"))
        replica = ends.enter_context(running(folder / "replica", "--replicaof", "127.0.0.1", str(master.port)))
        said = folder / "sentinel.conf"
        said.write_text(
            f"sentinel monitor streams 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds streams 1000\nsentinel failover-timeout streams 5000\n"
        )
        sentinel = ends.enter_context(running(folder / "sentinel", configured=said))
        deadline = time.monotonic() + PATIENCE
        while "slaves=1" not in "".join(sentinel.info("sentinel")) or not _follows(replica):
            assert time.monotonic() < deadline, "the Sentinel knows no replica"
            time.sleep(0.05)
        yield master, replica, sentinel


def _follows(replica: RedisServer) -> bool:
    return "master_link_status:up" in replica.info("replication")


def _is_whole(server: RedisServer, nodes: int) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        sock.sendall(b"CLUSTER INFO\r\n")
        told = b""
        while b"cluster_known_nodes" not in told or not told.endswith(b"\r\n"):
            told += sock.recv(65536)
    return b"cluster_state:ok" in told and f"cluster_known_nodes:{nodes}".encode() in told


class Link:
    """The way to a server, on which answers can be lost."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.deaf = False  # what is asked arrives, and what is answered does not
        self.lost = 0
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break all connections off."""
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back, asked=True), self._pass(there, writer, asked=False))
        finally:
            self._writers -= {writer, back}
            writer.close()
            back.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asked: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.deaf and not asked:
                    self.lost += 1
                else:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def linked(server: RedisServer) -> AsyncIterator[Link]:
    """A way to a server."""
    link = Link(server.port)
    accepting = await asyncio.start_server(link.carry, "127.0.0.1", 0)
    link.url = f"redis://127.0.0.1:{accepting.sockets[0].getsockname()[1]}/0"
    try:
        yield link
    finally:
        accepting.close()
        link.cut()
