from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import http.client
import io
import os
import socket
import threading
import urllib.request
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type
from urllib.parse import urlsplit

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import pydantic
import pytest
import requests
import urllib3

import penstock
from penstock import Event, InBandError, LimitExceeded, StreamTruncated
from penstock.client.decode import READ_SIZE, AsyncEvents, EitherEvents, Events, events
from penstock.testing import close, reset, script, serve, wait_request
from penstock.testing.script import Step
from penstock.wire.terminator import Terminator
from tests.client.peers import SSE, answer, chunk, chunked, counting, once, until

anyio = pytest.mark.anyio

BODY = (
    b"\xef\xbb\xbfretry: 1500\r\nid: 1\ndata: a\n\nevent: b\r\ndata: x\r\ndata: \xc3\xa9\r\n\r\n"
    b"id: 3\rdata: c\r\r: ping\n\n"
)
EVENTS = [Event("message", "a", "1"), Event("b", "x\né", "1"), Event("message", "c", "3")]
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {SSE}\r\n"


def framed(body: bytes, how: str) -> bytes:
    """A response with this body, which the connection's end follows."""
    if how == "chunked":
        return chunked(*(body[i : i + 7] for i in range(0, len(body), 7)), type=SSE)
    if how == "counted":
        return answer(body, "200 OK", f"Content-Type: {SSE}")
    return f"{HEAD}Connection: close\r\n\r\n".encode() + body


# -- the libraries: each is asked, and gives its response while the block lasts


@contextlib.contextmanager
def by_httpx(url: str) -> Iterator[Any]:
    with httpx.Client(trust_env=False) as client, client.stream("GET", url) as response:
        yield response


@contextlib.contextmanager
def by_httpx2(url: str) -> Iterator[Any]:
    with httpx2.Client(trust_env=False) as client, client.stream("GET", url) as response:
        yield response


@contextlib.contextmanager
def by_requests(url: str) -> Iterator[Any]:
    with requests.Session() as session:
        session.trust_env = False
        with session.get(url, stream=True) as response:
            yield response


@contextlib.contextmanager
def by_urllib3(url: str) -> Iterator[Any]:
    with urllib3.PoolManager(retries=False) as pool:
        response = pool.request("GET", url, preload_content=False, headers={"Accept-Encoding": "gzip, deflate"})
        with contextlib.closing(response):
            yield response


@contextlib.contextmanager
def by_urllib(url: str) -> Iterator[Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url) as response:
        yield response


@contextlib.contextmanager
def by_http_client(url: str) -> Iterator[Any]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.request("GET", "/")
        with connection.getresponse() as response:
            yield response


@contextlib.contextmanager
def by_openai(url: str) -> Iterator[Any]:
    with (
        openai.OpenAI(api_key="k", base_url=url, max_retries=0, http_client=httpx2.Client(trust_env=False)) as client,
        client.models.with_streaming_response.list() as response,
    ):
        yield response


@contextlib.asynccontextmanager
async def by_async_httpx(url: str) -> AsyncIterator[Any]:
    async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", url) as response:
        yield response


@contextlib.asynccontextmanager
async def by_async_httpx2(url: str) -> AsyncIterator[Any]:
    async with httpx2.AsyncClient(trust_env=False) as client, client.stream("GET", url) as response:
        yield response


@contextlib.asynccontextmanager
async def by_aiohttp(url: str) -> AsyncIterator[Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        yield response


@contextlib.asynccontextmanager
async def by_aiohttp_content(url: str) -> AsyncIterator[Any]:
    async with by_aiohttp(url) as response:
        yield response.content


@contextlib.asynccontextmanager
async def by_penstock(url: str) -> AsyncIterator[Any]:
    async with penstock.AsyncClient(url) as client, client.get("/").send() as response:
        yield response


@contextlib.asynccontextmanager
async def by_async_openai(url: str) -> AsyncIterator[Any]:
    http_client = httpx2.AsyncClient(trust_env=False)
    async with (
        openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0, http_client=http_client) as client,
        client.models.with_streaming_response.list() as response,
    ):
        yield response


