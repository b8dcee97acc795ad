from __future__ import annotations

import asyncio
import gc
import inspect
import io
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

import penstock
from penstock import (
    AsyncClient,
    BlockingEventStream,
    BlockingMultipartBuilder,
    BlockingRequestBuilder,
    BlockingResponse,
    BlockingStream,
    Breaker,
    Client,
    Event,
    EventStream,
    MultipartBuilder,
    Request,
    RequestBuilder,
    Response,
    Timeout,
)
from penstock.client.body import Bytes
from penstock.client.events import LineStream
from penstock.client.notices import Connected, Notice
from penstock.client.request import Send
from penstock.client.stream import ItemStream
from penstock.origin import app
from penstock.testing import close, pause, reset, script, serve, wait_request
from penstock.testing.script import Step
from tests.client.peers import NDJSON, SSE, answer, body_of, chunk, chunked, counting, fields_of, once, retries
from tests.e2e.process import eventually

T = TypeVar("T")


class Elsewhere(Protocol):
    def __call__(self, server: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]: ...


@pytest.fixture(scope="module")
def portal(anyio_backend: tuple[str, dict[str, Any]]) -> Iterator[BlockingPortal]:
    """An event loop for the servers, in a thread of its own."""
    with start_blocking_portal(*anyio_backend) as portal:
        yield portal


@pytest.fixture
def elsewhere(portal: BlockingPortal) -> Elsewhere:
    """Have a server run there."""
    return portal.wrap_async_context_manager  # type: ignore[return-value]  # it is more general than it says


@pytest.fixture
def origin(elsewhere: Elsewhere, tmp_path: Path) -> Iterator[str]:
    with elsewhere(serve(app(tmp_path))) as url:
        yield url


