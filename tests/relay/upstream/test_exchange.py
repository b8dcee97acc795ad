"""Whole exchanges through the relay: each chunk as it comes, backpressure, and every bad end."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import Any, cast

import pytest

from penstock.client.settings import Timeout
from penstock.relay.app import Relay
from penstock.server.listen import bind, bound_to
from penstock.server.serve import Server
from penstock.testing import serve
from penstock.transfer import memory
from tests.relay.peers import (
    CHUNKED,
    LAST_CHUNK,
    SERVERS,
    Peer,
    Serve,
    answering,
    ask,
    chunk,
    dial,
    request,
    response,
    until,
    upstream,
)
from tests.relay.servers import EVERY_SERVER, on_granian

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture(params=EVERY_SERVER)
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


# -- as it comes


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT"])
async def test_every_method_goes_on(method: str, served: Serve) -> None:
    async with upstream(answering(response(b"" if method == "HEAD" else b"ok"))) as up, served(Relay(up.url)) as url:
        body = b"" if method in ("GET", "HEAD", "OPTIONS") else b"payload"
        reader, answer = await ask(url, "/x", method, body=body)
        assert reader.status == 200
        assert answer == (b"" if method == "HEAD" else b"ok")
        assert up.peers[0].head.startswith(f"{method} /x HTTP/1.1\r\n".encode())


async def test_the_body_of_a_request_goes_on_as_it_is() -> None:
    got: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            got.append(await peer.body())
            await peer.send(response())

    bodies = [b"", b"\x00\xff\r\n\r\n0\r\n\r\n", b"x" * 100_000]
    async with upstream(play) as up, serve(Relay(up.url)) as url:
        for body in bodies:
            await ask(url, "/", "POST", "" if body else "Content-Length: 0\r\n", body)
            assert up.peers[0].all("content-length") == [str(len(body))]
    assert got == bodies


async def test_each_chunk_is_with_the_reader_before_the_upstream_writes_the_next(served: Serve) -> None:
    received = asyncio.Semaphore(0)

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)
        for number in range(20):
            await peer.send(chunk(b"data: %d\n\n" % number))
            async with asyncio.timeout(20):
                await received.acquire()
        await peer.send(LAST_CHUNK)

    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request())
        await reader.take_head()
        assert reader.all("x-accel-buffering") == ["no"]
        for number in range(20):
            assert await reader.chunk() == b"data: %d\n\n" % number
            received.release()
        assert await reader.chunk() == b""


async def test_pieces_of_a_body_of_known_length_are_not_held_back_either(served: Serve) -> None:
    received = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        await received.wait()
        await peer.send(b"two")

    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request())
        await reader.take_head()
        assert await reader.exactly(3) == b"one"
        received.set()
        assert await reader.exactly(3) == b"two"


async def test_headers_come_before_the_first_byte_of_the_body(served: Serve) -> None:
    headers_seen = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)
        await headers_seen.wait()
        await peer.send(chunk(b"1") + LAST_CHUNK)

    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request())
        await reader.take_head()
        headers_seen.set()
        assert await reader.body() == b"1"


async def test_fields_both_ways_on_the_wire() -> None:
    answer = response(
        b"ok",
        "Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nX-Caf\xe9: n\r\n"
        "Keep-Alive: timeout=5\r\nPenstock-Stream: forged\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Utf: caf\xe9\r\n",
    ).replace(b"X-Caf\xc3\xa9: n\r\n", b"")
    async with upstream(answering(answer)) as up, serve(Relay(up.url, headers={"X-Key": "s3cret"})) as url:
        more = (
            "Cookie: c=1\r\nX-Hop: 1\r\nConnection: X-Hop\r\nX-Two: 1\r\nX-Two: 2\r\nX-Key: mine\r\nX-Utf: caf\xe9\r\n"
        )
        reader, body = await ask(url, more=more)
        sent = up.peers[0]
        assert body == b"ok"
        assert reader.all("set-cookie") == ["a=1; Path=/", "b=2"]
        assert len(reader.all("date")) == 1
        assert reader.all("x-utf") == ["caf\xe9".encode().decode("latin-1")]
        assert not any(reader.has(name) for name in ("x-hop", "keep-alive", "penstock-stream"))
        assert sent.all("host") == [up.url.removeprefix("http://")]
        assert sent.all("x-forwarded-host") == ["reader.test"]
        assert sent.all("x-forwarded-for") == ["127.0.0.1"]
        assert sent.all("x-forwarded-proto") == ["http"]
        assert sent.all("x-two") == ["1", "2"]
        assert sent.all("x-key") == ["s3cret"]
        assert sent.all("x-utf") == ["caf\xe9".encode().decode("latin-1")]
        assert sent.all("cookie") == ["c=1"]
        assert len(sent.all("via")) == 1
        added = {"user-agent", "accept", "accept-encoding", "connection", "x-hop"}
        assert not added & {name for name, _ in sent.fields}  # a gateway has no wishes of its own


async def test_a_cookie_of_one_reader_is_not_sent_with_the_request_of_another() -> None:
    async with upstream(answering(response(more="Set-Cookie: session=1\r\n"))) as up, serve(Relay(up.url)) as url:
        for _ in range(2):
            reader, _body = await ask(url)
            assert reader.has("set-cookie")
            assert not up.peers[0].has("cookie")


async def test_a_coded_body_passes_as_it_is(served: Serve) -> None:
    packed = gzip.compress(b"hello " * 1000)
    async with upstream(answering(response(packed, "Content-Encoding: gzip\r\n"))) as up, served(Relay(up.url)) as url:
        reader, body = await ask(url, more="Accept-Encoding: gzip\r\n")
        assert up.peers[0].all("accept-encoding") == ["gzip"]
        assert reader.all("content-encoding") == ["gzip"]
        assert body == packed


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("more", ["", "Content-Length: 7\r\n"])
async def test_an_answer_without_a_body(status: str, more: str, served: Serve) -> None:
    head = f'HTTP/1.1 {status}\r\nETag: "1"\r\n{more}\r\n'.encode()
    async with upstream(answering(head, close=True)) as up, served(Relay(up.url)) as url, dial(url) as reader:
        for _ in range(2):  # the connection is in order after it
            await reader.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.take_head()
            assert reader.status == int(status[:3])
            assert not reader.has("content-length")
            assert not reader.has("transfer-encoding")


async def test_the_length_that_head_asks_for_is_told(served: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"
    async with upstream(answering(head)) as up, served(Relay(up.url)) as url:
        reader, body = await ask(url, method="HEAD")
        assert reader.all("content-length") == ["12345"]
        assert body == b""


@pytest.mark.parametrize("status", [201, 301, 401, 404, 418, 429, 500, 503])
async def test_any_status_passes_with_its_fields_and_body(status: int) -> None:
    answer = response(b"why", "Retry-After: 7\r\nLocation: /elsewhere\r\n", f"{status} X")
    async with upstream(answering(answer)) as up, serve(Relay(up.url)) as url:
        reader, body = await ask(url)
        assert (reader.status, body) == (status, b"why")
        assert reader.all("retry-after") == ["7"]
        assert reader.all("location") == ["/elsewhere"]  # not followed
        assert len(up.peers) == 1


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async with (
        upstream(answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", close=True)) as up,
        serve(Relay(up.url)) as url,
    ):
        _, body = await ask(url)
        assert body == chunk(b"all of it") + LAST_CHUNK


async def test_an_answer_with_two_framings_is_not_believed() -> None:
    both = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"123456") + LAST_CHUNK
    async with upstream(answering(both)) as up, serve(Relay(up.url)) as url:
        reader, body = await ask(url)
        assert reader.status == 502
        assert b"123456" not in body


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: four\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: -4\r\n",
        "X-A: 1\rX-B: 2\r\n",
    ],
)
async def test_a_request_with_an_ambiguous_end_reaches_no_upstream(framing: str, served: Serve) -> None:
    if served is on_granian and "Transfer-Encoding" in framing:
        pytest.skip("granian drops the length before the relay sees it, reads the chunks, and closes after its answer")
    async with upstream(answering(response())) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(
            f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n".encode()
        )
        await reader.take_head()
        assert reader.status == 400
        await reader.rest()  # and it is closed
        assert not up.peers


# -- much


async def test_100_mb_pass_both_ways_in_constant_memory(served: Serve) -> None:
    piece, count = b"\xa5" * MIB, 100
    hashed = hashlib.sha256()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        left = count * MIB
        while left:
            data = await peer.reader.read(256 * 1024)
            assert data
            hashed.update(data)
            left -= len(data)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * MIB))
        for _ in range(count):
            await peer.send(piece)

    expected = hashlib.sha256(piece * count).hexdigest()
    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        before, most = memory.resident_kib(), 0
        await reader.send(request("/", "POST", f"Content-Length: {count * MIB}\r\n"))
        for _ in range(count):
            await reader.send(piece)
            most = max(most, memory.resident_kib())
        await reader.take_head()
        got, left = hashlib.sha256(), count * MIB
        while left:
            data = await reader.reader.read(256 * 1024)
            assert data
            got.update(data)
            left -= len(data)
            most = max(most, memory.resident_kib())
        assert hashed.hexdigest() == expected
        assert got.hexdigest() == expected
        assert most - before < 25 * 1024  # a quarter of one of the two bodies, both ends of the test included


async def test_a_reader_that_stops_reading_stops_the_upstream(served: Serve) -> None:
    piece, count = b"\x5a" * 65536, 1200  # 75 MiB
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * len(piece)))
        for _ in range(count):
            await peer.send(piece)
            sent += 1

    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url, receive_buffer=65536) as reader:
        await reader.send(request())
        await reader.take_head()
        stood, still = -1, 0
        while still < 10:  # until it has not moved for half a second
            still = still + 1 if sent == stood else 0
            stood = sent
            await asyncio.sleep(0.05)
        assert sent < count // 2  # what the kernel's buffers take, and no more
        left = count * len(piece)
        while left:
            data = await reader.reader.read(1 << 20)
            assert data
            assert data.strip(b"\x5a") == b""
            left -= len(data)
        await until(lambda: sent == count)


async def test_an_upstream_that_stops_reading_stops_the_reader(served: Serve) -> None:
    piece, count = b"\x5a" * 65536, 1200
    go_on = asyncio.Event()
    got = sent = 0

    async def play(peer: Peer) -> None:
        nonlocal got
        await peer.take_head()
        await go_on.wait()
        while got < count * len(piece):
            got += len(await peer.reader.read(1 << 20))
        await peer.send(response())

    async def upload(reader: Peer) -> None:
        nonlocal sent
        for _ in range(count):
            await reader.send(piece)
            sent += 1

    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request("/", "PUT", f"Content-Length: {count * len(piece)}\r\n"))
        uploading = asyncio.create_task(upload(reader))
        stood, still = -1, 0
        while still < 10:
            still = still + 1 if sent == stood else 0
            stood = sent
            await asyncio.sleep(0.05)
        assert sent < count // 2
        go_on.set()
        await uploading
        await reader.take_head()
        assert reader.status == 200
        assert got == count * len(piece)


async def test_200_streams_at_a_time() -> None:
    streams = 200
    opened = 0
    everybody = asyncio.Event()

    async def play(peer: Peer) -> None:
        nonlocal opened
        name = (await peer.take_head()).split()[1]
        await peer.send(CHUNKED + chunk(name + b" 1"))
        opened += 1
        if opened == streams:
            everybody.set()
        await everybody.wait()  # each is open while all are
        await peer.send(chunk(name + b" 2") + LAST_CHUNK)

    async def read(url: str, number: int) -> bytes:
        async with dial(url) as reader:
            await reader.send(request(f"/{number}"))
            await reader.take_head()
            return await reader.body()

    async with upstream(play) as up, serve(Relay(up.url)) as url:
        answers = await asyncio.gather(*(read(url, number) for number in range(streams)))
        assert answers == [b"/%d 1/%d 2" % (number, number) for number in range(streams)]


# -- bad ends


def truncated(how: str) -> tuple[bytes, bytes]:
    """An answer that breaks off, and what of its body came."""
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    return {
        "short of its length": (plain + b"partial", b"partial"),
        "before its first byte": (plain, b""),
        "without the last chunk": (CHUNKED + chunk(b"partial"), b"partial"),
        "in a chunk": (CHUNKED + b"64\r\npartial", b"partial"),
        "in a chunk's size": (CHUNKED + chunk(b"partial") + b"6", b"partial"),
        "a chunk's size that is none": (CHUNKED + chunk(b"partial") + b"zz\r\n", b"partial"),
    }[how]


ENDS = [
    "short of its length",
    "before its first byte",
    "without the last chunk",
    "in a chunk",
    "in a chunk's size",
    "a chunk's size that is none",
]


async def broken_off(reader: Peer, came: bytes) -> None:
    """The reader has what came and then a broken connection: nothing that passes for a whole answer."""
    rest = await reader.rest()
    if reader.has("content-length"):
        assert rest == came
        assert len(rest) < int(reader.all("content-length")[0])
    else:
        assert reader.all("transfer-encoding") == ["chunked"]
        assert rest == (chunk(came) if came else b"")


BROKEN = [(how, "close") for how in ENDS] + [(how, end) for how in ENDS[:3] for end in ("reset", "stall")]
"""Where in a chunk it breaks off makes no difference to the server: the engine's tests have each place and each way."""


