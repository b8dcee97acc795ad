from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.origin import OriginError, app
from penstock.testing import serve
from tests.raw import ask, connected, request, until

pytestmark = pytest.mark.anyio

WHOLE = b"".join(b"Line %d: This is a line in the large file.\n" % i for i in range(1, 2001))


async def test_the_index_names_every_endpoint(url: str) -> None:
    answer = await ask(url, "/")
    assert answer.headers["content-type"].startswith("text/plain")
    for name in (
        "/file",
        "/upload",
        "/generate",
        "/trigger_invocation",
        "/events",
        "/v1/chat/completions",
        "cut_after",
    ):
        assert name in answer.body.decode()


async def test_the_file_of_the_seed(url: str, log: Callable[[], list[str]]) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/file"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 478888897\r\n" in head
        assert b"content-disposition: attachment; filename=large.txt\r\n" in head
        assert (await reader.readline()) == b"Line 1: This is a line in the large file.\n"
    await until(log)
    assert "GET /file: the reader left after " in log()[0]


async def test_a_whole_file(url: str, log: Callable[[], list[str]]) -> None:
    answer = await ask(url, "/file?lines=2000")
    assert (answer.status, answer.body, answer.complete) == (200, WHOLE, True)
    assert log() == [f"GET /file: {len(WHOLE)} bytes sent"]


async def test_head_has_the_fields_and_no_body(url: str) -> None:
    got, head = await ask(url, "/file?lines=2000"), await ask(url, "/file?lines=2000", "HEAD")
    assert head.body == b""
    assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
    assert (await ask(url, "/file?lines=2000", "HEAD", "Range: bytes=0-1\r\n")).status == 200


async def test_a_download_resumes_where_it_was_cut(url: str) -> None:
    tag = (await ask(url, "/file?lines=2000")).headers["etag"]
    rest = await ask(url, "/file?lines=2000", headers=f"Range: bytes=70000-\r\nIf-Range: {tag}\r\n")
    assert (rest.status, rest.body) == (206, WHOLE[70000:])
    assert rest.headers["content-range"] == f"bytes 70000-{len(WHOLE) - 1}/{len(WHOLE)}"
    other = await ask(url, "/file?lines=1999", headers=f"Range: bytes=70000-\r\nIf-Range: {tag}\r\n")
    assert (other.status, len(other.body)) == (200, len(WHOLE) - 45), "another file is sent from its beginning"


async def test_304_and_416(url: str) -> None:
    tag = (await ask(url, "/file?lines=5")).headers["etag"]
    same = await ask(url, "/file?lines=5", headers=f"If-None-Match: {tag}\r\n")
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    beyond = await ask(url, "/file?lines=5", headers="Range: bytes=210-\r\n")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */210")


@pytest.mark.parametrize("lines", ["-1", "x", "1.5", "1000000000001", ""])
async def test_lines_out_of_range(url: str, lines: str) -> None:
    answer = await ask(url, f"/file?lines={lines}")
    assert answer.status == 422
    assert json.loads(answer.body)["detail"].startswith("lines must be a whole number from 0 to 1000000000000")


async def test_no_such_place_and_no_such_method(url: str) -> None:
    lost, wrong = await ask(url, "/nope"), await ask(url, "/generate", "DELETE")
    assert (lost.status, wrong.status) == (404, 405)
    assert "GET / tells what is served" in json.loads(lost.body)["detail"]
    assert "GET" in wrong.headers["allow"]


async def test_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / 'ein "Bericht".txt'
    path.write_bytes(WHOLE)
    async with serve(app(tmp_path, path)) as url:
        answer = await ask(url, "/file")
        assert (answer.status, answer.body, answer.complete) == (200, WHOLE, True)
        assert answer.headers["content-disposition"].startswith("attachment; filename=")
        assert "Bericht" in answer.headers["content-disposition"]
        tag = answer.headers["etag"]
        part = await ask(url, "/file", headers=f"Range: bytes=-5\r\nIf-Range: {tag}\r\n")
        assert (part.status, part.body) == (206, WHOLE[-5:])
        path.write_bytes(WHOLE + b"more")
        again = await ask(url, "/file", headers=f"Range: bytes=-5\r\nIf-Range: {tag}\r\n")
        assert (again.status, again.body) == (200, WHOLE + b"more")
        path.unlink()
        assert (await ask(url, "/file")).status == 500


async def test_a_file_that_shrinks_is_not_padded_nor_complete(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    path = tmp_path / "big"
    size = 64 << 20
    with path.open("wb") as file:
        file.truncate(size)
    async with serve(app(tmp_path, path)) as url, connected(url) as (reader, writer):
        writer.write(request("/file"))
        await reader.readexactly(1000)
        with path.open("wb") as file:
            file.truncate(1000)
        received = 1000
        while data := await reader.read(1 << 20):
            received += len(data)
    assert received < size
    assert [line for line in log() if "shrank" in line]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_directory_that_is_none_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.touch()
    with pytest.raises(OriginError, match=r"cannot store uploads in .*it: it .*--directory"):
        app(path)


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OriginError, match="No such file"):
        app(tmp_path, tmp_path / "nope")