@contextmanager
def thread(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Work beside the test; afterwards what it raised, if it did."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    yield raised
    running.join(20)
    assert not running.is_alive()


def told(body: bytes = b"ok", *headers: str) -> list[Step]:
    """A connection of one request, which says that it is."""
    return once(answer(body, "200 OK", "Connection: close", *headers))


def numbered(first: int, last: int, *, end: bool = True) -> bytes:
    """Events with ids."""
    return chunked(*(f"id: {n}\ndata: {n}\n\n".encode() for n in range(first, last + 1)), type=SSE, end=end)


# -- the same names

SAME: list[tuple[type, type]] = [
    (AsyncClient, Client),
    (RequestBuilder, BlockingRequestBuilder),
    (MultipartBuilder, BlockingMultipartBuilder),
    (Response, BlockingResponse),
    (ItemStream, BlockingStream),
    (EventStream, BlockingEventStream),
]

ON_THE_LOOP_ONLY = {
    AsyncClient: {"relay", "can_splice_to", "count", "exchange"},  # for the rooms above, which are on the loop
    Response: {"push", "can_push", "splice", "spliced", "expect_content", "abandon"},
    ItemStream: {
        # What a kind of stream decides, which is decided on the loop.
        *("accept", "accepts", "accepts_status", "begun", "continued", "decoder", "end", "is_final", "onward", "pause"),
        *("pieces", "place", "unfinished", "only_pings", "content_only", "repeatable"),
        "next_batch",
    },
    EventStream: {"convert", "goes_on", "in_band", "malformed", "max_event_bytes", "other_stream", "replayed"},
}
RENAMED = {"aclose": "close"}
ATTRIBUTES = {Response: {"end", "bytes_received"}, ItemStream: {"response"}}  # they change: here they are properties
OTHER_SIGNATURE = {
    "content": "any iterable of bytes, and an open file",
    "file": "any iterable of bytes, and an open file",
    "items": "gives another kind of stream",
}


def public(kind: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}


def expected(kind: type) -> dict[str, Any]:
    left_out = set[str]().union(*(ON_THE_LOOP_ONLY.get(each, set()) for each in kind.__mro__))
    if issubclass(kind, ItemStream):
        left_out |= ON_THE_LOOP_ONLY[EventStream]
    return {RENAMED.get(name, name): member for name, member in public(kind).items() if name not in left_out}


@pytest.mark.parametrize(("asynchronous", "blocking"), SAME, ids=lambda kind: kind.__name__)
def test_the_blocking_face_has_the_names_of_the_asynchronous_one(asynchronous: type, blocking: type) -> None:
    attributes = set[str]().union(*(ATTRIBUTES.get(each, set()) for each in asynchronous.__mro__))
    assert set(public(blocking)) == set(expected(asynchronous)) | attributes


@pytest.mark.parametrize(("asynchronous", "blocking"), SAME, ids=lambda kind: kind.__name__)
def test_the_blocking_face_has_the_signatures_of_the_asynchronous_one(asynchronous: type, blocking: type) -> None:
    ours = public(blocking)
    compared = 0
    for name, member in {"__init__": asynchronous.__init__, **expected(asynchronous)}.items():  # type: ignore[misc]
        if name == "__init__" and asynchronous is not AsyncClient:
            continue
        mine = blocking.__init__ if name == "__init__" else ours[name]  # type: ignore[misc]
        assert isinstance(mine, property) == isinstance(member, property), name
        assert not inspect.iscoroutinefunction(mine), name
        if not inspect.isfunction(member):
            continue
        compared += 1
        assert inspect.getdoc(mine), name
        theirs, these = inspect.signature(member), inspect.signature(mine)
        if name not in OTHER_SIGNATURE:
            assert list(these.parameters.values())[1:] == list(theirs.parameters.values())[1:], name
        else:
            assert [(each.name, each.kind, each.default) for each in these.parameters.values()] == [
                (each.name, each.kind, each.default) for each in theirs.parameters.values()
            ]
    assert compared >= 3


def test_what_instances_show_is_the_same_as_well(origin: str) -> None:
    def shown(thing: object) -> set[str]:
        return {name for name in vars(thing) if not name.startswith("_")}

    theirs = AsyncClient(origin)
    with Client(origin, name="a", timeout=3, retry=2) as client:
        assert shown(client) == shown(theirs) - {"exchange"}
        assert (client.base_url, client.name, client.timeout, client.retry.retries) == (
            origin,
            "a",
            Timeout(total=3),
            2,
        )
        with client.get("/events?count=1").send() as response:
            inner = response._link.inner  # noqa: SLF001 – what it is to be compared with
            assert shown(inner) - {"end", "bytes_received"} == shown(response)
            for name in shown(inner):
                assert getattr(response, name) == getattr(inner, name)
            assert repr(response) == repr(inner)


def test_arguments_are_checked_as_ever() -> None:
    with pytest.raises(ValueError, match="CR at character 1"):
        Client(headers={"A": "1\r\nB: 2"})
    with pytest.raises(penstock.InvalidURL):
        Client("ftp://h")
    client = Client("http://h")
    with pytest.raises(ValueError, match="HTTP method"):
        client.request("G T")
    with pytest.raises(ValueError, match="not set by hand"):
        client.get("/").header("Content-Length", "3")
    with pytest.raises(ValueError, match="reconnect"):
        client.get("/").events(reconnect="sometimes")  # type: ignore[call-overload]
    assert client.absolute_url("/a") == "http://h/a"
    assert client.circuit_state() is None


# -- requests


def test_builders_are_frozen_shared_and_sent_many_times(elsewhere: Elsewhere) -> None:
    with (
        elsewhere(script(told(b"a"), told(b"b"), told(b"c"))) as server,
        Client(server.url, headers={"A": "0"}) as client,
    ):
        plain = client.post("/x")
        built = plain.header("B", "1").headers({"C": "2"}).param("p", "a b").json({"q": 1}).timeout(9).retry(1)
        assert [built.read().content, built.read().text, plain.body(Bytes(b"!")).read().text] == [
            b"a",
            "b",
            "c",
        ]
        with pytest.raises(FrozenInstanceError):
            built._client = client  # type: ignore[misc]  # noqa: SLF001
    first, second, third = server.requests
    assert first == second
    assert first.startswith(b"POST /x?p=a+b HTTP/1.1\r\n")
    assert {"a": "0", "b": "1", "c": "2"}.items() <= fields_of(first).items()
    assert body_of(first) == b'{"q":1}'
    assert body_of(third) == b"!"
    assert "b" not in fields_of(third)


@pytest.mark.parametrize("verb", ["get", "head", "post", "put", "patch", "delete"])
def test_verbs(verb: str, elsewhere: Elsewhere) -> None:
    with elsewhere(script(told(b""))) as server, Client(server.url) as client:
        assert getattr(client, verb)("/v").read().status == 200
    assert server.requests[0].startswith(f"{verb.upper()} /v HTTP/1.1\r\n".encode())


def test_a_response(origin: str) -> None:
    with Client(origin) as client:
        with client.get("/file?lines=3").send() as response:
            assert (response.status, response.filename, response.end) == (200, "large.txt", None)
            assert response.raise_for_status() is response
            body = b"".join(response)
            assert (len(body), response.bytes_received) == (response.content_length, response.content_length)
            assert response.end is not None
            assert response.end.reason == "complete"
            with pytest.raises(RuntimeError, match="already read"):
                next(iter(response))
        assert client.get("/file?lines=3").send().read() == body
        assert client.get("/file?lines=3").send().text() == body.decode()
        assert b"".join(client.get("/file?lines=3").send().raw()) == body
        assert client.get("/file?lines=999").send().beginning(max_bytes=5) == body[:5]
        with pytest.raises(penstock.LimitExceeded, match="larger than 9 bytes"):
            client.get("/file?lines=3").send().read(max_bytes=9)
        refused = client.get("/nowhere").send()
        with pytest.raises(penstock.StatusError, match="404"):
            refused.raise_for_status()
        assert "because" in str(refused.status_error(b"because"))
        refused.close()
        with pytest.raises(penstock.DecodeError):
            client.get("/file?lines=3").send().json()


def test_what_is_to_be_told_of_a_response_is_told_in_the_loops_thread(origin: str) -> None:
    seen: list[tuple[str, str]] = []
    with Client(origin) as client, client.get("/events?count=2").send() as response:
        response.on_first_byte(lambda: seen.append(("first", threading.current_thread().name)))
        response.on_end(lambda end: seen.append((end.reason, threading.current_thread().name)))
        assert seen == []
        response.conclude()
        response.on_end(lambda end: seen.append(("again", end.reason)))
    assert seen == [("first", "penstock"), ("complete", "penstock"), ("again", "complete")]


# -- streams


@dataclass
class Number:
    n: int


def test_events_and_what_a_model_makes_of_them(origin: str) -> None:
    with Client(origin) as client:
        request = client.get("/events?count=3&interval=0")
        with request.events() as events:
            assert [(event.id, event.json()) for event in events] == [(str(n), {"n": n}) for n in (1, 2, 3)]
            assert (events.metrics.total, events.metrics.reason, events.last_event_id) == (3, "complete", "3")
            assert list(events) == []
        assert list(request.events(model=Number)) == [Number(1), Number(2), Number(3)]
        assert [event.id for event in request.events(initial_last_event_id="2")] == ["3"]
        result = request.collect()
        assert ([event.id for event in result.events], result.metrics.successful) == (["1", "2", "3"], 3)
        assert request.events(model=Number).collect().items == [Number(1), Number(2), Number(3)]
        events = request.events()
        assert next(events).id == "1"
        assert [event.id for event in events] == ["2", "3"]
        with pytest.raises(penstock.LimitExceeded, match="max_events=2") as caught:
            request.collect(max_events=2)
        assert len(caught.value.collected) == 2
        assert client.metrics.streams == 7
        assert client.metrics.total == 19


def test_records_lines_and_a_kind_of_ones_own(elsewhere: Elsewhere) -> None:
    class Loud(LineStream):
        def decoder(self) -> Any:
            return Upper(super().decoder())

    class Upper:
        def __init__(self, decoder: Any) -> None:
            self._decoder = decoder
            self.dropped = 0

        def feed(self, data: bytes) -> list[str]:
            return [line.upper() for line in self._decoder.feed(data)]

        def close(self) -> list[str]:
            return [line.upper() for line in self._decoder.close()]

    records = told(b'{"a":1}\n[2]\n', f"Content-Type: {NDJSON}")
    text = told(b"one\ntwo", "Content-Type: text/plain")
    with elsewhere(script(records, text, text)) as server, Client(server.url) as client:
        assert list(client.get("/").records()) == [{"a": 1}, [2]]
        assert list(client.get("/").lines()) == ["one", "two"]
        assert client.get("/").items(Loud).collect().items == ["ONE", "TWO"]


def test_a_broken_stream_is_resumed_and_notices_are_told_in_the_loops_thread(elsewhere: Elsewhere) -> None:
    seen: list[tuple[str, str]] = []

    def on_notice(notice: Notice) -> None:
        seen.append((type(notice).__name__, threading.current_thread().name))

    broken: list[Step] = [wait_request(), numbered(1, 2, end=False), reset()]
    rest = once(numbered(3, 4))
    with elsewhere(script(broken, rest)) as server, Client(server.url, retry=retries(2)) as client:
        with client.get("/").events(on_notice=on_notice) as events:
            assert [event.id for event in events] == ["1", "2", "3", "4"]
            assert events.response is not None
            assert events.response.status == 200
        assert events.metrics.reconnects == client.metrics.reconnects == 1
    assert fields_of(server.requests[1])["last-event-id"] == "2"
    assert seen == [(name, "penstock") for name in ("Connected", "Interrupted", "Reconnecting", "Connected")]


def test_a_restart_goes_on_from_where_the_stream_stands(elsewhere: Elsewhere) -> None:
    opened = threading.Semaphore(0)
    silent: list[Step] = [wait_request(), numbered(1, 2, end=False)]
    rest = once(numbered(3, 4))

    def on_notice(notice: Notice) -> None:
        if isinstance(notice, Connected):
            opened.release()

    with elsewhere(script(silent, rest)) as server, Client(server.url) as client:
        with client.get("/").events(on_notice=on_notice) as events:
            assert [next(events).id, next(events).id] == ["1", "2"]
            events.restart()
            assert [event.id for event in events] == ["3", "4"]
        assert events.metrics.reason == "complete"


def test_failures_are_those_of_the_asynchronous_client(elsewhere: Elsewhere, origin: str) -> None:
    with Client(origin, retry=retries(1), breaker=Breaker(1, 600)) as client:
        with pytest.raises(penstock.StatusError):
            list(client.get("/nowhere").events())
        with pytest.raises(penstock.ContentTypeError):
            next(client.get("/generate").events())
        assert client.circuit_state() is penstock.State.CLOSED
        with pytest.raises(penstock.CircuitOpenError):
            list(client.get("/events?status=500").events())
        assert client.circuits == {origin: penstock.State.OPEN}
    with elsewhere(script([wait_request(), sse_head(), chunk(b"data: 1\n\n")])) as server:
        timeout = Timeout(between_events=0.05)
        with Client(server.url, timeout=timeout) as client, pytest.raises(penstock.StreamStalled) as caught:
            list(client.get("/").events())
        assert isinstance(caught.value, TimeoutError)
    with elsewhere(script([wait_request(), sse_head(), chunk(b"data: 1\n\n"), close()])) as server:
        with Client(server.url, retry=0) as client, pytest.raises(penstock.StreamTruncated) as broken:
            client.get("/").collect()
        assert [event.data for event in broken.value.collected] == ["1"]


def sse_head() -> bytes:
    return chunked(type=SSE, end=False)


# -- threads and loops


def test_all_clients_share_one_thread_and_it_does_not_end_with_them(origin: str) -> None:
    with Client(origin) as first, Client(origin) as second:
        for client in (first, second):
            client.get("/events?count=1").collect()
            assert [each.name for each in threading.enumerate()].count("penstock") == 1
    del first, second, client
    gc.collect()
    assert [each.daemon for each in threading.enumerate() if each.name == "penstock"] == [True]


def test_names_are_resolved_and_unknown_ones_told(origin: str) -> None:
    with Client(origin.replace("127.0.0.1", "localhost"), retry=0) as client:
        assert client.get("/").read().status == 200
        with pytest.raises(penstock.ConnectError) as caught:
            client.get("http://nobody.invalid/").read()
        assert caught.value.reason == "dns"


def test_a_thread_that_runs_a_loop_is_told_and_not_blocked(origin: str) -> None:
    async def misplaced(client: Client) -> None:
        client.get("/").read()

    with Client(origin) as client:
        with pytest.raises(RuntimeError, match=r"would stand still: use penstock\.AsyncClient, or .*to_thread"):
            asyncio.run(misplaced(client))
        assert asyncio.run(asyncio.to_thread(lambda: client.get("/").read())).status == 200


def test_middleware_runs_in_the_loops_thread_and_cannot_block_it(origin: str) -> None:
    seen: list[str] = []
    trace = ContextVar("trace", default="")

    async def middleware(request: Request, send: Send) -> Response:
        seen.append(f"{threading.current_thread().name} {trace.get()} {request.attempt}")
        with pytest.raises(RuntimeError, match="would wait for itself"):
            client.get("/").read()
        return await send(request)

    with Client(origin) as client:
        assert client.use(middleware, penstock.Logging()) is client
        trace.set("of this thread")
        assert client.get("/").read().status == 200
    assert seen == ["penstock of this thread 1"]


def test_what_a_middleware_raises_is_raised_here_even_an_exit(origin: str) -> None:
    async def middleware(request: Request, send: Send) -> Response:
        raise SystemExit(request.url.rpartition("/")[2])

    with Client(origin).use(middleware) as client:
        with pytest.raises(SystemExit, match="a"):
            client.get("/a").read()
        with pytest.raises(SystemExit, match="b"):
            client.get("/b").events().collect()


def test_metrics_of_a_running_stream_are_read_from_another_thread(elsewhere: Elsewhere) -> None:
    with (
        elsewhere(script([wait_request(), sse_head(), chunk(b"data: 1\n\n" * 3)])) as server,
        Client(server.url) as client,
        client.get("/").events() as events,
    ):
        with thread(lambda: [next(events) for _ in range(4)]) as raised:
            assert eventually(lambda: events.metrics if events.metrics.total == 3 else None).reason == "running"
            events.close()
        assert [type(error) for error in raised] == [penstock.StreamError]


def test_an_httpx2_client_of_ones_own_is_handed_over(origin: str) -> None:
    http = httpx2.AsyncClient(params={"count": "1"})
    with Client(origin, http_client=http) as client:
        assert len(client.get("/events").collect().events) == 1
    assert http.is_closed


# -- the request's body


def test_an_iterable_is_read_in_the_thread_that_sends_it(elsewhere: Elsewhere) -> None:
    threads: list[int] = []

    class Query:
        def __iter__(self) -> Iterator[bytes]:
            threads.append(threading.get_ident())
            return self.rows()

        def rows(self) -> Iterator[bytes]:
            for row in (b"one", b"", b"two"):
                threads.append(threading.get_ident())
                yield row

    with elsewhere(script(*[told()] * 3)) as server, Client(server.url) as client:
        client.put("/").content(Query(), content_type="text/csv").read()
        client.put("/").content(Query().rows(), length=6).read()
        client.multipart("/").field("a", "b").file("f", "n.txt", Query(), length=6).read()
    assert {*threads} == {threading.get_ident()}
    assert [body_of(request) for request in server.requests[:2]] == [b"onetwo", b"onetwo"]
    assert fields_of(server.requests[0])["content-type"] == "text/csv"
    assert fields_of(server.requests[1])["content-length"] == "6"
    assert b'filename="n.txt"' in server.requests[2]
    assert b"\r\n\r\nonetwo\r\n" in server.requests[2]


def test_what_can_be_read_again_is_and_what_cannot_is_not_sent_twice(elsewhere: Elsewhere) -> None:
    with elsewhere(script(told(), told(), told(), [wait_request()])) as server, Client(server.url) as client:
        again = client.put("/").content([b"a", b"b"])
        assert [again.read().text, again.read().text] == ["ok", "ok"]
        once_only = client.put("/").content(iter([b"a", b"b"]))
        assert once_only.read().text == "ok"
        with pytest.raises(RuntimeError, match="already sent"):
            once_only.read()
    assert [body_of(request) for request in server.requests] == [b"ab"] * 3


def test_files_are_sent_from_where_they_stand(elsewhere: Elsewhere, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"head" + b"\n" * 600_000)

    class Pipe(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return left.pop(0) if size and left else b""

    left = [b"x", b"y"]
    with elsewhere(script(*[told()] * 5)) as server, Client(server.url) as client:
        with path.open("rb") as file:
            file.read(4)
            client.put("/").content(file).read()
        client.put("/").content(io.BytesIO(b"abc")).read()
        client.put("/").content(Pipe()).read()
        client.put("/").content(path).read()
        client.multipart("/").file("f", "n", io.BytesIO(b"abc")).read()
    bodies = [body_of(request) for request in server.requests]
    assert bodies[:4] == [b"\n" * 600_000, b"abc", b"xy", path.read_bytes()]
    assert [fields_of(request).get("content-length") for request in server.requests[:4]] == [
        "600000",
        "3",
        None,
        "600004",
    ]
    assert fields_of(server.requests[4])["content-length"] == str(len(bodies[4]))


class Ours(Exception):
    """Of the caller's own code."""


@pytest.mark.parametrize("early", [False, True])
def test_what_the_iterable_raises_is_raised_as_it_is(early: bool, elsewhere: Elsewhere) -> None:
    error = Ours("the source broke")

    def rows() -> Iterator[bytes]:
        yield b"one"
        raise error

    requests: list[str] = []

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            requests.append(scope["path"])
            if early:
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass

    with elsewhere(serve(answering)) as url, Client(url, retry=retries(3)) as client:
        with pytest.raises(Ours) as caught:
            client.put("/a").content(rows()).read()
        assert caught.value is error
    assert requests == ["/a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "bytes-like"),
        (["text"], "bytes-like"),
        ({"a": 1}, "bytes-like"),
        (3, "a body is bytes"),
        (bytearray(b"a"), "a body is bytes"),
        (io.StringIO("a"), "opened as text"),
    ],
)
def test_what_is_no_body_is_refused(content: Any, message: str, elsewhere: Elsewhere) -> None:
    with (
        elsewhere(script([wait_request()])) as server,
        Client(server.url) as client,
        pytest.raises(TypeError, match=message),
    ):
        client.put("/").content(content).read()


def test_pieces_of_other_buffers_are_taken(elsewhere: Elsewhere) -> None:
    buffer = bytearray(b"ab")

    def reused() -> Iterator[Any]:
        yield buffer
        buffer[:] = b"cd"
        yield memoryview(buffer)

    with elsewhere(script(told())) as server, Client(server.url) as client:
        client.put("/").content(reused()).read()
    assert body_of(server.requests[0]) == b"abcd"


def test_no_piece_is_taken_before_the_connection_takes_it(elsewhere: Elsewhere) -> None:
    taken: list[int] = []
    piece = bytes(1 << 20)

    def pieces() -> Iterator[bytes]:
        for n in range(1000):
            taken.append(n)
            yield piece

    with (
        elsewhere(script([pause(60)])) as server,
        Client(server.url, timeout=Timeout(between_events=0.3)) as client,
        pytest.raises(penstock.WriteTimeout),
    ):  # the server reads nothing, but what sockets hold
        client.put("/").content(iter(pieces())).read()
    assert 0 < len(taken) < 100


def test_a_body_goes_on_while_an_early_answer_is_read(elsewhere: Elsewhere) -> None:
    """The server answers each piece of the request; nobody's buffer has to hold what the other has not read."""
    asked: list[str] = []

    def questions() -> Iterator[bytes]:
        for word in ("one", "two", "three"):
            asked.append(word)
            yield word.encode()

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"].upper(), "more_body": more})

    with elsewhere(serve(echo)) as url, Client(url) as client, client.post("/").content(questions()).send() as response:
        assert b"".join(response) == b"ONETWOTHREE"
    assert asked == ["one", "two", "three"]


def test_a_body_may_be_made_of_what_the_same_client_reads(origin: str, elsewhere: Elsewhere) -> None:
    with elsewhere(script(told())) as server, Client() as client:
        events = client.get(f"{origin}/events?count=3&interval=0").events()
        client.put(server.url).content(event.data.encode() for event in events).read()
    assert body_of(server.requests[0]) == b'{"n":1}{"n":2}{"n":3}'


def test_a_response_is_sent_on_without_coming_to_this_thread(origin: str, elsewhere: Elsewhere) -> None:
    with elsewhere(script(told(), told())) as server, Client() as client:
        expected = client.get(f"{origin}/file?lines=9").read().content
        client.put(server.url).content(client.get(f"{origin}/file?lines=9").send()).read()
        with client.get(f"{origin}/file?lines=9").send() as file:
            client.multipart(server.url).file("f", file.filename, file).read()
            assert file.end is not None
            assert file.end.reason == "complete"
        with pytest.raises(penstock.StatusError, match="error page"):
            client.put(server.url).content(client.get(f"{origin}/nowhere").send())
    assert body_of(server.requests[0]) == expected
    assert fields_of(server.requests[0])["content-length"] == str(len(expected))
    assert expected in server.requests[1]


# -- leaving


async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
    """Events until the reader has gone."""
    writer.write(sse_head())
    while True:
        writer.write(chunk(b"data: 1\n\n"))
        await writer.drain()
        await asyncio.sleep(0.001)


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    """One event, then nothing."""
    writer.write(sse_head() + chunk(b"data: 1\n\n"))
    await asyncio.Event().wait()


def test_leaving_a_loop_early_lets_go_of_the_connection(elsewhere: Elsewhere) -> None:
    with elsewhere(counting(endless)) as server, Client(server.url) as client:
        for event in client.get("/").events():
            assert event.data == "1"
            break
        eventually(lambda: server.served == 1 and server.open == 0)
        for piece in client.get("/").send():
            assert piece
            break
        eventually(lambda: server.served == 2 and server.open == 0)
        response = client.get("/").send()  # though the response is still in somebody's hands
        for _ in response:
            break
        eventually(lambda: server.served == 3 and server.open == 0)
        with client.get("/").events() as events:
            next(events)
            assert server.open == 1
        eventually(lambda: server.open == 0)
        with client.get("/").send():
            assert server.open == 1
        eventually(lambda: server.open == 0)
        assert client.metrics.streams == 2


def test_what_is_dropped_lets_go_of_its_connection_and_what_is_kept_keeps_its_client(elsewhere: Elsewhere) -> None:
    with elsewhere(counting(endless)) as server:
        response = Client(server.url).get("/").send()
        events = Client(server.url).get("/").events()
        pieces = iter(response)
        gc.collect()
        assert next(pieces)
        assert next(events).data == "1"
        gc.collect()
        assert next(events).data == "1"
        client = weakref.ref(events._link.client)  # noqa: SLF001 – to see it go
        del events
        eventually(lambda: server.open == 1)
        del response, pieces
        eventually(lambda: server.open == 0)
        gc.collect()
        assert client() is None


def test_a_client_that_is_dropped_closes_its_connections(elsewhere: Elsewhere) -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())
        await asyncio.Event().wait()

    with elsewhere(counting(answering)) as server:
        client = Client(server.url)
        client.get("/").read()
        assert server.open == 1
        del client
        gc.collect()
        eventually(lambda: server.open == 0)


