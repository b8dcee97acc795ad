"""Requests and responses on raw sockets, on both event loops: framing, deadlines, flow, and every kind of end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from penstock.server import Server, bind, bound_to
from penstock.testing import serve as plainly_served
from tests.raw import connected, until

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
PROTOCOL = "penstock.server.protocol."

App = Callable[[Any, Any, Any], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops have protocols and transports of their own."""
    return "asyncio", {"use_uvloop": request.param}


def http(app: App) -> App:
    """The same, without a lifespan."""

    async def only_http(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await app(scope, receive, send)

    return only_http


@contextlib.asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """A server that leaves no task and no socket behind."""
    await asyncio.sleep(0)
    before, sockets = asyncio.all_tasks(), _sockets()
    async with plainly_served(http(app)) as url:
        yield url
    await until(lambda: asyncio.all_tasks() <= before and (_sockets() <= sockets or _collected() <= sockets))


def _sockets() -> set[str]:
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(each.readlink()))
    return {each for each in found if each.startswith("socket:")}


def _collected() -> set[str]:
    """What is open when nothing waits to be collected any more: to collect takes longer than most tests here."""
    gc.collect()
    return _sockets()


def post(body: bytes = b"", *more: str, length: int | None = None) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def whole(receive: Any) -> bytes | None:
    """The request's body; None when the reader left first."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def answer(send: Any, body: bytes = b"ok", *fields: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *fields]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await whole(receive)
    if body is not None:
        await answer(send, scope["raw_path"] + b":" + body)


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    async with asyncio.timeout(10):
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = raw[:-4].split("\r\n")
    pairs = [each.split(": ", 1) for each in lines]
    assert len({name for name, _ in pairs}) == len(pairs), "each field once"
    return int(line.split()[1]), dict(pairs)


async def body(reader: asyncio.StreamReader, size: int = 2) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readexactly(size)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


@contextlib.asynccontextmanager
async def talking(app: App) -> AsyncIterator[Streams]:
    async with serve(app) as url, connected(url) as streams:
        yield streams


# -- requests in a row


async def test_what_is_sent_ahead_is_bounded_however_often_the_application_looks_whether_its_reader_is_there() -> None:
    looks = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal looks
        assert await whole(receive) == b""
        for _ in range(1500):
            with anyio.CancelScope() as at_once:  # as Starlette's `is_disconnected` does
                at_once.cancel()
                await receive()
            looks += 1
            await asyncio.sleep(0)
        await answer(send)

    async with talking(app) as (reader, writer):
        writer.write(GET)
        sent = 0
        while looks < 1500:
            if writer.transport.get_write_buffer_size() < 64 * 1024:
                writer.write(b"G" * 64 * 1024)
                sent += 64 * 1024
            await asyncio.sleep(0)
        assert sent < 24_000_000, "more than the kernel holds between two sockets"
        assert (await head(reader))[0] == 200
        assert await body(reader) == b"ok"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.02 if scope["path"] == "/0" else 0)
        await echo(scope, receive, send)

    async with talking(app) as (reader, writer):
        writer.write(
            b"".join(b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (n, n) for n in range(9))
        )
        for number in range(9):
            await head(reader)
            assert await body(reader, 4) == b"/%d:%d" % (number, number)


async def test_a_client_that_pipelines_and_leaves_is_noticed_and_its_next_request_never_runs() -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await whole(receive) == b""
        message = await receive()
        told.append(scope["path"] + " " + message["type"])

    async with serve(app) as url:
        async with connected(url) as (_, writer):
            writer.write(GET.replace(b"/", b"/1", 1) + GET.replace(b"/", b"/2", 1))
            await asyncio.sleep(0.05)
            assert not told
        await until(lambda: told)
    assert told == ["/1 http.disconnect"]


@pytest.mark.parametrize("sent", [GET, post(length=10), post(b"x" * 300_000, length=400_000)])
async def test_a_fin_counts_as_leaving(sent: bytes) -> None:
    told = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await answer(send)  # in vain, and no error
        told.set()

    async with talking(app) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(10):
            await told.wait()
        assert await rest(reader) == b""


async def test_100_connections_of_20_requests_each() -> None:
    async def one(url: str, number: int) -> None:
        async with connected(url) as (reader, writer):
            for turn in range(20):
                said = b"%d.%d" % (number, turn)
                writer.write(post(said))
                _, fields = await head(reader)
                assert await body(reader, int(fields["content-length"])) == b"/:" + said

    async with serve(echo) as url:
        await asyncio.gather(*(one(url, number) for number in range(100)))


async def test_pipelining_does_not_get_around_backpressure() -> None:
    """The answer before fills the socket; nobody tells the one behind it, which must not pile up in memory."""
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["path"] == "/1":
            await answer(send, b"x" * 30_000_000)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent = 1
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            sent += 1

    async with talking(app) as (_, writer):
        writer.write(GET.replace(b"/", b"/1", 1) + GET)
        await asyncio.sleep(0.3)
        assert sent == 0, "even the head waits"


# -- limits and deadlines


async def test_a_slow_head_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROTOCOL + "HEAD_SECONDS", 0.2)
    async with talking(echo) as (reader, writer):
        for byte in b"GET / HTTP":  # each byte does not move the deadline
            writer.write(bytes([byte]))
            await asyncio.sleep(0.03)
        status, fields = await head(reader)
        assert (status, fields["connection"]) == (408, "close")
        assert b"0.2 s" in await rest(reader)


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(PROTOCOL + "HEAD_SECONDS", 0.1)
    async with talking(echo) as (reader, writer):
        writer.write(sent)
        assert await rest(reader) == b""


@pytest.mark.parametrize("began", [post(b"ab", length=5), post(length=5)])
async def test_a_slow_body_is_408(monkeypatch: pytest.MonkeyPatch, began: bytes) -> None:
    monkeypatch.setattr(PROTOCOL + "BODY_SECONDS", 0.1)
    async with talking(echo) as (reader, writer):
        writer.write(began)
        assert (await head(reader))[0] == 408
        assert (await rest(reader)).endswith(b"\n")


async def test_a_body_that_is_not_waited_for_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROTOCOL + "BODY_SECONDS", 0.1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await receive()  # given up: the clock must not go on
        await asyncio.sleep(0.3)
        await echo(scope, receive, send)

    async with talking(app) as (reader, writer):
        writer.write(post(length=2))
        await asyncio.sleep(0.25)
        writer.write(b"ab")
        assert (await head(reader))[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 257 + b"\r\n", 431),
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 70_000, 414),
    ],
)
async def test_limits_of_the_head(sent: bytes, status: int) -> None:
    async with talking(echo) as (reader, writer):
        writer.write(sent)
        assert (await head(reader))[0] == status
        assert (await rest(reader)).startswith(b"{")


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROTOCOL + "KEEP_ALIVE_SECONDS", 0.1)
    async with talking(echo) as (reader, writer):
        writer.write(GET)
        await head(reader)
        assert await rest(reader) == b"/:"


# -- bodies


async def test_a_body_that_is_not_read_is_not_read_ahead_either() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        got = await whole(receive)
        await answer(send, b"%d" % len(got or b""))

    async with talking(app) as (reader, writer):
        size = 30_000_000
        writer.write(post(length=size))
        for _ in range(size // 100_000):
            writer.write(b"x" * 100_000)
        await asyncio.sleep(0.3)
        unsent = writer.transport.get_write_buffer_size()
        await asyncio.sleep(0.1)
        assert writer.transport.get_write_buffer_size() == unsent > size // 2
        go_on.set()
        await head(reader)
        assert await body(reader, 8) == b"30000000"


@pytest.mark.parametrize("framing", ["counted", "chunked"])
@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_connection_is_used_again_after_a_body_that_nobody_read(framing: str, size: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    sent = post(b"x" * size)
    if framing == "chunked":
        sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent += b"%x\r\n%b\r\n0\r\nA: b\r\n\r\n" % (size, b"x" * size)
    async with talking(app) as (reader, writer):
        for now in (sent[: sent.index(b"\r\n\r\n") + 8], sent):
            writer.write(now)
            assert (await head(reader))[0] == 200
            assert await body(reader) == b"ok"
            writer.write(sent[len(now) :])


@pytest.mark.parametrize("keeps", [True, False])
async def test_an_endless_body_that_nobody_reads_ends_with_its_answer(
    monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    monkeypatch.setattr(PROTOCOL + "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(PROTOCOL + "MAX_DISCARDED_BYTES", 500_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"ok", *([] if keeps else [(b"connection", b"close")]))

    async def send_on(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while not writer.transport.is_closing():
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0)

    async with talking(app) as (reader, writer):
        writer.write(post(length=10**15))
        sending = asyncio.create_task(send_on(writer))
        assert (await head(reader))[0] == 200
        assert await body(reader) == b"ok"
        async with asyncio.timeout(10):
            await sending


async def test_the_last_of_a_discarded_body_and_more_than_the_bound_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROTOCOL + "MAX_DISCARDED_BYTES", 10)
    ran = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope["path"])
        await answer(send)

    async with talking(app) as (reader, writer):
        writer.write(post(length=20))
        await head(reader)
        await body(reader)
        writer.write(b"x" * 20 + GET)
        with contextlib.suppress(ConnectionResetError):
            assert await rest(reader) == b""
    assert ran == ["/"]


async def test_an_expectation_that_is_asked_for() -> None:
    async with talking(echo) as (reader, writer):
        for _ in range(2):
            writer.write(post(b"", "Expect: 100-continue", length=3))
            assert (await head(reader))[0] == 100
            writer.write(b"abc")
            assert (await head(reader))[0] == 200
            assert await body(reader, 5) == b"/:abc"


async def test_an_expectation_that_does_not_wait() -> None:
    async with talking(echo) as (reader, writer):
        for _ in range(2):
            writer.write(post(b"abc", "Expect: 100-continue"))
            assert (await head(reader))[0] == 200
            assert await body(reader, 5) == b"/:abc"


async def test_an_expectation_that_is_refused_says_that_the_connection_closes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    async with talking(app) as (reader, writer):
        writer.write(post(b"", "Expect: 100-continue", length=3))
        status, fields = await head(reader)
        assert (status, fields["connection"]) == (200, "close")
        assert await rest(reader) == b"ok"


# -- the response's framing


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def test_chunks() -> None:
    async with talking(stream) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            _, fields = await head(reader)
            assert (fields.pop("transfer-encoding"), list(fields)) == ("chunked", ["date"])
            assert await body(reader, 21) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("keep_alive", ["", "Connection: keep-alive\r\n"])
async def test_http_1_0_without_a_length_ends_with_the_connection(keep_alive: str) -> None:
    async with talking(stream) as (reader, writer):
        writer.write(f"GET / HTTP/1.0\r\n{keep_alive}\r\n".encode())
        assert (await head(reader))[1]["connection"] == "close"
        assert await rest(reader) == b"onetwo"


async def test_http_1_0_with_a_length_and_keep_alive() -> None:
    async with talking(echo) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await head(reader))[1]["connection"] == "keep-alive"
            assert await body(reader) == b"/:"
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await head(reader))[1]["connection"] == "close"
        assert await rest(reader) == b"/:"


@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("GET", 304), ("HEAD", 200), ("HEAD", 204)])
@pytest.mark.parametrize("length", [b"4", None])
async def test_answers_without_a_body(method: str, status: int, length: bytes | None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [] if length is None else [(b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"some"})

    async with talking(app) as (reader, writer):
        for _ in range(2):
            writer.write(GET.replace(b"GET", method.encode()))
            found, fields = await head(reader)
            kept = {} if length is None or status != 200 else {"content-length": "4"}
            assert (found, {**fields, "date": ""}) == (status, {**kept, "date": ""})


async def test_fields_of_the_connection_are_ours() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"Date", b"then"), (b"Transfer-Encoding", b"gzip"), (b"Connection", b"X-Foo, keep-alive")]
        await answer(send, b"ok", *fields)

    async with talking(app) as (reader, writer):
        writer.write(GET)
        assert (await head(reader))[1] == {"content-length": "2", "date": "then"}


@pytest.mark.parametrize(
    "start",
    [
        {"headers": [(b"a\r\nb", b"c")]},
        {"headers": [(b"a", b"b\r\nc: d")]},
        {"headers": [(b"a", b"b\nc")]},
        {"headers": [(b"a", b"\x00")]},
        {"headers": [(b"", b"b")]},
        {"headers": [(b"a b", b"c")]},
        {"headers": [(b"content-length", b"-1")]},
        {"headers": [(b"content-length", b"4, 4")]},
        {"headers": [(b"content-length", b"4"), (b"content-length", b"5")]},
        {"headers": [(b"content-length", b"4"), (b"bad\n", b"")]},
        {"status": 100},
        {"status": 10_000},
    ],
)
async def test_a_head_that_no_response_can_have_is_500(start: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], **start})

    async with talking(app) as (reader, writer):
        writer.write(GET)
        status, fields = await head(reader)
        assert (status, fields["connection"]) == (500, "close")
        assert await rest(reader) == b"Internal Server Error"


@pytest.mark.parametrize(
    ("pieces", "came"), [([b"1234"], b"1234"), ([b"12", b"345678"], b"12"), ([b"123456"], b""), ([], b"")]
)
async def test_a_body_that_is_not_as_long_as_it_says_never_looks_complete(pieces: list[bytes], came: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async with talking(app) as (reader, writer):
        writer.write(GET)
        await head(reader)
        assert await rest(reader) == came


@pytest.mark.parametrize("sends", [[{"type": "http.response.body"}], [OK, OK], [OK, {"type": "what"}]])
async def test_messages_out_of_turn(sends: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sends:
            await send(message)

    async with talking(app) as (reader, writer):
        writer.write(GET)
        assert (await head(reader))[0] == (500 if len(sends) == 1 else 200)
        assert await rest(reader) == (b"Internal Server Error" if len(sends) == 1 else b"")
    assert "http.response" in caplog.text


async def test_a_message_after_the_end_does_not_harm_the_next_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)
        with pytest.raises(RuntimeError, match="complete"):
            await send({"type": "http.response.body", "body": b"more"})
        assert (await receive())["type"] == "http.disconnect"

    async with talking(app) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            await head(reader)
            assert await body(reader) == b"ok"


# -- flow


@pytest.mark.parametrize("leaves", [False, True])
async def test_send_waits_for_a_reader_that_does_not_read_and_a_reader_that_leaves_wakes_it(leaves: bool) -> None:
    sent, done = 0, asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"60000000")]})
        for number in range(600):
            more = {"type": "http.response.body", "body": b"x" * 100_000, "more_body": number < 599}
            await send(more)
            sent += 1
        done.set()

    async with serve(app) as url:
        async with connected(url) as (reader, writer):
            writer.write(GET)
            await head(reader)
            await asyncio.sleep(0.3)
            stood = sent
            await asyncio.sleep(0.1)
            assert sent == stood < 300
            if leaves:
                writer.transport.abort()
            else:
                assert len(await body(reader, 60_000_000)) == 60_000_000
        async with asyncio.timeout(10):
            await done.wait()


async def test_two_that_send_at_a_time_both_wake() -> None:
    done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        piece = {"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.gather(*(send(piece) for _ in range(4)))
        done.set()
        await send({"type": "http.response.body"})

    async with talking(app) as (reader, writer):
        writer.write(GET)
        await head(reader)
        await asyncio.sleep(0.05)
        assert not done.is_set()
        async with asyncio.timeout(10):
            assert await _chunked(reader) == 80_000_000
    assert done.is_set()


async def _chunked(reader: asyncio.StreamReader) -> int:
    size = 0
    while piece := int(await reader.readline(), 16):
        await reader.readexactly(piece + 2)
        size += piece
    return size


# -- bad ends


@pytest.mark.parametrize("how", ["raise", "return", "cancel", "exit"])
@pytest.mark.parametrize("phase", ["before", "begun", "in the body", "done"])
@pytest.mark.parametrize("sent", [GET, post(b"ab", length=5)], ids=["GET", "POST"])
async def test_an_application_that_ends_too_early(how: str, phase: str, sent: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if phase in ("begun", "in the body"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if phase == "in the body":
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        if phase == "done":
            await answer(send)
        if how != "return":
            raise {"raise": ZeroDivisionError, "cancel": asyncio.CancelledError, "exit": SystemExit}[how]

    async with talking(app) as (reader, writer):
        writer.write(sent)
        status, fields = await head(reader)
        assert status == (500 if phase == "before" else 200)
        if phase == "done":
            assert await body(reader) == b"ok"
            writer.write(b"cde" * (sent is not GET) + GET)
            assert (await head(reader))[0] == 200
            return
        expected = {"before": b"Internal Server Error", "begun": b"", "in the body": b"2\r\nab\r\n"}[phase]
        assert await rest(reader) == expected
        assert ("connection" in fields) == (phase == "before")


@contextlib.asynccontextmanager
async def stoppable(app: App, *, grace: float) -> AsyncIterator[tuple[str, Server, asyncio.Task[None]]]:
    sock = bind("127.0.0.1", 0)
    url = f"http://{bound_to(sock)}"
    server, listening = Server(http(app), sock, grace=grace), asyncio.Event()
    task = asyncio.create_task(server.run_until_stopped(listening.set))
    await listening.wait()
    try:
        yield url, server, task
    finally:
        server.stop()
        async with asyncio.timeout(10):
            await task


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", post(b"ab", length=5), GET, GET * 3], ids=["idle", "head", "body", "response", "ahead"]
)
async def test_a_server_that_stops_in_any_phase(sent: bytes) -> None:
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        if await whole(receive) is not None:
            await asyncio.sleep(0.1)
            await answer(send)

    async with stoppable(app, grace=0.4) as (url, server, task), connected(url) as (reader, writer):
        writer.write(sent)
        if sent.endswith(b"\r\n\r\n") or b"ab" in sent:
            await begun.wait()
        else:
            await asyncio.sleep(0.05)
        server.stop()
        with contextlib.suppress(ConnectionResetError):  # of what is unread at the end of the grace
            came = await rest(reader)
            assert came.count(b"HTTP/1.1 200 OK") == (1 if sent.startswith(b"GET / HTTP/1.1") else 0)
            assert came.count(b"connection: close") == bool(came)
        async with asyncio.timeout(10):
            await task


# -- without a socket that is read


async def test_a_reader_that_resets_in_mid_answer_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        direct = scope["extensions"]["penstock.direct"]
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        for _ in range(50):
            direct.write(b"x")  # in vain: asyncio would warn of each after the fifth
        ended.set()

    async with serve(app) as url:
        async with connected(url) as (reader, writer):
            writer.write(GET)
            await head(reader)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            writer.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()
    assert not caplog.records
