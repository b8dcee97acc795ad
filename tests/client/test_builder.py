from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, End, MultipartBuilder, RequestBuilder, Timeout
from penstock.client.body import Bytes
from penstock.testing import close, script, wait_request
from tests.client.peers import answer, body_of, fields_of, once, retries

pytestmark = pytest.mark.anyio

CLIENT = AsyncClient("http://h/v1")


async def pieces(*values: bytes) -> AsyncIterator[bytes]:
    for value in values:
        yield value


async def sent(describe: Callable[[AsyncClient], RequestBuilder], **settings: Any) -> bytes:
    """The request that a builder becomes."""
    async with script(*once(answer())) as server, AsyncClient(server.url, **settings) as client:
        assert (await describe(client).read()).status == 200
        return server.requests[0]


# -- frozen


@pytest.mark.parametrize(
    "setter",
    [
        lambda builder: builder.header("A", "1"),
        lambda builder: builder.headers({"A": "1", "B": "2"}),
        lambda builder: builder.param("a", 1),
        lambda builder: builder.json({}),
        lambda builder: builder.content(b"x"),
        lambda builder: builder.body(Bytes(b"x")),
        lambda builder: builder.timeout(3),
        lambda builder: builder.retry(7),
        lambda form: form.field("a", "b"),
        lambda form: form.file("a", "b", b"c"),
        lambda form: form.header("A", "1").param("a", 1).timeout(3).retry(7),
    ],
)
def test_each_setter_gives_a_new_builder_and_leaves_the_old_one(setter: Callable[[Any], Any]) -> None:
    is_form = "form" in inspect.signature(setter).parameters
    old: RequestBuilder = CLIENT.multipart("/x") if is_form else CLIENT.post("/x")
    before = repr(old)
    new = setter(old)
    assert type(new) is type(old)
    assert new is not old
    assert repr(old) == before != repr(new)


@pytest.mark.parametrize(
    "setter",
    [lambda form: form.json({}), lambda form: form.content(b"x"), lambda form: form.body(Bytes(b"x"))],
    ids=["json", "content", "body"],
)
def test_a_form_has_no_body_but_its_parts(setter: Callable[[MultipartBuilder], Any]) -> None:
    with pytest.raises(TypeError, match=r"a form's body is its parts: add them with \.field\(\)"):
        setter(CLIENT.multipart("/x").field("a", "b"))


def test_a_builder_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLIENT.get("/")._method = "POST"  # type: ignore[misc]  # noqa: SLF001


async def test_a_builder_can_be_sent_many_times_and_shared() -> None:
    async with script(*[once(answer())] * 4) as server, AsyncClient(server.url) as client:
        base = client.post("/a").header("X", "1").content(b"body")
        for builder in (base, base, base.header("Y", "2"), base):
            await builder.read()
        heads = [fields_of(request) for request in server.requests]
        assert heads[0] == heads[1] == heads[3]
        assert (heads[2].pop("y"), heads[2]) == ("2", heads[0])
        assert [body_of(request) for request in server.requests] == [b"body"] * 4


# -- headers


async def test_headers_keep_their_order_and_repetitions() -> None:
    request = await sent(lambda client: client.get("/").header("X-A", "1").headers({"X-B": "2"}).header("X-A", "3"))
    lines = [line for line in request.decode().split("\r\n") if line.startswith("X-")]
    assert lines == ["X-A: 1", "X-B: 2", "X-A: 3"]


async def test_a_requests_header_takes_the_place_of_the_clients() -> None:
    request = await sent(
        lambda client: client.get("/").header("x-a", "mine").header("user-agent", "me"),
        headers={"X-A": "client's", "X-B": "client's", "Accept-Encoding": "gzip"},
    )
    found = fields_of(request)
    assert request.lower().count(b"x-a:") == request.lower().count(b"user-agent:") == 1
    assert (found["x-a"], found["x-b"], found["user-agent"]) == ("mine", "client's", "me")
    assert (found["accept-encoding"], found["accept"]) == ("gzip", "*/*")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nEvil: 1"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X\r\nEvil", "1"),
        ("X Y", "1"),
        ("X:", "1"),
        ("", "1"),
        ("é", "1"),
    ],
)
def test_header_injection_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        CLIENT.get("/").header(name, value)
    with pytest.raises(ValueError, match="header"):
        CLIENT.multipart("/").headers({name: value})
    with pytest.raises(ValueError, match="header"):
        AsyncClient(headers={name: value})


@pytest.mark.parametrize(
    ("value", "wire"), [("é", b"\xc3\xa9"), ("\udcff", b"\xff"), (" padded\t", b"padded"), ("", b"")]
)
async def test_header_values_go_out_as_utf8_or_as_the_bytes_that_the_command_line_gave(value: str, wire: bytes) -> None:
    assert b"X-V: " + wire + b"\r\n" in await sent(lambda client: client.get("/").header("X-V", value))