@pytest.mark.parametrize("what", ["events", "response"])
def test_closing_from_another_thread_wakes_the_reader_with_an_error(what: str, elsewhere: Elsewhere) -> None:
    with elsewhere(counting(silent)) as server, Client(server.url) as client:
        stream: BlockingStream[Event] | BlockingResponse
        stream = client.get("/").events() if what == "events" else client.get("/").send()
        read = threading.Event()

        def reader() -> None:
            for _ in stream:
                read.set()

        with thread(reader) as raised:
            assert read.wait(20)
            stream.close()
        assert [type(error) for error in raised] == [penstock.StreamError]
        assert "was closed while it was being read" in str(raised[0])
        stream.close()
        eventually(lambda: server.open == 0)


@pytest.mark.parametrize("what", ["events", "response"])
def test_a_reader_that_was_busy_meanwhile_is_told_as_well(what: str, elsewhere: Elsewhere) -> None:
    with elsewhere(counting(endless)) as server, Client(server.url) as client:
        stream: BlockingStream[Event] | BlockingResponse
        stream = client.get("/").events() if what == "events" else client.get("/").send()
        got = []
        with pytest.raises(penstock.StreamError, match="was closed while it was being read"):
            for item in stream:
                got.append(item)
                with thread(stream.close):
                    pass
        assert len(got) == 1


