"""Each fault on each endpoint, as a raw socket sees it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.types import Message, Scope

from penstock.origin import FaultInjected, app
from penstock.origin.faults import CHUNK
from tests.raw import FORM, Answer, ask, connected, form, read_answer, request, until

pytestmark = pytest.mark.anyio

FILE = "/file?lines=10000"
CHAT = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'

STREAMS = [
    pytest.param("/generate?chunks=9&interval=0", "GET", b"", id="generate"),
    pytest.param("/events?count=9&interval=0", "GET", b"", id="events"),
    pytest.param("/trigger_invocation?interval=0", "POST", b'{"query": "q"}', id="trigger_invocation"),
    pytest.param("/v1/chat/completions?interval=0", "POST", CHAT, id="chat"),
]
SIZED = [
    pytest.param(FILE, "GET", b"", id="file"),
    pytest.param("/?x=1", "GET", b"", id="index"),
    pytest.param("/v1/chat/completions?interval=0", "POST", CHAT.replace(b"true", b"false"), id="plain chat"),
]
ALL = [*STREAMS, *SIZED]


async def fault(url: str, target: str, method: str, body: bytes, query: str) -> Answer:
    return await asyncio.wait_for(ask(url, f"{target}&{query}", method, body=body), 20)


# -- cut_after


@pytest.mark.parametrize(("target", "method", "body"), STREAMS)
async def test_cut_after_n_is_a_reset_after_exactly_n(url: str, target: str, method: str, body: bytes) -> None:
    answer = await fault(url, target, method, body, "cut_after=3")
    assert (answer.status, answer.reset, answer.complete) == (200, True, False)
    assert len(answer.chunks) == 3


@pytest.mark.parametrize(("target", "method", "body"), ALL)
async def test_cut_after_0_is_a_reset_before_the_headers(url: str, target: str, method: str, body: bytes) -> None:
    answer = await fault(url, target, method, body, "cut_after=0")
    assert (answer.status, answer.reset) == (0, True)


async def test_a_file_is_cut_at_64_kib_pieces(url: str) -> None:
    answer = await fault(url, FILE, "GET", b"", "cut_after=3")
    assert (answer.reset, len(answer.body)) == (True, 3 * CHUNK)
    ranged = await ask(url, f"{FILE}&cut_after=1", headers="Range: bytes=100-\r\n")
    assert (ranged.status, ranged.reset, len(ranged.body)) == (206, True, CHUNK)
    assert answer.body[100:].startswith(ranged.body)


async def test_what_was_sent_before_the_reset_arrives_however_slow_the_reader(url: str) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that most of it waits at the server's end
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
        await loop.sock_sendall(sock, request("/file?cut_after=3"))
        await asyncio.sleep(0.3)
        received = b""
        with pytest.raises(ConnectionResetError):
            while True:
                received += await loop.sock_recv(sock, 65536)
    assert len(received.partition(b"\r\n\r\n")[2]) == 3 * CHUNK


@pytest.mark.parametrize(("target", "method", "body"), SIZED[1:])
async def test_a_sized_body_of_one_chunk_is_not_whole(url: str, target: str, method: str, body: bytes) -> None:
    for query in ("cut_after=1", "truncate_after=1"):
        answer = await fault(url, target, method, body, query)
        assert (answer.status, answer.complete) == (200, False)
        assert len(answer.body) == int(answer.headers["content-length"]) - 1


async def test_a_body_that_ends_before_is_not_harmed(url: str, log: Callable[[], list[str]]) -> None:
    answer = await ask(url, "/generate?chunks=2&interval=0&cut_after=3")
    assert (answer.complete, answer.reset, len(answer.chunks)) == (True, False, 3)
    assert log() == ["GET /generate: 2 chunks sent"]


async def test_the_generator_does_not_outlive_the_cut(url: str, log: Callable[[], list[str]]) -> None:
    await ask(url, "/generate?interval=0.01&cut_after=2")
    await asyncio.sleep(0.1)
    assert log() == ["GET /generate: broken on purpose after 2 chunks (cut_after=2)"]


# -- stall_after


@pytest.mark.parametrize(("target", "method", "body"), STREAMS)
@pytest.mark.parametrize("chunks", [0, 2])
async def test_stall_after_n_is_silence_until_the_reader_leaves(
    url: str, log: Callable[[], list[str]], target: str, method: str, body: bytes, chunks: int
) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request(f"{target}&stall_after={chunks}", method, body=body))
        raw = b""
        await until(lambda: [line for line in log() if "on purpose" in line])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                while data := await reader.read(65536):
                    raw += data
        assert not [line for line in log() if "left" in line], "it stays for as long as the reader does"
    assert len(Answer(200, {}, raw.partition(b"\r\n\r\n")[2], False).chunks) == chunks
    assert bool(raw) == bool(chunks)
    await until(lambda: [line for line in log() if f"the reader left after {chunks} chunks" in line])


# -- truncate_after


@pytest.mark.parametrize(("target", "method", "body"), STREAMS)
@pytest.mark.parametrize("chunks", [0, 2])
async def test_truncate_after_n_is_a_clean_close_without_the_last_chunk(
    url: str, target: str, method: str, body: bytes, chunks: int
) -> None:
    answer = await fault(url, target, method, body, f"truncate_after={chunks}")
    assert (answer.status, answer.reset, answer.complete) == (200, False, False)
    assert len(answer.chunks) == chunks


async def test_a_file_is_truncated_short_of_its_length(url: str) -> None:
    answer = await fault(url, FILE, "GET", b"", "truncate_after=2")
    assert (answer.reset, len(answer.body)) == (False, 2 * CHUNK)
    assert int(answer.headers["content-length"]) > 2 * CHUNK


# -- malformed_after


@pytest.mark.parametrize(("target", "method", "body"), STREAMS[1:])
async def test_a_malformed_event_comes_in_the_middle_and_the_stream_goes_on(
    url: str, target: str, method: str, body: bytes
) -> None:
    good = await fault(url, target, method, body, "x=1")
    bad = await fault(url, target, method, body, "malformed_after=2")
    assert bad.complete
    broken = bad.chunks[2]
    if "chat" not in target:  # its chunks carry the time
        assert [*bad.chunks[:2], *bad.chunks[3:]] == good.chunks
    assert len(bad.chunks) == len(good.chunks) + 1
    payload = broken.removeprefix(b"data: ").removesuffix(b"\n\n")
    with pytest.raises(UnicodeDecodeError):
        payload.decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(payload.decode(errors="replace"))


@pytest.mark.parametrize(("target", "method", "body"), [STREAMS[0], *SIZED])
async def test_other_bodies_get_a_chunk_header_that_is_none(url: str, target: str, method: str, body: bytes) -> None:
    answer = await fault(url, target, method, body, "malformed_after=1")
    assert (answer.chunked, answer.reset, answer.complete) == (True, False, False)
    assert len(answer.chunks) == 1
    assert answer.raw_body.endswith(b"\r\nthis is no chunk size\r\n")


# -- status


@pytest.mark.parametrize(
    ("target", "method", "body"), [*ALL, pytest.param("/upload?a=1", "POST", form(("x", b"1")), id="upload")]
)
async def test_the_first_two_requests_get_the_status(url: str, target: str, method: str, body: bytes) -> None:
    async def status() -> Answer:
        headers = FORM if target.startswith("/upload") else ""
        return await ask(url, f"{target}&status=503&times=2&retry_after=1", method, headers, body)

    answers = [await status() for _ in range(4)]
    assert [answer.status for answer in answers] == [503, 503, 200, 200]
    assert answers[0].headers["retry-after"] == "1"
    assert answers[0].body == b"503 on purpose\n"
    assert "retry-after" not in answers[2].headers


async def test_the_counters_are_apart_and_without_times_it_is_always(url: str) -> None:
    for number in range(2):
        assert (await ask(url, f"/events?x={number}&status=500&times=1")).status == 500
        assert (await ask(url, f"/events?interval=0&x={number}&status=500&times=1", "HEAD")).status == 500
    assert [(await ask(url, "/events?status=429")).status for _ in range(4)] == [429] * 4


async def test_the_counters_longest_unused_are_forgotten(tmp_path: Path) -> None:
    origin = app(tmp_path)

    async def status(number: int) -> int:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": len(sent) < 2}

        async def send(message: Message) -> None:
            sent.append(message)

        query = f"x={number}&status=500&times=1".encode()
        await origin(
            {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": []}, receive, send
        )
        return int(sent[0]["status"])

    assert [await status(0), await status(0)] == [500, 200]
    for number in range(1, 1024):
        await status(number)
    assert await status(0) == 200, "1024 are remembered"
    for number in range(1024):
        await status(-number - 1)
    assert await status(0) == 500, "and no more"


# -- rate and delay


async def test_rate_paces_the_body(url: str) -> None:
    began = time.monotonic()
    answer = await ask(url, "/file?lines=100&rate=8000")
    took = time.monotonic() - began
    expected = len(answer.body) / 8000
    assert answer.complete
    assert took > 0.8 * expected, f"{len(answer.body)} bytes in {took:.2f} s"


async def test_rate_trickles_instead_of_bursting(url: str) -> None:
    answer = await ask(url, "/generate?chunks=1&rate=200")
    assert answer.body.startswith(b"Chunk 1 [")
    assert max(len(chunk) for chunk in answer.chunks) == 10


async def test_a_reader_that_leaves_a_paced_body_is_noticed(url: str, log: Callable[[], list[str]]) -> None:
    async with connected(url) as (reader, writer):
        writer.write(request("/generate?rate=1"))
        await reader.readuntil(b"\r\n\r\n")
    await until(log)
    assert log() == ["GET /generate: the reader left after 0 chunks"]


async def test_delay_is_before_the_headers_and_leaving_in_it_is_noticed(url: str, log: Callable[[], list[str]]) -> None:
    began = time.monotonic()
    assert (await ask(url, "/generate?chunks=0&delay=0.3")).status == 200
    assert time.monotonic() - began >= 0.3
    async with connected(url) as (reader, writer):
        writer.write(request("/generate?delay=60"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
    await until(lambda: len(log()) == 2)
    assert log()[1] == "GET /generate: the reader left after 0 chunks"


# -- uploads: the request's chunks count


BODY = form(("x", b"y" * 20 * CHUNK))


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_an_upload_is_cut_after_n_received_chunks(
    url: str, tmp_path: Path, log: Callable[[], list[str]], method: str, chunks: int
) -> None:
    target = "/upload" if method == "POST" else "/upload/x"
    async with connected(url) as (reader, writer):
        writer.write(
            request(f"{target}?cut_after={chunks}", method, FORM, length=len(BODY)) + BODY[: chunks * CHUNK + 10]
        )
        answer = await asyncio.wait_for(read_answer(reader), 20)
    assert (answer.status, answer.reset) == (0, True)
    plural = "" if chunks == 1 else "s"
    assert log() == [f"{method} {target}: broken on purpose after {chunks} chunk{plural} (cut_after={chunks})"]
    assert not list(tmp_path.iterdir())


async def test_a_small_upload_is_cut_after_its_first_chunk(url: str, tmp_path: Path) -> None:
    answer = await ask(url, "/upload?cut_after=1", "POST", FORM, form(("x", b"1")))
    assert (answer.status, answer.reset) == (0, True)
    assert not list(tmp_path.iterdir())


async def test_a_stalled_upload_is_not_read_and_its_senders_leaving_is_noticed(
    url: str, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    async with connected(url) as (_, writer):
        writer.write(request("/upload?stall_after=1", "POST", FORM, length=1 << 33))
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    writer.write(b"x" * (1 << 20))
                    sent += 1
                    await writer.drain()
        assert sent < 100, "what the sockets hold, and no more"
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a FIN would queue behind it all
        writer.transport.abort()
    await until(lambda: [line for line in log() if "left" in line])
    assert not list(tmp_path.iterdir())


async def test_the_reading_of_an_upload_is_paced(url: str, tmp_path: Path) -> None:
    began = time.monotonic()
    answer = await ask(url, f"/upload/x?rate={10 * CHUNK}", "PUT", body=b"x" * 5 * CHUNK)
    assert answer.status == 200
    assert time.monotonic() - began > 0.3


async def test_an_uploads_answer_can_be_truncated(url: str) -> None:
    for query in ("truncate_after=0", "truncate_after=1"):
        answer = await ask(url, f"/upload/x?{query}", "PUT", body=b"1")
        assert (answer.status, answer.reset, answer.complete) == (200, False, False)


# -- values


@pytest.mark.parametrize(
    "query",
    [
        "cut_after=-1",
        "cut_after=x",
        "stall_after=",
        "truncate_after=1.5",
        "malformed_after=a",
        "rate=0",
        "rate=fast",
        "delay=-1",
        "delay=inf",
        "status=200",
        "status=600",
        "status=x",
        "status=503&times=x",
        "status=503&retry_after=soon",
        "times=2",
        "cut_after=1&cut_after=2",
    ],
)
async def test_a_fault_that_is_none_is_refused(url: str, query: str) -> None:
    answer = await ask(url, f"/generate?chunks=1&{query}")
    assert answer.status == 422
    assert json.loads(answer.body)["detail"]


# -- a server without the extension


@pytest.mark.parametrize("query", ["cut_after=1", "truncate_after=1", "malformed_after=1"])
async def test_without_the_connection_the_server_is_left_to_drop_it(tmp_path: Path, query: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        if not sent:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": f"interval=0&{query}".encode(),
        "headers": [],
    }
    with pytest.raises(FaultInjected, match="GET /generate: broken on purpose after 1 chunk"):
        await app(tmp_path)(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"] is True
