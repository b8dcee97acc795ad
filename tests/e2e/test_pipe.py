"""`penstock pipe` between real processes: the 457 MB of it, sources, destinations, what it tells."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.canned import Canned
from tests.e2e.conftest import Serve, Start
from tests.e2e.process import PATIENCE, PENSTOCK, Finished, Server, eventually, one_line, penstock

pytestmark = pytest.mark.e2e

LINES, LENGTH = 10_000_000, 478_888_897
JSON = ("-H", "Accept: application/json", "--digest", "sha256", "--json")


def report_of(done: Finished) -> dict[str, Any]:
    assert (done.code, done.err) == (0, ""), done
    (report,) = done.records
    return report


@pytest.mark.timeout(180)
@pytest.mark.parametrize("most", [LINES // 5, pytest.param(LINES, marks=pytest.mark.soak)], ids=["91 MB", "457 MB"])
def test_constant_memory(serve: Serve, uploads: Path, most: int) -> None:
    source, destination = serve("origin"), serve("origin", "--directory", uploads)
    try:
        growth = {}
        for lines in (most, LINES // 20):
            url = f"{source.url}/file?lines={lines}"
            report = penstock("pipe", url, f"{destination.url}/upload", *JSON, timeout=120, forked=False).records[-1]
            (saved,) = json.loads(report["destination"]["body"])["files"]
            assert saved["sha256"] == report["digest"]["sha256"]
            assert saved["bytes"] == report["bytes"] == (uploads / "large.txt").stat().st_size
            assert report["attempts"] == 1
            growth[lines] = report["memory_growth_kib"]
            if lines == most:
                assert lines < LINES or report["bytes"] == LENGTH
                assert report["bytes_per_second"] == pytest.approx(report["bytes"] / report["seconds"], rel=0.01)
                with (uploads / "large.txt").open("rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == saved["sha256"]
        assert 0 < growth[most] < 4096
        assert abs(growth[most] - growth[LINES // 20]) < 1024
        assert [each.name for each in uploads.iterdir()] == ["large.txt"]
    finally:
        (uploads / "large.txt").unlink(missing_ok=True)  # pytest keeps its folders for three runs


def test_the_log_tells_what_the_go_program_told(origin: Server) -> None:
    source, destination = f"{origin.url}/file?lines=100000", f"{origin.url}/upload"
    done = penstock("pipe", source, destination, "--filename", "logged.txt")
    assert (done.code, done.out) == (0, "")
    assert done.err.count("\n") == len(done.err.splitlines())
    line = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d INFO "
    duration = r"\d+\.\d{3}s"
    rss = r'"RSS \(KB\)"=\d+ "Peak RSS \(KB\)"=\d+'
    body = rf"(?:{line}Body complete server[12]\.bytes=\d+ server[12]\.duration={duration}\n)?"
    assert re.fullmatch(
        f"{line}Before streaming {rss}\n"
        f"{line}Sending request server1\\.method=GET server1\\.url={re.escape(source)}\n"
        f"{line}Response received server1\\.status=200 server1\\.duration={duration}\n"
        f"{line}Sending request server2\\.method=POST server2\\.url={re.escape(destination)}\n{body}"
        f"{line}Response received server2\\.status=200 server2\\.duration={duration}\n{body}{body}"
        f"{line}After streaming {rss}\n"
        f'{line}Data streamed through pipeline bytes=4588895 megabytes="4\\.38 MB"\n'
        f'{line}Upload successful "server2Resp response"="File logged\\.txt uploaded and saved"\n',
        done.err,
    ), done.err


def test_a_form_arrives_as_it_was_described(origin: Server, prepared: Canned) -> None:
    url = prepared.answer("/form", "text/plain", b"thank you")
    done = penstock(
        *("pipe", f"{origin.url}/file?lines=2", url, "--field", "document", "--filename", 'a "b".txt'),
        *("--form", "owner=me", "--form", "note=a=b", "-H", "Authorization: Bearer x", "--json"),
    )
    report = report_of(done)
    asked = prepared.asked[-1]
    assert (asked.method, asked.headers["Authorization"]) == ("POST", "Bearer x")
    boundary = asked.headers.get_boundary()
    assert boundary is not None
    head, first, second, third, tail = asked.body.split(b"--" + boundary.encode())
    assert (head, tail) == (b"", b"--\r\n")
    assert first == b'\r\nContent-Disposition: form-data; name="owner"\r\n\r\nme\r\n'
    assert second == b'\r\nContent-Disposition: form-data; name="note"\r\n\r\na=b\r\n'
    assert b'name="document"; filename="a %22b%22.txt"\r\n' in third
    assert third.endswith(
        b"\r\n\r\nLine 1: This is a line in the large file.\nLine 2: This is a line in the large file.\n\r\n"
    )
    assert int(asked.headers["Content-Length"]) == len(asked.body)
    assert asked.headers["Transfer-Encoding"] is None
    assert report["destination"] == {"url": url, "status": 200, "body": "thank you"}
    assert report["source"] == {"url": f"{origin.url}/file?lines=2", "status": 200}


def test_put_sends_the_bytes_as_they_are(prepared: Canned, tmp_path: Path) -> None:
    url = prepared.answer("/put", "text/plain", b"")
    file = tmp_path / "bytes.bin"
    file.write_bytes(bytes(range(256)) * 2000)
    report = report_of(penstock("pipe", file, url, "--put", "-H", "X-One: 1", "--json"))
    asked = prepared.asked[-1]
    assert (asked.method, asked.headers["X-One"]) == ("PUT", "1")
    assert asked.body == file.read_bytes()
    assert int(asked.headers["Content-Length"]) == report["bytes"] == len(asked.body)


def test_headers_go_to_their_own_side(prepared: Canned) -> None:
    source = prepared.answer("/own/source", "text/x-mine", b"content")
    destination = prepared.answer("/own/destination", "text/plain", b"")
    done = penstock("pipe", source, destination, "--source-header", "X-Side: source", "-H", "X-Side: destination")
    assert done.code == 0
    first, second = prepared.asked[-2:]
    assert (first.path, first.headers["X-Side"]) == ("/own/source", "source")
    assert (second.path, second.headers["X-Side"]) == ("/own/destination", "destination")
    assert b"Content-Type: text/x-mine" in second.body


def test_a_file_is_uploaded_under_its_own_name(serve: Serve, uploads: Path, tmp_path: Path) -> None:
    server = serve("origin", "--directory", uploads)
    file = tmp_path / "mine.bin"
    file.write_bytes(os.urandom(700_000))
    done = penstock("pipe", file, f"{server.url}/upload", "--digest", "sha256")
    assert (done.code, done.out) == (0, f"sha256  {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    assert (uploads / "mine.bin").read_bytes() == file.read_bytes()


def test_the_origin_serves_a_real_file(serve: Serve, uploads: Path, tmp_path: Path) -> None:
    file = tmp_path / "real é.bin"
    file.write_bytes(os.urandom(300_000))
    server = serve("origin", "--directory", uploads, "--file", file)
    assert report_of(penstock("pipe", f"{server.url}/file", f"{server.url}/upload", "--json"))["bytes"] == 300_000
    assert (uploads / "real é.bin").read_bytes() == file.read_bytes()


def test_stdin_from_a_pipe_is_sent_as_it_comes_in_chunks(start: Start, origin: Server, prepared: Canned) -> None:
    url = prepared.answer("/stdin/pipe", "text/plain", b"")
    running = start("pipe", "-", url, "--filename", "x", "--digest", "md5", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    content = os.urandom(500_000)
    for at in range(0, len(content), 50_000):
        running.process.stdin.write(content[at : at + 50_000])
        running.process.stdin.flush()
    running.process.stdin.close()
    assert running.ended() == 0
    assert running.out == f"md5  {hashlib.md5(content).hexdigest()}\n"
    asked = prepared.asked[-1]
    assert asked.headers["Transfer-Encoding"] == "chunked"
    assert content in asked.body


def test_stdin_from_a_file_and_from_nothing(prepared: Canned, tmp_path: Path) -> None:
    url = prepared.answer("/stdin/file", "text/plain", b"")
    file = tmp_path / "input"
    file.write_bytes(b"from a file")
    for path, content in ((file, b"from a file"), (Path(os.devnull), b"")):
        with path.open("rb") as stdin:
            done = penstock("pipe", "-", url, "--put", "--json", stdin=stdin.fileno())
        assert report_of(done)["bytes"] == len(content)
        assert prepared.asked[-1].body == content


def test_stdin_is_left_as_blocking_as_it_was(prepared: Canned) -> None:
    url = prepared.answer("/stdin/shared", "text/plain", b"")
    reading, writing = os.pipe()
    try:
        os.write(writing, b"x")
        os.close(writing)
        assert penstock("pipe", "-", url, "--put", stdin=reading).code == 0
        assert os.get_blocking(reading)
    finally:
        os.close(reading)


def test_a_rate_is_kept(origin: Server, prepared: Canned) -> None:
    url = prepared.answer("/rate", "text/plain", b"")
    content = f"{origin.url}/file?lines=12000"  # 544 kB
    started = time.monotonic()
    report = report_of(penstock("pipe", content, url, "--limit-rate", "512K", "--json"))
    assert time.monotonic() - started >= 1.0
    assert report["bytes"] == 540_894
    assert report["bytes_per_second"] <= 512 * 1024 * 1.05


@pytest.mark.parametrize("fault", ["truncate_after=2", "cut_after=2", "malformed_after=2"])
def test_a_source_that_breaks_leaves_no_file(serve: Serve, uploads: Path, fault: str) -> None:
    server = serve("origin", "--directory", uploads)
    source = f"{server.url}/file?lines=10000&{fault}"
    for options in ((), ("--put",)):
        destination = f"{server.url}/upload" + ("/x.txt" if options else "")
        done = penstock("pipe", source, destination, *options)
        assert (done.code, done.out) == (1, "")
        assert one_line(done.err).startswith(source)
        assert "after 131,072 bytes" in done.err
        server.said("the sender left before its request was complete")
        eventually(lambda: list(uploads.iterdir()) == [], "empty directory")


def test_a_source_that_breaks_is_picked_up_where_it_broke(origin: Server) -> None:
    source = f"{origin.url}/file?lines=4000&cut_after=2"  # 3 pieces of 64 KiB, each connection gives two
    done = penstock("pipe", source, f"{origin.url}/upload", "--filename", "resumed.txt", "--retries", "1", *JSON)
    report = report_of(done)
    (saved,) = json.loads(report["destination"]["body"])["files"]
    expected = "".join(f"Line {n}: This is a line in the large file.\n" for n in range(1, 4001)).encode()
    assert saved["bytes"] == len(expected)
    assert saved["sha256"] == report["digest"]["sha256"] == hashlib.sha256(expected).hexdigest()
    assert report["attempts"] == 2


def test_a_progress_bar_on_a_terminal_and_log_lines_above_it(origin: Server) -> None:
    master, terminal = pty.openpty()
    command = [*PENSTOCK, "pipe", f"{origin.url}/file?lines=20000", f"{origin.url}/upload"]
    command += ["--filename", "bar.txt", "--limit-rate", "1M"]
    shown = b""
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm"},
        ) as running:
            os.close(terminal)
            with contextlib.suppress(OSError):  # the terminal's other end is gone
                while piece := os.read(master, 65536):
                    shown += piece
            assert running.stdout is not None
            assert running.stdout.read() == b""
            assert running.wait(PATIENCE) == 0
    finally:
        os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"streaming ━+.*/887\.6 KiB", text), "no bar, or it does not know the length"
    logged = [line for line in re.split(r"[\r\n]+", text) if " INFO " in line]
    assert len(logged) >= 8
    assert all(re.match(r"\d{4}/\d\d/\d\d ", line) for line in logged), "a log line in the middle of the bar"
    assert shown.endswith(b"\x1b[2K"), "the bar was not taken away"


def test_json_shows_no_bar_and_no_log(origin: Server) -> None:
    master, terminal = pty.openpty()
    try:
        command = [*PENSTOCK, "pipe", f"{origin.url}/file?lines=10", f"{origin.url}/upload", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=PATIENCE, check=False)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 1
    finally:
        os.close(terminal)
        os.close(master)


def test_a_reader_that_has_enough_is_no_failure(origin: Server, start: Start) -> None:
    for options in (("--digest", "sha256"), ("--json",)):
        running = start("pipe", f"{origin.url}/file?lines=10", f"{origin.url}/upload", *options, stdout=subprocess.PIPE)
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.ended() == 0
        assert "Traceback" not in running.err
        assert "penstock: " not in running.err
