"""The contract service, driven as a public harness drives it: a real process, real streams, real callbacks."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock import AsyncClient
from penstock.testing import close, script, serve, wait_request
from penstock.testing.script import Step
from tests.client.peers import until
from tests.e2e.live import PATIENCE, Asked, live
from tests.e2e.process import Running, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

REPOSITORY = Path(__file__).parents[2]
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def started(folder: Path) -> Running:
    """The service in a process of its own, listening."""
    command = [sys.executable, "-m", "tests.contract_service", "--port", "0"]
    running = Running(command, folder, cwd=REPOSITORY)
    eventually(lambda: "http://" in running.out or running.process.poll() is not None, "start")
    assert "http://" in running.out, running.err
    return running


def url_of(running: Running) -> str:
    return running.out.split()[-1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service for all tests that do not end it."""
    running = started(tmp_path_factory.mktemp("contract-service"))
    try:
        yield url_of(running)
        assert running.process.poll() is None, running.err
    finally:
        running.end()


@dataclass
class Harness:
    """What creates streams in the service and hears its callbacks."""

    http: AsyncClient
    callbacks: str = ""
    """Where to call back."""
    numbers: list[int] = field(default_factory=list)
    _heard: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _last: int = 0
    stream: str = ""

    async def create(self, url: str, **order: Any) -> None:
        """Order a stream; unless told otherwise it connects again at once."""
        body = {"streamUrl": url, "callbackUrl": self.callbacks, "tag": "a test", "initialDelayMs": 0, **order}
        answer = await self.http.post("/").json(body).read()
        assert answer.status == 201, answer.text
        self.stream = answer.headers["location"]

    async def command(self, command: Any) -> int:
        return (await self.http.post(self.stream).json(command).read()).status

    async def delete(self) -> int:
        return (await self.http.delete(self.stream).read()).status

    async def heard(self, kind: str) -> Any:
        """What the next callback says; fails if it is of another kind."""
        async with asyncio.timeout(PATIENCE):
            message = await self._heard.get()
        assert message["kind"] == kind, message
        return message[kind]

    async def event(self, data: str, type: str = "message", id: str = "") -> None:
        """Hear this event next."""
        assert await self.heard("event") == {"type": type, "data": data, "id": id}

    @property
    def silent(self) -> bool:
        return self._heard.empty()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The callback endpoint, an ASGI application."""
        if scope["type"] != "http":
            return
        assert scope["method"] == "POST"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.numbers.append(int(scope["path"].rpartition("/")[2]))
        self._heard.put_nowait(json.loads(body))
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body"})


@asynccontextmanager
async def harnessed(service: str) -> AsyncIterator[Harness]:
    async with AsyncClient(service) as http:
        harness = Harness(http)
        async with serve(harness) as url:
            harness.callbacks = f"{url}/endpoints/1"
            try:
                yield harness
            finally:
                if harness.stream:
                    await harness.delete()
        assert harness.numbers == [*range(1, len(harness.numbers) + 1)], "the callbacks are not in order, or have gaps"


@pytest.fixture
async def harness(service: str, anyio_backend: object) -> AsyncIterator[Harness]:
    async with harnessed(service) as here:
        yield here


async def a_while(service: str) -> None:
    """As long as another stream takes to be connected to three times: a reconnect would have come meanwhile."""
    async with harnessed(service) as another, live() as server:
        await another.create(server.url, initialDelayMs=10)
        for number in range(3):
            stream = await server.opened()
            await stream.send(f"data: {number}\n\n")
            await another.event(str(number))
            stream.end()


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *headers, "", "")).encode()


# -- what is told


async def test_the_capabilities(service: str) -> None:
    async with AsyncClient(service) as http:
        answer = await http.get("/").read()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert sorted(answer.json()["capabilities"]) == [
        "bom",
        "comments",
        "event-type-listeners",
        "headers",
        "last-event-id",
        "post",
        "read-timeout",
        "report",
        "restart",
        "server-directed-shutdown-request",
    ]


async def test_events_are_called_back_with_type_data_and_id(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send("data: 1\n\nevent: greeting\nid: abc\ndata: €豆腐\n\ndata\ndata\n\nid: \ndata: 4\n\n")
        await harness.event("1")
        await harness.event("€豆腐", "greeting", "abc")
        await harness.event("\n", id="abc")
        await harness.event("4")


async def test_many_events_of_one_piece_come_in_order(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send("".join(f"data: message {n}\n\n" for n in range(100)))
        for n in range(100):
            await harness.event(f"message {n}")


async def test_comments_come_when_their_line_ends_and_in_their_place_among_events(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send(":Hello\n")
        assert await harness.heard("comment") == "Hello"
        await stream.send(":first\ndata: 1\n:second\n\n:third\r:fourth\r\ndata: 2\n\ndata: x:y\ndata: :z\n:fifth\n\n")
        assert await harness.heard("comment") == "first"
        assert await harness.heard("comment") == "second"
        await harness.event("1")
        assert await harness.heard("comment") == "third"
        assert await harness.heard("comment") == "fourth"
        await harness.event("2")
        assert await harness.heard("comment") == "fifth"
        await harness.event("x:y\n:z")


@pytest.mark.parametrize("name", ["listen", "Listen"])
async def test_an_event_of_any_type_is_heard_after_listen(harness: Harness, name: str) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        assert await harness.command({"command": "listen", name: {"type": "greeting"}}) == 202
        await stream.send("event: greeting\ndata: Hello\n\n")
        await harness.event("Hello", "greeting")


# -- what is asked


async def test_a_get_by_default_with_an_event_streams_headers(harness: Harness) -> None:
    nothing = dict.fromkeys(("tag", "readTimeoutMs", "lastEventId", "headers", "method", "body"))
    async with live() as server:
        await harness.create(server.url, **nothing)
        asked = await server.asked()
    assert asked.method == "GET"
    assert asked.fields["accept"] == "text/event-stream"
    assert asked.fields["cache-control"] == "no-cache"
    assert asked.last_event_id is None
    assert asked.body == b""


async def test_headers_and_the_last_event_id_are_sent(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url, headers={"header-name-1": "value-1", "x-2": "2"}, lastEventId="abc…")
        stream = await server.opened()
        assert (stream.fields["header-name-1"], stream.fields["x-2"]) == ("value-1", "2")
        assert stream.last_event_id == "abc…"
        await stream.send("data: inherits\n\n")
        await harness.event("inherits", id="abc…")
        stream.end()
        assert (await server.asked()).last_event_id == "abc…"


@pytest.mark.parametrize("method", ["POST", "REPORT"])
async def test_a_body_is_sent_again_at_every_reconnect(harness: Harness, method: str) -> None:
    body = '{"hello": "wörld"}'
    headers = {"content-type": "application/json; charset=utf-8"}
    async with live() as server:
        await harness.create(server.url, method=method, body=body, headers=headers)
        for leave in (Asked.end, Asked.cut, Asked.end):
            stream = await server.opened()
            assert (stream.method, stream.body.decode()) == (method, body)
            assert stream.fields["content-type"] == headers["content-type"]
            leave(stream)
        assert (await server.asked()).body.decode() == body


async def test_a_body_without_a_content_type_is_text(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url, method="POST", body="hello")
        assert (await server.asked()).fields["content-type"].startswith("text/plain")


# -- reconnecting


async def test_the_end_of_a_body_leads_to_a_reconnect_and_is_no_error(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        for number in (1, 2, 3):
            stream = await server.opened()
            await stream.send(f"data: {number}\n\n")
            await harness.event(str(number))
            stream.end()
        await server.asked()
        assert harness.silent


async def test_a_break_is_an_error_and_a_reconnect_after_the_last_id_without_the_partial_event(
    harness: Harness,
) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send("id: abc\ndata: Hello\n\ndata: World\n\nid: def\ndata: Goodbye")
        await harness.event("Hello", id="abc")
        await harness.event("World", id="abc")
        stream.cut()
        assert server.url in await harness.heard("error")
        again = await server.opened()
        assert again.last_event_id == "abc"
        await again.send("data: We meet again\n\n")
        await harness.event("We meet again", id="abc")


async def test_an_empty_id_removes_the_last_event_id(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send("id: abc\ndata: 1\n\nid\ndata: 2\n\n")
        await harness.event("1", id="abc")
        await harness.event("2")
        stream.end()
        assert (await server.asked()).last_event_id is None


async def test_a_restart_is_no_error(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url, initialDelayMs=60_000)
        stream = await server.opened()
        await stream.send("id: 1\ndata: Hello\n\n")
        await harness.event("Hello", id="1")
        assert await harness.command({"command": "restart"}) == 202
        await stream.left()
        again = await server.opened()
        assert again.last_event_id == "1"
        await again.send("id: 2\ndata: Thanks\n\n")
        await harness.event("Thanks", id="2")


async def test_a_restart_does_not_wait_for_the_pause_to_end(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url, initialDelayMs=60_000)
        (await server.opened()).cut()
        await harness.heard("error")
        assert await harness.command({"command": "restart"}) == 202
        await (await server.opened()).send("data: back\n\n")
        await harness.event("back")


@pytest.mark.parametrize("leave", [Asked.end, Asked.cut])
async def test_the_initial_delay_is_waited_out(harness: Harness, leave: Callable[[Asked], None]) -> None:
    async with live() as server:
        await harness.create(server.url, initialDelayMs=400)
        stream = await server.opened()
        before = time.monotonic()
        leave(stream)
        await server.asked()
        assert 0.4 <= time.monotonic() - before < PATIENCE


async def test_a_silent_stream_is_an_error_after_the_read_timeout_and_connected_to_again(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url, readTimeoutMs=300)
        stream = await server.opened()
        await stream.send("data: Hello\n\n")
        await harness.event("Hello")
        assert "0.3 s" in await harness.heard("error")
        await stream.left()
        await server.asked()


async def test_a_204_ends_the_stream_for_good(harness: Harness, service: str) -> None:
    async with script([wait_request(), head("204 No Content"), close()], repeat=True) as server:
        await harness.create(server.url)
        await until(lambda: len(server.requests) == 1, PATIENCE)
        await a_while(service)
        assert await harness.command({"command": "restart"}) == 202, "the stream is over, and still there"
        await a_while(service)
        assert (server.connections, harness.silent) == (1, True)


@pytest.mark.parametrize("status", ["404 Not Found", "503 Unavailable", "500 Oops"])
async def test_a_failed_status_is_one_error_and_the_end(harness: Harness, service: str, status: str) -> None:
    async with script([wait_request(), head(status), close()], repeat=True) as server:
        await harness.create(server.url)
        assert status[:3] in await harness.heard("error")
        await a_while(service)
        assert (server.connections, harness.silent) == (1, True)


async def test_a_refused_connection_is_tried_again_and_again(harness: Harness) -> None:
    async with script([close()], repeat=True) as server:
        await harness.create(server.url)
        for _ in range(6):
            assert server.url in await harness.heard("error")


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
async def test_a_redirect_is_followed(harness: Harness, status: str) -> None:
    async with live() as server, script([wait_request(), head(status, f"Location: {server.url}/there"), close()]) as at:
        await harness.create(at.url)
        await (await server.opened()).send("data: hello\n\n")
        await harness.event("hello")


@pytest.mark.parametrize("location", [[], ["Location: "]], ids=["missing", "empty"])
@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
async def test_a_redirect_to_nowhere_is_one_error_and_no_loop(
    harness: Harness, service: str, status: str, location: list[str]
) -> None:
    async with script([wait_request(), head(status, *location), close()], repeat=True) as server:
        await harness.create(server.url)
        assert server.url in await harness.heard("error")
        await a_while(service)
        assert harness.silent
        assert server.connections <= (21 if location else 1)


# -- bytes


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("size", [1, 2, 10_000])
async def test_any_line_end_in_any_pieces_while_the_connection_stays_open(
    harness: Harness, end: str, size: int
) -> None:
    lines = ("data: event 1", "", "", "data:", "data: €豆腐 line 2", "id: 7", "", "event: e", "data: 3", "")
    body = "".join(line + end for line in lines).encode()
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        for at in range(0, len(body), size):
            await stream.send(body[at : at + size])
        await harness.event("event 1")
        await harness.event("\n€豆腐 line 2", id="7")
        await harness.event("3", "e", "7")


async def test_one_byte_at_a_time_in_packets_of_their_own(harness: Harness) -> None:
    steps: list[Step] = [wait_request(), b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"]
    async with script(*steps, *(bytes([byte]) for byte in f"{BOM}data: {BOM}€豆腐\r\r".encode())) as server:
        await harness.create(server.url)
        await harness.event(f"{BOM}€豆腐")


async def test_a_byte_order_mark_begins_each_connection(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        for _ in range(2):
            stream = await server.opened()
            await stream.send(b"\xef\xbb")
            await stream.send(b"\xbf:comment\ndata: 1\n\n")
            await stream.send(f"{BOM}data: not a field\n\ndata: {BOM}2\n\n")
            assert await harness.heard("comment") == "comment"
            await harness.event("1")
            await harness.event(f"{BOM}2")
            stream.end()


async def test_an_event_of_10_mb(harness: Harness) -> None:
    data = "€豆腐x" * 1_000_000
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        sending = asyncio.create_task(stream.send(f"data: {data}\n\n"))
        message = await harness.heard("event")
        await sending
        assert len(data.encode()) == 10_000_000
        assert message["data"] == data


# -- the service's own life


async def test_after_the_delete_nothing_is_called_back_and_the_connection_is_closed(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        stream = await server.opened()
        await stream.send("data: 1\n\n")
        await harness.event("1")
        assert await harness.delete() == 204
        await stream.left()
        assert (await harness.delete(), await harness.command({"command": "restart"})) == (404, 404)
        assert (harness.silent, server.requests) == (True, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"streamUrl": None},
        {"callbackUrl": 5},
        {"streamUrl": "mailto:me"},
        {"callbackUrl": "nowhere"},
        {"readTimeoutMs": -1},
        {"headers": {"a b": "c"}},
        {"headers": {"a": 5}},
        {"method": "G T"},
    ],
    ids=str,
)
async def test_an_order_that_makes_no_request_is_refused(service: str, wrong: dict[str, Any]) -> None:
    order = {"streamUrl": "http://127.0.0.1:1/", "callbackUrl": "http://127.0.0.1:1/", **wrong}
    async with AsyncClient(service) as http:
        answer = await http.post("/").json(order).read()
        assert (answer.status, answer.headers.get("location")) == (400, None)
        assert answer.text.strip()


async def test_what_is_no_command_is_refused(harness: Harness) -> None:
    async with live() as server:
        await harness.create(server.url)
        commands: tuple[Any, ...] = ({"command": "fly"}, {}, [], None)
        for command in commands:
            assert await harness.command(command) == 400
        assert (await harness.http.post(harness.stream).content(b"{").read()).status == 400
        assert (await harness.http.post("/").content(b"{").read()).status == 400


async def test_the_service_ends_with_0_and_its_streams_with_it(tmp_path: Path) -> None:
    running = await asyncio.to_thread(started, tmp_path)
    try:
        async with live() as server, AsyncClient(url_of(running)) as http:
            order = {"streamUrl": server.url, "callbackUrl": f"{server.url}/callbacks"}
            assert (await http.post("/").json(order).read()).status == 201
            stream = await server.opened()
            assert (await http.delete("/").read()).status == 204
            assert await asyncio.to_thread(running.ended) == 0
            await stream.left()
        assert running.err == ""
    finally:
        running.end()