@pytest.mark.parametrize(("how", "end"), BROKEN)
async def test_an_upstream_that_breaks_off_never_looks_complete(
    served: Serve, how: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.relay.downstream.reader.READING_TIME", 0.02)
    raw, came = truncated(how)
    head_seen = asyncio.Event()
    head_waits = served is on_granian and how == "before its first byte"
    if head_waits:
        head_seen.set()  # granian holds the head of a body of known length back until the body's first byte

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(raw)
        await head_seen.wait()  # a reset takes back what is on its way
        if end == "reset":
            peer.reset()
        elif end == "stall":
            await peer.gone()

    async with upstream(play) as up:
        first_event = 1.0 if end == "stall" and not came else 20.0
        relay = Relay(up.url, timeout=Timeout(first_event=first_event, between_events=0.1 if end == "stall" else 20.0))
        async with served(relay) as url, dial(url) as reader:
            await reader.send(request())
            await reader.take_head()
            if head_waits:
                assert reader.status == 500
                return
            assert reader.status == 200
            if came and end == "reset":
                prefix = b"" if reader.has("content-length") else b"%x\r\n" % len(came)
                assert await reader.exactly(len(prefix + came)) == prefix + came
                head_seen.set()
                assert (await reader.rest()).strip() == b""
                return
            head_seen.set()
            await broken_off(reader, came)


async def test_the_failure_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with upstream(answering(CHUNKED + chunk(b"partial"), close=True)) as up, serve(Relay(up.url)) as url:
        await ask(url)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "broke off after 7 bytes" in record.getMessage()
    assert record.exc_info is None


async def test_a_silent_upstream_is_given_up_and_a_reader_that_is_slow_is_not() -> None:
    """The timer for silence stands still while it is the reader that holds things up."""
    size = 24 * MIB

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await peer.send(b"x" * size)

    async with upstream(play) as up:
        relay = Relay(up.url, timeout=Timeout(first_event=20, between_events=0.3))
        async with serve(relay) as url, dial(url, receive_buffer=65536) as reader:
            await reader.send(request())
            await reader.take_head()
            await asyncio.sleep(1.0)  # longer than the silence that an upstream is allowed
            assert len(await reader.rest()) == size


@pytest.mark.parametrize("grace", [0.0, 0.1])
async def test_a_server_that_stops_in_mid_stream_never_looks_complete(grace: float) -> None:
    gone = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"partial"))
        await peer.gone()
        gone.set()

    async with upstream(play) as up:
        sock = bind("127.0.0.1", 0)
        url = f"http://{bound_to(sock)}"
        server = Server(Relay(up.url), sock, grace=grace)
        listening = asyncio.Event()
        running = asyncio.create_task(server.run_until_stopped(listening.set))
        await listening.wait()
        async with dial(url) as reader:
            await reader.send(request())
            await reader.take_head()
            assert await reader.chunk() == b"partial"
            server.stop()
            assert await reader.rest() == b""
            async with asyncio.timeout(20):
                await gone.wait()
                await running


async def test_a_plain_uvicorn_that_stops_in_mid_stream_never_looks_complete() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"partial"))
        await peer.gone()

    async with upstream(play) as up:
        stack = SERVERS["uvicorn"](Relay(up.url))
        url = await stack.__aenter__()
        async with dial(url) as reader:
            await reader.send(request())
            await reader.take_head()
            assert await reader.chunk() == b"partial"
            stopping: asyncio.Task[Any] = asyncio.create_task(stack.__aexit__(None, None, None))
            assert await reader.rest() == b""
            await stopping
