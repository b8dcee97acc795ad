"""What an event stream owes to the standard, and what it does better by default, over real sockets.

The behaviours are those that the web platform's tests of EventSource require of a browser, told by their names there.
``reconnect="strict"`` is held to them; where the default rightly differs, the same test says how. A browser's states
are notices here: OPEN is `Connected`, CONNECTING is `Reconnecting`, and CLOSED is the end of the iteration or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

import penstock
from penstock import AsyncClient, Event, EventStream, PenstockError, Retry, StatusError, StreamError, StreamTruncated
from penstock.client.builder import RequestBuilder
from penstock.client.events import Reconnect
from penstock.client.notices import Comment, Connected, Interrupted, Notice, Reconnecting, Replayed
from penstock.testing import pause, reset, script, wait_request
from penstock.testing.script import Script, Step
from tests.client.peers import SSE, answer, body_of, chunked, fields_of, once, retries, until
from tests.e2e.live import PATIENCE, Asked, Live, live

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

F = TypeVar("F", bound=Callable[..., Any])

BOTH: list[Reconnect] = ["strict", "resilient"]
NOTHING = once(b"HTTP/1.1 204 No Content\r\n\r\n")
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"

covered: set[str] = set()


def behaviour(*names: str) -> Callable[[F], F]:
    """This test covers the behaviours of these names."""
    covered.update(names)
    return lambda test: test


def test_every_behaviour_is_covered() -> None:
    folder = os.environ.get("PENSTOCK_CORPUS")
    if not folder:
        pytest.skip("PENSTOCK_CORPUS names no folder")
    file = Path(folder) / "wpt_sse_http_behaviours.json"
    if not file.exists():
        pytest.skip(f"no {file.name} in PENSTOCK_CORPUS")
    required = {case["id"] for case in json.loads(file.read_text(encoding="utf-8"))}
    assert required - covered == set(), "these have no test"


# -- servers and readers


def stream(body: str | bytes, status: str = "200 OK", *headers: str, type: str = f"{SSE}; charset=utf-8") -> bytes:
    """A stream that comes whole and ends as HTTP ends it."""
    raw = body if isinstance(body, bytes) else body.encode()
    return answer(raw, status, f"Content-Type: {type}", *headers)


def numbers(*ids: int) -> str:
    """Events with ids."""
    return "".join(f"id: {n}\ndata: {n}\n\n" for n in ids)


def broken(body: str) -> list[Step]:
    """A connection whose stream breaks after that."""
    return [wait_request(), chunked(body.encode(), type=SSE, end=False), reset()]


def ids_asked(server: Script) -> list[str | None]:
    """The Last-Event-ID of every request."""
    return [fields_of(request).get("last-event-id") for request in server.requests]


@dataclass
class Reader:
    """A stream that is read by a task of its own, and what it has given so far."""

    stream: EventStream
    events: list[Event] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    error: PenstockError | None = None
    task: asyncio.Task[None] | None = None

    @property
    def data(self) -> list[str]:
        return [event.data for event in self.events]

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]

    def noticed(self, *kinds: type) -> list[Any]:
        """The notices of these kinds."""
        return [notice for notice in self.notices if isinstance(notice, kinds)]

    @property
    def states(self) -> list[str]:
        """A browser's states, as they followed each other."""
        names = {Connected: "OPEN", Reconnecting: "CONNECTING"}
        states = [names[type(notice)] for notice in self.noticed(Connected, Reconnecting)]
        return states if self.task is None or not self.task.done() else [*states, "CLOSED"]

    @property
    def accounted(self) -> int:
        """How many events have come, those that were left out included."""
        return len(self.events) + self.stream.metrics.replayed

    @property
    def errors(self) -> int:
        return len(self.noticed(Interrupted))

    async def read(self) -> None:
        try:
            async with self.stream:
                async for event in self.stream:
                    self.events.append(event)
        except PenstockError as error:
            self.error = error

    async def has(self, count: int) -> None:
        """Wait until so many events have come."""
        await until(lambda: len(self.events) >= count, PATIENCE)

    async def told(self, kind: type) -> None:
        """Wait until there is such a notice."""
        await until(lambda: bool(self.noticed(kind)), PATIENCE)

    async def ended(self) -> None:
        """Wait for its end."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE):
            await self.task


@contextlib.asynccontextmanager
async def reading(request: RequestBuilder, reconnect: Reconnect = "strict", **how: Any) -> AsyncIterator[Reader]:
    """Read a stream meanwhile; what is left of it at the end of the block is cancelled."""
    notices: list[Notice] = []
    reader = Reader(request.events(reconnect=reconnect, on_notice=notices.append, **how), notices=notices)
    reader.task = asyncio.create_task(reader.read())
    try:
        yield reader
    finally:
        reader.task.cancel()
        await asyncio.wait({reader.task})


async def read(request: RequestBuilder, reconnect: Reconnect = "strict", **how: Any) -> Reader:
    """Read a stream to its end."""
    async with reading(request, reconnect, **how) as reader:
        await reader.ended()
    return reader


def patient(server: Script | Live, count: int = 5, **how: Any) -> AsyncClient:
    """A client that tries again at once."""
    return AsyncClient(server.url, retry=how.pop("retry", retries(count)), **how)


@pytest.fixture(autouse=True)
async def nothing_left_behind(anyio_backend: object) -> AsyncIterator[None]:
    """No task is left when a test is over."""
    before = len(asyncio.all_tasks())  # those of the test runner, which change
    yield
    await until(lambda: len(asyncio.all_tasks()) <= before)


# -- what is asked


@behaviour("accept", "cache-control")
@pytest.mark.parametrize("reconnect", BOTH)
async def test_accept_and_cache_control_are_on_every_connection(reconnect: Reconnect) -> None:
    async with (
        script(broken(numbers(1)), broken(numbers(2)), NOTHING) as server,
        patient(server) as client,
    ):
        assert (await read(client.get("/"), reconnect)).ids == ["1", "2"]
    assert len(server.requests) == 3
    for request in map(fields_of, server.requests):
        assert (request["accept"], request["cache-control"]) == (SSE, "no-cache")


@behaviour("last-event-id")
async def test_a_last_event_id_is_utf8_and_is_sent_at_every_reconnect() -> None:
    async with (
        script(
            once(stream("id: …\nretry: 2\ndata: hello\n\n")), *[once(stream("data: again\n\n"))] * 2, NOTHING
        ) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"))
    assert seen.data == ["hello", "again", "again"]
    assert seen.ids == ["…"] * 3, "an id lasts until there is another"
    assert b"last-event-id" not in server.requests[0].lower()
    for request in server.requests[1:]:
        assert request.lower().count(b"last-event-id: \xe2\x80\xa6\r\n") == 1


@behaviour("last-event-id-null")
@pytest.mark.parametrize("id", ["\0", "\0 ", "x\0", "\0x", "x\0x", " \0"])
async def test_an_id_with_a_null_is_none(id: str) -> None:
    async with (
        script(*[once(stream(f"id: {id}\nretry: 2\ndata: hello\n\n"))] * 2, NOTHING) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"))
    assert (seen.data, seen.ids) == (["hello", "hello"], ["", ""])
    assert ids_asked(server) == [None] * 3


@behaviour("unsafe-last-event-id")
@pytest.mark.parametrize("id", ["x" * 5000, '"(),:;<>?@[\\]{}', "a\tb", "日本…"])
async def test_an_id_that_a_browser_would_ask_about_first_is_sent_as_it_is(id: str) -> None:
    async with script(once(stream(f"id: {id}\nretry: 2\ndata: 1\n\n")), NOTHING) as server, patient(server) as client:
        seen = await read(client.get("/"))
        assert seen.ids == [id]
        assert b"\r\nlast-event-id: " + id.encode() + b"\r\n" in server.requests[1].replace(
            b"Last-Event-ID", b"last-event-id"
        )


async def test_an_empty_id_removes_the_last_event_id() -> None:
    async with (
        script(
            once(stream("id: 1\nretry: 2\ndata: 1\n\nid\ndata: 2\n\n")), once(stream("data: 3\n\n")), NOTHING
        ) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/").header("Last-Event-ID", "0"))
    assert seen.ids == ["1", "", ""]
    assert ids_asked(server) == ["0", None, None]


@pytest.mark.parametrize("reconnect", BOTH)
@pytest.mark.parametrize("how", ["argument", "header"])
async def test_a_stream_can_begin_after_an_id(reconnect: Reconnect, how: str) -> None:
    async with (
        script(
            [wait_request(), reset()],
            broken("data: inherits\n\n"),
            broken(numbers(8)),
            NOTHING,
        ) as server,
        patient(server) as client,
    ):
        if how == "argument":
            seen = await read(client.get("/"), reconnect, initial_last_event_id="7…")
        else:
            seen = await read(client.get("/").header("last-event-id", "7…"), reconnect)
    assert [(event.data, event.id) for event in seen.events] == [("inherits", "7…"), ("8", "8")]
    raw = [request.decode().lower() for request in server.requests]
    assert [text.partition("last-event-id: ")[2].partition("\r")[0] for text in raw] == ["7…", "7…", "7…", "8"]
    assert [text.count("last-event-id") for text in raw] == [1] * 4


async def test_an_id_without_data_moves_the_place() -> None:
    async with (
        script(broken("data: 1\n\nid: 5\n\n"), broken("id: 6\n\n"), NOTHING) as server,
        patient(server) as client,
    ):
        assert (await read(client.get("/"))).data == ["1"]
    assert ids_asked(server) == [None, "5", "6"]
    async with script(broken("id: 5\n\n"), NOTHING) as server, patient(server) as client:
        assert (await read(client.get("/"), "resilient")).data == []
    assert ids_asked(server) == [None, "5"], "nothing had been delivered, and yet the server had said where it was"


@behaviour("cookies")
async def test_cookies_are_sent_on_reconnects_if_they_are_kept() -> None:
    for keep in (True, False):
        async with (
            script(
                once(stream("id: 1\nretry: 2\ndata: x\n\n", "200 OK", "Set-Cookie: a=b; Path=/")),
                once(stream("data: y\n\n")),
                once(stream("", type="stop")),
            ) as server,
            patient(server, keep_cookies=keep) as client,
        ):
            seen = await read(client.get("/"))
        assert seen.data == ["x", "y"]
        assert isinstance(seen.error, penstock.PenstockError)
        assert [fields_of(request).get("cookie") for request in server.requests] == (
            [None, "a=b", "a=b"] if keep else [None] * 3
        )


@behaviour("bad-url")
@pytest.mark.parametrize(
    "url",
    ["http://this is invalid/", "ftp://127.0.0.1/", "about:blank", "mailto:me@example.org", "javascript:alert(1)"],
)
async def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    async with AsyncClient() as client:
        with pytest.raises(penstock.InvalidURL):
            client.get(url)


# -- what is accepted


@behaviour("status-error")
@pytest.mark.parametrize("status", [204, 205, 210, 299, 404, 410, 503])
async def test_only_a_200_is_a_stream(status: int) -> None:
    body = b"" if status in (204, 205) else b"data: data\n\n"
    raw = answer(body, f"{status} Custom", f"Content-Type: {SSE}")
    async with script(once(raw)) as server, patient(server) as client:
        seen = await read(client.get("/"))
    assert (seen.events, seen.states, server.connections) == ([], ["CLOSED"], 1)
    if status == 204:
        assert (seen.error, seen.stream.metrics.reason) == (None, "complete"), "the one way to end such a stream well"
    else:
        assert isinstance(seen.error, StatusError)
        assert (seen.error.status, seen.errors) == (status, 1)

    async with script(once(raw), once(stream("data: second\n\n"))) as server, patient(server) as client:
        seen = await read(client.get("/"), "resilient")
    expected = {204: [], 205: [], 210: ["data"], 299: ["data"], 503: ["second"]}
    assert seen.data == expected.get(status, [])
    assert isinstance(seen.error, StatusError) == (status in (404, 410))


@behaviour("mime")
@pytest.mark.parametrize("reconnect", BOTH)
async def test_the_content_type_decides(reconnect: Reconnect) -> None:
    for other in ("x bogus", "text/x-bogus", "text/plain", "text/event-streamx", ""):
        async with script(once(stream("data: data\n\n", type=other))) as server, patient(server) as client:
            seen = await read(client.get("/"), reconnect)
        assert isinstance(seen.error, penstock.ContentTypeError), other
        assert (seen.events, seen.errors, seen.states, server.connections) == ([], 1, ["CLOSED"], 1)
    for same in (f"{SSE};", f"{SSE};charset=windows-1252", f"{SSE.upper()} ; charset=x", f" {SSE}\t"):
        async with (
            script(once(stream("data: ok…\n\n", type=same)), NOTHING) as server,
            patient(server) as client,
            reading(client.get("/"), reconnect) as seen,
        ):
            await seen.has(1)
            assert (seen.data, seen.states[0]) == (["ok…"], "OPEN"), same


@behaviour("redirect")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("reconnect", BOTH)
async def test_redirects_are_followed_at_every_connection(reconnect: Reconnect, status: int) -> None:
    async with (
        script(once(stream("id: 1\nretry: 2\ndata: data\n\n")), NOTHING) as there,
        script(once(answer(b"", f"{status} Elsewhere", f"Location: {there.url}/there")), repeat=True) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"), reconnect)
    assert (seen.data, seen.errors, seen.error) == (["data"], 0, None)
    assert seen.stream.response is not None
    assert seen.stream.response.url == f"{there.url}/there"
    assert seen.states == (["OPEN", "CONNECTING", "CLOSED"] if reconnect == "strict" else ["OPEN", "CLOSED"])
    assert ids_asked(there) == ids_asked(server) == ([None, "1"] if reconnect == "strict" else [None])


@pytest.mark.parametrize("location", [[], ["Location: "]], ids=["missing", "empty"])
@pytest.mark.parametrize("status", [301, 302, 303, 307])
@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_redirect_to_nowhere_is_an_error_and_no_loop(
    reconnect: Reconnect, status: int, location: list[str]
) -> None:
    async with script(once(answer(b"", f"{status} X", *location)), repeat=True) as server, patient(server) as client:
        seen = await read(client.get("/"), reconnect)
    assert isinstance(seen.error, StatusError | penstock.ProtocolError)
    assert server.url in str(seen.error)
    assert (seen.errors, seen.states) == (1, ["CLOSED"])
    assert server.connections <= (21 if location else 1)


@pytest.mark.parametrize("reconnect", BOTH)
async def test_redirects_in_a_circle_are_an_error_and_not_tried_again(reconnect: Reconnect) -> None:
    async with script(once(answer(b"", "302 X", "Location: /")), repeat=True) as server, patient(server) as client:
        seen = await read(client.get("/"), reconnect)
    assert isinstance(seen.error, penstock.ProtocolError)
    assert server.url in str(seen.error)
    assert (seen.error.category, seen.states, server.connections) == ("server", ["CLOSED"], 21)


async def test_credentials_stay_behind_at_another_origin_on_reconnects_too() -> None:
    secrets = {"Authorization": "Bearer x", "Cookie": "a=b", "X-API-Key": "k"}
    async with (
        script(once(stream(f"{numbers(1)}retry: 2\n\n")), broken(numbers(2)), NOTHING) as there,
        script(once(answer(b"", "307 X", f"Location: {there.url}/")), repeat=True) as server,
        patient(server, headers={"X-Goog-Api-Key": "g"}) as client,
    ):
        assert (await read(client.get("/").headers({**secrets, "X-Mine": "1"}))).ids == ["1", "2"]
    names = [name.lower() for name in (*secrets, "X-Goog-Api-Key")]
    assert ids_asked(there) == ids_asked(server) == [None, "1", "2"]
    for request in map(fields_of, server.requests):
        assert all(name in request for name in names)
    for request in map(fields_of, there.requests):
        assert not any(name in request for name in names)
        assert request["x-mine"] == "1"


# -- how it ends, and goes on


@behaviour("reconnect-200")
@pytest.mark.parametrize("first", ["", "data: ok\n\n"])
async def test_a_clean_end_leads_to_another_connection(first: str) -> None:
    async with (
        script(once(stream(f"retry: 2\n{first}")), once(stream("data: data\n\n")), NOTHING) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"))
    assert seen.data == [*(["ok"] if first else []), "data"]
    assert (seen.errors, seen.error) == (0, None)
    assert seen.states == ["OPEN", "CONNECTING", "OPEN", "CONNECTING", "CLOSED"]
    assert [notice.failure for notice in seen.noticed(Reconnecting)] == [None, None]

    async with script(once(stream("retry: 2\ndata: ok\n\n"))) as server, patient(server) as client:
        seen = await read(client.get("/"), "resilient")
    assert (seen.data, seen.states, server.connections) == (["ok"], ["OPEN", "CLOSED"], 1), (
        "an answer is asked for once"
    )


@behaviour("reconnect-then-204")
async def test_a_204_ends_the_reconnecting() -> None:
    async with (
        script(once(stream("retry: 2\ndata: opened\n\n")), once(stream("data: reconnected\n\n")), NOTHING) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"))
        assert server.connections == 3
    assert seen.data == ["opened", "reconnected"]
    assert seen.states == ["OPEN", "CONNECTING", "OPEN", "CONNECTING", "CLOSED"]
    assert (seen.stream.metrics.reason, seen.stream.metrics.retries, seen.stream.metrics.reconnects) == (
        "complete",
        2,
        2,
    )


@behaviour("close")
@pytest.mark.parametrize("reconnect", BOTH)
async def test_after_a_close_there_are_no_events(reconnect: Reconnect) -> None:
    async with live() as server, patient(server) as client, reading(client.get("/"), reconnect) as seen:
        assert seen.states == []
        asked = await server.opened()
        await seen.told(Connected)
        assert seen.states == ["OPEN"]
        await seen.stream.aclose()
        await seen.ended()
        await asked.left()
        assert (seen.events, seen.states, server.requests) == ([], ["OPEN", "CLOSED"], 1)
        assert isinstance(seen.error, StreamError), "who waits for an event is told that there will be none"
        assert seen.stream.metrics.reason == "failed"


@behaviour("partial-event")
async def test_a_partial_event_and_its_id_are_dropped() -> None:
    first = "retry: 10\ndata: test1\n\nid: test\ndata: test2"
    for reconnect, cut in (("strict", False), ("strict", True), ("resilient", True)):
        begin = broken(f"id: 0\n{first}") if cut else once(stream(first))
        async with script(begin, NOTHING) as server, patient(server) as client:
            seen = await read(client.get("/"), reconnect)  # type: ignore[arg-type]
        assert seen.data == ["test1"]
        assert ids_asked(server) == [None, "0" if cut else None]
        metrics = seen.stream.metrics
        assert (metrics.total, metrics.successful, metrics.failed) == (2, 1, 1)


@behaviour("retry-delay")
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ("retry:03000", 3.0),
        ("retry:3000\nretry:1000x", 3.0),
        ("retry: 70\nretry: -1\nretry: 1e3\nretry:\nretry: ٣", 0.07),
        ("retry: 99999999999999999999", 60.0),
        ("data: no word of it", 3.0),
    ],
)
async def test_the_server_says_when_to_reconnect_within_bounds(lines: str, seconds: float) -> None:
    for end in ("clean", "broken"):
        raw = stream(f"{lines}\n\n") if end == "clean" else chunked(f"{lines}\n\n".encode(), type=SSE, end=False)
        async with (
            script(once(raw), repeat=True) as server,
            patient(server) as client,
            reading(client.get("/")) as seen,
        ):
            await seen.told(Reconnecting)
            expected = 0.0 if (end, lines[:4]) == ("broken", "data") else seconds
            assert seen.noticed(Reconnecting)[0].pause == expected


async def test_the_reconnection_time_is_waited_out_and_outlasts_its_connection() -> None:
    async with live() as server, patient(server) as client, reading(client.get("/")) as seen:
        asked = await server.opened()
        await asked.send("retry: 250\ndata: 1\n\n")
        await seen.has(1)
        for leave in (Asked.end, Asked.cut, Asked.end):
            before = time.monotonic()
            leave(asked)
            asked = await server.opened()
            assert time.monotonic() - before >= 0.25
        await seen.stream.restart()
        asked = await server.opened()
        asked.end()
        await until(lambda: len(seen.noticed(Reconnecting)) == 5)
        assert [notice.pause for notice in seen.noticed(Reconnecting)] == [0.25, 0.25, 0.25, 0.0, 0.25]


async def test_a_reconnection_time_can_be_given_until_the_server_gives_one() -> None:
    notices: list[Notice] = []
    async with (
        script(once(stream("data: 1\n\n")), once(stream("retry: 3\ndata: 2\n\n")), NOTHING) as server,
        patient(server) as client,
        client.get("/").items(EventStream, reconnect="strict", retry_ms=2, on_notice=notices.append) as events,
    ):
        assert [event.data async for event in events] == ["1", "2"]
        assert events.retry_ms == 3
    assert [notice.pause for notice in notices if isinstance(notice, Reconnecting)] == [0.002, 0.003]


async def test_a_break_without_ids_begins_anew_or_is_an_error() -> None:
    async with (
        script(broken("retry: 2\ndata: 1\n\n"), once(stream("data: 1\n\n")), NOTHING) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"))
    assert (seen.data, seen.errors) == (["1", "1"], 1), "as a browser would have it"
    async with script(broken("data: 1\n\n"), once(stream("data: 1\n\n"))) as server, patient(server) as client:
        seen = await read(client.get("/"), "resilient")
    assert (seen.data, server.connections) == (["1"], 1), "nothing comes twice"
    assert isinstance(seen.error, StreamTruncated)


# -- a server that plays it again


REPLAYS = {
    "from the beginning": ((1, 2, 3), (1, 2, 3, 4, 5), 3),
    "from the middle": ((1, 2, 3, 4, 5, 6), (4, 5, 6, 7), 3),
    "the last one again": ((1, 2, 3), (3, 4), 1),
    "and nothing more": ((1, 2, 3), (1, 2, 3), 3),
    "not at all": ((1, 2, 3), (4, 5), 0),
}


@pytest.mark.parametrize("case", REPLAYS.values(), ids=REPLAYS)
@pytest.mark.parametrize("delivered", ["together", "apart"])
@pytest.mark.parametrize("replayed", ["together", "apart"])
@pytest.mark.parametrize("reconnect", BOTH)
async def test_what_is_played_again_is_left_out(
    case: tuple[tuple[int, ...], tuple[int, ...], int], delivered: str, replayed: str, reconnect: Reconnect
) -> None:
    first, second, again = case
    async with live() as server, patient(server) as client, reading(client.get("/"), reconnect) as seen:
        asked = await server.opened()
        for each in [first] if delivered == "together" else [(n,) for n in first]:
            await asked.send(numbers(*each))
            await seen.has(each[-1])
        asked.cut()
        asked = await server.opened()
        assert asked.last_event_id == str(first[-1])
        for each in [second] if replayed == "together" else [(n,) for n in second]:
            sent = seen.accounted + len(each)
            await asked.send(numbers(*each))
            await until(lambda sent=sent: seen.accounted >= sent, PATIENCE)  # type: ignore[misc]
        asked.end()
        if reconnect == "strict":
            await seen.stream.aclose()
        await seen.ended()
        assert seen.ids == [str(n) for n in range(1, max(*first, *second) + 1)]
        assert sum(notice.events for notice in seen.noticed(Replayed)) == seen.stream.metrics.replayed == again
        assert seen.stream.metrics.total == len(seen.events)
        assert seen.error is None or reconnect == "strict"


@pytest.mark.parametrize("reconnect", BOTH)
async def test_events_that_inherit_the_last_id_are_counted(reconnect: Reconnect) -> None:
    played = "retry: 2\ndata: 0\n\nid: a\ndata: 1\n\nid: b\ndata: 2\n\ndata: 3\n\ndata: 4\n\n"
    async with (
        script(broken(played), broken(f"id: a\n{played}data: 5\n\n"), once(stream("data: 6\n\n")), NOTHING) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"), reconnect)
    assert seen.data[:6] == ["0", "1", "2", "3", "4", "5"]
    assert seen.ids[1:6] == ["a", "b", "b", "b", "b"]
    assert ids_asked(server)[:3] == [None, "b", "b"]


async def test_a_replay_that_goes_past_an_id_without_data_comes_to_its_place() -> None:
    played = f"{numbers(1, 2)}id: 9\n\n"
    async with (
        script(broken(played), broken(f"{played}{numbers(10)}"), once(stream(numbers(11)))) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"), "resilient")
    assert (seen.ids, seen.error) == (["1", "2", "10", "11"], None)
    assert ids_asked(server) == [None, "9", "10"]
    assert seen.stream.metrics.replayed == 2


async def test_a_replay_that_ends_before_its_place_is_truncated() -> None:
    async with (
        script(broken(numbers(1, 2, 3)), once(stream(numbers(1, 2))), repeat=True) as server,
        patient(server, 2) as client,
    ):
        with pytest.raises(penstock.RetriesExhausted, match="played the stream again") as caught:
            await client.get("/").collect()
    assert isinstance(caught.value.last, StreamTruncated)
    assert [event.id for event in caught.value.collected] == ["1", "2", "3"]
    assert ids_asked(server) == [None, "3", "3"], "the place is not taken back"


async def test_a_replay_that_breaks_on_its_way_is_resumed_from_the_same_place() -> None:
    async with (
        script(broken(numbers(1, 2, 3)), broken(numbers(1, 2)), once(stream(numbers(1, 2, 3, 4)))) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"), "resilient")
    assert seen.ids == ["1", "2", "3", "4"]
    assert ids_asked(server) == [None, "3", "3"]
    assert seen.stream.metrics.replayed == 5


async def test_a_long_replay_is_noticed_from_anywhere_near_its_end() -> None:
    long = range(1, 1001)
    async with (
        script(broken(numbers(*long)), broken(numbers(*range(800, 1004))), once(stream(numbers(1004)))) as server,
        patient(server) as client,
    ):
        seen = await read(client.get("/"), "resilient")
    assert seen.ids == [str(n) for n in range(1, 1005)]


# -- bodies that are sent again


SAFE: dict[str, Callable[[RequestBuilder], RequestBuilder]] = {
    "no": lambda request: request,
    "idempotent": lambda request: request.retry(Retry(5, penstock.Backoff(initial=0), idempotent=True)),
    "key": lambda request: request.header("Idempotency-Key", "k"),
}


@pytest.mark.parametrize("safe", SAFE)
@pytest.mark.parametrize("end", ["clean", "broken"])
@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_post_is_sent_again_only_where_that_is_safe(reconnect: Reconnect, end: str, safe: str) -> None:
    body = "retry: 2\nid: 1\ndata: 1\n\n"
    first = once(stream(body)) if end == "clean" else broken(body)
    async with script(first, NOTHING) as server, patient(server) as client:
        seen = await read(SAFE[safe](client.post("/").json({"q": "é"})), reconnect)
        goes_on = safe != "no" and (end == "broken" or reconnect == "strict")
        assert server.connections == (2 if goes_on else 1)
        assert [body_of(request).decode() for request in server.requests] == ['{"q":"é"}'] * server.connections
    assert seen.data == ["1"]
    assert isinstance(seen.error, StreamTruncated) == (end == "broken" and not goes_on)


@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_body_that_can_be_read_once_is_not_sent_again(reconnect: Reconnect) -> None:
    async def once_only() -> AsyncIterator[bytes]:
        yield b"{}"

    async with script(once(stream("retry: 2\nid: 1\ndata: 1\n\n"))) as server, patient(server) as client:
        seen = await read(client.put("/").content(once_only()), reconnect)
        assert (seen.data, seen.error, server.connections) == (["1"], None, 1)


# -- restart


@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_restart_from_the_reading_task_is_no_failure(reconnect: Reconnect) -> None:
    notices: list[Notice] = []
    async with (
        live() as server,
        patient(server, 1) as client,
        client.get("/").events(reconnect=reconnect, on_notice=notices.append) as events,
    ):
        for number in range(1, 6):
            asking = asyncio.create_task(server.opened())
            reader = asyncio.ensure_future(anext(aiter(events)))
            asked = await asking
            assert asked.last_event_id == (str(number - 1) if number > 1 else None)
            await asked.send(numbers(number))
            assert (await reader).id == str(number)
            await events.restart()
            await asked.left()
    assert not [notice for notice in notices if isinstance(notice, Interrupted)]
    assert (events.metrics.reconnects, events.metrics.failed) == (4, 0)


async def test_a_restart_in_the_middle_of_a_batch_delivers_the_rest_of_it() -> None:
    async with script(broken(numbers(1, 2, 3)), once(stream(numbers(4)))) as server, patient(server) as client:
        got = []
        async with client.get("/").events() as events:
            async for event in events:
                got.append(event.id)
                if event.id == "1":
                    await events.restart()
    assert got == ["1", "2", "3", "4"]
    assert ids_asked(server) == [None, "3"]


@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_restart_from_another_task_wakes_the_reader(reconnect: Reconnect) -> None:
    async with live() as server, patient(server, 1) as client, reading(client.get("/"), reconnect) as seen:
        for number in range(1, 6):  # more often than there are retries: it is no failure
            asked = await server.opened()
            if number == 1:
                await asked.send(numbers(1))
                await seen.has(1)
            await until(lambda number=number: len(seen.noticed(Connected)) == number)  # type: ignore[misc]
            await asked.send("data: unfinished")
            await seen.stream.restart()
            await asked.left()
        asked = await server.opened()
        assert asked.last_event_id == "1"
        await asked.send(numbers(2))
        await seen.has(2)
        asked.cut()
        asked = await server.opened()
        await asked.send(numbers(3))
        await seen.has(3)
        assert (seen.errors, seen.error, seen.stream.metrics.failed) == (1, None, 0)


async def test_a_restart_ends_a_pause() -> None:
    async with live() as server, patient(server) as client, reading(client.get("/")) as seen:
        asked = await server.opened()
        await asked.send("retry: 59000\nid: 1\ndata: 1\n\n")
        asked.end()
        await seen.told(Reconnecting)
        assert seen.noticed(Reconnecting)[0].pause == 59.0
        await seen.stream.restart()
        assert (await server.opened()).last_event_id == "1"
        await until(lambda: len(seen.noticed(Connected)) == 2)


async def test_a_restart_while_connecting_leaves_that_connection() -> None:
    async with live() as server, patient(server) as client, reading(client.get("/")) as seen:
        silent = await server.asked()
        await seen.stream.restart()
        await silent.left()
        await (await server.opened()).send("data: 1\n\n")
        await seen.has(1)
        assert (seen.errors, server.requests) == (0, 2)


async def test_a_restart_with_a_body_that_can_be_read_once_is_an_error() -> None:
    async def once_only() -> AsyncIterator[bytes]:
        yield b"x"

    async with live() as server, patient(server) as client:
        request = client.put("/").content(once_only(), length=1)
        async with reading(request, "resilient") as seen:
            asked = await server.opened()
            await asked.send("data: 1\n\n")
            await seen.has(1)
            await seen.stream.restart()
            await seen.ended()
            assert isinstance(seen.error, StreamError)
            assert "sent only once" in str(seen.error)
            assert server.requests == 1


# -- closing


@pytest.mark.parametrize("when", ["connecting", "reading", "a pause"])
@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_close_from_another_task_ends_it_everywhere(reconnect: Reconnect, when: str) -> None:
    async with live() as server, patient(server) as client, reading(client.get("/"), reconnect) as seen:
        asked = await server.asked()
        if when != "connecting":
            asked.open()
            await asked.send("retry: 59000\nid: 1\ndata: 1\n\n")
            await seen.has(1)
        if when == "a pause":
            asked.cut()
            await seen.told(Reconnecting)
        await seen.stream.aclose()
        await seen.ended()
        assert isinstance(seen.error, StreamError)
        assert "closed" in str(seen.error)
        await until(lambda: server.open == 0)
        assert (server.requests, seen.states[-1]) == (1, "CLOSED")
        assert client.metrics.streams == 1, "it ended once"
        await seen.stream.aclose()


@pytest.mark.parametrize("when", ["connecting", "reading", "a pause"])
async def test_a_cancel_leaves_nothing_behind(when: str) -> None:
    async with live() as server, patient(server) as client, reading(client.get("/")) as seen:
        asked = await server.asked()
        if when != "connecting":
            asked.open()
            await asked.send("retry: 59000\nid: 1\ndata: 1\n\n")
            await seen.has(1)
        if when == "a pause":
            asked.end()
            await seen.told(Reconnecting)
        assert seen.task is not None
        seen.task.cancel()
        await asyncio.wait({seen.task})
        if when != "a pause":
            await asked.left()
        assert (seen.stream.metrics.reason, client.metrics.streams) == ("cancelled", 1)
    await until(lambda: server.open == 0)


# -- what the stream itself says


CHAT = 'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
ANTHROPIC = 'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'
RESPONSES = 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
ENDS = {
    "openai": (CHAT, "data: [DONE]\n\n"),
    "anthropic": (ANTHROPIC, 'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    "openai-responses": (RESPONSES, 'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'),
}
FAILURES = {
    "openai": (CHAT, 'data: {"error":{"message":"too much","type":"server_error","code":"503"}}\n\n'),
    "anthropic": (
        ANTHROPIC,
        'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"too much"}}\n\n',
    ),
    "openai-responses": (
        RESPONSES,
        (
            'event: response.failed\ndata: {"type":"response.failed",'
            '"response":{"error":{"code":"server_error","message":"too much"}}}\n\n'
        ),
    ),
}


@pytest.mark.parametrize("profile", ENDS)
@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_terminator_ends_the_stream_and_frees_its_connection(reconnect: Reconnect, profile: str) -> None:
    content, end = ENDS[profile]
    async with live() as server, patient(server) as client:
        for turn in (1, 2):
            async with reading(client.get("/"), reconnect, terminator=profile) as seen:
                asked = await server.opened()
                await asked.send(content)
                await asked.send(f"{end}data: not read\n\n")
                asked.end()
                await seen.ended()
            assert (len(seen.events), seen.error, seen.stream.metrics.reason) == (2, None, "complete")
            assert (asked.connection, server.requests) == (1, turn), "the connection was not used again"


async def test_a_terminator_ends_the_stream_of_a_server_that_does_not_end() -> None:
    async with live() as server, patient(server) as client, reading(client.get("/"), terminator="openai") as seen:
        asked = await server.opened()
        await asked.send(f"{CHAT}data: [DONE]\n\n")
        await seen.ended()
        await asked.left()
        assert (len(seen.events), seen.error, seen.stream.metrics.reason) == (2, None, "complete")


@pytest.mark.parametrize("profile", ENDS)
async def test_an_end_without_the_terminator_is_truncated(profile: str) -> None:
    content, _ = ENDS[profile]
    async with script(once(stream(content * 2)), repeat=True) as server, patient(server) as client:
        with pytest.raises(StreamTruncated, match="ended without its") as caught:
            await client.get("/").collect(terminator=profile)
        assert (len(caught.value.collected), server.connections) == (2, 1)
        assert server.url in str(caught.value)


@pytest.mark.parametrize("profile", FAILURES)
@pytest.mark.parametrize("reconnect", BOTH)
async def test_a_failure_in_the_stream_is_an_error_after_what_came_before(reconnect: Reconnect, profile: str) -> None:
    content, failure = FAILURES[profile]
    async with (
        live() as server,
        patient(server) as client,
        reading(client.get("/"), reconnect, terminator=profile) as seen,
    ):
        asked = await server.opened()
        await asked.send(f"{content}{failure}{content}")
        await seen.ended()
        await asked.left()
        assert isinstance(seen.error, penstock.InBandError)
        assert seen.error.category == "stream"
        assert "too much" in str(seen.error)
        assert server.url in str(seen.error)
        assert (len(seen.events), seen.errors, server.requests) == (1, 1, 1)


# -- bytes


@pytest.mark.parametrize("reconnect", BOTH)
async def test_an_event_of_10_mb(reconnect: Reconnect) -> None:
    data = "€豆腐x" * 1_000_000
    async with live() as server, patient(server) as client, reading(client.get("/"), reconnect) as seen:
        asked = await server.opened()
        await asked.send(f"data: {data}\n\ndata: next\n\n")
        await seen.has(2)
        assert len(data.encode()) == 10_000_000
        assert seen.events[0].data == data
        assert seen.data[1] == "next"


async def test_one_byte_at_a_time_through_multi_byte_characters() -> None:
    raw = f"{BOM}: …\r\nid: é\r\nevent: 豆\ndata: {BOM}€豆腐\r\r".encode()
    head: list[Step] = [wait_request(), b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"]
    pieces: list[Step] = [step for byte in raw for step in (bytes([byte]), pause(0))]
    async with script(*head, *pieces) as server, patient(server) as client, reading(client.get("/")) as seen:
        await seen.has(1)
        assert seen.events == [Event("豆", f"{BOM}€豆腐", "é")]
        assert seen.noticed(Comment) == [Comment("…")]


async def test_a_lone_cr_ends_a_line_while_the_connection_stays_open() -> None:
    async with live() as server, patient(server) as client, reading(client.get("/")) as seen:
        asked = await server.opened()
        await asked.send("data: 1\r\r")
        await seen.has(1)
        await asked.send("\ndata: 2\r\n\r")
        await seen.has(2)
        await asked.send("\n: ping\r")
        await seen.told(Comment)
        assert seen.data == ["1", "2"]


async def test_a_byte_order_mark_begins_each_connection() -> None:
    body = f"{BOM}data: 1\nretry: 2\n\n{BOM}data: not a field\n\ndata: {BOM}\n\n"
    async with script(once(stream(body)), once(stream(body)), NOTHING) as server, patient(server) as client:
        assert (await read(client.get("/"))).data == ["1", BOM] * 2


async def test_comments_are_told_in_their_place_among_the_events() -> None:
    told: list[str] = []

    def on_notice(notice: Notice) -> None:
        if isinstance(notice, Comment):
            told.append(f":{notice.text}")

    body = ":a\ndata: 1\n:b\n\n:c\r:d\r\ndata: 2\ndata: :x\n\n\n:e\n\ndata: 3\n\n:f"
    async with (
        script(once(stream(body))) as server,
        patient(server) as client,
        client.get("/").events(on_notice=on_notice) as events,
    ):
        async for event in events:
            told.append(event.data)  # noqa: PERF401 – at its time, between the comments
    assert told == [":a", ":b", "1", ":c", ":d", "2\n:x", ":e", "3"]