SYNC: dict[str, Callable[[str], contextlib.AbstractContextManager[Any]]] = {
    "httpx": by_httpx,
    "httpx2": by_httpx2,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "urllib": by_urllib,
    "http.client": by_http_client,
    "openai": by_openai,
}
ASYNC: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Any]]] = {
    "async httpx": by_async_httpx,
    "async httpx2": by_async_httpx2,
    "aiohttp": by_aiohttp,
    "aiohttp's reader": by_aiohttp_content,
    "penstock": by_penstock,
    "async openai": by_async_openai,
}
every_library = pytest.mark.parametrize("library", [*SYNC, *ASYNC])


@dataclass
class Outcome:
    """What a library's response was decoded into."""

    got: list[Any]
    error: Exception | None
    decoded: Any


async def decode(library: str, url: str, *, stop_after: int = 1_000, context: bool = False, **options: Any) -> Outcome:
    """Ask by a library, in a thread if it blocks; iterate, and leave after so many events."""
    got: list[Any] = []

    def blocking() -> Outcome:
        with SYNC[library](url) as response:
            decoded = events(response, **options)
            try:
                with decoded if context else contextlib.nullcontext():
                    for event in decoded:
                        got.append(event)
                        if len(got) == stop_after:
                            break
            except Exception as error:
                return Outcome(got, error, decoded)
            return Outcome(got, None, decoded)

    if library in SYNC:
        return await asyncio.to_thread(blocking)
    async with ASYNC[library](url) as response:
        decoded = events(response, **options)
        try:
            async with decoded if context else contextlib.nullcontext():
                async for event in decoded:
                    got.append(event)
                    if len(got) == stop_after:
                        break
        except Exception as error:
            return Outcome(got, error, decoded)
        return Outcome(got, None, decoded)


@anyio
@every_library
@pytest.mark.parametrize("how", ["chunked", "counted", "to the close"])
async def test_every_library_and_framing(library: str, how: str) -> None:
    async with script(*once(framed(BODY, how))) as server:
        outcome = await decode(library, server.url)
    assert (outcome.got, outcome.error) == (EVENTS, None)
    decoded = outcome.decoded
    assert (decoded.last_event_id, decoded.retry_ms, decoded.dropped) == ("3", 1500, 0)


@anyio
@every_library
@pytest.mark.parametrize("coded", ["gzip", "deflate"])
@pytest.mark.parametrize("how", ["chunked", "counted", "to the close"])
async def test_a_coded_body_is_decoded(library: str, coded: str, how: str) -> None:
    body = gzip.compress(BODY * 50) if coded == "gzip" else zlib.compress(BODY * 50)
    raw = framed(body, how).replace(b"\r\n", f"\r\nContent-Encoding: {coded}\r\n".encode(), 1)
    async with script(*once(raw)) as server:
        outcome = await decode(library, server.url)
    assert outcome.error is None
    assert [event.data for event in outcome.got[:3]] == [event.data for event in EVENTS]
    assert len(outcome.got) == 150


@anyio
@every_library
@pytest.mark.parametrize("how", ["chunked", "counted", "to the close"])
async def test_an_event_is_handed_out_before_the_next_is_sent(library: str, how: str) -> None:
    order: list[str] = []
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(value: int) -> int:
        order.append(f"got {value}")
        loop.call_soon_threadsafe(seen.set)
        return value

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        first, second = b"data: 1\n\n", b"data: 2\n\n"
        framing = {"chunked": "Transfer-Encoding: chunked", "counted": f"Content-Length: {len(first + second)}"}
        writer.write(f"{HEAD}{framing.get(how, 'Connection: close')}\r\n\r\n".encode())
        for event in (first, second):
            seen.clear()
            order.append(f"sent {event[6:7].decode()}")
            writer.write(chunk(event) if how == "chunked" else event)
            async with asyncio.timeout(20):  # one that waits for more is let go of, and fails by its order
                await seen.wait()
        writer.write(b"0\r\n\r\n" if how == "chunked" else b"")
        writer.close()

    async with counting(answering) as server:
        outcome = await decode(library, server.url, model=told)
    assert (outcome.got, outcome.error) == ([1, 2], None)
    assert order == ["sent 1", "got 1", "sent 2", "got 2"]


