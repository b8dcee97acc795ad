from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.origin import Limits, app
from penstock.testing import serve
from tests.raw import FORM, Answer, ask, connected, form, read_answer, request, until

pytestmark = pytest.mark.anyio

BIG = os.urandom(1 << 20) * 3 + b"tail"
JSON = "Accept: application/json\r\n"


def left_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


async def upload(url: str, body: bytes, headers: str = FORM, target: str = "/upload") -> Answer:
    return await ask(url, target, "POST", headers, body)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def test_a_file_is_stored_under_its_name(url: str, tmp_path: Path, log: Callable[[], list[str]]) -> None:
    answer = await upload(url, form(("large.txt", BIG)))
    assert (answer.status, answer.body) == (200, b"File large.txt uploaded and saved\n")
    assert left_in(tmp_path) == {"large.txt": BIG}
    assert log() == [f"POST /upload: large.txt saved, {len(BIG)} bytes"]


async def test_json_tells_bytes_and_digest(url: str, tmp_path: Path) -> None:
    answer = await upload(url, form(("a", BIG), ("b", b"")), FORM + "Accept: text/html;q=0.1, application/json\r\n")
    assert json.loads(answer.body) == {
        "files": [
            {"filename": "a", "bytes": len(BIG), "sha256": hashlib.sha256(BIG).hexdigest()},
            {"filename": "b", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        ]
    }
    assert left_in(tmp_path) == {"a": BIG, "b": b""}


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_the_split_of_a_chunked_body_does_not_matter(url: str, tmp_path: Path, size: int) -> None:
    content = b"\r\n--X\r\n-XX--\r" * 50
    async with connected(url) as (reader, writer):
        headers = FORM + "Transfer-Encoding: chunked\r\n"
        writer.write(request("/upload", "POST", headers) + chunked(form(("x", content)), size))
        answer = await read_answer(reader)
    assert answer.status == 200
    assert left_in(tmp_path) == {"x": content}


async def test_the_end_of_the_form_may_come_apart(url: str, tmp_path: Path) -> None:
    body = form(("x", b"content"))
    async with connected(url) as (reader, writer):
        writer.write(request("/upload", "POST", FORM, length=len(body)) + body[:-2])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(body[-2:])
        answer = await read_answer(reader)
    assert answer.status == 200
    assert left_in(tmp_path) == {"x": b"content"}


async def test_fields_are_read_and_not_stored(url: str, tmp_path: Path) -> None:
    field = b'--XX\r\nContent-Disposition: form-data; name="owner"\r\n\r\nme\r\n'
    unchosen = b'--XX\r\nContent-Disposition: form-data; name="other"; filename=""\r\n\r\n\r\n'
    assert (await upload(url, field + unchosen + form(("x", b"1")))).status == 200
    assert left_in(tmp_path) == {"x": b"1"}
    assert (await upload(url, field + b"--XX--\r\n")).status == 422


async def test_put_stores_the_body(url: str, tmp_path: Path) -> None:
    answer = await ask(url, "/upload/a%20b.bin", "PUT", JSON, BIG)
    assert json.loads(answer.body)["files"][0]["sha256"] == hashlib.sha256(BIG).hexdigest()
    assert left_in(tmp_path) == {"a b.bin": BIG}
    assert (await ask(url, "/upload/empty", "PUT", length=0)).body == b"File empty uploaded and saved\n"
    partial = await ask(url, "/upload/a", "PUT", "Content-Range: bytes 0-1/2\r\n", b"xx")
    assert partial.status == 400


# -- names


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        (r"C:\fakepath\x.txt", "x.txt"),
        (r"..\..\x.txt", "x.txt"),
        (".bashrc", "bashrc"),
        ("a%0D%0Ab", "ab"),
        ("données.txt", "données.txt"),
        ("n" * 300 + ".txt", "n" * 251 + ".txt"),
    ],
)
async def test_a_name_cannot_leave_the_directory(url: str, tmp_path: Path, name: str, stored: str) -> None:
    before = {path for path in tmp_path.parent.iterdir() if path != tmp_path}
    answer = await upload(url, form((name, b"content")))
    assert answer.status == 200
    assert left_in(tmp_path) == {stored: b"content"}
    assert {path for path in tmp_path.parent.iterdir() if path != tmp_path} == before


