"""The examples run, and say what they are meant to say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, Finished, Running, Server

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
PYTHON = (sys.executable,)

EXPECTED = """\
Starting advanced stream to {url}
Press Ctrl+C to stop
Event 1: Event 1
Event 2: Event 2
Event 3: Event 3
Event 4: Event 4
Message: Stream completed

=== Streaming Metrics ===
Duration: …
Total Events: 5
Successful: 5
Failed: 0
Retries: 0
Success Rate: 100.0%
=======================
Stream completed successfully

=== Collected Response Data ===
Event 1: Event 1
Event 2: Event 2
Event 3: Event 3
Event 4: Event 4
Message 1: Stream completed
Total responses collected: 5
==============================
"""


def example(name: str, *arguments: str) -> Finished:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, timeout=PATIENCE, check=False, text=True
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def url_of(uvicorn: Running) -> str:
    return uvicorn.said("Uvicorn running on").split("running on ")[1].split()[0]


def test_the_streaming_client_says_line_for_line_what_it_is_to_say(start: Start) -> None:
    url = url_of(start(EXAMPLES / "fastapi_server.py", "--port", "0", program=PYTHON))
    done = example("streaming_client.py", url)
    assert (done.code, done.err) == (0, "")
    assert re.sub(r"Duration: \d+\.\d\ds", "Duration: …", done.out) == EXPECTED.format(url=url)


def test_the_streaming_client_tells_a_failure(closed_port: str) -> None:
    done = example("streaming_client.py", closed_port)
    assert done.code == 1
    assert done.err.startswith("Stream failed (network): circuit breaker open for ")
    assert done.err.count("\n") == 1


def test_the_streaming_client_is_interrupted(start: Start, origin: Server) -> None:
    client = start(EXAMPLES / "streaming_client.py", origin.url, program=(sys.executable, "-u"))
    client.wrote(3)
    client.kill(signal.SIGINT)
    assert client.ended() == 130
    assert client.err == "Stopped\n"


def test_the_pipe_by_hand_and_the_fluent_one_move_the_same(serve: Serve, uploads: Path) -> None:
    source, destination = serve("origin"), serve("origin", "--directory", uploads)
    expected = "".join(f"Line {n}: This is a line in the large file.\n" for n in range(1, 30001)).encode()
    saved = uploads / "large.txt"
    done = example("pipe_by_hand.py", f"{source.url}/file?lines=30000", f"{destination.url}/upload")
    assert (done.code, done.out) == (0, f"{len(expected):,} bytes, 200: File large.txt uploaded and saved\n"), done.err
    assert hashlib.sha256(saved.read_bytes()).digest() == hashlib.sha256(expected).digest()
    saved.unlink()
    done = example("fluent_pipe.py", source.url, destination.url, "30000")
    assert (done.code, done.out) == (0, ""), done.err
    assert f"Data streamed bytes={len(expected)} " in done.err
    assert hashlib.sha256(saved.read_bytes()).digest() == hashlib.sha256(expected).digest()
    saved.unlink()
    broken = example("pipe_by_hand.py", f"{source.url}/file?lines=30000&truncate_after=3", f"{destination.url}/upload")
    assert broken.code == 1
    destination.said("the sender left before its request was complete")
    assert list(uploads.glob("*.txt")) == []


def test_the_relay_in_fastapi_streams_through_its_route(start: Start, origin: Server) -> None:
    server = start(
        *("-m", "uvicorn", "--app-dir", EXAMPLES, "relay_in_fastapi:app", "--port", "0"),
        program=PYTHON,
        env={**os.environ, "UPSTREAM": origin.url},
    )
    request = urllib.request.Request(
        f"{url_of(server)}/api/chat", json.dumps({"question": "why?"}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        body = response.read().decode()
    assert body.endswith("data: [DONE]\n\n")
    assert '"content":" why?"' in body
