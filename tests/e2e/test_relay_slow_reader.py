"""A reader that stops reading, before a real relay: what that is to other readers, and to the relay's memory."""

from __future__ import annotations

import hashlib
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from penstock.origin.content import Lines
from tests.e2e.conftest import Serve
from tests.e2e.process import PATIENCE, Server, needs_proc
from tests.relay.peers import request
from tests.relay.stalled import Seen, forget_peak, memory_of, source, stall

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, needs_proc]

MIB = 1 << 20

CONFIG = """
store = "{store}"
retention.max_stream_bytes = "{limit}"

[defaults]
upstream = "{upstream}"
owner = "none"
limits.max_event_bytes = "128K"
"""


async def stalled(
    serve: Serve, folder: Path, store: str, limit: str, *, rate: float, size: int, readers: int, seconds: float
) -> Seen:
    """All read for a time, and then one of them does not for twice that long."""
    async with source(rate, size) as up:
        file = folder / "relay.toml"
        where = store if store == "memory://" else f"{store}/{folder / 'log.db'}"
        file.write_text(CONFIG.format(store=where, limit=limit, upstream=up.url))
        relay = serve("relay", "--config", file)
        seen = await stall(relay.url, relay.pid, up, readers=readers, before=seconds / 2, stalled=seconds, slices=6)
    print(f"{store}, {limit}: {seen}")
    return seen


@pytest.mark.parametrize(("store", "limit"), [("memory://", "64M"), ("sqlite://", "256K")])
async def test_a_reader_that_stops_for_a_moment(serve: Serve, tmp_path: Path, store: str, limit: str) -> None:
    seen = await stalled(serve, tmp_path, store, limit, rate=100, size=96 * 1024, readers=5, seconds=0.9)
    assert bool(seen.gaps) == (limit == "256K")
    assert min(seen.stalled) <= 2 * max(*seen.before, 0.025), seen  # the best of six: a machine may be busy
    assert seen.grown <= (seen.sent if limit == "64M" else 0) + 16 * MIB, seen


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("store", "limit"), [("memory://", "64M"), ("memory://", "256K"), ("sqlite://", "256K")])
async def test_a_reader_that_stops_for_a_minute(serve: Serve, tmp_path: Path, store: str, limit: str) -> None:
    seen = await stalled(serve, tmp_path, store, limit, rate=50, size=4096, readers=20, seconds=60)
    before, after = seen.p99
    assert bool(seen.gaps) == (limit == "256K")
    assert after <= 2 * max(before, 0.005), seen
    assert seen.grown <= (seen.sent if limit == "64M" else 0) + 16 * MIB, seen


# -- what passes through and is not kept


def downloaded(url: str, pid: int, lines: int, *, slow: float) -> tuple[str, int]:
    """Download so many lines, at first slowly and then not at all, each for so long; the digest, the relay's growth."""
    host, _, port = url.removeprefix("http://").partition(":")
    digest = hashlib.sha256()
    with urllib.request.urlopen(f"{url}/file?lines=1000", timeout=PATIENCE) as first:
        first.read()
    forget_peak(pid)
    before = memory_of(pid, "VmRSS")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.settimeout(PATIENCE)
        sock.connect((host, int(port)))
        sock.sendall(request(f"/file?lines={lines}"))
        answer = sock.makefile("rb")
        left = 0
        while (field := answer.readline()) != b"\r\n":
            assert field
            if field.lower().startswith(b"content-length:"):
                left = int(field.partition(b":")[2])
        until = time.monotonic() + slow
        while left and (data := answer.read1(1 << 16)):
            digest.update(data)
            left -= len(data)
            if time.monotonic() < until:
                time.sleep(0.005)
            elif until:
                time.sleep(slow)
                until = 0.0
        answer.close()
    assert not left
    return digest.hexdigest(), memory_of(pid, "VmHWM") - before


def digest_of(lines: int) -> str:
    digest = hashlib.sha256()
    content = Lines(lines)
    for block in content.blocks(0, content.length):
        digest.update(block)
    return digest.hexdigest()


def pass_through(serve: Serve, origin: Server, lines: int, slow: float) -> None:
    relay = serve("relay", origin.url)
    found, grown = downloaded(relay.url, relay.pid, lines, slow=slow)
    print(f"{lines:,} lines: the relay's memory grew by {grown >> 10:,} KiB")
    assert found == digest_of(lines)
    assert grown <= 8 * MIB


def test_a_download_with_a_slow_reader_takes_no_memory_and_loses_nothing(serve: Serve, origin: Server) -> None:
    pass_through(serve, origin, 1_400_000, 0.4)  # 64 MB


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_download_of_2_gb_with_a_slow_reader(serve: Serve, origin: Server) -> None:
    pass_through(serve, origin, 43_000_000, 20.0)