@anyio
@every_library
@pytest.mark.parametrize("how", ["chunked", "counted"])
async def test_a_body_that_breaks_off_raises_after_what_came(library: str, how: str) -> None:
    raw = chunked(b"data: 1\n\n", b"data: 2", type=SSE, end=False)
    if how == "counted":
        raw = answer(b"data: 1\n\ndata: 2", "200 OK", f"Content-Type: {SSE}", length=1000)
    async with script(*once(raw)) as server:
        outcome = await decode(library, server.url)
    assert outcome.got == [Event(data="1")]
    kinds = (httpx.HTTPError, httpx2.HTTPError, urllib3.exceptions.HTTPError, http.client.HTTPException)
    assert isinstance(outcome.error, (*kinds, aiohttp.ClientError, StreamTruncated))
    assert outcome.decoded.dropped == 1


@anyio
@every_library
async def test_a_connection_that_is_reset_raises(library: str) -> None:
    raw = chunked(b"data: 1\n\n", type=SSE, end=False)
    async with script(wait_request(), raw, reset()) as server:
        outcome = await decode(library, server.url)
    assert outcome.got == [Event(data="1")]
    assert outcome.error is not None


@anyio
@pytest.mark.parametrize("library", [*SYNC, *(name for name in ASYNC if name != "aiohttp's reader")])
@pytest.mark.parametrize("context", [True, False], ids=["with", "without with"])
async def test_leaving_early_closes_the_connection(library: str, context: bool) -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\ndata: 2\n\n", type=SSE, end=False))
        await asyncio.Event().wait()

    async with counting(answering) as server:
        outcome = await decode(library, server.url, stop_after=1, context=context)
        await until(lambda: not server.open)
    assert (outcome.got, outcome.error) == ([Event(data="1")], None)


@anyio
@pytest.mark.parametrize("context", [True, False], ids=["with", "without with"])
@pytest.mark.parametrize("library", ["httpx", "requests", "urllib3", "async httpx2", "aiohttp", "penstock"])
async def test_it_is_the_decoder_that_closes(library: str, context: bool) -> None:
    """The response is let go of while its own block still lasts."""

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\ndata: 2\n\n", type=SSE, end=False))
        await asyncio.Event().wait()

    async with counting(answering) as server:
        if library in SYNC:
            left, over = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def blocking() -> None:
                with SYNC[library](server.url) as response:
                    if context:
                        with events(response) as decoded:
                            assert next(decoded).data == "1"
                    else:
                        for _ in events(response):
                            break
                    loop.call_soon_threadsafe(left.set)
                    over.wait(20)

            thread = asyncio.create_task(asyncio.to_thread(blocking))
            try:
                await left.wait()
                await until(lambda: not server.open)
            finally:
                over.set()
                await thread
            return
        async with ASYNC[library](server.url) as response:
            if context:
                async with events(response) as decoded:
                    assert (await anext(decoded)).data == "1"
            else:
                async for _ in events(response):
                    break
                gc.collect()
            await until(lambda: not server.open)


@anyio
async def test_a_body_read_to_its_end_leaves_the_connection_to_the_next() -> None:
    turn: list[Step] = [wait_request(), framed(BODY, "chunked")]
    async with script(*turn * 3, close()) as server:

        def blocking() -> list[list[Event]]:
            with requests.Session() as session:
                session.trust_env = False
                return [list(events(session.get(server.url, stream=True))) for _ in range(3)]

        assert await asyncio.to_thread(blocking) == [EVENTS] * 3
        assert server.connections == 1
    async with script(*turn * 3, close()) as server:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                assert [event async for event in events(await session.get(server.url))] == EVENTS
        assert server.connections == 1


# -- bodies that were read before