@pytest.mark.parametrize("name", ["..", ".", "/", "../", "   ", "%0A"])
async def test_a_name_of_which_nothing_remains_is_refused(url: str, tmp_path: Path, name: str) -> None:
    assert (await upload(url, form((name, b"content")))).status == 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target", ["/upload/..%2F..%2Fx", "/upload/%2Fetc%2Fx", "/upload/", "/upload/a/b", "/upload/.."]
)
async def test_put_cannot_leave_the_directory_either(url: str, tmp_path: Path, target: str) -> None:
    assert (await ask(url, target, "PUT", body=b"content")).status in (400, 404, 405)
    assert not list(tmp_path.iterdir())


async def test_a_file_of_the_same_name_is_replaced(url: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    assert (await upload(url, form(("x", b"new")))).status == 200
    assert left_in(tmp_path) == {"x": b"new"}


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "fifo"])
async def test_what_is_no_regular_file_is_left_alone(url: str, tmp_path: Path, kind: str) -> None:
    secret = tmp_path.parent / f"secret-{kind}"
    if kind != "dangling":
        secret.write_bytes(b"secret")
    target = tmp_path / "x"
    if kind in ("link", "dangling"):
        target.symlink_to(secret)
    elif kind == "directory":
        target.mkdir()
    else:
        os.mkfifo(target)
    answer = await upload(url, form(("first", b"1"), ("x", b"new")))
    assert answer.status == 409
    assert [path.name for path in tmp_path.iterdir()] == ["x"], "all or none"
    assert secret.exists() == (kind != "dangling")
    assert kind == "dangling" or secret.read_bytes() == b"secret"


# -- bad bodies


def part(headers: str, content: bytes = b"x") -> bytes:
    return f"--XX\r\n{headers}\r\n\r\n".encode() + content + b"\r\n"


