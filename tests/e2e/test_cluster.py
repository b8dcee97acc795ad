"""`make cluster`: what it starts works as one, survives the death of a part, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.wire import sse
from tests.e2e.process import Running, alive, eventually, needs_proc, open_files
from tests.eventlog.redis_server import free_ports, needs_redis
from tests.relay.peers import Peer, dial, request, until
from tests.relay.readers import EVENTS, OUR_ID, plain, rest_of, since

DEPLOY = Path(__file__).parents[2] / "deploy"
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    needs_proc,
    needs_redis,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"),
]

CHAT = "/v1/chat/completions?interval=0.05&tokens=60"
QUESTION = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "why? why? why?"}]}'


class Reader:
    """Reads a stream through the balancer, and comes back when it is cut off."""

    def __init__(self, front: str) -> None:
        self._front = front
        self.stream = ""
        self.kept = b""
        self.last = ""
        self.cuts = 0
        self.sent_away = 0

    async def read(self, stream: str = "") -> None:
        """Read to the end: one that is begun here, or one that is there."""
        self.stream = stream
        while not await self._once():
            self.cuts += 1

    async def _once(self) -> bool:
        async with dial(self._front) as peer:
            if self.stream:
                more = EVENTS + (since(self.last) if self.last else "")
                await peer.send(request(f"/_penstock/streams/{self.stream}", more=more))
            else:
                await peer.send(request(CHAT, "POST", "Content-Type: application/json\r\n", QUESTION))
            try:
                await peer.take_head()
                if peer.status == 503:  # of the balancer, or of a relay that has just been started
                    await asyncio.sleep(0.1)
                    return False
                assert peer.status == 200, peer.head
                (self.stream,) = peer.all("penstock-stream")
                return await self._take(peer)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)
                return False

    async def _take(self, peer: Peer) -> bool:
        cutter = sse.BlockCutter()
        while data := await peer.chunk():
            self.sent_away += data.startswith(b"retry: ")
            for block in cutter.feed(data):
                if (found := OUR_ID.search(block)) is not None:
                    self.last = found[1].decode()
                    self.kept += plain(block)
        return True


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[Running, dict[str, Any]]]:
    """All of it, from its start to its end by Ctrl-C."""
    (port,) = free_ports(1)
    command = [sys.executable, str(DEPLOY / "cluster.py"), "--json", "--listen", f"127.0.0.1:{port}"]
    running = Running(command, folder)
    try:
        (line,) = await asyncio.to_thread(running.wrote, 1, within=60)
        yield running, json.loads(line)
    finally:
        running.end()


async def streams_at(relay: dict[str, Any]) -> int:
    """How many a relay produces; none while it is started again."""
    with contextlib.suppress(OSError):
        return await _streams_at(relay)
    return 0


def sockets_of(pid: int) -> int:
    """How many a process has open: more where it reads a stream for somebody, than for who asks whether it is well."""
    return sum(each.startswith("socket:") for each in open_files(pid))


async def _streams_at(relay: dict[str, Any]) -> int:
    async with dial(f"http://{relay['admin']}") as peer:
        await peer.send(b"GET /_penstock/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        await peer.take_head()
        found = re.search(r"^penstock_relay_streams (\d+)", (await rest_of(peer)).body.decode(), re.MULTILINE)
        assert found is not None
        return int(found[1])


async def test_a_cluster_survives_its_parts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (running, members):
        front = f"http://{members['haproxy']['address']}"
        relays = [members[f"relay{number}"] for number in (1, 2, 3)]
        for signum in (signal.SIGKILL, signal.SIGTERM):
            readers = [Reader(front)]
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(readers[0].read())
                await until(lambda first=readers[0]: bool(first.kept))  # type: ignore[misc]
                owners = [relay for relay in relays if await streams_at(relay)]
                assert len(owners) == 1
                others = [relay for relay in relays if relay not in owners and alive(relay["pid"])]
                before = {relay["pid"]: sockets_of(relay["pid"]) for relay in others}
                victims: list[dict[str, Any]] = []
                while not victims:  # each reader goes to who has the fewest
                    readers.append(joined := Reader(front))
                    group.create_task(joined.read(readers[0].stream))
                    await until(lambda joined=joined: bool(joined.kept))  # type: ignore[misc]
                    victims = [relay for relay in others if sockets_of(relay["pid"]) > before[relay["pid"]] + 1]
                victim = victims[0]
                os.kill(victim["pid"], signum)
            assert any(reader.cuts for reader in readers)
            assert {reader.kept for reader in readers} == {readers[0].kept}
            assert b"data: [DONE]" in readers[0].kept
            assert any(reader.sent_away for reader in readers) == (signum == signal.SIGTERM)
            await asyncio.to_thread(running.said, f"(pid {victim['pid']}) has ended; it is started again")
        pids = {pid for member in members.values() if alive(pid := member["pid"])} | {running.pid}
        assert len(pids) == 5  # of six, less two that were started again, and itself
        running.kill(signal.SIGINT)
        assert await asyncio.to_thread(running.ended, within=60) == 0
        eventually(lambda: not any(alive(pid) for pid in pids), "an end of all")
        for member in members.values():
            with pytest.raises(OSError):  # noqa: PT011 – nobody listens, also not who was started again
                async with dial(f"http://{member['address']}"):
                    pass
