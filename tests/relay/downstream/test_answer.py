"""A stream as an answer, where the stream's producer is gone, or the stream itself."""

from __future__ import annotations

import json

import pytest

from penstock.eventlog.base import Reason, Retention
from penstock.eventlog.memory import MemoryLog
from penstock.relay.app import Relay
from penstock.relay.downstream.answer import fields_of
from penstock.relay.streams.ends import TOLD, Kind
from penstock.relay.streams.head import Head
from penstock.relay.streams.marks import LOST, Place
from penstock.relay.upstream.headers import Raw
from penstock.testing import serve
from tests.relay.peers import Peer, upstream
from tests.relay.readers import fetch

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:9"


async def ended(
    log: MemoryLog, reason: Reason, detail: bytes = b"", kind: Kind = "sse", headers: Raw | None = None
) -> str:
    """A stream that nobody here has produced."""
    stream, producer = await log.open(None, "", b"")
    assert producer is not None
    producer.start(Head(200, headers or [], kind).encoded())
    producer.append([b"data: 1\n\n", b"data: 2\n\n"])
    producer.end(reason, detail)
    return stream.id


@pytest.mark.parametrize(
    ("kind", "headers", "said"),
    [
        ("sse", [], b'event: penstock.error\ndata: {"error":{"type":"producer_lost"'),
        ("sse", [(b"x-vercel-ai-ui-message-stream", b"v1")], b'data: {"type":"error","errorText":'),
        ("ndjson", [], b'{"error":{"type":"producer_lost"'),
        ("bytes", [], b""),
    ],
)
async def test_a_producer_that_was_lost_is_told_by_whoever_answers(kind: Kind, headers: Raw, said: bytes) -> None:
    log = MemoryLog()
    async with serve(Relay(NOWHERE, store=log)) as url:
        id_ = await ended(log, "producer_lost", kind=kind, headers=headers)
        answer = await fetch(url, f"/_penstock/streams/{id_}")
        assert (answer.status, answer.whole) == (200, False)
        assert answer.plain.startswith(b"data: 1\n\ndata: 2\n\n" + said)
        if kind == "sse":
            assert answer.ids == [str(Place(id_, 1, LOST))]
            for ahead in (3, 4, 10**6):  # what was sent and not stored may be as far as that
                more = await fetch(url, f"/_penstock/streams/{id_}?after={Place(id_, 1, ahead)}")
                assert (more.plain.startswith(said), more.ids, more.whole) == (True, answer.ids, False)
            assert (await fetch(url, f"/_penstock/streams/{id_}?after={answer.ids[0]}")).status == 204
        elif kind == "bytes":
            assert answer.body == b"data: 1\n\ndata: 2\n\n"


async def test_an_end_that_the_stream_told_itself_has_nothing_behind_it() -> None:
    log = MemoryLog()
    async with serve(Relay(NOWHERE, store=log)) as url:
        id_ = await ended(log, "error", TOLD)
        assert (await fetch(url, f"/_penstock/streams/{id_}?after=2")).status == 204
        one = await fetch(url, f"/_penstock/streams/{id_}?after=1")
        assert (one.body, one.whole) == (b"data: 2\n\n" + TOLD, False)


async def test_a_stream_that_retention_has_taken_is_not_found() -> None:
    log = MemoryLog(retention=Retention(age=0.0))
    async with serve(Relay(NOWHERE, store=log)) as url:
        id_ = await ended(log, "done")
        gone = await fetch(url, f"/_penstock/streams/{id_}")
        assert gone.status == 404
        assert json.loads(gone.body)["status"] == 404


async def test_the_answers_fields_are_the_heads_and_ours() -> None:
    log = MemoryLog()
    stream, _ = await log.open(None, "", b"")
    head = Head(
        200, [(b"content-type", b"text/event-stream"), (b"content-length", b"9"), (b"cache-control", b"x")], "sse"
    )
    assert Head.decoded(head.encoded()) == head
    assert fields_of(stream, head, "/root") == [
        (b"content-type", b"text/event-stream"),
        (b"penstock-stream", stream.id.encode()),
        (b"cache-control", b"no-store, no-transform"),
        (b"location", f"/root/_penstock/streams/{stream.id}".encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    await log.aclose()


async def test_who_began_a_stream_is_answered_as_the_upstream_did_though_nothing_came() -> None:
    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n")

    async with upstream(play) as up, serve(Relay(up.url, store="memory://")) as url:
        for _ in range(5):
            answer = await fetch(url, "/e")
            assert (answer.status, answer.whole, answer.body) == (200, True, b"")
            again = await fetch(url, f"/_penstock/streams/{answer.field('penstock-stream')}")
            assert again.status == 204


@pytest.mark.parametrize(("field", "whole"), [(b"Content-Length: 16", True), (b"Connection: close", False)])
async def test_what_no_blank_line_ends_goes_on_if_something_says_that_it_is_all(field: bytes, whole: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % field
        await peer.send(head + b"data: a\n\ndata: b")

    async with upstream(play) as up, serve(Relay(up.url, store="memory://")) as url:
        answer = await fetch(url, "/e")
        assert answer.whole == whole
        assert answer.plain.startswith(b"data: a\n\ndata: b" if whole else b"data: a\n\nevent: penstock.error\n")
