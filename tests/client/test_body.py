from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock import AsyncClient, StatusError
from penstock.client.body import READ_SIZE, Body, Bytes, Form, Outgoing, Stream, boundary, content_body, json_body
from penstock.testing import script, wait_request
from penstock.wire import multipart
from tests.client.peers import answer, once

pytestmark = pytest.mark.anyio


async def drained(body: Body) -> bytes:
    return b"".join([piece async for piece in body.open() if isinstance(piece, bytes)])


async def pieces(*values: bytes) -> AsyncIterator[bytes]:
    for value in values:
        yield value


class Again:
    """An iterable of bytes that can be iterated as often as one likes."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"again"


# -- JSON


@pytest.mark.parametrize(
    ("value", "text"),
    [({"query": "héllo", "n": [1, 2.5, None]}, '{"query":"héllo","n":[1,2.5,null]}'), ("x", '"x"'), (None, "null")],
)
async def test_json_is_compact_utf8(value: Any, text: str) -> None:
    body = json_body(value)
    assert (await drained(body)).decode() == text
    assert (body.content_type, body.length, body.replayable) == ("application/json", len(text.encode()), True)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"x": -math.inf}])
def test_json_has_no_nan(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_body(value)


def test_json_has_no_form_for_everything() -> None:
    with pytest.raises(TypeError):
        json_body(object())


# -- what yields bytes


async def test_text_is_utf8_and_says_so() -> None:
    body = content_body("é")
    assert (await drained(body), body.content_type, body.length) == (b"\xc3\xa9", "text/plain; charset=utf-8", 2)
    assert content_body("é", content_type="text/csv").content_type == "text/csv"


async def test_bytes_are_as_they_are_and_can_be_sent_again() -> None:
    body = content_body(b"\x00\xff")
    assert [await drained(body), await drained(body)] == [b"\x00\xff"] * 2
    assert (body.content_type, body.length, body.replayable) == (None, 2, True)


async def test_a_path_is_read_in_pieces_and_can_be_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_bytes(b"x" * (READ_SIZE + 1))
    body = content_body(path)
    assert [len(piece) async for piece in body.open() if isinstance(piece, bytes)] == [READ_SIZE, 1]
    assert len(await drained(body)) == READ_SIZE + 1
    assert (body.content_type, body.length, body.replayable) == ("text/csv", READ_SIZE + 1, True)
    path.rename(tmp_path / "report")
    assert content_body(tmp_path / "report").content_type == "application/octet-stream"


def test_a_path_that_is_not_there_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content_body(tmp_path / "nothing")


async def test_an_iterator_is_sent_once() -> None:
    body = content_body(pieces(b"a", b"b"), length=2)
    assert (body.length, body.replayable) == (2, False)
    assert await drained(body) == b"ab"
    with pytest.raises(RuntimeError, match="already sent"):
        body.open()


async def test_an_iterable_that_begins_anew_may_be_sent_by_its_owner_twice_but_not_by_a_retry() -> None:
    body = content_body(Again())
    assert [await drained(body), await drained(body)] == [b"again"] * 2
    assert not body.replayable


@pytest.mark.parametrize("wrong", [5, None, ["a"], iter([b"a"])])
def test_what_yields_no_bytes_asynchronously_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
        content_body(wrong)


async def test_a_response_brings_its_type_and_its_length() -> None:
    source = answer(b"a,b", "200 OK", "Content-Type: text/csv")
    async with script(*once(source)) as server, AsyncClient(server.url) as client, client.get("/").send() as response:
        body = content_body(response)
        assert (body.content_type, body.length, body.replayable) == ("text/csv", 3, False)
        assert content_body(response, content_type="x/y", length=7).length == 7
        assert await drained(body) == b"a,b"
        with pytest.raises(RuntimeError, match="already read"):
            await drained(body)


async def test_an_error_page_is_not_what_was_asked_for() -> None:
    async with (
        script(*once(answer(b"gone", "404 Not Found"))) as server,
        AsyncClient(server.url) as client,
        client.get("/x").send() as response,
    ):
        with pytest.raises(StatusError, match=r"/x answered 404: that is an error page.*nothing was sent on") as caught:
            content_body(response)
        assert caught.value.status == 404


# -- forms


async def test_a_form_is_its_framing_and_its_files_and_as_long_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"file")
    form = multipart.Form(
        [multipart.Field("a", "1"), multipart.File("f", "f.txt", length=4), multipart.File("g", "g", length=2)],
        boundary="B",
    )
    body = Form(form, (None, content_body(tmp_path / "f"), Bytes(b"gg")))
    sent = await drained(body)
    assert sent.count(b"--B") == 4
    assert [part.partition(b"\r\n\r\n")[2] for part in sent.split(b"\r\n--B")][1:3] == [b"file", b"gg"]
    assert body.length == len(sent)
    assert body.replayable
    assert body.content_type == "multipart/form-data; boundary=B"


def test_a_form_is_as_replayable_and_as_long_as_all_of_its_files() -> None:
    form = multipart.Form([multipart.File("f", "f", length=1), multipart.File("g", "g")], boundary="B")
    body = Form(form, (Bytes(b"f"), Stream(Again())))
    assert (body.replayable, body.length) == (False, None)


def test_boundaries_are_not_guessed() -> None:
    made = {boundary() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) <= 70 for each in made)


# -- on the way


async def test_a_body_on_its_way_is_replayable_until_it_is_opened() -> None:
    body = Outgoing(content_body(pieces(b"x"), length=1, content_type="a/b"))
    assert (body.replayable, body.length, body.content_type) == (True, 1, "a/b")
    assert await drained(body) == b"x"
    assert not body.replayable
    again = Outgoing(Bytes(b"y"))
    await drained(again)
    assert again.replayable


async def test_an_abandoned_upload_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(32 * READ_SIZE))

    def held() -> bool:
        return any(link.is_symlink() and link.readlink() == path for link in Path("/proc/self/fd").iterdir())

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    async with script(wait_request()) as server, AsyncClient(server.url) as client:
        task = asyncio.create_task(client.put("/").content(path).read())
        async with asyncio.timeout(10):
            while not held():  # noqa: ASYNC110 – the thread that opens it tells nobody
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            while held():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
