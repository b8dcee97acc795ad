"""How an upload looks on the wire, and destinations that refuse it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import penstock
from penstock.client.settings import Timeout
from penstock.origin.app import app as origin
from penstock.origin.content import length_of
from penstock.testing import serve
from penstock.transfer.destination import Multipart, Put
from penstock.transfer.pipe import pipe
from penstock.transfer.source import Source
from tests.transfer.ends import ANSWER, Conduct, Upload, recorder, stored, take

pytestmark = pytest.mark.anyio


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536


# -- on the wire


@pytest.mark.parametrize("length", [None, 6])
async def test_a_form_byte_for_byte(length: int | None) -> None:
    async with recorder() as destination:
        form = Multipart(destination.url, "doc", 'a"b.txt', {"owner": "me", "two": "l1\nl2"}, {"X-Key": "k"})
        await pipe(Source(pieces(b"abc", b"def"), length=length), form)
        upload = destination.upload
        assert upload.head.startswith(b"POST /upload HTTP/1.1\r\n")
        found = re.fullmatch(r"multipart/form-data; boundary=(.+)", upload.value("content-type") or "")
        assert found
        boundary = found[1]
        assert upload.body.decode() == (
            f'--{boundary}\r\nContent-Disposition: form-data; name="owner"\r\n\r\nme\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="two"\r\n\r\nl1\r\nl2\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="doc"; filename="a%22b.txt"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\nabcdef\r\n--{boundary}--\r\n"
        )
        assert upload.value("x-key") == "k"
        if length is None:
            assert upload.value("transfer-encoding") == "chunked"
            assert upload.value("content-length") is None
        else:
            assert upload.value("transfer-encoding") is None
            assert upload.value("content-length") == str(len(upload.body))


@pytest.mark.parametrize("length", [None, 6])
async def test_a_raw_body_byte_for_byte(length: int | None) -> None:
    async with recorder() as destination:
        await pipe(Source(pieces(b"abc", b"def"), length=length), Put(destination.url, {"X-Key": "k"}))
        upload = destination.upload
        assert upload.head.startswith(b"PUT /upload HTTP/1.1\r\n")
        assert upload.body == b"abcdef"
        assert upload.value("x-key") == "k"
        assert upload.value("content-length") == (None if length is None else "6")
        assert upload.value("transfer-encoding") == ("chunked" if length is None else None)


async def test_two_uploads_have_two_boundaries() -> None:
    async with recorder() as destination:
        for _ in range(2):
            await pipe(pieces(b"x"), destination.url)
        assert len({upload.value("content-type") for upload in destination.uploads}) == 2


async def test_a_url_with_the_forms_options(tmp_path: Path) -> None:
    path = tmp_path / "named.bin"
    path.write_bytes(b"data")
    async with recorder() as destination:
        await pipe(path, destination.url, field="doc", filename="other.txt", form={"owner": "me"})
        body = bytes(destination.upload.body)
        assert b'name="doc"; filename="other.txt"' in body
        assert b'name="owner"\r\n\r\nme\r\n' in body


async def test_the_sources_media_type_is_the_parts(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        await pipe(f"{source}/file?lines=1", destination.url)
        assert b"Content-Type: text/plain; charset=utf-8\r\n\r\nLine 1" in destination.upload.body


@pytest.mark.parametrize("options", [{"field": "f"}, {"form": {"a": "b"}}])
@pytest.mark.parametrize("target", [Multipart("http://x/"), Put("http://x/")])
async def test_options_of_a_form_do_not_go_with_a_destination_that_has_its_own(
    target: Multipart | Put, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="belong to a destination that is a URL"):
        await pipe(pieces(), target, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x/"])
async def test_a_destination_that_is_no_url(url: str) -> None:
    with pytest.raises(penstock.InvalidURL):
        await pipe(pieces(b"x"), url)


# -- the origin as a destination


@pytest.mark.parametrize("put", [False, True])
async def test_a_file_is_stored_whole(tmp_path: Path, put: bool) -> None:
    async with serve(origin(tmp_path)) as server:
        url = f"{server}/upload"
        await pipe(f"{server}/file?lines=5000", Put(f"{url}/large.txt") if put else url)
        assert stored(tmp_path) == ["large.txt"]
        assert (tmp_path / "large.txt").stat().st_size == length_of(5000)


# -- refusals


def saying(answer: bytes, *, after: int) -> Conduct:
    """Answer after so many bytes of the body, and close."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await reader.readexactly(after)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        with contextlib.suppress(OSError):  # read on for a moment: a reset would take the answer back
            async with asyncio.timeout(0.3):
                while await reader.read(1 << 18):
                    pass
        raise ConnectionResetError

    return conduct


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500, 507])
async def test_a_refusal_names_the_destination_the_status_and_what_was_said(status: int) -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 12\r\n\r\nno such luck" % status)

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.StatusError, match="no such luck") as refused:
            await pipe(pieces(b"x"), destination.url, retries=3)
        assert refused.value.status == status
        assert refused.value.url == destination.url
        assert destination.url in str(refused.value)
        assert len(destination.uploads) == 1