@pytest.mark.parametrize("what", ["events", "response"])
def test_who_closes_what_he_reads_himself_knows(what: str, elsewhere: Elsewhere) -> None:
    three = chunked(b"data: 1\n\n" * 3, type=SSE, end=False)
    with elsewhere(script([wait_request(), three])) as server, Client(server.url) as client:
        stream: Iterable[Event | bytes] = client.get("/").events() if what == "events" else client.get("/").send()
        got = []
        for item in stream:
            got.append(item)
            stream.close()  # type: ignore[attr-defined]
        assert len(got) == 1
        with pytest.raises(RuntimeError, match="closed"):  # but who begins anew may not
            list(stream)


@pytest.mark.parametrize("what", ["events", "response"])
def test_what_was_closed_before_it_was_read_is_not_empty(what: str, origin: str) -> None:
    with Client(origin) as client:
        request = client.get("/events")
        stream: BlockingStream[Event] | BlockingResponse = request.events() if what == "events" else request.send()
        with stream:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            list(stream)


def test_a_closed_client_breaks_what_runs_and_begins_nothing(elsewhere: Elsewhere) -> None:
    with elsewhere(counting(silent)) as server:
        client = Client(server.url)
        events = client.get("/").events()
        next(events)
        with thread(lambda: next(events)) as raised:
            client.close()
        assert isinstance(raised[0], penstock.PenstockError)
        with pytest.raises(RuntimeError, match="client was closed"):
            client.get("/").read()
        client.close()
        eventually(lambda: server.open == 0)


