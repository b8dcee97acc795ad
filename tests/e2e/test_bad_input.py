"""Every kind of bad input: one clear line that says what, where and what to do; the right exit code; no traceback."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.canned import Canned
from tests.e2e.conftest import Serve
from tests.e2e.process import PATIENCE, PENSTOCK, Server, one_line, penstock

pytestmark = pytest.mark.e2e


def test_wrong_usage_is_exit_2() -> None:
    done = penstock("tail", "http://localhost/", "-H", "no colon")
    assert (done.code, done.out) == (2, "")
    assert one_line(done.err) == (
        "Invalid value: 'no colon' is not a header: write it as 'Name: value'; see `penstock tail --help`"
    )


def test_wrong_usage_is_an_object_with_json() -> None:
    done = penstock("tail", "--json", "--fly")
    assert (done.code, done.err) == (2, "")
    assert done.error["category"] == "application"
    assert done.error["message"].startswith("No such option: --fly")
    assert (done.error["url"], done.error["retryable"]) == (None, False)


def test_help_goes_to_stdout_and_a_bare_name_shows_it_on_stderr() -> None:
    done = penstock("--help")
    assert (done.code, done.err) == (0, "")
    bare = penstock()
    assert (bare.code, bare.out, bare.err) == (2, "", done.out)


def test_a_refused_connection(closed_port: str, origin: Server) -> None:
    for arguments in (
        ("tail", f"{closed_port}/", "--retries", "0"),
        ("tail", f"{closed_port}/", "--retries", "0", "--raw"),
        ("pipe", f"{closed_port}/", f"{origin.url}/upload"),
        ("pipe", f"{origin.url}/file?lines=5", f"{closed_port}/"),
    ):
        done = penstock(*arguments)
        assert done.code == 1
        assert one_line(done.err) == f"{closed_port}/: connection refused; is a server running there?"


def test_an_unknown_host() -> None:
    done = penstock("tail", "http://no-such-host.invalid/x", "--retries", "0")
    assert done.code == 1
    assert "http://no-such-host.invalid/x: there is no host 'no-such-host.invalid'; check the name" in one_line(
        done.err
    )


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
def test_a_content_type_that_is_no_stream(prepared: Canned, content_type: str) -> None:
    url = prepared.answer(f"/no-stream/{content_type}", content_type, b"{}")
    done = penstock("tail", url)
    assert (done.code, done.out) == (1, "")
    told = one_line(done.err)
    assert url in told
    assert content_type in told
    assert len([each for each in prepared.asked if url.endswith(each.path)]) == 1, "it was asked for again"


@pytest.mark.parametrize("status", [400, 500])
def test_a_status_of_400_or_more(prepared: Canned, status: int) -> None:
    url = prepared.answer(f"/status/{status}", "text/plain", b"this is\nwhy", status)
    for arguments in (("tail", url, "--retries", "0"), ("tail", "--raw", url, "--retries", "0")):
        done = penstock(*arguments)
        assert (done.code, done.out) == (1, "")
        assert f"GET {url} answered {status}" in one_line(done.err)
        assert "this is why" in done.err


def test_a_source_that_is_an_error_page_is_not_uploaded(prepared: Canned, serve: Serve, uploads: Path) -> None:
    url = prepared.answer("/error-page", "text/html", b"<h1>no</h1>", 404)
    server = serve("origin", "--directory", uploads)
    done = penstock("pipe", url, f"{server.url}/upload")
    assert done.code == 1
    assert f"{url} answered 404" in one_line(done.err)
    assert list(uploads.iterdir()) == []


def test_a_destination_that_refuses(origin: Server) -> None:
    done = penstock("pipe", f"{origin.url}/file?lines=5", f"{origin.url}/nowhere", "--json")
    assert done.code == 1
    assert done.error["type"] == "StatusError"
    assert f"POST {origin.url}/nowhere answered 404" in done.error["message"]


@pytest.mark.parametrize(
    "body", [b'{"a": 1}\n{"a":\n', b'{"a": 1}\nNaN\n', b'{"a": 1}\n"\xff"\n', b'{"a": 1}\n' + b"[" * 9999 + b"\n"]
)
def test_malformed_json_in_a_stream(prepared: Canned, body: bytes) -> None:
    url = prepared.answer(f"/malformed/{hash(body)}", "application/x-ndjson", body)
    done = penstock("tail", url, "--json")
    assert done.code == 1
    assert done.records[0] == {"record": {"a": 1}}
    assert done.error["type"] in ("DecodeError", "LimitExceeded")
    plain = penstock("tail", url)
    assert (plain.code, plain.out) == (1, '{"a":1}\n')
    assert one_line(plain.err) == done.error["message"]


def test_malformed_utf8_in_events_is_replaced_as_the_standard_says(prepared: Canned) -> None:
    url = prepared.answer("/bad-utf8", "text/event-stream", b"data: a\xff\n\ndata: b\n\n")
    done = penstock("tail", url)
    assert (done.code, done.out) == (0, "a\N{REPLACEMENT CHARACTER}\nb\n")


def test_a_malformed_event_of_the_origin_is_no_traceback(origin: Server) -> None:
    url = f"{origin.url}/trigger_invocation?interval=0&malformed_after=2"
    done = penstock("tail", url, "-d", '{"query": "x"}')
    assert "Traceback" not in done.err
    assert len(done.out.splitlines()) == 6
    assert '{"Count": 1, "Data": "\N{REPLACEMENT CHARACTER}' in done.out


def test_a_missing_file_and_a_directory(origin: Server, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for arguments, where, what in (
        (("pipe", missing, f"{origin.url}/upload"), missing, "No such file or directory; check the path"),
        (("pipe", "localhost:80/x", f"{origin.url}/upload"), "localhost:80/x", "write a URL with http://"),
        (("pipe", tmp_path, f"{origin.url}/upload"), tmp_path, "is a directory; name a file"),
        (("tail", origin.url, "-d", f"@{missing}"), missing, "No such file or directory; check the path"),
        (("tail", origin.url, "-d", f"@{tmp_path}"), tmp_path, "is a directory"),
        (("origin", "--listen", ":0", "--file", missing), missing, ""),
        (("origin", "--listen", ":0", "--file", tmp_path), tmp_path, ""),
    ):
        done = penstock(*arguments)
        assert (done.code, done.out) == (1, ""), arguments
        told = one_line(done.err)
        assert str(where) in told
        assert what in told


def test_a_directory_that_cannot_be_written_to(tmp_path: Path, serve: Serve, uploads: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for directory, why in ((tmp_path / "missing", "does not exist"), (file, "is not a directory")):
        done = penstock("origin", "--listen", ":0", "--directory", directory)
        assert done.code == 1
        assert one_line(done.err).startswith(f"cannot store uploads in {directory}: it {why}; create it or choose")
    server = serve("origin", "--directory", uploads)
    uploads.rmdir()  # as good as unwritable, and for root as well
    done = penstock("pipe", file, f"{server.url}/upload")
    assert done.code == 1
    assert "answered 500" in one_line(done.err)
    assert "the upload cannot be stored" in done.err
    assert f"cannot store an upload in {uploads}" in server.said("cannot store an upload")


@pytest.mark.parametrize("command", [("origin",), ("relay", "http://127.0.0.1:1")], ids=["origin", "relay"])
def test_a_busy_port(command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        where = f"127.0.0.1:{held.getsockname()[1]}"
        done = penstock(*command, "--listen", where)
        assert done.code == 1
        told = one_line(done.err)
        assert told.startswith(f"cannot listen on {where}: the address is already in use")
        assert "--listen" in told
        assert penstock(*command, "--listen", where, "--json").error["type"] == "ListenError"


def test_a_host_that_is_not_this_machine() -> None:
    assert penstock("origin", "--listen", "192.0.2.1:0").code == 1
    done = penstock("origin", "--listen", "no-such-host.invalid:0")
    assert done.code == 1
    assert "'no-such-host.invalid' is unknown" in one_line(done.err)


def test_a_silent_server_is_given_up(origin: Server) -> None:
    url = f"{origin.url}/events?stall_after=1"
    for options, what in (
        (("--timeout-between", "0.2"), "went silent for 0.2 s"),
        (("--timeout", "0.3"), "not finished within the total timeout of 0.3 s"),
    ):
        done = penstock("tail", url, "--retries", "0", *options)
        assert (done.code, done.out) == (1, '{"n":1}\n')
        assert what in one_line(done.err)
    done = penstock("tail", f"{origin.url}/events?stall_after=0", "--retries", "0", "--timeout-first", "0.2")
    assert done.code == 1
    assert "no response within 0.2 s" in one_line(done.err)


def test_closed_streams_of_our_own_are_no_traceback(origin: Server) -> None:
    for command, code in ((f"tail {origin.url}/events?count=1", 0), (f"pipe - {origin.url}/upload", 2)):
        shell = f"exec {' '.join(PENSTOCK)} {command} <&- >&-"
        done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, timeout=PATIENCE, check=False, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert subprocess.run(["sh", "-c", f"{shell} 2>&-"], timeout=PATIENCE, check=False).returncode == code


def test_a_log_whose_reader_has_left_does_not_end_a_transfer(serve: Serve, uploads: Path) -> None:
    server = serve("origin", "--directory", uploads)
    command = [*PENSTOCK, "pipe", f"{server.url}/file?lines=1000", f"{server.url}/upload", "--digest", "md5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        assert running.stdout is not None
        running.stderr.close()
        assert running.stdout.read().startswith(b"md5  ")
        assert running.wait(PATIENCE) == 0
    assert [each.name for each in uploads.iterdir()] == ["large.txt"]
