"""`penstock tail --save` and `--replay`, through real processes."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

from penstock.client.recording import load
from penstock.testing import close, script, wait_request
from tests.e2e.canned import Canned
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, PENSTOCK, SIGNALS, Server, one_line, penstock

pytestmark = pytest.mark.e2e

signals = pytest.mark.parametrize(("signum", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])


@pytest.fixture
def recording(origin: Server, tmp_path: Path) -> Path:
    """Three events, 0.3 s apart."""
    path = tmp_path / "recording.jsonl"
    assert penstock("tail", f"{origin.url}/events?count=3&interval=0.3", "--save", path).code == 0
    return path


def test_what_is_saved_is_shown_again_with_its_timing(origin: Server, recording: Path) -> None:
    loaded = load(recording)
    assert (loaded.count, loaded.end.reason, loaded.url) == (3, "complete", f"{origin.url}/events?count=3&interval=0.3")
    done = penstock("tail", "--replay", recording, "--json")
    assert (done.code, done.err) == (0, "")
    assert [each["event"]["id"] for each in done.records[:-1]] == ["1", "2", "3"]
    metrics = done.records[-1]["metrics"]
    assert metrics["bytes"] == loaded.bytes
    assert metrics["duration"] >= loaded.end.at * 0.9
    assert penstock("tail", "--replay", recording, "--until", '{"n":2}').out == '{"n":1}\n{"n":2}\n'
    assert penstock("tail", "--replay", recording, "--raw").out.startswith("id: 1\n")


def test_a_recording_is_told(origin: Server, tmp_path: Path) -> None:
    path = tmp_path / "a"
    url = f"{origin.url}/generate?chunks=2&interval=0"
    done = penstock("tail", url, "--save", path, "--json")
    size = load(path).bytes
    assert {"recording": {"path": str(path), "bytes": size, "end": "complete"}} in done.records
    for options in ((), ("--raw",)):
        done = penstock("tail", url, "--save", path, *options)
        assert f"penstock: recorded {size} bytes in {path} (complete)\n" in done.err


def test_a_stream_that_is_connected_to_again_has_a_recording_for_each_response(origin: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    url = f"{origin.url}/events?count=3&interval=0.01&cut_after=2"
    assert penstock("tail", url, "--save", path).code == 0
    first, second = load(path), load(tmp_path / "a.2.jsonl")
    assert (first.count, first.end.reason, second.count, second.end.reason) == (2, "failed", 1, "complete")
    done = penstock("tail", "--replay", path, "--json")
    assert [next(iter(each)) for each in done.records] == ["event", "event", "metrics", "error"]
    assert (done.code, done.error["type"]) == (1, "StreamTruncated")


@pytest.mark.anyio
async def test_a_coded_body_is_recorded_and_played_plainly(tmp_path: Path) -> None:
    body = gzip.compress(b"data: a\n\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    path = tmp_path / "a"
    async with script(wait_request(), head % len(body) + body, close()) as server:
        done = await asyncio.to_thread(penstock, "tail", server.url, "--save", path)
    assert (done.code, done.out) == (0, "a\n")
    done = await asyncio.to_thread(penstock, "tail", "--replay", path)
    assert (done.code, done.out) == (0, "a\n"), done.err


@signals
def test_an_interrupted_recording_is_whole(
    origin: Server, start: Start, tmp_path: Path, signum: int, code: int, word: str
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    tail = start("tail", f"{origin.url}/events?count=10000&interval=0.01", "--save", folder / "a")
    tail.wrote(3)
    assert not (folder / "a").exists()
    tail.kill(signum)
    assert tail.ended() == code
    assert one_line(tail.err.replace("penstock: recorded", "recorded")) == word
    loaded = load(folder / "a")
    assert loaded.end.reason == "cancelled"
    assert loaded.count >= 3
    assert [each.name for each in folder.iterdir()] == ["a"]


@signals
def test_interrupted_before_any_answer_there_is_none(
    serve: Serve, start: Start, tmp_path: Path, signum: int, code: int, word: str
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    origin = serve("origin")
    tail = start("tail", f"{origin.url}/events?stall_after=0", "--save", folder / "a")
    origin.said("stall_after=0")
    tail.kill(signum)
    assert tail.ended() == code
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing/a", "No such file or directory"), (".", "something else than a file"), ("/dev/full", "something else")],
)
def test_where_nothing_can_be_recorded_nothing_is_asked_for(
    prepared: Canned, tmp_path: Path, name: str, said: str
) -> None:
    url = prepared.answer("/unasked", "text/event-stream", b"data: a\n\n")
    done = penstock("tail", url, "--save", tmp_path / name)
    assert (done.code, done.out) == (1, "")
    assert one_line(done.err).startswith(f"{tmp_path / name}: ")
    assert said in done.err
    assert not [each for each in prepared.asked if each.path == "/unasked"]


def test_a_full_disk_ends_the_stream_and_leaves_no_part(origin: Server, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    path = folder / "a"
    done = subprocess.run(
        [*PENSTOCK, "tail", f"{origin.url}/events?count=100000&interval=0", "--save", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert one_line(done.stderr).startswith(f"{path}: File too large")
    assert "Total Events: " in done.stderr
    assert list(folder.iterdir()) == []


# -- served --------------------------------------------------------------------------------------------------------


def test_a_recording_is_served_to_whoever_asks(serve_recording: Path, listening: Server) -> None:
    about = listening.listening
    assert about["recording"] == str(serve_recording)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/events\?count=3&interval=0\.3", about["url"])
    assert about["end"] == "complete"
    base = about["url"].partition("/events")[0]
    curl = ["curl", "-si", "--max-time", "20", "-d", "anything"]
    first = subprocess.Popen([*curl, f"{base}/other"], stdout=subprocess.PIPE, text=True)
    second = subprocess.run([*curl, base], capture_output=True, text=True, check=True, timeout=PATIENCE)
    head, _, body = second.stdout.partition("\n\n")
    assert first.communicate(timeout=PATIENCE)[0].partition("\n\n")[2] == body
    assert body.encode() == b"".join(piece.data for piece in load(serve_recording).pieces())
    fields = [line.partition(":")[0] for line in head.splitlines()[1:]]
    assert sorted(fields) == sorted(set(fields))
    assert ("transfer-encoding" in fields, "content-length" in fields) == (True, False)
    done = penstock("tail", about["url"])
    assert (done.code, done.out) == (0, '{"n":1}\n{"n":2}\n{"n":3}\n')
    head_only = subprocess.run(["curl", "-sI", base], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "text/event-stream" in head_only.stdout


@pytest.fixture
def serve_recording(recording: Path) -> Path:
    return recording


@pytest.fixture
def listening(serve: Serve, serve_recording: Path) -> Server:
    return serve("tail", "--replay", serve_recording)


def test_one_that_failed_breaks_the_connection_off(serve: Serve, origin: Server, tmp_path: Path) -> None:
    path = tmp_path / "a"
    url = f"{origin.url}/generate?chunks=9&interval=0&truncate_after=2"
    assert penstock("tail", url, "--save", path).code == 1
    server = serve("tail", "--replay", path)
    curl = subprocess.run(["curl", "-sN", server.url], capture_output=True, check=False, timeout=PATIENCE)
    assert (curl.returncode, curl.stdout.count(b"\n")) == (18, 2)


@signals
def test_serving_ends_with_a_signal_also_while_it_plays(
    start: Start, origin: Server, tmp_path: Path, signum: int, code: int, word: str
) -> None:
    path = tmp_path / "a"
    path.write_text(
        json.dumps({"penstock": 1, "url": "http://x/s", "status": 200, "headers": [["content-type", "text/plain"]]})[
            :-1
        ]
        + ', "recorded_at": "2026-01-31T12:00:00+00:00"}\n{"at": 0, "data": "a\\n"}\n{"end": "complete", "at": 3600}\n'
    )
    served = start("tail", "--replay", path, "--listen", "127.0.0.1:0")
    line = served.said("penstock tail on http://127.0.0.1:")
    assert line.endswith(f"/s: {path}, 2 bytes in 3600.0 s")
    url = re.findall(r"http://\S+/s", line)[0]
    curl = start(url, program=("curl", "-sN", "--max-time", "60"))
    curl.wrote(1)
    served.kill(signum)
    assert served.ended() == code
    assert curl.ended() == 18
    assert "Traceback" not in served.err
    shown = start("tail", "--replay", path)
    shown.wrote(1)
    shown.kill(signum)
    assert shown.ended() == code
    assert one_line(shown.err) == word
    assert "Total Events: 1\n" in shown.err


def test_what_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content, said in ((b"", "the file is empty"), (b"{}\n", "this is no recording"), (None, "No such file")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        done = penstock("tail", "--replay", path)
        assert (done.code, done.out) == (1, "")
        assert one_line(done.err).startswith(f"{path}: ")
        assert said in done.err


def test_a_port_that_is_taken(recording: Path, origin: Server) -> None:
    done = penstock("tail", "--replay", recording, "--listen", origin.url.removeprefix("http://"))
    assert done.code == 1
    assert "in use" in one_line(done.err)