@anyio
@pytest.mark.parametrize("body", [BODY, b""], ids=["events", "nothing"])
async def test_a_body_that_was_read_before_is_not_empty(body: bytes) -> None:
    expected = EVENTS if body else []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE.encode())]})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    async with serve(app) as url:

        def blocking() -> None:
            with requests.Session() as session:
                session.trust_env = False
                assert list(events(session.get(url))) == expected
                with session.get(url, stream=True) as response:
                    assert response.content == body
                    assert list(events(response)) == expected
                with session.get(url, stream=True) as response:
                    assert list(events(response)) == expected
            with urllib3.PoolManager() as pool:
                assert list(events(pool.request("GET", url))) == expected
                assert list(events(pool.request("GET", url, preload_content=False))) == expected
            for module in (httpx, httpx2):
                with module.Client(trust_env=False) as client:
                    assert list(events(client.get(url))) == expected

        await asyncio.to_thread(blocking)
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert await response.read() == body
            assert [event async for event in events(response)] == expected
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert [event async for event in events(response)] == expected
        async with httpx.AsyncClient(trust_env=False) as client:
            buffered = await client.get(url)
            assert [event async for event in events(buffered)] == expected
            assert list(events(buffered)) == expected
        async with penstock.AsyncClient(url) as ours:
            assert list(events(await ours.get("/").read())) == expected


@anyio
async def test_a_body_that_was_given_away_is_not_quietly_empty() -> None:
    async with script(once(framed(BODY, "chunked")), repeat=True) as server:

        def blocking() -> None:
            with by_requests(server.url) as response:
                assert b"".join(response.iter_content(5)) == BODY
                with pytest.raises(requests.exceptions.StreamConsumedError):
                    next(events(response))
            with by_httpx(server.url) as response:
                assert b"".join(response.iter_bytes()) == BODY
                with pytest.raises(httpx.StreamConsumed):
                    next(events(response))

        await asyncio.to_thread(blocking)
        async with by_penstock(server.url) as response:
            assert await response.read() == BODY
            with pytest.raises(RuntimeError, match="already read"):
                await anext(events(response))


def test_a_stand_in_for_a_response_of_requests() -> None:
    response = requests.Response()
    response.raw = io.BytesIO(BODY)
    assert list(events(response)) == EVENTS


@anyio
async def test_an_httpx_response_is_taken_the_way_it_came() -> None:
    async with script(once(framed(BODY, "chunked")), repeat=True) as server, by_async_httpx(server.url) as response:
        decoded = events(response)
        with pytest.raises(RuntimeError, match="sync"):
            list(decoded)
        assert [event async for event in decoded] == EVENTS


# -- files


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(BODY * 10_000)
    whole = EVENTS * 10_000
    data = [event.data for event in whole]
    assert path.stat().st_size > 3 * READ_SIZE
    with path.open("rb") as buffered:
        assert [event.data for event in events(buffered)] == data
        assert buffered.closed
    with path.open("rb", buffering=0) as raw:
        assert [event.data for event in events(raw)] == data
    with gzip.open(tmp_path / "stream.gz", "wb") as packed:
        packed.write(path.read_bytes())
    with gzip.open(tmp_path / "stream.gz", "rb") as packed:
        assert [event.data for event in events(packed)] == data
    with path.open("rb") as by_line:
        assert [event.data for event in events(iter(by_line))] == data
    assert [event.data for event in events(path.read_bytes())] == data


def test_a_file_without_ends_of_lines_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    with path.open("wb") as sparse:
        sparse.write(b"data: ")
        sparse.truncate(1 << 34)  # 16 GB, none of them on the disk
    with path.open("rb") as file, pytest.raises(LimitExceeded, match="max_event_bytes"):
        list(events(file, max_event_bytes=1 << 20))


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_pipe_gives_what_it_has(buffering: int) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=buffering) as source, os.fdopen(writing, "wb", buffering=0) as sink:
        decoded = events(source)
        for number in "123":
            sink.write(f"data: {number}\n\n".encode())
            assert next(decoded).data == number
        sink.close()
        assert list(decoded) == []


def test_a_socket_gives_what_it_has() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as source:
        decoded = events(source)
        for number in "123":
            theirs.sendall(f"data: {number}\n\n".encode())
            assert next(decoded).data == number
        theirs.close()
        assert list(decoded) == []


def test_a_pipe_that_does_not_block_is_not_at_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(writing, "wb", buffering=0) as sink:
        sink.write(b"data: 1\n\n")
        decoded = events(source)
        assert next(decoded).data == "1"
        with pytest.raises(BlockingIOError, match="non-blocking"):
            next(decoded)


@anyio
async def test_a_stream_reader_is_not_read_by_lines() -> None:
    reader = asyncio.StreamReader(limit=1024)
    reader.feed_data(b"data: " + b"x" * 100_000 + b"\n\ndata: 2\n\n")
    reader.feed_eof()
    assert [len(event.data) async for event in events(reader)] == [100_000, 1]


