from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import random
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.engine.connection import HIGH_WATER, BodyLengthError, Connection, Exchange, Outgoing, Patience
from penstock.errors import (
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    StreamStalled,
    StreamTruncated,
    WriteError,
    WriteTimeout,
)
from penstock.testing import close, pause, reset, script, wait_request
from penstock.testing.script import Step
from tests.engine.talk import GET, HEAD, SOON, connected, nothing_left, pieces, post, splits, talking, whole
from tests.raw import until

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
OKAY = OK + b"Content-Length: 2\r\n\r\nok"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = Outgoing(b"GET", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
CASES = json.loads((Path(__file__).parent.parent / "corpus" / "http1_responses.json").read_text())["cases"]


# -- every response there is ---------------------------------------------------------------------------------------


async def outcome(steps: Sequence[Step], request: Outgoing) -> tuple[int, bytes, type[PenstockError] | None]:
    """What a client makes of what a server plays: the status (0 for none), the body, and the error."""
    status, body = 0, b""
    async with script(wait_request(), *steps) as server:
        try:
            async with asyncio.timeout(20), talking(server, request) as exchange:
                status = exchange.head.status
                async for piece in pieces(exchange):
                    body += piece
        except PenstockError as error:
            return status, body, type(error)
    return status, body, None


def dripped(pieces: Iterable[bytes], seconds: float = 0) -> list[Step]:
    """The pieces, and a pause after each."""
    return [step for piece in pieces for step in (piece, pause(seconds))]


def answering(*answers: bytes) -> list[Step]:
    """A request, an answer, and so on."""
    return [step for answer in answers for step in (wait_request(), answer)]


def ways(raw: bytes) -> list[list[Step]]:
    """A response whole, byte by byte and in three random splits."""
    chance = random.Random(raw)
    cuts = [[], list(range(len(raw)))] + [[chance.randrange(len(raw) + 1) for _ in range(5)] for _ in range(3)]
    return [dripped(splits(raw, each)) for each in cuts]


async def played(raw: bytes, request: Outgoing) -> tuple[int, bytes, type[PenstockError] | None]:
    """The outcome of a response that is closed after; the same in every way of playing it."""
    outcomes = [await outcome([*steps, close()], request) for steps in ways(raw)]
    assert outcomes == [outcomes[0]] * len(outcomes)
    return outcomes[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_a_case(case: dict[str, Any]) -> None:
    raw = case["input"].encode("latin-1")
    status, body, error = await played(raw, HEAD if case.get("method") == "HEAD" else GET)
    assert body == case["body"].encode("latin-1")
    assert (error.__name__ if error else None) == case.get("error")
    assert error or status == case["status"]


# What a strict parser takes and we refuse; the reason, and what the name or the input holds.
REFUSED = {
    "lenient": "a mode of llhttp's that takes what it otherwise refuses; we have no such mode",
    "RTSP": "another protocol",
    "ICE": "another protocol",
    "0.9": "another protocol",
    "Response starting with CRLF": "RFC 9112 2.2 lets an empty line come before a request, not before a response",
    "HTTP 100 first, then 400": "an empty line before a response, see above",
    "`chunked` before other": "a coding that was not asked for, and that nobody would undo",
    "chunked is not the last one": "a coding that was not asked for",
    "`chunkedchunked`": "a coding that was not asked for",
    "OBS fold": "obsolete line folding (RFC 9112 5.2); llhttp takes it after Transfer-Encoding alone",
    "content-length: Content-Length:": "RFC 9112 6.3: a length that is not one number may be refused; browsers guess",
}
# What it refuses and we take.
TAKEN = {
    "keep-alive disabled": "data after `Connection: close`: the response is whole, the connection is closed anyway",
}


def shared_cases() -> list[Any]:
    folder = os.environ.get("PENSTOCK_CORPUS")
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip("PENSTOCK_CORPUS names no folder"))]
    cases = json.loads((Path(folder) / "http1_corpus.json").read_text())
    return [pytest.param(each, id=each["name"]) for each in cases if each["type"] == "response"]


@pytest.mark.parametrize("case", shared_cases())
async def test_a_case_of_the_shared_corpus(case: dict[str, Any]) -> None:
    raw = base64.b64decode(case["input_b64"])
    length = case.get("expected_length")
    if "expected_length" in case:
        raw = OK + raw + b"\r\n\r\n" + b"x" * 42
    skips_body = (case.get("meta") or {}).get("skipBody", False)
    upgraded = case["verdict"] == "pause"
    status, body, error = await played(raw, HEAD if skips_body else UPGRADE if upgraded else GET)
    if case["verdict"] == "reject":
        assert error is not None or any(part in case["name"] for part in TAKEN)
    elif error is not None and error not in (ReadError, StreamTruncated):  # many cases are cut off, or never end
        assert any(part in case["name"] for part in REFUSED)
    elif error is None:
        assert status
        assert length is None or body == b"x" * length
    if error is ReadError:
        assert b"\r\n\r\n" not in raw
    if error is StreamTruncated:
        assert status
        assert not raw.endswith(b"0\r\n\r\n")


