"""The direct way: from the upstream's callback to the reader's socket, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from penstock.relay.app import Relay
from penstock.server import Server, bind, bound_to
from penstock.testing import serve
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, answering, chunk, dial, request, response, until, upstream
from tests.relay.servers import Watched, watching, wrapped

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops have protocols and transports of their own."""
    return "asyncio", {"use_uvloop": request.param}


async def test_each_event_is_one_write_and_no_message() -> None:
    events = 50
    seen: list[Watched] = []
    received = asyncio.Semaphore(0)

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED)
        for number in range(events):
            await peer.send(chunk(b"data: %d\n\n" % number))
            await received.acquire()
        await peer.send(LAST_CHUNK)

    async with upstream(play) as up:
        relay = Relay(up.url)

        async with serve(watching(relay, seen)) as url, dial(url) as reader:
            await reader.send(request())
            await reader.take_head()
            for number in range(events):
                assert await reader.chunk() == b"data: %d\n\n" % number
                received.release()
            assert await reader.chunk() == b""
    (writer,) = seen
    assert (writer.opened, writer.written) == (1, events), "none of them came as a message"
    assert writer.chunks >= events - 1, "each passed as the chunk that it came as, but for one that came with the head"


async def test_a_wrapped_send_is_respected() -> None:
    seen: list[Watched] = []
    async with (
        upstream(answering(CHUNKED + chunk(b"1") + LAST_CHUNK)) as up,
        serve(watching(wrapped(Relay(up.url)), seen)) as url,
        dial(url) as reader,
    ):
        await reader.send(request())
        await reader.take_head()
        assert await reader.body() == b"1"
    assert [writer.opened + writer.written for writer in seen] == [0]


async def test_a_paused_socket_pauses_the_upstream_within_a_bound_and_resumes() -> None:
    piece, count = b"\x5a" * 65536, 1200  # 75 MiB
    seen: list[Watched] = []
    transports: list[Any] = []
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.take_head()
        await peer.send(CHUNKED)
        for _ in range(count):
            await peer.send(chunk(piece))
            sent += 1
        await peer.send(LAST_CHUNK)

    async with upstream(play) as up:
        relay = Relay(up.url)

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                transports.append(send.__self__._transport)  # noqa: SLF001 – what is buffered is nobody else's to tell
            await relay(scope, receive, send)

        async with serve(watching(noted, seen)) as url, dial(url, receive_buffer=65536) as reader:
            await reader.send(request())
            await reader.take_head()
            await until(lambda: bool(seen and seen[0].pauses))
            for _ in range(20):
                await asyncio.sleep(0.02)
                assert transports[0].get_write_buffer_size() < MIB, "what one callback brought, and no more"
            assert sent < count // 2
            for _ in range(count):
                left = len(piece)  # the relay may cut them elsewhere
                while left:
                    got = len(await reader.chunk())
                    assert got
                    left -= got
                    if left < 0:
                        break
                if left < 0:
                    break
            else:
                assert await reader.chunk() == b""
            await reader.rest()
            await until(lambda: sent == count)
    assert seen[0].resumes >= 1


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_reader_that_leaves_cancels_the_upstream_at_once(
    reset: bool, paused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    felt = asyncio.Event()
    seen: list[Watched] = []

    async def flood(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while paused:
                await peer.send(chunk(b"x" * 65536))

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        flooding = asyncio.create_task(flood(peer))
        await peer.gone()
        felt.set()
        flooding.cancel()

    async with upstream(play) as up, serve(watching(Relay(up.url), seen)) as url:
        async with dial(url, receive_buffer=65536) as reader:
            await reader.send(request())
            await reader.take_head()
            if paused:
                await until(lambda: bool(seen and seen[0].pauses))
            else:
                assert await reader.chunk() == b"1"
            if reset:
                reader.reset()
        async with asyncio.timeout(20):
            await felt.wait()
        await until(lambda: len(asyncio.all_tasks()) < 30)
    assert seen[0].opened == 1
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("paused", [False, True])
async def test_an_upstream_that_breaks_never_looks_complete(end: str, paused: bool) -> None:
    seen: list[Watched] = []
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"1"))
        if paused:
            for _ in range(100):
                peer.writer.write(chunk(b"x" * 65536))
        await go_on.wait()
        if end == "reset":
            peer.reset()
        else:
            peer.writer.close()

    async with (
        upstream(play) as up,
        serve(watching(Relay(up.url), seen)) as url,
        dial(url, receive_buffer=65536) as reader,
    ):
        await reader.send(request())
        await reader.take_head()
        await until(lambda: bool(seen and (seen[0].pauses if paused else seen[0].written)))
        go_on.set()
        rest = await reader.rest()
        assert rest.startswith(chunk(b"1"))
        assert not rest.endswith(LAST_CHUNK)
    assert seen[0].opened == 1


@pytest.mark.parametrize(
    ("raw", "body", "method"),
    [
        (response(b"all of it"), b"all of it", "GET"),
        (response(b""), b"", "GET"),
        (CHUNKED + LAST_CHUNK, b"", "GET"),
        (CHUNKED + chunk(b"1") + chunk(b"2") + LAST_CHUNK, b"12", "GET"),
        (response(b"x" * 2_000_000), b"x" * 2_000_000, "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"", "HEAD"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"", "GET"),
    ],
    ids=["counted", "empty", "no chunks", "chunks", "large", "HEAD", "204", "304"],
)
async def test_an_answer_that_is_complete_before_it_is_pushed(raw: bytes, body: bytes, method: str) -> None:
    seen: list[Watched] = []

    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            await peer.send(raw)

    async with upstream(play) as up, serve(watching(Relay(up.url), seen)) as url, dial(url) as reader:
        for _ in range(3):  # and the connections on both sides are in order
            await reader.send(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.take_head()
            if method == "GET" and reader.status == 200:
                assert await reader.body() == body
        assert len(up.peers) == 1
    assert [writer.opened for writer in seen] == [1, 1, 1]


async def test_pipelined_requests_each_get_their_own_bytes() -> None:
    async def play(peer: Peer) -> None:
        while True:
            name = (await peer.take_head()).split()[1]
            await peer.send(CHUNKED + chunk(name * 100_000) + LAST_CHUNK)

    async with upstream(play) as up, serve(Relay(up.url)) as url, dial(url, receive_buffer=65536) as reader:
        await reader.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(8)))
        for number in range(8):
            await reader.take_head()
            assert await reader.body() == b"/%d" % number * 100_000


@pytest.mark.parametrize("grace", [0.0, 0.1])
@pytest.mark.parametrize("paused", [False, True])
async def test_a_server_that_stops_in_mid_push(grace: float, paused: bool) -> None:
    gone = asyncio.Event()
    seen: list[Watched] = []

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"partial"))
        if paused:
            for _ in range(300):
                peer.writer.write(chunk(b"x" * 65536))
        await peer.gone()
        gone.set()

    async with upstream(play) as up:
        sock = bind("127.0.0.1", 0)
        url = f"http://{bound_to(sock)}"
        server = Server(watching(Relay(up.url), seen), sock, grace=grace)
        listening = asyncio.Event()
        running = asyncio.create_task(server.run_until_stopped(listening.set))
        await listening.wait()
        async with dial(url, receive_buffer=65536) as reader:
            await reader.send(request())
            await reader.take_head()
            assert await reader.chunk() == b"partial"
            if paused:
                await until(lambda: bool(seen[0].pauses))
            server.stop()
            assert not (await reader.rest()).endswith(LAST_CHUNK)
            async with asyncio.timeout(20):
                await gone.wait()
                await running
    assert seen[0].opened == 1
