from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest
from starlette.types import Receive, Scope, Send

from penstock.client.client import AsyncClient
from penstock.client.events import MAX_EVENT_BYTES
from penstock.client.settings import Timeout
from penstock.doctor.probe import Probe, probe
from penstock.errors import ConnectError, StatusError
from penstock.testing.script import Step, close, pause, reset, script, wait_request
from penstock.testing.serve import serve

pytestmark = pytest.mark.anyio

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def heard(
    *steps: Step, seconds: float = 20.0, max_items: int = 100, heed_status: bool = False
) -> tuple[Probe, str]:
    async with script(wait_request(), *steps) as server:
        found = await ask(server.url, seconds=seconds, max_items=max_items, heed_status=heed_status)
        return found, server.url


async def ask(url: str, *, seconds: float = 20.0, max_items: int = 100, heed_status: bool = False) -> Probe:
    async with AsyncClient(timeout=Timeout(first_event=None, between_events=None), retry=0) as client:
        return await probe(client.get(url), url, seconds=seconds, max_items=max_items, heed_status=heed_status)


async def test_events_pieces_comments_and_the_end() -> None:
    found, url = await heard(
        SSE + b"Transfer-Encoding: chunked\r\nX-A: 1\r\nX-A: 2\r\n\r\n" + chunk(b": hello\n\nid: 7\ndata: a\n\n"),
        pause(0.1),
        chunk(b"data: b\n\ndata: c\n\ndata"),
        pause(0.1),
        chunk(b": d\n\n") + b"0\r\n\r\n",
    )
    assert (found.status, found.http_version, found.framing, found.coding) == (200, "HTTP/1.1", "chunked", "")
    assert found.url.rstrip("/") == url
    assert found.field("x-a") == "1, 2"
    assert (found.unit, found.ended, found.error, found.comments) == ("event", "complete", "", 1)
    assert [(item.text, item.id) for item in found.items] == [("a", "7"), ("b", "7"), ("c", "7"), ("d", "7")]
    assert [(piece.items, piece.cut) for piece in found.pieces] == [(1, False), (2, True), (1, False)]
    first, second, third = (piece.at for piece in found.pieces)
    assert 0 < found.headers_at <= first < second < third <= found.ended_at
    assert (found.items[0].at, found.items[1].at, found.items[2].at) == (first, second, second)
    assert found.spread == third - first > 0.19


@pytest.mark.parametrize(
    ("content_type", "body", "unit", "texts"),
    [
        ("text/plain", b"one\ntwo\nthr", "line", ["one", "two"]),
        ("text/plain", b"token", "piece", ["token"]),
        ("application/x-ndjson", b'{"a":1}\n{"b"', "record", ['{"a":1}']),
        ("application/octet-stream", b"\xff\x00", "piece", ["\ufffd\x00"]),
        ("text/plain", b"data: a\n\n", "event", ["a"]),
        ("", b"event: x\ndata: a\n\n", "event", ["a"]),
    ],
)
async def test_what_a_body_is_made_of(content_type: str, body: bytes, unit: str, texts: list[str]) -> None:
    field = f"Content-Type: {content_type}\r\n".encode() if content_type else b""
    found, _ = await heard(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (field, len(body), body))
    assert (found.unit, [item.text for item in found.items]) == (unit, texts)
    assert (found.framing, found.ended) == ("length", "complete")


async def test_a_coded_body_is_undone_and_keeps_its_arrivals() -> None:
    body = gzip.compress(b"data: a\n\ndata: b\n\n")
    head = SSE + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    found, _ = await heard(head + body)
    assert (found.coding, found.unit, len(found.items), found.ended) == ("gzip", "event", 2, "complete")
    short, _ = await heard(SSE + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + body[:-4], close())
    assert (short.framing, short.ended) == ("close", "broken")


async def test_a_coding_that_is_not_known_is_heard_in_pieces() -> None:
    found, _ = await heard(SSE + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc")
    assert (found.coding, found.unit, len(found.items), found.ended) == ("br", "piece", 1, "complete")


@pytest.mark.parametrize("end", [close(), reset()])
async def test_a_body_that_breaks_does_not_raise(end: Step) -> None:
    found, url = await heard(SSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"data: a\n\n"), end)
    assert (found.ended, len(found.items)) == ("broken", 1)
    assert url in found.error


async def test_enough_is_enough() -> None:
    head = SSE + b"Transfer-Encoding: chunked\r\n\r\n"
    found, _ = await heard(head + chunk(b"data: a\n\n"), seconds=0.3)
    assert (found.ended, len(found.items), found.error) == ("bounded", 1, "")
    assert found.ended_at > 0.29
    found, _ = await heard(head + chunk(b"data: a\n\n" * 9), max_items=4)
    assert (found.ended, len(found.items)) == ("bounded", 4)


async def test_no_answer_within_the_bound() -> None:
    found, url = await heard(seconds=0.2)
    assert (found.status, found.url, found.framing, found.pieces, found.ended) == (None, url, "none", (), "bounded")


async def test_a_status_is_heard_out_or_raises() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nnope\n"
    found, _ = await heard(refusal)
    assert (found.status, found.items[0].text) == (403, "nope")
    with pytest.raises(StatusError, match=r"answered 403 Forbidden: nope"):
        await heard(refusal, heed_status=True)


async def test_a_failure_whose_body_hangs_is_told_all_the_same() -> None:
    head = b"HTTP/1.1 400 Oops\r\nContent-Length: 100\r\n\r\n"
    for body, said in ((b"x", "400 Oops: x$"), (b"", "400 Oops$")):
        with pytest.raises(StatusError, match=said):
            await heard(head + body, seconds=1.5, heed_status=True)


async def test_bytes_that_are_not_of_their_coding_are_no_break_and_what_came_before_counts() -> None:
    coder = zlib.compressobj(wbits=31)
    begun = coder.compress(b"data: a\n\ndata: b\n\n") + coder.flush(zlib.Z_SYNC_FLUSH)
    head = SSE + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (len(begun) + 9)
    found, _ = await heard(head + begun + b"\xff" * 9)
    assert (found.ended, [item.text for item in found.items]) == ("miscoded", ["a", "b"])
    assert "not gzip" in found.error
    assert sum(piece.items for piece in found.pieces) == 2


@pytest.mark.parametrize("line", [b"data: ", b":", b"foo: "])
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "goes on"])
async def test_a_line_without_end_outgrows_the_limit_of_a_reader(line: bytes, ends: bool) -> None:
    body = b"data: a\n\n" + line + b"x" * MAX_EVENT_BYTES + b"\n\n"
    found, _ = await heard(SSE + b"Content-Length: %d\r\n\r\n" % (len(body) + 9 * (not ends)) + body)
    assert (found.ended, [item.text for item in found.items]) == ("outgrown", ["a"])
    assert str(MAX_EVENT_BYTES) in found.error


async def test_no_connection_raises() -> None:
    async with script(close()) as server:
        url = server.url
    with pytest.raises(ConnectError):
        await ask(url)


async def test_cancelling_lets_go_of_the_connection_at_once() -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serve(app) as url:
        task = asyncio.create_task(ask(url))
        await asyncio.wait_for(began.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(left.wait(), 20)


async def test_json_is_no_stream_but_can_be_heard() -> None:
    body = json.dumps({"a": 1}).encode()
    found, _ = await heard(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body, close())
    assert (found.http_version, found.framing, found.unit, found.ended) == ("HTTP/1.0", "close", "piece", "complete")