@pytest.mark.parametrize("status", [401, 413])
async def test_a_refusal_in_mid_upload_is_heard(status: int) -> None:
    answer = b"HTTP/1.1 %d No\r\nContent-Length: 3\r\nConnection: close\r\n\r\nwhy" % status
    async with recorder(saying(answer, after=100_000)) as destination:
        with pytest.raises(penstock.PenstockError, match=destination.url) as refused:
            await pipe(endless(), destination.url)
        # A reset that overtakes the answer leaves no more to tell than that the connection was lost.
        assert isinstance(refused.value, penstock.StatusError | penstock.TransportError)


async def test_a_success_before_the_end_is_none() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

    async def slow_end() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        while True:
            await asyncio.sleep(0.01)
            yield b"x" * 65536

    async with recorder(saying(answer, after=500)) as destination:
        with pytest.raises(penstock.PenstockError, match=destination.url) as refused:
            await pipe(slow_end(), destination.url)
        assert isinstance(refused.value, penstock.ProtocolError | penstock.TransportError)


@pytest.mark.parametrize("after", [0, 100_000])
async def test_a_destination_that_hangs_up(after: int) -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await reader.readexactly(after)
        raise ConnectionResetError

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.TransportError, match=destination.url):
            await pipe(endless(), destination.url, retries=3)
        assert len(destination.uploads) == 1  # a part of it may be with them: not sent twice


async def test_a_destination_that_never_answers() -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.ReadTimeout, match=destination.url):
            await pipe(pieces(b"x"), destination.url, timeout=Timeout(between_events=0.3))


async def test_a_destination_that_stops_reading() -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await asyncio.Event().wait()

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.WriteTimeout, match=destination.url):
            await pipe(endless(), destination.url, timeout=Timeout(between_events=0.3))


async def test_the_total_is_that_of_the_upload_too() -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        while await reader.read(65536):
            pass

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.ReadTimeout, match=destination.url):
            await pipe(endless(), destination.url, timeout=0.5)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"no HTTP at all\r\n\r\n"])
async def test_an_answer_that_is_not_whole_is_no_success(answer: bytes) -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        writer.write(answer)
        raise ConnectionResetError

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.PenstockError, match=destination.url):
            await pipe(pieces(b"x"), destination.url)


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_a_destination_that_has_moved_has_taken_nothing(status: int) -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        writer.write(b"HTTP/1.1 %d Moved\r\nLocation: https://new.test/up\r\nContent-Length: 0\r\n\r\n" % status)

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.ProtocolError, match=r"https://new\.test/up"):
            await pipe(pieces(b"x"), destination.url)


async def test_a_page_to_look_at_after_the_upload_is_a_success() -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        writer.write(b"HTTP/1.1 303 See Other\r\nLocation: /done\r\nContent-Length: 0\r\n\r\n")

    async with recorder(conduct) as destination:
        report = await pipe(pieces(b"x"), destination.url)
        assert report.destination["status"] == 303


# -- sent again, or not


async def test_what_can_be_read_again_is_sent_again_when_the_destination_did_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789" * 50_000)

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(busy if len(destination.uploads) == 1 else ANSWER)

    async with recorder(conduct) as destination:
        report = await pipe(path, destination.url, retries=1, digest="sha256")
        first, second = destination.uploads
        assert first.file == second.file == path.read_bytes()
        assert report.bytes == 500_000  # of what the destination took, not of both


async def test_what_can_be_read_once_is_not_sent_again() -> None:
    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        await take(reader, upload)
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    async with recorder(conduct) as destination:
        with pytest.raises(penstock.StatusError, match="503"):
            await pipe(pieces(b"x"), destination.url, retries=3)
        assert len(destination.uploads) == 1
