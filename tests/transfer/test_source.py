"""What can be piped, and sources that break: picked up where they broke, or an error that says why not."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.client.settings import Timeout
from penstock.errors import StreamTruncated
from penstock.origin.app import app as origin
from penstock.origin.content import Lines
from penstock.resilience.backoff import Backoff
from penstock.resilience.retry import Retry
from penstock.testing import close, reset, script, serve, wait_request
from penstock.testing.script import Step
from penstock.transfer.pipe import pipe
from penstock.transfer.source import Source
from tests.transfer.ends import Upload, recorder, stored, take, until

pytestmark = pytest.mark.anyio

LINES = 60_000

Play = Sequence[Step]


def the_file(lines: int = LINES) -> bytes:
    content = Lines(lines)
    return b"".join(content.blocks(0, content.length))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once: these tests are about what is retried, not when."""
    quick = Backoff(initial=0.0, maximum=0.0)
    monkeypatch.setattr("penstock.transfer.pipe.Retry", lambda retries: Retry(retries=retries, backoff=quick))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


# -- the kinds


async def test_a_url(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        report = await pipe(f"{source}/file?lines={LINES}", destination.url, digest="sha256")
        whole = the_file()
        assert destination.upload.file == whole
        assert report.bytes == len(whole)
        assert report.digest == {"sha256": hashlib.sha256(whole).hexdigest()}
        assert report.source == {"url": f"{source}/file?lines={LINES}", "status": 200}
        assert b'filename="large.txt"' in destination.upload.body


@pytest.mark.parametrize("wrap", [lambda path: path, Source])
async def test_a_file(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "d\u00e4ta.bin"
    path.write_bytes(data := os.urandom(700_001))
    async with recorder() as destination:
        report = await pipe(wrap(path), destination.url, digest="sha256")
        assert destination.upload.file == data
        assert report.digest == {"sha256": hashlib.sha256(data).hexdigest()}
        assert report.source == {"url": str(path), "status": None}
        assert 'filename="d\u00e4ta.bin"'.encode() in destination.upload.body


async def test_an_async_iterable() -> None:
    async with recorder() as destination:
        report = await pipe(pieces(b"one", b"", b"two"), destination.url)
        assert destination.upload.file == b"onetwo"
        assert destination.upload.value("transfer-encoding") == "chunked"
        assert report.source == {"url": "the given stream", "status": None}


async def test_a_response_of_a_clients_own(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination, penstock.AsyncClient(source) as client:
        async with client.get("/file?lines=1000").send() as response:
            report = await pipe(response, destination.url)
        assert destination.upload.file == the_file(1000)
        assert report.bytes == len(the_file(1000))


async def test_headers_for_the_source_alone(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with script(wait_request(), answer) as source, recorder() as destination:
        await pipe(Source(source.url, {"Authorization": "Bearer s"}), destination.url)
        assert b"authorization: bearer s" in source.requests[0].lower()
        assert destination.upload.value("authorization") is None


@pytest.mark.parametrize("kind", ["file", "iterable", "url"])
async def test_nothing_at_all_is_a_whole_source_too(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").touch()
    async with serve(origin(tmp_path)) as server, recorder() as destination:
        sources = {"file": tmp_path / "empty", "iterable": pieces(), "url": f"{server}/file?lines=0"}
        report = await pipe(sources[kind], destination.url, digest="md5")  # type: ignore[arg-type]
        assert destination.upload.complete
        assert destination.upload.file == b""
        assert report.bytes == 0
        assert report.digest == {"md5": hashlib.md5(b"").hexdigest()}


async def test_a_fifo_gives_its_writer_no_broken_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = os.urandom(300_000)
    failed: list[OSError] = []

    def write() -> None:
        try:
            with fifo.open("wb") as file:
                file.write(data)
        except OSError as error:
            failed.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    async with recorder() as destination:
        await pipe(fifo, destination.url)
        assert destination.upload.file == data
        assert destination.upload.value("transfer-encoding") == "chunked"
    writer.join(20)
    assert not writer.is_alive()
    assert not failed


@pytest.mark.parametrize("name", ["missing", "."])
async def test_a_file_that_cannot_be_read_is_told_before_anything_is_sent(tmp_path: Path, name: str) -> None:
    async with recorder() as destination:
        with pytest.raises(OSError, match=r"No such file|is a directory"):
            await pipe(tmp_path / name, destination.url)
        assert not destination.uploads


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\n\r\nno such one",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 300 Multiple Choices\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_the_thing_is_not_sent_on(answer: bytes) -> None:
    async with script(wait_request(), answer) as source, recorder() as destination:
        with pytest.raises(penstock.StatusError, match=source.url) as refused:
            await pipe(source.url, destination.url)
        assert str(refused.value.status) in answer.decode()
        assert not destination.uploads


async def test_a_source_that_is_not_there() -> None:
    async with recorder() as destination:
        with pytest.raises(penstock.ConnectError, match=r"127\.0\.0\.1:9/"):
            await pipe("http://127.0.0.1:9/", destination.url)
        assert not destination.uploads


# -- lengths that are not what they were


@pytest.mark.parametrize("change", [-1, -300_000, +1, +300_000])
@pytest.mark.parametrize("put", [False, True])
async def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: int, put: bool) -> None:
    path = tmp_path / "data"
    size = 8 << 20
    path.write_bytes(b"x" * size)

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        os.truncate(path, size + change)  # the headers are on their way: the length is promised
        await take(reader, upload)

    async with recorder(conduct) as destination:
        target = penstock.transfer.destination.Put(destination.url) if put else destination.url
        with pytest.raises(penstock.StreamTruncated, match="change while it was read") as broken:
            await pipe(path, target)
        assert str(path) in str(broken.value)
        await destination.upload.gone.wait()
        assert not destination.upload.complete
        assert b"--\r\n" not in destination.upload.body[-8:]  # nor the form's own end, behind which it would look whole


@pytest.mark.parametrize("given", [b"12345", b"123456789012", b""])
async def test_a_stream_that_is_not_as_long_as_it_was_said_to_be(given: bytes) -> None:
    async with recorder() as destination:
        with pytest.raises(penstock.StreamTruncated, match="10 bytes"):
            await pipe(Source(pieces(given), length=10), destination.url)
        await destination.upload.gone.wait()
        assert not destination.upload.complete
        assert not destination.upload.body.endswith(b"--\r\n")


async def test_a_stream_whose_length_is_known_has_a_content_length() -> None:
    async with recorder() as destination:
        await pipe(Source(pieces(b"12345", b"67890"), length=10), destination.url)
        assert int(destination.upload.value("content-length") or 0) == len(destination.upload.body)
        assert destination.upload.file == b"1234567890"


async def test_a_length_that_the_source_does_not_say_can_be_given() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    async with script([wait_request(), chunked], [wait_request(), chunked]) as source, recorder() as destination:
        await pipe(Source(source.url, length=5), destination.url)
        assert destination.upload.value("content-length") is not None
        with pytest.raises(penstock.StreamTruncated):
            await pipe(Source(source.url, length=6), destination.url)


# -- sources that break


@pytest.mark.parametrize("fault", ["cut_after=3", "truncate_after=3", "cut_after=1"])
@pytest.mark.parametrize("put", [False, True])
async def test_a_source_that_breaks_breaks_the_upload_off(tmp_path: Path, fault: str, put: bool) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        target = penstock.transfer.destination.Put(destination.url) if put else destination.url
        with pytest.raises(penstock.StreamTruncated) as broken:
            await pipe(f"{source}/file?lines={LINES}&{fault}", target)
        assert broken.value.url is not None
        assert broken.value.url.startswith(source)
        await destination.upload.gone.wait()
        assert not destination.upload.complete
        assert len(destination.uploads) == 1


@pytest.mark.parametrize("fault", ["cut_after=2", "truncate_after=2", "stall_after=2"])
async def test_a_source_that_breaks_leaves_no_file_at_the_destination(tmp_path: Path, fault: str) -> None:
    async with serve(origin(tmp_path)) as server:
        with pytest.raises(penstock.StreamError):
            await pipe(
                f"{server}/file?lines={LINES}&{fault}",
                f"{server}/upload",
                timeout=Timeout(first_event=20, between_events=0.3),
            )
        await until(lambda: stored(tmp_path) == [])


async def test_a_source_that_falls_silent_is_given_up() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    async with script(wait_request(), head + b"some") as source, recorder() as destination:
        with pytest.raises(penstock.StreamStalled, match=source.url):
            await pipe(source.url, destination.url, timeout=Timeout(first_event=20, between_events=0.2))
        await destination.upload.gone.wait()
        assert not destination.upload.complete


async def test_an_iterable_that_raises_breaks_the_upload_off() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("of the caller's own")

    async with recorder() as destination:
        with pytest.raises(KeyError, match="own"):
            await pipe(failing(), destination.url)
        await destination.upload.gone.wait()
        assert not destination.upload.complete


async def test_an_iterable_that_is_not_read_to_its_end_is_closed_all_the_same() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.append(True)

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: Upload) -> None:
        raise ConnectionResetError

    kept = endless()  # somebody else holds it too
    async with recorder(conduct) as destination:
        with pytest.raises(penstock.TransportError):
            await pipe(kept, destination.url)
        assert closed == [True]


# -- picked up again


@pytest.mark.parametrize("fault", ["cut_after", "truncate_after"])
async def test_a_source_that_breaks_is_picked_up_where_it_broke(tmp_path: Path, fault: str) -> None:
    whole = the_file()
    rest = (len(whole) + 65535) // 65536
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        # Each answer gives 12 pieces of 64 KiB and breaks: the rest is asked for until less than that is left.
        report = await pipe(f"{source}/file?lines={LINES}&{fault}=12", destination.url, retries=9, digest="sha256")
        assert report.digest == {"sha256": hashlib.sha256(whole).hexdigest()}
        assert destination.upload.file == whole
        assert report.attempts == 1 + rest // 12
        assert report.attempts > 2
        assert len(destination.uploads) == 1  # the upload itself knew nothing of it


async def test_it_is_given_up_when_the_retries_are_used_up(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        with pytest.raises(penstock.StreamTruncated):
            await pipe(f"{source}/file?lines={LINES}&cut_after=12", destination.url, retries=2)
        await destination.upload.gone.wait()
        assert not destination.upload.complete


WHOLE = b"0123456789" * 10
FIRST = b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\nContent-Length: 100\r\n\r\n' + WHOLE[:40]


def part(first: int, etag: bytes = b'"v1"', total: bytes = b"100", last: int = 99) -> bytes:
    body = WHOLE[first : last + 1]
    return (
        b"HTTP/1.1 206 Partial Content\r\nETag: %b\r\nContent-Range: bytes %d-%d/%b\r\nContent-Length: %d\r\n\r\n"
        % (etag, first, last, total, len(body))
        + body
    )


async def test_the_rest_is_asked_for_of_that_very_version() -> None:
    plays: list[Play] = [[wait_request(), FIRST, close()], [wait_request(), part(40), close()]]
    async with script(*plays) as source, recorder() as destination:
        report = await pipe(Source(source.url, {"X-Key": "k"}), destination.url, retries=1)
        assert destination.upload.file == WHOLE
        assert report.attempts == 2
        asked = source.requests[1].lower()
        assert b"range: bytes=40-\r\n" in asked
        assert b'if-range: "v1"\r\n' in asked
        assert b"x-key: k\r\n" in asked


async def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    unavailable = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    plays: list[Play] = [
        [wait_request(), FIRST, reset()],
        [close()],
        [wait_request(), unavailable],
        [wait_request(), part(40)],
    ]
    async with script(*plays) as source, recorder() as destination:
        report = await pipe(source.url, destination.url, retries=3)
        assert destination.upload.file == WHOLE
        assert report.attempts == source.connections == 4


@pytest.mark.parametrize("put", [False, True])
async def test_a_server_that_stays_away_is_the_sources_failure_not_the_uploads(put: bool) -> None:
    """Nothing of the upload may be sent a second time: a part of it is with the destination already."""
    async with recorder() as destination:
        async with script([wait_request(), FIRST, close()]) as source:  # and resets all that follow
            target = penstock.transfer.destination.Put(destination.url) if put else destination.url
            with pytest.raises(penstock.StreamTruncated, match="could not be picked up") as broken:
                await pipe(source.url, target, retries=3)
            assert source.connections == 4
        assert broken.value.url is not None
        assert broken.value.url.startswith(source.url)
        assert len(destination.uploads) == 1
        await destination.upload.gone.wait()
        assert not destination.upload.complete


REFUSED = {
    "another version, whole": b'HTTP/1.1 200 OK\r\nETag: "v2"\r\nContent-Length: 100\r\n\r\n' + WHOLE,
    "ranges ignored": b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: 100\r\n\r\n' + WHOLE,
    "another version, in part": part(40, etag=b'"v2"'),
    "from elsewhere": part(41),
    "from the start": part(0),
    "not to the end": part(40, last=60),
    "no range named": b"HTTP/1.1 206 Partial Content\r\nContent-Length: 60\r\n\r\n" + WHOLE[40:],
    "gone": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "beyond it": b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */30\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", REFUSED)
async def test_what_is_not_the_rest_of_it_is_refused(answer: str) -> None:
    plays: list[Play] = [[wait_request(), FIRST, close()], [wait_request(), REFUSED[answer]]]
    async with script(*plays) as source, recorder() as destination:
        with pytest.raises(penstock.StreamTruncated, match="could not be picked up") as broken:
            await pipe(source.url, destination.url, retries=5)
        assert "after 40 bytes" in str(broken.value)
        assert source.connections == 2
        await destination.upload.gone.wait()
        assert not destination.upload.complete
        assert WHOLE not in destination.upload.body


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n",
        b'HTTP/1.1 200 OK\r\nETag: W/"v1"\r\nAccept-Ranges: bytes\r\n',
        b'HTTP/1.1 200 OK\r\nETag: "v1"\r\n',
        b'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\nContent-Range: bytes 5-104/200\r\n',
    ],
)
async def test_a_source_that_cannot_be_told_apart_from_a_later_one_is_not_picked_up(head: bytes) -> None:
    answer = head + b"Content-Length: 100\r\n\r\n" + WHOLE[:40]
    async with script(wait_request(), answer, close()) as source, recorder() as destination:
        with pytest.raises(penstock.StreamTruncated, match="after 40 bytes"):
            await pipe(source.url, destination.url, retries=5)
        assert source.connections == 1


async def test_a_first_request_that_fails_is_repeated_too(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as source, recorder() as destination:
        report = await pipe(f"{source}/file?lines=10&status=503&times=2", destination.url, retries=2)
        assert report.attempts == 3
        assert destination.upload.file == the_file(10)


async def test_a_coded_source_that_is_cut_short_breaks_the_upload() -> None:
    coded = gzip.compress(b"line of text\n" * 1000)[:-10]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(coded)
    async with script(wait_request(), head + coded) as source, recorder() as destination:
        with pytest.raises(StreamTruncated, match="gzip coding"):
            await pipe(source.url, destination.url)
        assert not destination.upload.complete


async def test_a_fifo_waits_for_its_writer_and_ends_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    opened = threading.Event()

    def write() -> None:
        assert opened.wait(10)
        with fifo.open("wb", buffering=0) as file:
            file.write(b"one ")
            time.sleep(0.2)
            file.write(b"two")

    async with recorder() as destination:
        piping = asyncio.create_task(pipe(fifo, destination.url))
        await until(lambda: bool(destination.uploads))  # the upload has begun, and nobody has opened the other end
        opened.set()
        await asyncio.to_thread(write)
        assert (await piping).bytes == 7
    assert destination.upload.file == b"one two"
