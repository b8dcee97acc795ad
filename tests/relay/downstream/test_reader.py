"""The reader's side: bodies that come slowly, and readers that leave, at every point."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.relay.app import Relay
from penstock.relay.downstream.reader import Downstream
from penstock.testing import serve
from tests.relay.peers import (
    CHUNKED,
    Peer,
    Serve,
    answering,
    chunk,
    dial,
    request,
    response,
    until,
    upstream,
)
from tests.relay.servers import EVERY_SERVER

pytestmark = pytest.mark.anyio


@pytest.fixture(params=EVERY_SERVER)
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


# -- the body


@pytest.mark.parametrize("framing", ["Content-Length: 15", "Transfer-Encoding: chunked"])
async def test_an_upload_arrives_piece_by_piece(framing: str, served: Serve) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        if peer.has("content-length"):
            for _ in range(3):
                arrived.put_nowait(await peer.exactly(5))
        else:
            while piece := await peer.chunk():
                arrived.put_nowait(piece)
        await peer.send(response(b"done"))

    chunked = framing.startswith("T")
    async with upstream(play) as up, served(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request("/", "POST", framing + "\r\n"))
        for piece in (b"one..", b"two..", b"three"):
            await reader.send(chunk(piece) if chunked else piece)
            async with asyncio.timeout(20):
                assert await arrived.get() == piece  # before the next one is even sent
        if chunked:
            await reader.send(b"0\r\n\r\n")
        await reader.take_head()
        assert (reader.status, await reader.body()) == (200, b"done")
        assert up.peers[0].all("transfer-encoding") == (["chunked"] if chunked else [])
        assert up.peers[0].all("content-length") == ([] if chunked else ["15"])


async def test_an_expectation_is_answered_by_us_and_not_passed_on() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request("/", "PUT", "Content-Length: 4\r\nExpect: 100-continue\r\n"))
        assert (await reader.take_head()).startswith(b"HTTP/1.1 100")
        await reader.send(b"body")
        await reader.take_head()
        assert reader.status == 200
        assert not up.peers[0].has("expect")


async def test_the_refusal_of_a_large_upload_reaches_its_sender(served: Serve) -> None:
    """Closing on what is unread would be a reset, which takes the answer with it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = f"http://127.0.0.1:{sock.getsockname()[1]}"
    body = b"x" * (8 << 20)
    async with served(Relay(closed)) as url, dial(url) as reader:
        head = request("/", "POST", f"Content-Length: {len(body)}\r\n")
        sending = asyncio.create_task(reader.send(head + body))
        await reader.take_head()
        assert reader.status == 502
        assert reader.all("connection") == ["close"]
        reader.problem(await reader.body())
        await sending
        assert await reader.rest() == b""


async def test_an_endless_upload_is_not_read_for_ever_after_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.relay.downstream.reader.LINGER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = f"http://127.0.0.1:{sock.getsockname()[1]}"

    async def send_on(reader: Peer) -> None:
        with contextlib.suppress(OSError):
            while True:
                await reader.send(chunk(b"x" * 1000))
                await asyncio.sleep(0.001)

    async with serve(Relay(closed)) as url, dial(url) as reader:
        await reader.send(request("/", "POST", "Transfer-Encoding: chunked\r\n"))
        sending = asyncio.create_task(send_on(reader))
        await reader.take_head()
        assert reader.status == 502
        async with asyncio.timeout(20):
            await sending  # it was cut off


async def test_an_upstream_that_answers_early_is_heard() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(response(b"no more", status="413 Content Too Large", more="Connection: close\r\n"))
        peer.writer.write_eof()
        await peer.gone()

    async with upstream(play) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(request("/", "POST", "Content-Length: 1000\r\n"))
        await reader.send(b"x" * 500)
        await until(lambda: bool(up.peers))
        with contextlib.suppress(OSError):
            await reader.send(b"x" * 500)
        await reader.take_head()
        assert reader.status == 413
        assert await reader.body() == b"no more"