END = b"--XX--\r\n"
FILE = 'Content-Disposition: form-data; name="f"; filename="x"'


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ("", form(("x", b"1")), 415),
        ("Content-Type: application/json\r\n", b"{}", 415),
        ("Content-Type: multipart/form-data\r\n", form(("x", b"1")), 400),
        ("Content-Type: multipart/form-data; boundary=\r\n", form(("x", b"1")), 400),
        (f"Content-Type: multipart/form-data; boundary={'b' * 300}\r\n", form(("x", b"1")), 400),
        ("Content-Type: multipart/form-data; boundary=YY\r\n", form(("x", b"1")), 400),
        (FORM + "Content-Encoding: gzip\r\n", form(("x", b"1")), 415),
        (FORM, form(("x", b"1"))[:-8], 400),
        (FORM, b"", 400),
        (FORM, part("Content-Disposition: attachment; filename=x") + END, 400),
        (FORM, part("Content-Type: text/plain") + END, 400),
        (FORM, part(FILE + "\r\nContent-Length: -1") + END, 400),
        (FORM, part(FILE + "\r\nContent-Length: 5") + END, 400),
        (FORM, part(FILE + "\r\nbad header") + END, 400),
        (FORM, part(FILE) + b"--XXtrailing", 400),
        (FORM, b"\r\n" * (1 << 20), 400),
        # bombs
        (FORM, part(FILE) * 101 + END, 413),
        (FORM, part(FILE + "\r\nX-A: b" * 20) + END, 413),
        (FORM, part(FILE + "\r\nX-A: " + "b" * 5000) + END, 413),
        (FORM, b"--XX\r\nX-A: " + b"b" * (1 << 20), 413),
        (FORM, part('Content-Disposition: form-data; name="f"', b"x" * (2 << 20)) + END, 413),
    ],
)
async def test_a_bad_form_is_refused_and_leaves_nothing(
    url: str, tmp_path: Path, headers: str, body: bytes, status: int
) -> None:
    answer = await ask(url, "/upload", "POST", headers, body, len(body))
    assert answer.status == status
    assert json.loads(answer.body)["detail"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_too_large_a_body_is_413_while_it_is_still_being_sent(
    tmp_path: Path, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.origin.exchange.LINGER", 0.2)
    body = form(("x", b"y" * 3_000_000))
    async with serve(app(tmp_path, limits=Limits(max_body_bytes=1_000_000))) as url:
        async with connected(url) as (reader, writer):
            if framing == "length":
                writer.write(request("/upload", "POST", FORM, length=1 << 40))
            else:
                writer.write(request("/upload", "POST", FORM + "Transfer-Encoding: chunked\r\n"))
                writer.write(chunked(body, 65536)[:-5])  # and no end
            answer = await asyncio.wait_for(read_answer(reader), 20)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert "max_body_bytes" in answer.body.decode()
    assert not list(tmp_path.iterdir())


async def test_what_never_comes_to_a_boundary_is_refused_while_it_is_still_being_sent(url: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/upload", "POST", FORM, length=1 << 30) + b"\r\n" * 100_000)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 400 ")


async def test_expect_is_answered_only_when_the_body_is_wanted(url: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/upload", "POST", FORM + "Expect: 100-continue\r\n", length=10))
        assert (await reader.readline()) == b"HTTP/1.1 100 Continue\r\n"
    async with connected(url) as (reader, writer):
        writer.write(request("/upload", "POST", "Expect: 100-continue\r\n", length=10))
        assert (await reader.readline()).startswith(b"HTTP/1.1 415 ")


# -- ends of every kind


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_sender_that_leaves_leaves_nothing(
    url: str, tmp_path: Path, log: Callable[[], list[str]], how: str
) -> None:
    body = form(("x", BIG))
    async with connected(url) as (_, writer):
        writer.write(request("/upload", "POST", FORM, length=len(body)) + body[:-100])
        await until(lambda: list(tmp_path.iterdir()))
        assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [True], "hidden until it is whole"
        if how == "reset":
            writer.transport.abort()
    await until(lambda: not list(tmp_path.iterdir()))
    await until(log)
    assert log() == ["POST /upload: the sender left before its request was complete"]


async def test_a_server_that_stops_leaves_nothing(tmp_path: Path) -> None:
    body = form(("x", BIG))
    async with serve(app(tmp_path)) as url:
        host, port = url[7:].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("/upload", "POST", FORM, length=len(body)) + body[:-100])
        await until(lambda: list(tmp_path.iterdir()))
    writer.close()
    assert not list(tmp_path.iterdir())


async def test_uploads_of_one_name_do_not_mix(url: str, tmp_path: Path) -> None:
    contents = [bytes([number]) * 2_000_000 for number in range(8)]
    answers = await asyncio.gather(*(upload(url, form(("x", content)), FORM + JSON) for content in contents))
    digests = [json.loads(answer.body)["files"][0]["sha256"] for answer in answers]
    assert digests == [hashlib.sha256(content).hexdigest() for content in contents]
    stored = left_in(tmp_path)
    assert list(stored) == ["x"]
    assert stored["x"] in contents


async def test_a_directory_that_went_away_is_one_clear_line(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    async with serve(app(directory)) as url:
        directory.rmdir()
        answer = await upload(url, form(("x", b"1")))
    assert answer.status == 500
    assert json.loads(answer.body)["detail"] == "the upload cannot be stored: No such file or directory"
    assert log() == [f"cannot store an upload in {directory}: No such file or directory"]


SERVER = """
import resource, sys, asyncio
from pathlib import Path
from penstock.origin import app
from penstock.server import bind, serve
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
serving = serve(
    app(Path(sys.argv[1])), bind("127.0.0.1", 0), grace=0.2, on_listening=lambda where: print(where, flush=True)
)
sys.exit(asyncio.run(serving))
"""


async def started(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, "http://" + (await process.stdout.readline()).decode().strip()


async def ended(process: asyncio.subprocess.Process, sig: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(sig)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    return errors.decode()


async def test_a_full_disk_is_507_and_one_line(tmp_path: Path) -> None:
    process, url = await started(str(tmp_path), "2000000")
    answer = await upload(url, form(("x", BIG)))
    errors = await ended(process)
    assert answer.status == 507
    assert not list(tmp_path.iterdir())
    assert errors.count("cannot store an upload in") == 1
    assert "Traceback" not in errors


def memory(pid: int) -> int:
    """Peak resident memory in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
async def test_memory_is_constant_while_50_mb_come_in(tmp_path: Path) -> None:
    process, url = await started(str(tmp_path))
    assert (await upload(url, form(("small", BIG)))).status == 200
    before = memory(process.pid)
    answer = await upload(url, form(("large", b"x" * 50_000_000)))
    grown = memory(process.pid) - before
    await ended(process)
    assert answer.status == 200
    assert (tmp_path / "large").stat().st_size == 50_000_000
    assert grown < 8 * 1024, f"{grown} KiB more for a file 16 times as large"


async def test_sigterm_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    process, url = await started(str(tmp_path))
    body = form(("x", BIG))
    async with connected(url) as (_, writer):
        writer.write(request("/upload", "POST", FORM, length=len(body)) + body[:-100])
        await until(lambda: list(tmp_path.iterdir()))
        errors = await ended(process)
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in errors