def test_a_client_that_is_closed_with_grace_lets_streams_end(elsewhere: Elsewhere, portal: BlockingPortal) -> None:
    go_on = portal.call(asyncio.Event)

    async def held(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head() + chunk(b"data: 1\n\n"))
        await go_on.wait()
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
        await asyncio.Event().wait()

    with elsewhere(counting(held)) as server:
        client = Client(server.url)
        events = client.get("/").events()
        got = [next(events)]
        with thread(lambda: got.extend(events)) as raised, thread(lambda: client.close(grace=20)) as closing:
            eventually(lambda: is_closing(client))
            portal.call(go_on.set)
        assert (raised, closing) == ([], [])
        assert [event.data for event in got] == ["1", "2"]
        eventually(lambda: server.open == 0)


def is_closing(client: Client) -> bool:
    try:
        client.get("/").events().close()
        client.get("/").send().close()
    except RuntimeError:
        return True
    return False


def test_a_reader_that_stops_stops_the_server(elsewhere: Elsewhere) -> None:
    written = [0]
    block = chunk(b"data: " + b"x" * 65_000 + b"\n\n")

    async def flood(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head())
        while True:
            writer.write(block)
            written[0] += len(block)
            await writer.drain()

    def settled() -> bool:
        before = written[0]
        time.sleep(0.05)  # what is looked at is that nothing happens
        return 0 < before == written[0]

    with elsewhere(counting(flood)) as server, Client(server.url) as client:
        with client.get("/").events() as events:
            next(events)
            eventually(settled)
            assert written[0] < 64 << 20  # what the sockets of two processes hold, at the most
            held = written[0]
            for _ in range(held // 65_000 + 1):
                next(events)
            assert written[0] > held
        written[0] = 0
        with client.get("/").send() as response:
            pieces = iter(response)
            next(pieces)
            eventually(settled)
            assert written[0] < 64 << 20


# -- beside other libraries


def test_a_blocking_response_is_decoded_as_anything_is(origin: str) -> None:
    with Client(origin) as client:
        events = penstock.events(client.get("/events?count=3&interval=0").send())
        assert [event.id for event in events] == ["1", "2", "3"]


async def test_an_async_iterable_is_read_on_the_loop(elsewhere: Elsewhere) -> None:
    names: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        names.append(threading.current_thread().name)
        yield b"ab"

    def work() -> None:
        with elsewhere(script(told())) as server, Client(server.url) as client:
            client.put("/").content(pieces()).read()  # type: ignore[arg-type]  # it works, and is no promise
            assert body_of(server.requests[0]) == b"ab"

    await asyncio.to_thread(work)
    assert names == ["penstock"]
