"""The transfer as a whole: its report, its pace, its progress, and how it is given up."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.client.settings import Timeout
from penstock.engine import splice
from penstock.errors import StreamError
from penstock.origin.app import app as origin
from penstock.testing import serve
from penstock.transfer.destination import Put
from penstock.transfer.pipe import Passage, Report, pipe
from penstock.transfer.source import Source
from tests.transfer.ends import recorder, stored, until

pytestmark = pytest.mark.anyio


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


# -- the report


async def test_what_the_report_tells(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as server:
        report = await pipe(f"{server}/file?lines=1000", f"{server}/upload", digest="sha256")
        sent = (tmp_path / "large.txt").read_bytes()
        told = report.to_dict()
        assert list(told) == [
            "bytes",
            "seconds",
            "bytes_per_second",
            "attempts",
            "path",
            "digest",
            "memory_growth_kib",
            "source",
            "destination",
        ]
        assert told["bytes"] == len(sent)
        assert told["digest"] == {"sha256": hashlib.sha256(sent).hexdigest()}
        assert told["attempts"] == 1
        assert told["memory_growth_kib"] >= 0
        assert told["source"] == {"url": f"{server}/file?lines=1000", "status": 200}
        assert told["destination"]["url"] == f"{server}/upload"
        assert told["destination"]["status"] == 200
        assert "large.txt" in told["destination"]["body"]
        assert told["seconds"] > 0
        assert told["bytes_per_second"] == pytest.approx(told["bytes"] / told["seconds"], rel=0.01)


async def test_a_report_of_no_time_divides_nothing() -> None:
    assert Report(0, 0.0, 1, "copy", {}, 0, {}, {}).bytes_per_second == 0


async def test_credentials_in_urls_are_in_no_report(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as server:
        secret = server.replace("http://", "http://me:s3cret@")
        report = await pipe(f"{secret}/file?lines=1", f"{secret}/upload")
        assert "s3cret" not in str(report.to_dict())


async def test_the_log_tells_the_story(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock.transfer")
    async with serve(origin(tmp_path)) as server:
        await pipe(f"{server}/file?lines=1000", f"{server}/upload")
    lines = [record.getMessage() for record in caplog.records if record.name == "penstock.transfer"]
    story = [
        r'Before streaming "RSS \(KB\)"=\d+ "Peak RSS \(KB\)"=\d+',
        r"Sending request server1\.method=GET server1\.url=http://.*/file\?lines=1000",
        r"Response received server1\.status=200 server1\.duration=\d+\.\d+s",
        r"Sending request server2\.method=POST server2\.url=http://.*/upload",
        r"Body complete server1\.bytes=43893 server1\.duration=\d+\.\d+s",
        r"Response received server2\.status=200 server2\.duration=\d+\.\d+s",
        r"Body complete server2\.bytes=\d+ server2\.duration=\d+\.\d+s",
        r'After streaming "RSS \(KB\)"=\d+ "Peak RSS \(KB\)"=\d+',
        r'Data streamed through pipeline bytes=43893 megabytes="0\.04 MB"',
        r'Upload successful "server2Resp response"="File large\.txt uploaded and saved"',
    ]
    assert len(lines) == len(story), lines
    for line, pattern in zip(lines, story, strict=True):
        assert re.fullmatch(pattern, line), line


# -- digests


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b", "sha3_256"])
async def test_digests(algorithm: str) -> None:
    async with recorder() as destination:
        report = await pipe(pieces(b"ab", b"c"), destination.url, digest=algorithm)
        assert report.digest == {algorithm: hashlib.new(algorithm, b"abc").hexdigest()}


@pytest.mark.parametrize("algorithm", ["sha257", "", "shake_128", "no such \u20ac"])
async def test_a_digest_that_there_is_not_is_told_before_anything_is_sent(algorithm: str) -> None:
    async with recorder() as destination:
        with pytest.raises(ValueError, match=r"no digest .*sha256"):
            await pipe(pieces(b"x"), destination.url, digest=algorithm)
        assert not destination.uploads


# -- the pace


@pytest.mark.parametrize("size", [65536, 1_000_000], ids=["small pieces", "one large piece"])
async def test_a_rate_is_kept(size: int) -> None:
    data = os.urandom(1_000_000)
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    async with recorder() as destination:
        began = asyncio.get_running_loop().time()
        report = await pipe(pieces(*parts), destination.url, rate=1_000_000)
        took = asyncio.get_running_loop().time() - began
        assert destination.upload.file == data
        assert took >= 0.7  # a slow machine may take longer, none may take less
        assert report.bytes_per_second <= 1_300_000


async def test_a_rate_is_kept_all_along_and_not_by_one_long_pause() -> None:
    """A large piece sent at once and then silence would time out at a destination that waits for the next byte."""
    sent: list[int] = []

    async with recorder() as destination:
        task = asyncio.create_task(pipe(pieces(b"x" * 200_000), destination.url, rate=200_000))
        while not task.done():
            size = len(destination.uploads[0].body) if destination.uploads else 0
            if not sent or size != sent[-1]:
                sent.append(size)
            await asyncio.sleep(0.01)
        await task
        # The recorder sees a chunk per part: about ten of them, not one.
        assert len(sent) >= 5


@pytest.mark.parametrize("rate", [0, -1, -0.5])
async def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        await pipe(pieces(b"x"), "http://127.0.0.1:9/", rate=rate)


# -- progress


async def test_progress_goes_up_and_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    def note(passage: Passage) -> None:
        seen.append((passage.sent, passage.length))

    async with serve(origin(tmp_path)) as server, recorder() as destination:
        report = await pipe(
            f"{server}/file?lines=20000&rate=2000000", destination.url, on_progress=note, progress_interval=0.02
        )
    sizes = [sent for sent, _ in seen]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == report.bytes
    assert len(set(sizes)) > 3
    assert {length for _, length in seen} == {report.bytes}


async def test_a_last_word_of_progress_when_it_fails_too(tmp_path: Path) -> None:
    seen: list[int] = []
    async with serve(origin(tmp_path)) as server, recorder() as destination:
        with pytest.raises(penstock.StreamTruncated):
            await pipe(
                f"{server}/file?lines=20000&cut_after=3",
                destination.url,
                on_progress=lambda passage: seen.append(passage.sent),
                progress_interval=60,
            )
        assert len(seen) == 2
        assert seen[-1] == 3 * 65536
        await asyncio.sleep(0)
        assert len(seen) == 2  # nothing ticks on


# -- backpressure


async def test_a_slow_destination_slows_the_source() -> None:
    pulled = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(1200):  # 75 MiB
            pulled += 1
            yield b"x" * 65536

    go_on = asyncio.Event()

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upload: object) -> None:
        await go_on.wait()
        while b"--\r\n" not in (data := await reader.read(1 << 20))[-4:]:
            assert data
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with recorder(conduct) as destination:
        task = asyncio.create_task(pipe(Source(source(), length=1200 * 65536), destination.url))
        stood, still = -1, 0
        while still < 10:
            still = still + 1 if pulled == stood else 0
            stood = pulled
            await asyncio.sleep(0.05)
        assert pulled < 600
        go_on.set()
        assert (await task).bytes == 1200 * 65536


# -- given up


@pytest.mark.parametrize("kind", ["url", "file", "iterable"])
async def test_cancelling_at_any_point_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """No connection, no task, no open file, no temporary file: wherever the pipe is."""
    (local := tmp_path / "local").write_bytes(os.urandom(3 << 20))
    (uploads := tmp_path / "uploads").mkdir()
    closed: list[bool] = []

    async def made() -> AsyncIterator[bytes]:
        try:
            for _ in range(100):
                await asyncio.sleep(0)
                yield b"x" * 30_000
        finally:
            closed.append(True)

    rng = random.Random(7)
    async with serve(origin(uploads)) as server:
        await pipe(local, f"{server}/upload")  # what stays open for good is open now
        (uploads / "local").unlink()
        descriptors, tasks = len(os.listdir("/proc/self/fd")), asyncio.all_tasks()  # noqa: PTH208
        ended = 0
        for turn in range(25):
            sources = {"url": f"{server}/file?lines=60000", "file": local, "iterable": made()}
            target = Put(f"{server}/upload/x") if turn % 2 else f"{server}/upload"
            task = asyncio.create_task(pipe(sources[kind], target))  # type: ignore[arg-type]
            for _ in range(rng.randrange(200)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
                ended += 1
            except asyncio.CancelledError:
                pass
            del sources
            for name in stored(uploads):
                if not name.startswith("."):
                    (uploads / name).unlink()
        assert ended < 25
        await until(lambda: asyncio.all_tasks() <= tasks)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)  # noqa: PTH208
        await until(lambda: not [name for name in stored(uploads) if name.startswith(".")])


async def test_cancelling_breaks_the_upload_off(tmp_path: Path) -> None:
    async with recorder() as destination:

        async def forever() -> AsyncIterator[bytes]:
            yield b"some"
            await asyncio.Event().wait()

        task = asyncio.create_task(pipe(forever(), destination.url))
        await until(lambda: bool(destination.uploads) and b"some" in destination.upload.body)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await destination.upload.gone.wait()
        assert not destination.upload.complete


# -- which way the bytes go


async def spliced(tmp_path: Path, query: str = "", **options: Any) -> Report:
    """A pipe of 4.6 MB between two sample servers."""
    async with serve(origin(tmp_path)) as source, serve(origin(tmp_path)) as destination:
        return await pipe(f"{source}/file?lines=100000{query}", f"{destination}/upload", **options)


@pytest.mark.skipif(not splice.available, reason="splice(2) is Linux's")
async def test_the_kernel_moves_what_nobody_looks_at(tmp_path: Path) -> None:
    seen: list[int] = []
    report = await spliced(tmp_path, on_progress=lambda passage: seen.append(passage.sent))
    digested = await spliced(tmp_path, digest="sha256")
    assert (report.path, digested.path) == ("splice", "copy")
    assert report.to_dict()["path"] == "splice"
    assert report.bytes == digested.bytes == 4_588_895
    assert seen == sorted(seen)
    assert seen[-1] == report.bytes
    assert hashlib.sha256((tmp_path / "large.txt").read_bytes()).hexdigest() == digested.digest["sha256"]


@pytest.mark.skipif(not splice.available, reason="splice(2) is Linux's")
async def test_a_spliced_source_that_breaks_is_picked_up_where_it_broke(tmp_path: Path) -> None:
    whole = await spliced(tmp_path, digest="sha256")
    report = await spliced(tmp_path, "&cut_after=30", retries=5)
    assert (report.path, report.bytes) == ("splice", whole.bytes)
    assert report.attempts == 3
    assert hashlib.sha256((tmp_path / "large.txt").read_bytes()).hexdigest() == whole.digest["sha256"]


@pytest.mark.parametrize("fault", ["cut_after=3", "truncate_after=3", "stall_after=3"])
async def test_a_spliced_source_that_breaks_breaks_the_upload(tmp_path: Path, fault: str) -> None:
    with pytest.raises(StreamError):
        await spliced(tmp_path, f"&{fault}", timeout=Timeout(between_events=0.5))
    assert list(tmp_path.iterdir()) == []


async def test_what_must_be_seen_is_copied(tmp_path: Path) -> None:
    assert (await spliced(tmp_path, rate=10**12)).path == "copy"
    async with serve(origin(tmp_path)) as destination:
        assert (await pipe(tmp_path / "large.txt", f"{destination}/upload")).path == "copy"
        chunked = await pipe(f"{destination}/generate?chunks=3&interval=0", f"{destination}/upload")
        assert (chunked.path, chunked.bytes > 0) == ("copy", True)