async def test_a_connection_is_kept_after_an_upload() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        for number in (1, 2):
            await reader.send(f"POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode())
            await reader.take_head()
            assert await reader.body() == b"ok"


# -- leaving


async def left_when(
    served: Serve, sent: bytes, play: Callable[[Peer], Any], ready: Callable[[Peer], Any], *, reset: bool = False
) -> None:
    """A reader sends, waits until something is so, and leaves; the upstream must feel it."""
    felt = asyncio.Event()
    up_to_here = asyncio.Event()

    async def watched(peer: Peer) -> None:
        await play(peer)
        up_to_here.set()
        await peer.gone()
        felt.set()

    async with upstream(watched) as up, served(Relay(up.url)) as url:
        async with dial(url) as reader:
            await reader.send(sent)
            async with asyncio.timeout(20):
                await up_to_here.wait()
            await ready(reader)
            assert not felt.is_set()
            if reset:
                reader.reset()
        async with asyncio.timeout(20):
            await felt.wait()


async def nothing(peer: Peer) -> None:
    pass


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("body", [b"", b'{"q":1}'], ids=["GET", "POST"])
async def test_leaving_before_the_upstreams_headers(served: Serve, body: bytes, reset: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        assert await peer.body() == body

    await left_when(served, request("/", "POST" if body else "GET", body=body), play, nothing, reset=reset)


async def test_leaving_before_the_first_byte(served: Serve) -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)

    async def ready(reader: Peer) -> None:
        await reader.take_head()

    await left_when(served, request(), play, ready)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_leaving_in_mid_body(served: Serve, reset: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"data: 1\n\n"))

    async def ready(reader: Peer) -> None:
        await reader.take_head()
        assert await reader.chunk() == b"data: 1\n\n"

    await left_when(served, request(), play, ready, reset=reset)


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_leaving_in_mid_upload_breaks_the_upstreams_request(served: Serve, framing: str) -> None:
    seen = b""

    async def play(peer: Peer) -> None:
        nonlocal seen
        await peer.take_head()
        seen = await peer.exactly(5) if framing.startswith("C") else await peer.chunk()

    piece = b"part1" if framing.startswith("C") else chunk(b"part1")
    await left_when(served, request("/", "POST", framing + "\r\n") + piece, play, nothing)
    assert seen == b"part1"


@pytest.mark.parametrize("body", [b"", b'{"q":1}'], ids=["GET", "POST"])
async def test_leaving_before_the_upstream_is_connected_to(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A listening socket whose backlog is full lets nobody in: the relay is still connecting when the reader leaves."""
    caplog.set_level("INFO", "penstock.relay")
    with socket.socket() as full, contextlib.ExitStack() as fillers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(full.getsockname())
        async with serve(Relay(f"http://127.0.0.1:{full.getsockname()[1]}", timeout=None)) as url:
            async with dial(url) as reader:
                await reader.send(request("/", "POST" if body else "GET", body=body))
                await asyncio.sleep(0.1)
            await until(lambda: "the reader left after 0 bytes" in caplog.text)


async def test_a_reader_that_leaves_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"12345"))
        await peer.gone()

    async with upstream(play) as up, serve(Relay(up.url)) as url:
        async with dial(url) as reader:
            await reader.send(request("/path?q"))
            await reader.take_head()
            await reader.chunk()
        await until(lambda: "left" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("penstock")]
    assert lines == ["GET /path?q: the reader left after 5 bytes; the upstream is cancelled"]


async def test_a_whole_answer_is_no_departure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "penstock")
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url:
        async with dial(url) as reader:
            for _ in range(2):
                await reader.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.take_head()
                assert await reader.body() == b"ok"
        assert "left" not in caplog.text


async def test_who_wraps_send_may_take_its_time_over_the_last_message() -> None:
    """A server tells a reader whose answer is complete as gone: that must not cancel what is still at work."""
    worked: list[bool] = []

    def slow_last(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    await asyncio.sleep(0.05)
                    worked.append(True)

            await app(scope, receive, sending)

        return wrapped

    async with upstream(answering(response())) as up, serve(slow_last(Relay(up.url))) as url, dial(url) as reader:
        await reader.send(request())
        await reader.take_head()
        assert await reader.rest() == b"ok"
        await until(lambda: worked == [True])


@pytest.mark.parametrize("stage", ["http.response.start", "http.response.body"])
async def test_a_server_that_raises_to_say_that_the_reader_left(stage: str) -> None:
    """ASGI 2.4: send() raises an OSError, and receive() may say nothing."""
    felt = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        await peer.gone()
        felt.set()

    first: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == stage:
            raise OSError("the reader has left")

    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "headers": [], "query_string": b""}
    async with upstream(play) as up:
        relay = Relay(up.url)
        async with relay.lifespan():
            await relay(scope, receive, send)
            async with asyncio.timeout(20):
                await felt.wait()


@contextlib.asynccontextmanager
async def tasks_settle() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before)


async def test_no_task_outlives_its_request() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        await peer.gone()

    async with upstream(play) as up, tasks_settle(), serve(Relay(up.url)) as url:
        for _ in range(5):
            async with dial(url) as reader:
                await reader.send(request())
                await reader.take_head()
                await reader.chunk()


async def test_who_leaves_before_the_request_is_whole_has_left_early_however_often_that_is_told() -> None:
    gate, told = asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        await gate.wait()
        told.set()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise OSError

    asked = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    async with Downstream(asked, receive, send) as downstream:
        await downstream.start(200, [])
        assert downstream.left_early
        gate.set()
        async with asyncio.timeout(20):
            await told.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        assert downstream.left_early