# -- bytes and iterables


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes(kind: Callable[[bytes], Any]) -> None:
    assert list(events(kind(BODY))) == EVENTS
    assert list(events([kind(BODY[:20]), kind(b""), kind(BODY[20:])])) == EVENTS
    assert list(events(b"")) == []


def test_a_view_of_other_items_is_taken_as_bytes() -> None:
    view = memoryview(b"data: 12\n\n\n\n").cast("I")
    assert list(events(view)) == [Event(data="12")]


@pytest.mark.parametrize("make", [list, tuple, iter, lambda pieces: (piece for piece in pieces)])
def test_iterables(make: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    assert list(events(make([BODY[i : i + 1] for i in range(len(BODY))]))) == EVENTS


@anyio
async def test_an_async_iterable() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(len(BODY)):
            yield BODY[i : i + 1]

    assert [event async for event in events(pieces())] == EVENTS
    assert type(events(pieces())) is AsyncEvents


@anyio
async def test_an_iterable_of_both_kinds_goes_either_way() -> None:
    class Both:
        def __iter__(self) -> Iterator[bytes]:
            return iter([BODY])

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield BODY

    assert list(events(Both())) == EVENTS  # type: ignore[call-overload]
    assert [event async for event in events(Both())] == EVENTS


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("data: 1\n\n", "bytes, and str is none: encode text"),
        (Path("stream.txt"), r"PosixPath is none: .*open\(…, 'rb'\)"),
        (io.StringIO("data: 1\n\n"), r"StringIO is none: .*open\(…, 'rb'\)"),
        (3, "int yields no bytes: give a response"),
        (None, "NoneType yields no bytes"),
        (object(), "object yields no bytes"),
    ],
)
def test_what_yields_no_bytes_is_refused_at_once(source: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        events(source)


@pytest.mark.parametrize("pieces", [["data: 1\n\n"], [b"", "data: 1\n\n"], [1], [None], {"data": 1}])
def test_an_iterable_of_something_else_is_refused_when_it_shows(pieces: Any) -> None:
    with pytest.raises(TypeError, match=r"the source yields (str|int|NoneType): encode text"):
        list(events(pieces))


@anyio
async def test_an_async_iterable_of_text_is_refused_when_it_shows() -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    with pytest.raises(TypeError, match="the source yields str"):
        await anext(events(pieces()))  # type: ignore[arg-type]


# -- ends


class Broken(Exception):
    pass


def test_what_the_source_raises_comes_through() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"id: 1\ndata: 1\n\nid: 2\ndata: cut"
        raise Broken

    decoded = events(pieces())
    assert next(decoded).data == "1"
    with pytest.raises(Broken):
        next(decoded)
    assert (decoded.last_event_id, decoded.dropped) == ("1", 1)
    assert list(decoded) == []


def test_a_generator_is_closed_when_it_is_left() -> None:
    ended: list[str] = []

    def pieces(name: str) -> Iterator[bytes]:
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            ended.append(name)

    for _ in events(pieces("left")):
        break
    with events(pieces("with")) as decoded:
        next(decoded)
    kept = events(pieces("closed"))
    next(kept)
    assert ended == ["left", "with"]
    kept.close()
    kept.close()
    assert ended == ["left", "with", "closed"]
    with pytest.raises(Broken), events(pieces("raised")) as decoded:
        next(decoded)
        raise Broken
    assert ended == ["left", "with", "closed", "raised"]


def test_what_was_never_iterated_is_closed_too() -> None:
    source = io.BytesIO(BODY)
    with events(source):
        pass
    assert source.closed


@anyio
async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\n", type=SSE, end=False))
        await asyncio.Event().wait()

    async with counting(answering) as server:
        for library in ("async httpx", "async httpx2", "aiohttp", "penstock"):
            async with ASYNC[library](server.url) as response:
                first = asyncio.Event()

                async def read(response: Any = response, first: asyncio.Event = first) -> None:
                    async for _ in events(response):
                        first.set()

                before = asyncio.all_tasks()
                task = asyncio.create_task(read())
                await first.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(lambda: not server.open)
                assert asyncio.all_tasks() - before <= {task}


@anyio
async def test_closing_while_another_task_waits() -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\n", type=SSE, end=False))
        await asyncio.Event().wait()

    async with counting(answering) as server:
        for library in ("aiohttp", "penstock"):
            async with ASYNC[library](server.url) as response:
                decoded = events(response)
                assert (await anext(decoded)).data == "1"
                waiting = asyncio.create_task(anext(decoded))
                await asyncio.sleep(0)
                await decoded.aclose()
                async with asyncio.timeout(10):
                    await asyncio.wait([waiting])
                assert waiting.exception() is not None
                await until(lambda: not server.open)


def test_the_last_id_is_that_of_what_was_handed_out() -> None:
    body = [b": hi\n\nid: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\n\n", b"data: c\n\nid: 4\ndata: d\n\nid: 5\ndata: cut"]
    decoded = events(body)
    seen = [decoded.last_event_id]
    seen += [f"{event.data}{decoded.last_event_id}" for event in decoded]
    assert seen == ["", "a1", "b3", "c3", "d4"]
    assert decoded.last_event_id == "4"


def test_too_much_is_refused_after_what_came() -> None:
    decoded = events([b"data: 1\n\ndata: " + b"x" * 100], max_event_bytes=50)
    assert next(decoded).data == "1"
    with pytest.raises(LimitExceeded) as caught:
        next(decoded)
    assert caught.value.limit == "max_event_bytes"


@anyio
async def test_our_errors_tell_the_url_without_its_credentials() -> None:
    async with script(once(framed(b"data: 1\n\ndata: " + b"x" * 100, "chunked")), repeat=True) as server:
        for library in ("requests", "async httpx", "aiohttp"):
            url = server.url.replace("//", "//me:secret@") + "/a"
            outcome = await decode(library, url, max_event_bytes=50)
            assert isinstance(outcome.error, LimitExceeded)
            assert outcome.error.url == f"{server.url}/a"
            assert str(outcome.error).startswith(f"{server.url}/a: ")


@anyio
async def test_a_coding_that_nobody_can_undo_is_an_error() -> None:
    raw = framed(BODY, "chunked").replace(b"\r\n", b"\r\nContent-Encoding: snappy\r\n", 1)
    async with script(once(raw), repeat=True) as server:
        for library in ("urllib", "http.client"):
            outcome = await decode(library, server.url)
            assert isinstance(outcome.error, penstock.DecodeError)
            assert "'snappy'" in str(outcome.error)


@anyio
async def test_a_coded_body_that_is_cut_is_an_error() -> None:
    body = gzip.compress(BODY * 50)[:-9]
    raw = framed(body, "to the close").replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
    async with script(once(raw), repeat=True) as server:
        for library in ("urllib", "http.client", "penstock"):
            outcome = await decode(library, server.url)
            assert len(outcome.got) > 100
            assert isinstance(outcome.error, StreamTruncated)


# -- terminators

CHAT = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(3)]
DONE = b"data: [DONE]\n\n"


