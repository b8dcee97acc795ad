"""`make cluster`: a Redis, three relays, an origin and HAProxy before them, on this machine, until Ctrl-C.

What dies is started again two seconds later at the same address, as an orchestrator would: kill a relay, or Redis, and
see what its readers see. Nothing is left behind but what the programs print, on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
HOST = "127.0.0.1"
RELAYS = 3
START_SECONDS = 30.0
RESTART_SECONDS = 2.0
STOP_SECONDS = 15.0


class Failed(Exception):
    """The cluster cannot be had; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """A process of the cluster.

    Attributes:
        name: What it is called in what is printed.
        address: Where it listens.
        command: Program and arguments.
        env: Variables besides our own.
        path: What answers 200 once it is well; "" where a connection is all that can be asked for.
    """

    name: str
    address: str
    command: Sequence[str]
    env: Mapping[str, str]
    path: str = ""

    async def is_well(self) -> bool:
        """Whether it answers."""
        host, _, port = self.address.rpartition(":")
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(host, int(port))
                with contextlib.closing(writer):
                    if not self.path:
                        return True
                    writer.write(
                        f"GET {self.path} HTTP/1.1\r\nHost: {self.address}\r\nConnection: close\r\n\r\n".encode()
                    )
                    return (await reader.readline()).split()[1:2] == [b"200"]
        except (OSError, TimeoutError):
            return False


class Kept:
    """A member that runs, and is started again when it dies, until it is stopped."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.pid = 0
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    async def well(self) -> None:
        """Wait until it answers.

        Raises:
            Failed: It does not.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while not await self.member.is_well():
                    await asyncio.sleep(0.05)
                return
        raise Failed(f"{self.member.name} does not answer on {self.member.address}; what it said stands above")

    async def stop(self) -> None:
        """Ask it to end, and after a while make it."""
        self._stopping.set()
        await self._task

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            process = await asyncio.create_subprocess_exec(
                *self.member.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self.member.env},
                start_new_session=True,  # a Ctrl-C is ours: the members are ended in turn
            )
            self.pid = process.pid
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping.is_set():
                say(f"{self.member.name} (pid {process.pid}) has ended; it is started again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping, RESTART_SECONDS)
                continue
            stopping.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(ended, STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def say(line: str) -> None:
    """Tell whoever started it."""
    print(f"cluster: {line}", file=sys.stderr, flush=True)


def program(name: str, package: str) -> str:
    """A program that Debian keeps where not every PATH looks.

    Raises:
        Failed: It is not installed.
    """
    found = shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )
    if found is None:
        raise Failed(f"{name} is not installed (Debian, Ubuntu: apt install {package})")
    return found


def free_addresses(count: int) -> list[str]:
    """Addresses that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [f"{HOST}:{each.getsockname()[1]}" for each in sockets]


def members(listen: str, folder: Path) -> list[Member]:
    """The cluster, in the order in which it is started.

    Raises:
        Failed: A program is missing.
    """
    redis, origin, *rest = free_addresses(2 + 2 * RELAYS)
    relays, admins = rest[:RELAYS], rest[RELAYS:]
    penstock = (sys.executable, "-m", "penstock")
    env = {"PENSTOCK_STORE": f"redis://{redis}/0", "PENSTOCK_UPSTREAM": f"http://{origin}"}
    persistent = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
    return [
        Member(
            "redis",
            redis,
            (
                program("redis-server", "redis-server"),
                *("--bind", HOST, "--port", redis.rpartition(":")[2], "--dir", str(folder), "--save", "", *persistent),
            ),
            {},
        ),
        Member(
            "origin",
            origin,
            (*penstock, "origin", "--listen", origin, "--directory", str(folder)),
            {},
            "/generate?count=1",
        ),
        *(
            Member(
                f"relay{number}",
                relay,
                (
                    *penstock,
                    *("relay", "--config", str(HERE / "relay.toml"), "--listen", relay, "--admin-listen", admin),
                ),
                env,
                "/_penstock/ready",
            )
            for number, (relay, admin) in enumerate(zip(relays, admins, strict=True), 1)
        ),
        Member(
            "haproxy",
            listen,
            (program("haproxy", "haproxy"), "-f", str(HERE / "haproxy.cfg"), "-db"),
            {"LISTEN": listen, **{f"RELAY_{number}": relay for number, relay in enumerate(relays, 1)}},
            "/_penstock/ready",
        ),
    ]


@contextlib.asynccontextmanager
async def running(cluster: Sequence[Member]) -> AsyncIterator[list[Kept]]:
    """The members, each of them well; ended in the opposite order.

    Raises:
        Failed: One does not answer.
    """
    kept: list[Kept] = []
    try:
        for member in cluster:
            kept.append(Kept(member))
            if not member.name.startswith("relay"):  # they start beside each other
                await asyncio.gather(*(each.well() for each in kept))
        yield kept
    finally:
        say("ending; the relays drain first")
        # Relays drain while who balances still asks them whether they are ready, and while Redis is there.
        relays = [each for each in kept if each.member.name.startswith("relay")]
        await asyncio.gather(*(each.stop() for each in relays))
        for each in reversed(kept):
            if each not in relays:
                await each.stop()


def described(kept: Sequence[Kept]) -> dict[str, object]:
    """Where everything is, as one object."""
    return {
        each.member.name: {"address": each.member.address, "pid": each.pid}
        | ({"admin": each.member.command[-1]} if "--admin-listen" in each.member.command else {})
        for each in kept
    }


def tell(kept: Sequence[Kept]) -> None:
    """Say to a person where everything is."""
    front = kept[-1].member.address
    say(f"ready: curl -N http://{front}/generate      (Ctrl-C ends it)")
    for each in kept:
        page = ""
        if "--admin-listen" in each.member.command:
            page = f"   page http://{each.member.command[-1]}/_penstock/"
        say(f"{each.member.name:<8} {each.member.address:<16} pid {each.pid}{page}")


async def main(listen: str, *, as_json: bool) -> None:
    """Run it until it is told to end."""
    ours = asyncio.current_task()
    assert ours is not None
    told: list[int] = []

    def end(number: int) -> None:
        if not told:  # once: what is ended in turn has its time
            told.append(number)
            ours.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    with tempfile.TemporaryDirectory(prefix="penstock-cluster-") as folder, contextlib.suppress(asyncio.CancelledError):
        async with running(members(listen, Path(folder))) as kept:
            tell(kept)
            if as_json:
                print(json.dumps(described(kept)), flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="cluster.py", description="Redis, three relays, an origin and HAProxy.")
    parser.add_argument("--listen", default=f"{HOST}:8080", metavar="HOST:PORT", help="the balancer [%(default)s]")
    parser.add_argument("--json", action="store_true", help="say where everything is as one object on stdout")
    arguments = parser.parse_args()
    try:
        asyncio.run(main(arguments.listen, as_json=arguments.json))
    except Failed as failed:
        say(str(failed))
        sys.exit(1)