# -- parameters


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("/p", "/p?a=1&b=x+y%26&a=%C3%A9"),
        ("/p?q=%20", "/p?q=%20&a=1&b=x+y%26&a=%C3%A9"),
        ("/p#part", "/p?a=1&b=x+y%26&a=%C3%A9"),
        ("", "/?a=1&b=x+y%26&a=%C3%A9"),
    ],
)
async def test_parameters_are_added_to_the_query(url: str, target: str) -> None:
    request = await sent(lambda client: client.get(url).param("a", 1).param("b", "x y&").param("a", "é"))
    assert request.decode().split(" ")[1] == target


# -- bodies


async def test_json() -> None:
    request = await sent(lambda client: client.post("/").json({"query": "é"}))
    assert json.loads(body_of(request)) == {"query": "é"}
    assert fields_of(request)["content-type"] == "application/json"


async def test_a_content_type_of_ones_own() -> None:
    request = await sent(lambda client: client.post("/").json({}).header("content-TYPE", "application/x.mine+json"))
    assert request.lower().count(b"content-type") == 1
    assert fields_of(request)["content-type"] == "application/x.mine+json"


@pytest.mark.parametrize(
    ("describe", "length"),
    [
        (lambda client: client.post("/").content(b"12345"), "5"),
        (lambda client: client.post("/").content("é"), "2"),
        (lambda client: client.post("/").content(b""), "0"),
        (lambda client: client.post("/"), "0"),
        (lambda client: client.post("/").content(pieces(b"123", b"45"), length=5), "5"),
        (lambda client: client.post("/").content(pieces(b"123", b"45")), None),
        (lambda client: client.post("/").content(pieces()), None),
        (lambda client: client.put("/").content(pieces(b"1")), None),
        (lambda client: client.delete("/").content(b"12"), "2"),
    ],
)
async def test_content_length_if_and_only_if_it_is_known(
    describe: Callable[[AsyncClient], RequestBuilder], length: str | None
) -> None:
    found = fields_of(await sent(describe))
    assert found.get("content-length") == length
    assert found.get("transfer-encoding") == (None if length is not None else "chunked")


@pytest.mark.parametrize("method", ["get", "head", "delete", "options"])
async def test_no_body_has_no_length(method: str) -> None:
    found = fields_of(await sent(lambda client: client.request(method, "/")))
    assert "content-length" not in found
    assert "transfer-encoding" not in found


# -- multipart


async def test_the_sample_server_takes_a_form(origin: str, tmp_path: Path) -> None:
    (tmp_path / "disk.bin").write_bytes(b"disk")
    async with AsyncClient(origin) as client, client.get("/file?lines=3").send() as file:
        form = (
            client.multipart("/upload")
            .header("Accept", "application/json")
            .field("owner", "me")
            .file("file", file.filename, file)
            .file("file", "disk.bin", tmp_path / "disk.bin")
            .file("file", "bytes.bin", b"bytes")
            .file("file", "iter.bin", pieces(b"it", b"er"))
        )
        answered = json.loads((await form.read()).content)
    assert [(each["filename"], each["bytes"]) for each in answered["files"]] == [
        ("large.txt", 126),
        ("disk.bin", 4),
        ("bytes.bin", 5),
        ("iter.bin", 4),
    ]
    assert (tmp_path / "large.txt").read_text().splitlines()[2] == "Line 3: This is a line in the large file."


@pytest.mark.parametrize(
    ("source", "length"),
    [
        ("response", True),
        ("response of unknown length", False),
        ("path", True),
        ("bytes", True),
        ("iterator", False),
        ("iterator, told", True),
    ],
)
async def test_a_form_has_a_length_if_and_only_if_every_part_has_one(
    origin: str, tmp_path: Path, source: str, length: bool
) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    async with AsyncClient(origin) as reader, script(*once(answer())) as server, AsyncClient(server.url) as client:
        form = client.multipart("/").field("a", "b")
        match source:
            case "response":
                form = form.file("f", "n", await reader.get("/file?lines=1").send())
            case "response of unknown length":
                form = form.file("f", "n", await reader.get("/generate?chunks=2&interval=0").send())
            case "path":
                form = form.file("f", "n", tmp_path / "f")
            case "bytes":
                form = form.file("f", "n", b"12345")
            case "iterator":
                form = form.file("f", "n", pieces(b"12345"))
            case _:
                form = form.file("f", "n", pieces(b"12345"), length=5)
        await form.read()
        request = server.requests[0]
    found = fields_of(request)
    assert ("content-length" in found) == length
    if length:
        assert int(found["content-length"]) == len(request.partition(b"\r\n\r\n")[2])
    assert found["content-type"].startswith("multipart/form-data; boundary=")