VALID = {
    "counted": OK + b"Content-Length: 12\r\nX: y\r\n\r\nhello, world",
    "chunked": CHUNKED + b'5;a=b;c="d"\r\nhello\r\n7\r\n, world\r\n0;last\r\nDigest: x\r\nA: b\r\n\r\n',
    "after a 1xx": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("ending", [close, reset])
@pytest.mark.parametrize("name", VALID)
async def test_every_truncation_is_an_error(name: str, ending: Callable[[], Step]) -> None:
    raw = VALID[name]
    body = (await outcome([raw, close()], GET))[1]
    assert body.startswith(b"hello")
    for length in range(len(raw)):
        status, got, error = await outcome([raw[:length], ending()], GET)
        assert error is (StreamTruncated if status else ReadError)
        assert body.startswith(got)


async def test_a_body_to_the_end_of_the_connection_ends_with_a_close_and_not_with_a_reset() -> None:
    raw = OK + b"\r\nhello"
    for length in range(len(OK) + 2, len(raw) + 1):
        body = raw[len(OK) + 2 : length]
        assert await outcome([raw[:length], close()], GET) == (200, body, None)
        assert await outcome([raw[:length], reset()], GET) == (200, body, StreamTruncated)


# -- random splits, ends and cancellation ----------------------------------------------------------------------------

PLAYED = st.sampled_from([*VALID.values(), OK + b"\r\nhello", b"HTTP/1.1 204 No\r\n\r\n", CHUNKED + b"zz", OKAY + b"!"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    raw=PLAYED,
    cuts=st.lists(st.integers(0, 200), max_size=6),
    kept=st.integers(0, 6),
    ending=st.sampled_from([close(), reset(), pause(0)]),
    turns=st.integers(0, 60),
    pushed=st.booleans(),
)
async def test_nothing_is_left_whatever_happens(
    raw: bytes, cuts: list[int], kept: int, ending: Step, turns: int, pushed: bool
) -> None:
    """Played in pieces, ended anyhow and cancelled after so many turns of the loop."""
    async with nothing_left():
        steps = dripped(list(splits(raw, cuts))[: kept + 1])
        async with script(wait_request(), *steps, ending) as server:
            task = asyncio.create_task(ask(server.port, pushed=pushed))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, PenstockError):
                await task
            await asyncio.sleep(0.001)  # asyncio's server forgets what it accepts as it is closed


async def ask(port: int, *, pushed: bool) -> bytes:
    async with talking(port) as exchange:
        if not pushed:
            return await whole(exchange)
        got = Sunk(exchange)
        return await got.ended()


class Sunk:
    """A sink, and the order of what it was told."""

    def __init__(self, exchange: Exchange) -> None:
        self.told: list[bytes | PenstockError | None] = []
        self._over = asyncio.Event()
        exchange.push(self.told.append, self._end)

    def _end(self, error: PenstockError | None) -> None:
        self.told.append(error)
        self._over.set()

    async def ended(self) -> bytes:
        await self._over.wait()
        *body, error = self.told
        if isinstance(error, PenstockError):
            raise error
        assert error is None
        return b"".join(piece for piece in body if isinstance(piece, bytes))


# -- one connection, several exchanges -------------------------------------------------------------------------------


async def reused(*answers: bytes, first: Outgoing = GET) -> tuple[bytes, bytes]:
    """Two exchanges on one connection: their bodies."""
    async with script(*answering(*answers)) as server:
        connection = await connected(server)
        idle: list[Connection] = []
        connection.on_idle = idle.append
        bodies = []
        for request in (first, GET):
            exchange = Exchange(connection, request, SOON)
            await exchange.start()
            bodies.append(await whole(exchange))
            await exchange.close()
        assert idle == [connection, connection]
        connection.abort()
        await connection.gone()
    return bodies[0], bodies[1]


async def test_what_has_no_body_does_not_swallow_the_next_response() -> None:
    assert await reused(OK + b"Content-Length: 100\r\n\r\n", OKAY, first=HEAD) == (b"", b"ok")
    assert await reused(OK + b"Transfer-Encoding: chunked\r\n\r\n", OKAY, first=HEAD) == (b"", b"ok")
    assert await reused(b"HTTP/1.1 204 No Content\r\nContent-Length: 100\r\n\r\n", OKAY) == (b"", b"ok")
    assert await reused(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", OKAY) == (b"", b"ok")
    assert await reused(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OKAY, OKAY) == (b"ok", b"ok")
    assert await reused(CHUNKED + b"2\r\nab\r\n0\r\nA: b\r\n\r\n", OKAY) == (b"ab", b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        OKAY + b"HTTP/1.1 200 OK\r\n",
        OKAY + b"\r\n",
        CHUNKED + b"0\r\n\r\n!",
        b"HTTP/1.1 204 No\r\n\r\n!",
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"Content-Length: 0\r\n\r\n!",
    ],
)
async def test_surplus_or_a_close_ends_the_connection(answer: bytes) -> None:
    async with script(wait_request(), answer) as server:
        connection = await connected(server)
        idle: list[Connection] = []
        connection.on_idle = idle.append
        exchange = Exchange(connection, GET, SOON)
        await exchange.start()
        await whole(exchange)
        assert (connection.closed, idle) == (True, [])
        await connection.gone()


@pytest.mark.parametrize("unasked", [b"!", OKAY, b"\r\n"])
async def test_unasked_bytes_end_an_idle_connection(unasked: bytes) -> None:
    async with script(wait_request(), OKAY, pause(0.02), unasked) as server:
        connection = await connected(server)
        connection.on_idle = lambda connection: None
        exchange = Exchange(connection, GET, SOON)
        await exchange.start()
        assert await whole(exchange) == b"ok"
        assert connection.usable
        async with asyncio.timeout(20):
            await connection.gone()
        assert not connection.usable


async def test_a_server_that_closes_while_the_loop_is_busy_is_seen_before_the_next_request() -> None:
    async with serving(answer_then_close) as port:
        connection = await connected(port)
        connection.on_idle = lambda connection: None
        exchange = Exchange(connection, GET, SOON)
        await exchange.start()
        assert await whole(exchange) == b"ok"
        before = connection.usable
        time.sleep(0.1)
        assert (before, connection.usable) == (True, False)
        await connection.gone()


def answer_then_close(sock: socket.socket) -> None:
    sock.recv(65536)
    sock.sendall(OKAY)
    time.sleep(0.05)


@contextlib.asynccontextmanager
async def serving(talk: Callable[[socket.socket], None]) -> AsyncIterator[int]:
    """A server in a thread, for one connection: it goes on while the loop is busy, or reads nothing at all."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                talk(sock)

        done = loop.run_in_executor(None, serve)
        yield listener.getsockname()[1]
        await done


async def test_an_exchange_that_is_over_leaves_the_connection_to_the_next() -> None:
    """It pauses when it holds much, and its end may come with the bytes that make it so; then the socket is not its."""
    much, more = b"x" * (HIGH_WATER - 10_000), b"y" * 20_000
    first_steps: list[Step] = [CHUNKED + b"%x\r\n%b\r\n" % (len(much), much), pause(0.1)]
    last_chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(more), more)
    answer: list[Step] = [wait_request(), OKAY[:-2], pause(0.1), OKAY[-2:]]
    async with script(wait_request(), *first_steps, last_chunks, *answer) as server:
        connection = await connected(server)
        idle: list[Connection] = []
        connection.on_idle = idle.append
        first = Exchange(connection, GET, SOON)
        await first.start()
        await asyncio.sleep(0.2)
        assert idle == [connection]
        second = Exchange(connection, GET, SOON)
        first.pause()
        await second.start()
        second.pause()
        assert await whole(first) == much + more
        assert not connection.transport.is_reading()
        assert await whole(second) == b"ok"
        connection.abort()


# -- 1xx, 101, Expect ------------------------------------------------------------------------------------------------


async def test_101_gives_the_connection_away() -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nfirst"
    async with (
        script(wait_request(), answer, pause(0.15), b"second", close()) as server,
        talking(server, UPGRADE, Patience(5, 0.1, 0.1)) as exchange,
    ):
        assert await whole(exchange) == b"firstsecond"


async def test_1xx_for_ever_ends() -> None:
    async with script(wait_request(), b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000) as server:
        with pytest.raises(ProtocolError, match="one 1xx after another"):
            async with talking(server):
                pass


async def test_each_1xx_is_a_sign_of_life() -> None:
    hint = b"HTTP/1.1 102 Processing\r\n\r\n"
    async with (
        script(wait_request(), *dripped([hint] * 4, 0.1), OKAY) as server,
        talking(server, GET, Patience(first=0.25)) as exchange,
    ):
        assert await whole(exchange) == b"ok"


async def body_of(*parts: bytes, after: Callable[[], None] = lambda: None) -> AsyncIterator[bytes]:
    for part in parts:
        after()
        yield part


async def test_a_body_waits_for_its_100() -> None:
    asked: list[float] = []
    body = body_of(b"hello", after=lambda: asked.append(time.monotonic()))
    async with raw_server(b"\r\n\r\n", pause(0.1), b"HTTP/1.1 100 Continue\r\n\r\n", 5, OKAY) as (port, seen):
        began = time.monotonic()
        async with talking(port, post(body, 5, expects=True)) as exchange:
            assert await whole(exchange) == b"ok"
    assert asked[0] - began >= 0.09
    assert seen[-1].endswith(b"\r\n\r\nhello")


async def test_a_final_answer_in_place_of_the_100_means_that_the_body_is_not_wanted() -> None:
    for status in (b"417 Expectation Failed", b"200 OK"):
        async with (
            raw_server(b"\r\n\r\n", b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status) as (port, seen),
            talking(port, post(body_of(b"x", after=lambda: pytest.fail("sent")), 1, expects=True)) as exchange,
        ):
            assert await whole(exchange) == b"ok"
        assert seen[-1].endswith(b"\r\n\r\n")


async def test_no_100_comes_and_the_body_goes_out_all_the_same() -> None:
    async with (
        raw_server(b"\r\n\r\n", 5, OKAY) as (port, seen),
        talking(port, post(body_of(b"hello"), 5, expects=True)) as exchange,
    ):
        assert await whole(exchange) == b"ok"
    assert seen[-1].endswith(b"hello")


async def test_after_a_100_the_answer_still_has_to_come_in_time() -> None:
    async with raw_server(b"\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 5, pause(5)) as (port, _):
        with pytest.raises(ReadTimeout):
            async with talking(port, post(body_of(b"hello"), 5, expects=True), Patience(first=0.1)):
                pass


@contextlib.asynccontextmanager
async def raw_server(*steps: Any) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Plays bytes and pauses; reads to a mark where a step is the first one, or as many bytes as a number says."""
    seen: list[bytes] = []
    running: set[asyncio.Task[Any]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            seen.append(await reader.readuntil(steps[0]))
            for step in steps[1:]:
                if isinstance(step, bytes):
                    writer.write(step)
                elif isinstance(step, int):
                    seen[-1] += await reader.readexactly(step)
                else:
                    await asyncio.sleep(step.seconds)
            while more := await reader.read(65536):
                seen[-1] += more[:1000]
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            running.discard(task)

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for task in (playing := set(running)):
            task.cancel()
        if playing:
            await asyncio.wait(playing)
        await asyncio.sleep(0)


# -- bodies of the request -------------------------------------------------------------------------------------------


async def test_bodies_of_every_kind() -> None:
    async with script(*answering(*[OKAY] * 4)) as server:
        connection = await connected(server)
        connection.on_idle = lambda connection: None
        for request in (
            Outgoing(b"POST", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"abc"),
            post(body_of(b"ab", b"", b"c"), 3),
            post(body_of(b"ab", b"", b"c")),
            post(body_of()),
        ):
            exchange = Exchange(connection, request, SOON)
            await exchange.start()
            assert await whole(exchange) == b"ok"
            await exchange.close()
        connection.abort()
    assert [each.partition(b"\r\n\r\n")[2] for each in server.requests] == [
        b"abc", b"abc", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"0\r\n\r\n"
    ]  # fmt: skip


@pytest.mark.parametrize(("parts", "why"), [([b"ab"], "1 bytes before"), ([b"ab", b"cd"], "longer than")])
async def test_a_body_that_is_not_as_long_as_it_says(parts: list[bytes], why: str) -> None:
    async with nothing_left(), script(pause(0)) as server:
        with pytest.raises(BodyLengthError, match=why):
            async with talking(server, post(body_of(*parts), 3)):
                pass


class SourceError(Exception):
    pass


async def broken(*parts: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise error or SourceError("the source broke")


async def test_what_the_body_raises_is_what_the_caller_gets() -> None:
    for error in (SourceError(), WriteError("another's"), ReadTimeout("another's")):
        async with nothing_left(), script(pause(0)) as server:
            with pytest.raises(type(error)) as caught:
                async with talking(server, post(broken(b"x", error=error))):
                    pass
            assert caught.value is error


async def test_a_body_that_breaks_after_the_answer_began() -> None:
    early = OK + b"Content-Length: 5\r\n\r\nhe"

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.05)
        raise SourceError

    async with nothing_left(), raw_server(b"\r\n\r\n", early, pause(5)) as (port, _):
        async with talking(port, post(body())) as exchange:
            assert await exchange.read() == b"he"
            with pytest.raises(WriteError, match="SourceError") as caught:
                await exchange.read()
        assert isinstance(caught.value.__cause__, SourceError)


async def test_a_body_that_is_cancelled_from_elsewhere() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise asyncio.CancelledError

    async with nothing_left(), script(pause(0)) as server:
        with pytest.raises(WriteError, match="cancelled"):
            async with talking(server, post(body())):
                pass


async def test_a_body_is_closed_however_it_ends() -> None:
    closed: list[int] = []

    async def body(number: int) -> AsyncIterator[bytes]:
        try:
            for _ in range(1_000_000):
                yield b"x" * 1000
                await asyncio.sleep(0)
        finally:
            closed.append(number)

    async with (
        nothing_left(),
        raw_server(b"\r\n\r\n", b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n") as (port, _),
        talking(port, post(body(1))) as exchange,
    ):
        assert await whole(exchange) == b""
    assert closed == [1]
    async with nothing_left(), script(pause(0)) as server:
        task = asyncio.create_task(ask_with(server.port, post(body(2))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert closed == [1, 2]


async def ask_with(port: int, request: Outgoing, patience: Patience = SOON) -> bytes:
    async with talking(port, request, patience) as exchange:
        return await whole(exchange)


# -- answers before the request is sent ------------------------------------------------------------------------------


async def endless(piece: bytes = b"x" * 65536) -> AsyncIterator[bytes]:
    while True:
        yield piece


@pytest.mark.parametrize("turn", range(10))
async def test_413_and_a_close_while_we_upload(turn: int) -> None:
    """The server closes with our bytes unread, so a reset follows its answer: the answer is not lost to it."""
    refusal = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"

    def refuse(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(refusal)

    async with nothing_left(), serving(refuse) as port, talking(port, post(endless())) as exchange:
        assert (exchange.head.status, await whole(exchange)) == (413, b"no")


async def test_a_2xx_before_the_end_of_the_request_ends_with_it() -> None:
    """Whoever reads its end may trust that all was sent."""
    sent: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(5):
            await asyncio.sleep(0.02)
            sent.append(b"%d" % number)
            yield sent[-1]

    async with raw_server(b"\r\n\r\n", OKAY, 25) as (port, seen):
        connection = await connected(port)
        idle: list[Connection] = []
        connection.on_idle = idle.append
        exchange = Exchange(connection, post(body()), Patience(5, 0.01, 0.01))
        await exchange.start()
        assert sent == []
        assert await exchange.read() == b"ok"
        assert await exchange.read() == b""
        assert len(sent) == 5
        assert idle == [connection]
        connection.abort()
        await connection.gone()
    assert seen[0].endswith(b"1\r\n4\r\n0\r\n\r\n")


async def test_a_2xx_before_the_end_of_a_request_that_then_fails() -> None:
    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.05)
        yield b"x"
        raise SourceError

    async with (
        nothing_left(),
        raw_server(b"\r\n\r\n", OKAY, pause(5)) as (port, _),
        talking(port, post(body())) as exchange,
    ):
        assert await exchange.read() == b"ok"
        with pytest.raises(WriteError, match="SourceError"):
            await exchange.read()


async def test_a_2xx_and_a_close_before_the_end_of_the_request() -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(OKAY)

    async with nothing_left(), serving(answer) as port, talking(port, post(endless())) as exchange:
        assert await whole(exchange) == b"ok"


# -- timers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def took(low: float, high: float = 20.0) -> Any:
    began = time.monotonic()
    yield
    assert 0.9 * low <= time.monotonic() - began < high  # a loop looks at the clock once a turn


async def test_a_server_that_never_answers() -> None:
    async with nothing_left(), script(wait_request()) as server:
        with took(0.1), pytest.raises(ReadTimeout):
            async with talking(server, GET, Patience(first=0.1)):
                pass


async def test_a_dribbled_head() -> None:
    async with script(wait_request(), *dripped((bytes([byte]) for byte in OKAY), 0.03)) as server:
        with took(0.15), pytest.raises(ReadTimeout):
            async with talking(server, GET, Patience(first=0.15)):
                pass


async def test_a_stalled_body() -> None:
    async with (
        script(wait_request(), OK + b"Content-Length: 5\r\n\r\nhe") as server,
        talking(server, GET, Patience(first=60, between=0.1)) as exchange,
    ):
        assert await exchange.read() == b"he"
        with took(0.1), pytest.raises(StreamStalled):
            await exchange.read()
        with pytest.raises(StreamStalled):
            await exchange.read()


async def test_a_stalled_push() -> None:
    async with (
        script(wait_request(), OK + b"Content-Length: 5\r\n\r\nh", pause(0.05), b"e") as server,
        talking(server, GET, Patience(first=60, between=0.1)) as exchange,
    ):
        with took(0.1), pytest.raises(StreamStalled):
            await Sunk(exchange).ended()


async def test_patience_with_a_push_begins_anew_with_its_last_piece() -> None:
    pieces = (b"2\r\nab\r\n", pause(0.3), b"2\r\ncd\r\n")
    async with (
        script(wait_request(), OK + b"Transfer-Encoding: chunked\r\n\r\n", *pieces) as server,
        talking(server, GET, Patience(first=60, between=1.6)) as exchange,
    ):
        sunk = Sunk(exchange)
        await until(lambda: sunk.told == [b"ab", b"cd"])
        with took(1.4, 2.5), pytest.raises(StreamStalled):
            await sunk.ended()


@pytest.mark.parametrize("first", [None, 30])
async def test_between_counts_from_the_first_pushed_byte(first: float | None) -> None:
    async with (
        script(wait_request(), OK + b"Content-Length: 5\r\n\r\n", pause(0.15), b"he") as server,
        talking(server, GET, Patience(first=first, between=0.1)) as exchange,
    ):
        sunk = Sunk(exchange)
        with took(0.2), pytest.raises(StreamStalled):
            await sunk.ended()
        assert sunk.told[0] == b"he"


async def test_a_steady_body_may_take_as_long_as_it_likes() -> None:
    steps = dripped([b"1\r\nx\r\n"] * 10, 0.06)
    for pushed in (False, True):
        async with (
            script(wait_request(), CHUNKED, *steps, b"0\r\n\r\n") as server,
            talking(server, GET, Patience(first=0.5, between=0.5)) as exchange,
        ):
            assert await (Sunk(exchange).ended() if pushed else whole(exchange)) == b"x" * 10


async def test_the_total_ends_what_never_pauses() -> None:
    for pushed in (False, True):
        async with nothing_left(), flooding() as port, talking(port) as exchange:
            exchange.allow(Patience(first=60, between=60), asyncio.get_running_loop().time() + 0.2)
            with took(0.1), pytest.raises(StreamStalled):
                await (Sunk(exchange).ended() if pushed else drain(exchange))


async def drain(exchange: Exchange) -> None:
    async for _ in pieces(exchange):
        pass


async def test_timers_stand_still_while_nobody_reads() -> None:
    async with (
        script(wait_request(), CHUNKED + b"1\r\na\r\n", pause(0.5), b"1\r\nb\r\n0\r\n\r\n") as server,
        talking(server, GET, Patience(first=0.4, between=0.4)) as exchange,
    ):
        assert await exchange.read() == b"a"
        await asyncio.sleep(0.6)
        assert await whole(exchange) == b"b"


async def test_the_timer_of_a_push_stands_still_while_it_pauses() -> None:
    async with (
        script(wait_request(), CHUNKED + b"1\r\na\r\n", pause(0.5), b"1\r\nb\r\n0\r\n\r\n") as server,
        talking(server, GET, Patience(first=0.4, between=0.4)) as exchange,
    ):
        sunk = Sunk(exchange)
        exchange.pause()
        await asyncio.sleep(0.6)
        exchange.resume()
        assert await sunk.ended() == b"ab"


async def test_a_server_that_never_reads() -> None:
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    def idle(sock: socket.socket) -> None:
        asyncio.run_coroutine_threadsafe(held.wait(), loop).result()

    for request in (post(endless()), Outgoing(b"POST", b"POST / HTTP/1.1\r\n\r\n", b"x" * 20_000_000)):
        held.clear()
        async with nothing_left(), serving(idle) as port:
            with took(0.1), pytest.raises(WriteTimeout):
                async with talking(port, request, Patience(write=0.15, first=0.1)):
                    pass
            held.set()


async def test_a_slow_upload_is_neither_a_write_timeout_nor_a_read_timeout() -> None:
    """The clock for the answer runs from the end of the request; the clock for writing while nothing is taken.

    What the sockets hold is taken fast, for that is time in which the answer is waited for.
    """
    size = 12_000_000

    def slow(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        got = 0
        while got < size:
            got += len(sock.recv(100_000))
            time.sleep(0.01 if got < size // 2 else 0)
        sock.sendall(OKAY)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * size

    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    for body in (b"x" * size, pieces()):
        async with serving(slow) as port:
            with took(0.4):
                assert await ask_with(port, Outgoing(b"POST", head, body, size), Patience(0.35, 0.35, 0.35)) == b"ok"


# -- flow control ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def flooding(head: bytes = OK + b"\r\n") -> AsyncIterator[int]:
    """A server that sends for ever."""

    def flood(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(head)
        while True:
            sock.sendall(b"x" * 65536)

    async with serving(flood) as port:
        yield port


async def settled(count: Callable[[], int]) -> None:
    """Wait until it has not moved for a quarter of a second."""
    async with asyncio.timeout(20):
        stood, still = -1, 0
        while still < 10:
            still = still + 1 if count() == stood else 0
            stood = count()
            await asyncio.sleep(0.025)


@pytest.mark.parametrize("pushed", [False, True])
async def test_a_reader_that_stops_stops_the_sender(pushed: bool) -> None:
    sent = 0

    def flood(sock: socket.socket) -> None:
        nonlocal sent
        sock.recv(65536)
        sock.sendall(OK + b"\r\n")
        while True:
            sent += sock.send(b"x" * 65536)

    async with nothing_left(), serving(flood) as port, talking(port) as exchange:
        if pushed:
            sunk: list[bytes] = []
            exchange.push(sunk.append, lambda error: None)
            exchange.pause()
        tracemalloc.start()
        try:
            await settled(lambda: sent)
            stopped, held = sent, tracemalloc.get_traced_memory()[0]
            await asyncio.sleep(0.2)
            assert sent == stopped
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
            assert tracemalloc.get_traced_memory()[0] - held < 100_000
        finally:
            tracemalloc.stop()
        assert exchange.received <= HIGH_WATER + 600_000
        if pushed:
            exchange.resume()
            async with asyncio.timeout(5):
                while exchange.received < stopped + 1_000_000:  # noqa: ASYNC110 – a count is awaited, not an event
                    await asyncio.sleep(0.01)
        else:
            got = 0
            while got < stopped + 1_000_000:
                got += len(await exchange.read())


async def test_a_server_that_stops_reading_stops_the_body() -> None:
    produced = 0
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    def idle(sock: socket.socket) -> None:
        asyncio.run_coroutine_threadsafe(held.wait(), loop).result()

    async def body() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 65536
            yield b"x" * 65536

    async with nothing_left(), serving(idle) as port:
        task = asyncio.create_task(ask_with(port, post(body()), Patience()))
        await settled(lambda: produced)
        stopped = produced
        await asyncio.sleep(0.2)
        assert produced == stopped
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.set()


# -- push ------------------------------------------------------------------------------------------------------------


async def test_pieces_first_and_then_the_end_once() -> None:
    async with (
        script(wait_request(), CHUNKED, b"1\r\na\r\n", pause(0.02), b"1\r\nb\r\n", pause(0.02), b"0\r\n\r\n") as server,
        talking(server) as exchange,
    ):
        sunk = Sunk(exchange)
        assert await sunk.ended() == b"ab"
        await asyncio.sleep(0.05)
    assert sunk.told == [b"a", b"b", None]


async def test_what_came_before_the_push_comes_first() -> None:
    async with (
        script(wait_request(), CHUNKED + b"1\r\na\r\n", pause(0.1), b"1\r\nb\r\n0\r\n\r\n") as server,
        talking(server) as exchange,
    ):
        await asyncio.sleep(0.05)
        assert await Sunk(exchange).ended() == b"ab"


@pytest.mark.parametrize("answer", [OKAY, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", OK + b"Content-Length: 5\r\n\r\nok"])
async def test_complete_or_broken_before_the_push(answer: bytes) -> None:
    async with script(wait_request(), answer, close()) as server, talking(server) as exchange:
        await asyncio.sleep(0.05)
        sunk = Sunk(exchange)
        assert sunk.told[0] == b"ok"
        assert len(sunk.told) == 2
        assert (sunk.told[1] is None) == answer.endswith((b"\r\n", b"\r\n\r\nok")) or isinstance(
            sunk.told[1], StreamTruncated
        )


async def test_a_push_that_breaks() -> None:
    async with script(wait_request(), CHUNKED + b"1\r\na\r\n", reset()) as server, talking(server) as exchange:
        sunk = Sunk(exchange)
        with pytest.raises(StreamTruncated):
            await sunk.ended()
        assert sunk.told[0] == b"a"


async def test_a_push_that_is_closed_ends_too() -> None:
    async with script(wait_request(), CHUNKED + b"1\r\na\r\n") as server, talking(server) as exchange:
        sunk = Sunk(exchange)
        await asyncio.sleep(0.02)
        await exchange.close()
        await exchange.close()
        assert [type(each) for each in sunk.told] == [bytes, StreamTruncated]


async def test_a_sink_may_pause_in_the_middle_of_what_was_held() -> None:
    async with flooding() as port, talking(port) as exchange:
        await asyncio.sleep(0.1)
        assert exchange.received > HIGH_WATER
        exchange.push(lambda piece: exchange.pause(), lambda error: None)
        before = exchange.received
        await asyncio.sleep(0.1)
        assert exchange.received == before
        exchange.resume()
        await asyncio.sleep(0.05)
        assert exchange.received > before


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_a_reader_that_waits_is_told_of_a_close() -> None:
    async with nothing_left(), script(wait_request(), CHUNKED) as server, talking(server) as exchange:
        reader = asyncio.create_task(exchange.read())
        await asyncio.sleep(0.02)
        await exchange.close()
        with pytest.raises(StreamTruncated, match="closed before its end"):
            async with asyncio.timeout(20):
                await reader


async def test_what_came_can_be_read_before_the_error() -> None:
    async with (
        script(wait_request(), CHUNKED + b"1\r\na\r\n" + b"1\r\nb\r\n", reset()) as server,
        talking(server) as exchange,
    ):
        await asyncio.sleep(0.1)
        assert await exchange.read() == b"ab"
        for _ in range(2):
            with pytest.raises(StreamTruncated, match="was lost after 2 bytes"):
                await exchange.read()


async def test_a_cancelled_read_loses_nothing() -> None:
    async with (
        script(wait_request(), CHUNKED, pause(0.1), b"1\r\na\r\n0\r\n\r\n") as server,
        talking(server) as exchange,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await exchange.read()
        assert await whole(exchange) == b"a"


async def test_a_gigabyte_announced_costs_nothing() -> None:
    async with script(wait_request(), CHUNKED + b"40000000\r\n" + b"x" * 1000, close()) as server:
        tracemalloc.start()
        try:
            async with talking(server) as exchange:
                with pytest.raises(StreamTruncated, match="1,000 bytes"):
                    await whole(exchange)
            assert tracemalloc.get_traced_memory()[1] < 3_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 200 ", OK, OK + b"A: ", CHUNKED + b"1;", CHUNKED + b"0\r\nA: ", b"HTTP/1.1 100 Continue\r\nA: "],
)
async def test_what_never_ends_is_ended(beginning: bytes) -> None:
    """A status line, fields, a chunk's header, trailers: memory stays flat."""
    async with nothing_left(), flooding(beginning) as port:
        tracemalloc.start()
        try:
            with pytest.raises(LimitExceeded):
                async with asyncio.timeout(20), talking(port) as exchange:
                    await whole(exchange)
            assert tracemalloc.get_traced_memory()[1] < 3_000_000
        finally:
            tracemalloc.stop()


async def test_a_connection_lost_before_the_exchange() -> None:
    async with script(reset()) as server:
        connection = await connected(server)
        await connection.gone()
        exchange = Exchange(connection, GET, SOON)
        with pytest.raises(ReadError, match="without sending a response"):
            await exchange.start()
        assert not exchange.written


async def test_no_growth_over_many_exchanges() -> None:
    async with script(*answering(*[CHUNKED + b"2\r\nok\r\n0\r\n\r\n"] * 600)) as server:
        connection = await connected(server)
        connection.on_idle = lambda connection: None

        async def some(count: int) -> None:
            for _ in range(count):
                exchange = Exchange(connection, GET, SOON)
                await exchange.start()
                assert await whole(exchange) == b"ok"
                await exchange.close()
            server.requests.clear()

        await some(200)
        tracemalloc.start()
        try:
            await some(50)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await some(300)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 60_000
        finally:
            tracemalloc.stop()
        connection.abort()
        await connection.gone()


async def test_chunk_headers_that_come_alone_do_not_add_up() -> None:
    """A server may write each chunk's header by itself; ten thousand of them are no endless one."""
    taken: list[bytes] = []
    connection = Connection(asyncio.get_running_loop())
    connection.connection_made(Unconnected())
    exchange = Exchange(connection, Outgoing(b"GET", b"GET / HTTP/1.1\r\n\r\n"), Patience())
    starting = asyncio.create_task(exchange.start())
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await starting
    exchange.push(taken.append, lambda error: None)
    for _ in range(10_000):
        connection.data_received(b"1\r\n")
        connection.data_received(b"x\r\n")
    assert len(taken) == 10_000
    await exchange.close()


WRITTEN = st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from(["%x", "%X", "0%x", "%x;a=b", "%x;a"]))


@given(
    written=st.lists(WRITTEN, max_size=6),
    trailer=st.sampled_from([b"", b"X: y\r\n"]),
    cuts=st.lists(st.tuples(st.integers(0, 7), st.integers(-3, 3)), max_size=6),
    kept=st.integers(0, 400),
    whole_body=st.booleans(),
)
async def test_chunks_may_pass_as_they_came_whatever_the_split(
    written: list[tuple[bytes, str]], trailer: bytes, cuts: list[tuple[int, int]], kept: int, whole_body: bool
) -> None:
    """What a chunk sink is given are chunks, one each; with the other pieces they make up the body, in its order."""
    encoded = [f"{style % len(data)}\r\n".encode() + data + b"\r\n" for data, style in written]
    encoded.append(b"0\r\n" + trailer + b"\r\n")
    bounds = [len(b"".join(encoded[:index])) for index in range(len(encoded) + 1)]
    raw = b"".join(encoded)
    if not whole_body:
        raw = raw[: min(kept, len(raw) - 1)]
    at = {bounds[min(bound, len(bounds) - 1)] + beside for bound, beside in cuts}
    body = bytearray()
    ends: list[PenstockError | None] = []

    def take_chunk(chunk: bytes) -> None:
        size, _, data = chunk.partition(b"\r\n")
        assert size == b"%x" % (len(data) - 2)
        assert data.endswith(b"\r\n")
        body.extend(data[:-2])

    connection = Connection(asyncio.get_running_loop())
    connection.connection_made(Unconnected())
    exchange = Exchange(connection, Outgoing(b"GET", b"GET / HTTP/1.1\r\n\r\n"), Patience())
    starting = asyncio.create_task(exchange.start())
    await asyncio.sleep(0)
    connection.data_received(CHUNKED)
    await starting
    exchange.push(body.extend, ends.append, chunk_sink=take_chunk)
    for piece in splits(raw, sorted(cut for cut in at if 0 < cut < len(raw))):
        connection.data_received(piece)
    if whole_body:
        assert ends == [None]
        assert bytes(body) == b"".join(data for data, _ in written)
    else:
        assert ends == []
        connection.connection_lost(None)
        assert [type(end) for end in ends] == [StreamTruncated]
        assert b"".join(data for data, _ in written).startswith(bytes(body))
    assert exchange.received == len(body)
    await exchange.close()


class Unconnected(asyncio.Transport):
    """A socket's place, for what needs no socket."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False
