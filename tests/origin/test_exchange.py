"""The reader that leaves, on this server and on one that speaks ASGI 2.4; refusals and parameters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.datastructures import QueryParams
from starlette.types import Message, Receive, Scope, Send

from penstock.origin.exchange import Refusal, Stream, Watch, seconds, whole
from tests.raw import until

pytestmark = pytest.mark.anyio


class Browser:
    """The other end of one ASGI exchange, by hand."""

    def __init__(self, method: str = "GET", spec: str = "2.4") -> None:
        self.scope: Scope = {"type": "http", "method": method, "path": "/x", "asgi": {"spec_version": spec}}
        self.sent: list[Message] = []
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.got = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.got.set()

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def run(self, app: Any) -> None:
        await app(self.scope, self.inbox.get, self.send)


async def endless(stopped: asyncio.Event) -> AsyncGenerator[bytes, None]:
    try:
        yield b"one"
        await asyncio.sleep(3600)
    finally:
        stopped.set()


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_sleeping_generator_stops_when_the_reader_leaves(spec: str, log: Callable[[], list[str]]) -> None:
    browser, stopped = Browser(spec=spec), asyncio.Event()
    app = Watch(Stream(endless(stopped), media_type="text/plain"))
    running = asyncio.create_task(browser.run(app))
    await browser.got.wait()
    await asyncio.sleep(0)
    browser.leave()
    await asyncio.wait_for(running, 5)
    assert stopped.is_set()
    assert browser.sent[-1].get("more_body", True), "the body was not ended"
    assert "GET /x: the reader left after 1 chunk" in log()


async def test_a_cancel_from_outside_stays_a_cancel(log: Callable[[], list[str]]) -> None:
    browser, stopped = Browser(), asyncio.Event()
    running = asyncio.create_task(browser.run(Watch(Stream(endless(stopped), media_type="text/plain"))))
    await browser.got.wait()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stopped.is_set()
    assert not [line for line in log() if "left" in line]


async def test_the_end_is_told_once_and_leaving_after_it_is_not(log: Callable[[], list[str]]) -> None:
    async def two() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    browser, before = Browser(), asyncio.all_tasks()
    await browser.run(Watch(Stream(two(), media_type="text/event-stream")))
    browser.leave()
    await asyncio.sleep(0.01)
    assert log() == ["GET /x: 2 events sent"]
    assert asyncio.all_tasks() == before


async def test_head_runs_nothing() -> None:
    browser, closed = Browser("HEAD"), []

    ran = []

    async def never() -> AsyncGenerator[bytes, None]:
        ran.append(1)
        yield b""

    await browser.run(Watch(Stream(never(), media_type="text/plain", close=lambda: closed.append(1))))
    assert [message["type"] for message in browser.sent] == ["http.response.start", "http.response.body"]
    assert (ran, closed) == ([], [1])


async def test_a_refusal_is_readable_before_the_rest_of_the_body_has_come() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await Refusal(413, "too much", close=True).response()(scope, receive, send)

    browser = Browser("POST")
    await browser.inbox.get()
    browser.inbox.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
    running = asyncio.create_task(browser.run(Watch(refuse)))
    await until(lambda: len(browser.sent) == 2)
    assert browser.sent[1] == {"type": "http.response.body", "body": b'{"detail":"too much"}', "more_body": True}
    browser.inbox.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
    await asyncio.sleep(0.02)
    assert not running.done(), "the rest is still being read"
    browser.inbox.put_nowait({"type": "http.request", "body": b"x", "more_body": False})
    await asyncio.wait_for(running, 20)
    assert browser.sent[2]["more_body"] is False


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "11", "1e1", "٣", " 1", "9" * 5000])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        whole(QueryParams({"n": text}), "n", 0, high=10)
    assert refused.value.status == 422
    assert str(refused.value.detail).startswith("n must be a whole number from 0 to 10, not ")


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "x", "3601"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        seconds(QueryParams({"n": text}), "n", 0)
    assert refused.value.status == 422


def test_parameters() -> None:
    query = QueryParams("a=10&b=0.25")
    assert (whole(query, "a", 1), whole(query, "z", 1), whole(query, "z", None)) == (10, 1, None)
    assert (seconds(query, "b", 1), seconds(query, "z", 1)) == (0.25, 1)
