"""The relay between real processes: chunks on time, readers that leave, FastAPI behind it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, Server, eventually, needs_proc, penstock

pytestmark = pytest.mark.e2e

CURL = ("curl", "-sN", "--max-time", "60")
EXAMPLES = Path(__file__).parents[2] / "examples"
CHUNKS = 20


@pytest.fixture
def relay(serve: Serve, origin: Server) -> Server:
    return serve("relay", origin.url)


def seconds_of_day(now: float) -> float:
    local = time.localtime(now)
    return local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now % 1


def elapsed(since: float, until: float) -> float:
    """Seconds between two times of day, midnight or not."""
    return (until - since + 43200) % 86400 - 43200


def written_at(chunk: str) -> float:
    hours, minutes, seconds = chunk[chunk.index("[") + 1 : chunk.index("]")].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_each_chunk_reaches_curl_by_itself_and_within_50_ms(relay: Server) -> None:
    url = f"{relay.url}/generate?chunks={CHUNKS}&interval=0.1"
    reads: list[tuple[float, str]] = []
    with subprocess.Popen([*CURL, url], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        while piece := os.read(curl.stdout.fileno(), 65536):
            reads.append((seconds_of_day(time.time()), piece.decode()))
    assert curl.returncode == 0
    assert re.findall(r"Chunk (\d+) ", "".join(piece for _, piece in reads)) == [str(n) for n in range(1, CHUNKS + 1)]
    assert len(reads) >= CHUNKS - 2, "chunks were gathered on the way"
    delays = [elapsed(written_at(piece), arrived) for arrived, piece in reads]
    assert statistics.median(delays) < 0.05
    assert sum(delay >= 0.05 for delay in delays) <= 2
    ahead = [elapsed(arrived, written_at(after)) for (arrived, _), (_, after) in itertools.pairwise(reads)]
    assert sum(time <= 0 for time in ahead) <= 2, "chunks arrived after the next was written"


def test_killing_curl_stops_the_generator_within_a_second(serve: Serve, start: Start) -> None:
    origin = serve("origin")
    relay = serve("relay", origin.url)
    curl = start(f"{relay.url}/generate?chunks=100000&interval=0.01", program=CURL)
    curl.wrote(3)
    curl.kill(signal.SIGKILL)
    killed_at = seconds_of_day(time.time())
    line = origin.said("GET /generate: the reader left after ")
    assert elapsed(killed_at, written_at(f"[{line.split()[0]}]")) < 1.0
    assert int(line.split()[-2]) >= 3
    assert "the upstream is cancelled" in relay.said("the reader left after")


def test_killing_curl_before_the_first_byte_stops_the_generator_within_a_second(serve: Serve, start: Start) -> None:
    origin = serve("origin")
    relay = serve("relay", origin.url)
    curl = start(f"{relay.url}/generate?stall_after=0", program=CURL)
    origin.said("stall_after=0")
    curl.kill(signal.SIGKILL)
    killed_at = seconds_of_day(time.time())
    line = origin.said("GET /generate: the reader left after 0 chunks")
    assert elapsed(killed_at, written_at(f"[{line.split()[0]}]")) < 1.0
    assert "after 0 bytes; the upstream is cancelled" in relay.said("the reader left")
    assert curl.out == ""


def test_a_broken_upstream_never_looks_complete(relay: Server) -> None:
    for fault in ("cut_after=3", "truncate_after=3", "malformed_after=3"):
        url = f"{relay.url}/generate?chunks=10&interval=0.01&{fault}"
        done = subprocess.run([*CURL, url], capture_output=True, timeout=PATIENCE, check=False)
        assert done.stdout.count(b"\n") == 3
        assert done.returncode in (18, 56), fault  # a partial file, or a reset


def test_an_upstream_that_is_not_there_is_a_502_with_a_reason(serve: Serve, closed_port: str) -> None:
    relay = serve("relay", closed_port)
    done = penstock("tail", f"{relay.url}/events", "--retries", "0", "--json")
    assert done.code == 1
    assert done.error["type"] == "StatusError"
    assert " 502 " in done.error["message"]
    assert "refuses connections" in done.error["message"]
    assert closed_port not in done.error["message"]


def test_bodies_go_both_ways(relay: Server, tmp_path: Path) -> None:
    name = "through-the-relay.txt"
    done = penstock(
        *("pipe", f"{relay.url}/file?lines=20000", f"{relay.url}/upload", "--filename", name),
        *("-H", "Accept: application/json", "--digest", "sha256", "--json"),
    )
    assert done.code == 0, done.err
    report = done.records[-1]
    (saved,) = json.loads(report["destination"]["body"])["files"]
    assert saved == {"filename": name, "bytes": report["bytes"], "sha256": report["digest"]["sha256"]}


@pytest.mark.parametrize("as_module", [False, True], ids=["uvicorn", "script"])
def test_the_relay_before_fastapi(serve: Serve, start: Start, as_module: bool) -> None:
    if as_module:
        uvicorn = start(
            "-m", "uvicorn", "--app-dir", EXAMPLES, "fastapi_server:app", "--port", "0", program=(sys.executable,)
        )
    else:
        uvicorn = start(EXAMPLES / "fastapi_server.py", "--port", "0", program=(sys.executable,))
    server = uvicorn.said("Uvicorn running on").split("running on ")[1].split()[0]
    relay = serve("relay", server)
    done = penstock("tail", f"{relay.url}/trigger_invocation", "-d", '{"query": "hello"}')
    assert done.code == 0, done.err
    assert [json.loads(line) for line in done.out.splitlines()] == [
        *({"Count": count, "Data": f"Event {count}"} for count in range(1, 5)),
        {"Data": "Stream completed"},
    ]
    assert "Total Events: 5\n" in done.err
    refused = penstock("tail", f"{relay.url}/trigger_invocation", "-d", '{"nothing": 1}', "--json")
    assert refused.code == 1
    assert " 422 " in refused.error["message"]
    assert "Field required" in refused.error["message"]


@needs_proc
def test_the_relay_in_front_of_a_reader_that_does_not_read_slows_its_upstream(serve: Serve, start: Start) -> None:
    origin = serve("origin")
    relay = serve("relay", origin.url)
    curl = start(f"{relay.url}/file", program=CURL, stdout=subprocess.PIPE)  # 457 MB into a pipe that nobody empties
    before = resident_kib(relay.pid)
    eventually(lambda: blocked_in_write(curl.pid), "curl that waits for its reader")
    assert resident_kib(relay.pid) - before < 16 * 1024
    curl.kill(signal.SIGKILL)
    line = origin.said("GET /file: the reader left after")
    assert int(line.split()[-2]) < 64 * 1024 * 1024


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(pid)


def blocked_in_write(pid: int) -> bool:
    """Whether a process has written all that its stdout takes, and sleeps."""
    process = Path(f"/proc/{pid}")
    counted = process / "io"
    before = counted.read_text()
    time.sleep(0.3)
    return "wchar: 0\n" not in before and counted.read_text() == before