async def test_a_forms_parts_are_what_was_said() -> None:
    request = await sent(
        lambda client: (
            client.multipart("/", method="put").field("a", "1").field("b", b"\xff").file("f", 'q".txt', b"text")
        )
    )
    assert request.startswith(b"PUT / ")
    body = body_of(request)
    boundary = fields_of(request)["content-type"].partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    assert parts[1] == b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    assert parts[2] == b'\r\nContent-Disposition: form-data; name="b"\r\n\r\n\xff\r\n'
    assert parts[3] == (
        b'\r\nContent-Disposition: form-data; name="f"; filename="q%22.txt"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\ntext\r\n"
    )


async def test_a_form_is_sent_again_with_a_boundary_of_its_own() -> None:
    async with script(once(answer()), once(answer())) as server, AsyncClient(server.url) as client:
        form = client.multipart("/").file("f", "n", b"x")
        await form.read()
        await form.read()
        first, second = (fields_of(request)["content-type"] for request in server.requests)
        assert first != second


async def test_a_form_of_parts_in_memory_is_retried() -> None:
    busy = answer(b"", "503 Busy")
    async with script(once(busy), once(answer())) as server, AsyncClient(server.url, retry=retries(1)) as client:
        assert (await client.multipart("/").file("f", "n", b"x").read()).status == 200
        assert body_of(server.requests[0]) == body_of(server.requests[1])


async def test_an_error_page_is_not_uploaded(origin: str) -> None:
    async with AsyncClient(origin) as client, client.get("/file?status=404").send() as file:
        with pytest.raises(penstock.StatusError, match=r"404.*nothing was sent on"):
            client.multipart("/upload").file("file", file.filename, file)


async def test_a_source_that_breaks_breaks_the_upload_and_leaves_no_file(origin: str, tmp_path: Path) -> None:
    async with AsyncClient(origin, retry=retries(3)) as client:
        async with client.get("/file?lines=100000&cut_after=3").send() as file:
            with pytest.raises(penstock.StreamTruncated, match="/file"):
                await client.multipart("/upload").file("file", file.filename, file).read()
        assert (await client.get("/").read()).status == 200
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_file_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CLIENT.multipart("/").file("f", "n", tmp_path / "nothing")


# -- policies


def test_a_number_is_the_total_and_keeps_the_rest() -> None:
    client = AsyncClient("http://h", timeout=Timeout(connect=1, first_event=2, between_events=3, total=4))

    def timeout(builder: RequestBuilder) -> Timeout:
        return builder._request().timeout  # noqa: SLF001 – what a middleware would see

    assert timeout(client.get("/")) == Timeout(1, 2, 3, 4)
    assert timeout(client.get("/").timeout(9)) == Timeout(1, 2, 3, 9)
    assert timeout(client.get("/").timeout(Timeout(connect=7)).timeout(9)) == Timeout(connect=7, total=9)
    assert timeout(client.get("/").timeout(None)) == Timeout(None, None, None, None)


async def test_a_number_of_retries_keeps_the_rest_of_the_policy() -> None:
    busy = answer(b"", "503 Busy", "Retry-After: 0")
    async with script(*[once(busy)] * 9) as server, AsyncClient(server.url, retry=retries(5)) as client:
        await client.get("/").retry(1).read()
        assert server.connections == 2
        await client.get("/").retry(0).read()
        assert server.connections == 3


# -- terminals


async def test_send_gives_a_response_to_await_or_to_enter() -> None:
    async with script(*[once(answer(b"12"))] * 2) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        assert await response.read() == b"12"
        async with client.get("/").send() as response:
            ends: list[End] = []
            response.on_end(ends.append)
            assert ends == []
        assert [end.reason for end in ends] == ["cancelled"]


async def test_entering_closes_what_was_not_read_also_when_it_fails() -> None:
    async with script(wait_request(), answer(b"12", length=100)) as server, AsyncClient(server.url) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.get("/").send() as response:
                raise ZeroDivisionError
        assert response.end is not None


async def test_leaving_a_request_that_failed_is_its_failure() -> None:
    async with script(wait_request(), close()) as server, AsyncClient(server.url, retry=0) as client:
        with pytest.raises(penstock.ReadError):
            async with client.get("/").send():
                pytest.fail("there is no response")


async def test_read_gives_a_buffered_response_of_any_status() -> None:
    raw = answer(b'{"a":1}', "418 Teapot", "X-A: 1")
    async with script(*once(raw)) as server, AsyncClient(server.url) as client:
        response = await client.get("/x").read()
    assert (response.status, response.content, response.url) == (418, b'{"a":1}', server.url + "/x")
    assert (response.headers["x-a"], response.text, response.json()) == ("1", '{"a":1}', {"a": 1})


async def test_read_is_bounded() -> None:
    async with script(*once(answer(b"x" * 11))) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.LimitExceeded):
            await client.get("/").read(max_bytes=10)