@anyio
@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp"])
async def test_nothing_is_read_after_the_end(library: str) -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(*CHAT, DONE + b"data: late\n\n", type=SSE, end=False))
        await asyncio.Event().wait()  # for ever: who goes on reading hangs

    async with counting(answering) as server:
        outcome = await decode(library, server.url, terminator="openai")
        await until(lambda: not server.open)
    assert outcome.error is None
    assert [event.data for event in outcome.got][-2:] == ['{"choices":[{"delta":{"content":"2"}}]}', "[DONE]"]
    assert len(outcome.got) == 4


@anyio
@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "penstock"])
async def test_a_proper_end_without_the_terminator_is_none(library: str) -> None:
    async with script(*once(framed(b"".join(CHAT), "chunked"))) as server:
        outcome = await decode(library, server.url, terminator=Terminator.named("openai"))
    assert len(outcome.got) == 3
    assert isinstance(outcome.error, StreamTruncated)
    assert outcome.error.url == str(outcome.error).partition(": ")[0] is not None
    assert "without its '[DONE]'" in str(outcome.error)


@anyio
@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "penstock"])
async def test_a_failure_in_band_is_raised_after_what_came(library: str) -> None:
    failed = (
        b'id: 9\nevent: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    )
    late = b"id: 10\ndata: late\n\n"
    body = b'id: 1\nevent: message_start\ndata: {"type":"message_start"}\n\n' + failed + late
    async with script(*once(framed(body, "counted"))) as server:
        outcome = await decode(library, server.url, terminator="anthropic")
    assert [event.type for event in outcome.got] == ["message_start"]
    assert isinstance(outcome.error, InBandError)
    assert str(outcome.error).endswith("said that it failed: Overloaded (overloaded_error)")
    assert outcome.decoded.last_event_id == "1"


def test_one_s_own_terminator() -> None:
    own = Terminator(event="end", error="gone")
    assert [event.type for event in events(b"data: 1\n\nevent: end\ndata:\n\ndata: 2\n\n", terminator=own)] == [
        "message",
        "end",
    ]
    with pytest.raises(InBandError, match=r"failed: why$"):
        list(events(b"event: gone\ndata: why\n\n", terminator=own))
    with pytest.raises(StreamTruncated, match="without its end:"):
        list(events(b"event: en\ndata: 1\n\n", terminator=own))
    with pytest.raises(ValueError, match="openai-responses, anthropic, none"):
        events(b"", terminator="chatgpt")


def test_without_a_terminator_every_event_is_content() -> None:
    body = b'data: {"error": "x"}\n\nevent: error\ndata: y\n\ndata: [DONE]\n\ndata: z\n\n'
    for terminator in (None, "none"):
        assert [event.data for event in events(body, terminator=terminator)] == ['{"error": "x"}', "y", "[DONE]", "z"]


# -- models


class Chunk(pydantic.BaseModel):
    choices: list[dict[str, Any]]


def test_a_model_gets_payloads_only(caplog: pytest.LogCaptureFixture) -> None:
    decoded = events(b"".join(CHAT) + DONE, model=Chunk, terminator="openai")
    assert [chunk.choices[0]["delta"]["content"] for chunk in decoded] == ["0", "1", "2"]
    assert (decoded.dropped, caplog.records) == (0, [])
    pings = b'event: ping\ndata: {"type": "ping"}\n\nevent: message_stop\ndata: {"n": 1}\n\n'
    assert list(events(pings, model=lambda value: value["n"], terminator="anthropic")) == [1]


def test_what_a_model_refuses_is_counted_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    body = b"".join(b"id: %d\ndata: %b\n\n" % pair for pair in enumerate([b"1", b"{", b"null", b"3"], 1))
    decoded = events(body + b"data: cut", model=lambda value: value + 0)
    seen = [(value, decoded.last_event_id) for value in decoded]
    assert seen == [(1, "1"), (3, "4")]
    assert decoded.dropped == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("a stream: an event does not fit its model" in record.getMessage() for record in caplog.records)


# -- with the providers' own clients


@anyio
async def test_the_providers_own_responses() -> None:
    body = b"".join(CHAT) + DONE
    async with script(once(framed(body, "chunked")), repeat=True) as server:

        def blocking() -> list[Event]:
            http_client = httpx2.Client(trust_env=False)
            with (
                anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0, http_client=http_client) as client,
                client.models.with_streaming_response.list() as response,
            ):
                return list(events(response, terminator="openai"))

        assert len(await asyncio.to_thread(blocking)) == 4


# -- types, and memory


def types(
    response: httpx2.Response, other: requests.Response, third: aiohttp.ClientResponse, ours: penstock.Response
) -> None:
    """Checked, never run."""
    assert_type(events(response), EitherEvents[Event])
    assert_type(events(response, model=Chunk), EitherEvents[Chunk])
    assert_type(events(other), Events[Event])
    assert_type(events(other, model=Chunk, terminator="openai"), Events[Chunk])
    assert_type(events(third), AsyncEvents[Event])
    assert_type(events(third, model=Chunk), AsyncEvents[Chunk])
    assert_type(events(ours), AsyncEvents[Event])
    assert_type(events(b""), Events[Event])
    assert_type(events([b""]), Events[Event])
    assert_type(events(io.BytesIO()), Events[Event])
    for event in events(b""):
        assert_type(event, Event)
