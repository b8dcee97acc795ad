"""Readers of a stream's address whose places are the upstream's own ids; and that none of them comes back for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.app import Relay
from penstock.relay.streams import theirs
from penstock.relay.streams.marks import Place
from penstock.relay.streams.theirs import id_of, sequence_of
from penstock.testing import serve
from penstock.wire.sse import Decoder, Event
from tests.relay.peers import CHUNKED, Peer, chunk, upstream
from tests.relay.readers import EVENTS, NDJSON, Answer, fetch, saying, settled, since, streams_of
from tests.relay.test_gateway import FIVE, relayed

pytestmark = pytest.mark.anyio

OWN = [b"id: %d\ndata: %d\n\n" % (number, number) for number in range(1, 6)]


@pytest.mark.parametrize(
    ("block", "id"),
    [
        (b"id: 3\ndata: x\n\n", b"3"),
        (b"data: x\r\nid:3\r\n\r\n", b"3"),
        (b"id: 1\rid:  3\rdata\r\r", b" 3"),
        (b"id\ndata: x\n\n", b""),
        (b"id: 1\nid: 2\0\n\n", b"1"),
        (b"data: id: 3\nidx: 3\n: id: 3\n\n", None),
    ],
)
def test_the_id_that_a_block_sets(block: bytes, id: bytes | None) -> None:
    assert id_of(block) == id
    decoder = Decoder()
    decoder.feed(block)
    assert decoder.last_event_id == (id or b"").decode()


async def test_the_last_record_with_an_id_counts_also_in_what_another_process_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "LATE", 0.05)
    async with SqliteLog(tmp_path / "log") as here, SqliteLog(tmp_path / "log") as there:
        stream, producer = await here.open(None, "", b"head")
        assert producer is not None
        producer.start()
        producer.append([*OWN, b"id: 2\ndata: again\n\n", b": 2\n\n"] * 300)
        await producer.stored(2100)
        seen = await there.get(stream.id)
        assert seen is not None
        for each in (stream, seen):
            assert await sequence_of(each, b"2") == 2099
            assert await sequence_of(each, b"5") == 2098
            assert await sequence_of(each, b"9") is None
        producer.end("done")


async def as_event_source(url: str, target: str, last: str = "") -> tuple[list[Event], Answer]:
    """Read as an EventSource does, which comes back until it is told not to; what it has got, and how it was told."""
    got: list[Event] = []
    for _ in range(4):
        answer = await fetch(url, target, more=EVENTS + (since(last) if last else ""))
        if answer.status != 200:
            return got, answer
        decoder = Decoder(last_event_id=last)
        got += decoder.feed(answer.body)
        last = decoder.last_event_id
    raise AssertionError(f"it comes back for ever, with {last!r}")


@pytest.mark.parametrize(
    "tail",
    [[], [b"data: [DONE]\n\n"], [b": bye\n\n"], [b"event: x\nid: 6\n\n"]],
    ids=["numbered", "a last one without an id", "a comment", "an id alone"],
)
@pytest.mark.parametrize("ids", ["auto", "upstream"])
async def test_an_event_source_gets_all_once_and_is_told_that_nothing_follows(tail: list[bytes], ids: Any) -> None:
    async with upstream(saying(*OWN, *tail)) as up, serve(relayed(up.url, ids=ids)) as url:
        target = f"/_penstock/streams/{(await fetch(url)).stream}"
        for last in ("", "3", "5"):
            got, answer = await as_event_source(url, target, last)
            kept = [*range(int(last or 0) + 1, 6), *(["[DONE]"] if tail and b"DONE" in tail[0] else [])]
            assert [event.data for event in got] == [str(each) for each in kept]
            assert (answer.status, answer.field("penstock-end")) == (204, "done")
        # Whoever says that it takes no events gets what the upstream sent, byte by byte.
        for asked, more in (("", since("3")), ("?after=3", ""), ("?after=0", since("3"))):
            rest = await fetch(url, target + asked, more=more)
            assert (rest.body, rest.whole) == (b"".join([*OWN[3:], *tail]), True)


async def test_an_event_source_of_events_without_ids_and_of_ours_comes_to_an_end_too() -> None:
    for pieces, ids in ((FIVE, "upstream"), (FIVE, "auto"), ([*FIVE, b": bye\n\n"], "auto")):
        async with upstream(saying(*pieces)) as up, serve(relayed(up.url, ids=ids)) as url:
            target = f"/_penstock/streams/{(await fetch(url)).stream}"
            got, answer = await as_event_source(url, target)
            assert [event.data for event in got] == list("12345")
            assert answer.status == 204
            got, answer = await as_event_source(url, f"{target}?after=2")  # its address stays what it was
            assert [event.data for event in got] == list("345")
            assert answer.status == 204


async def test_it_is_told_of_a_bad_end_once() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + b"".join(chunk(block) for block in OWN))
        peer.reset()

    async with upstream(play) as up, serve(relay := relayed(up.url)) as url:
        target = f"/_penstock/streams/{(await fetch(url)).stream}"
        await settled(relay)
        for last in ("", "5"):
            got, answer = await as_event_source(url, target, last)
            assert [event.type for event in got][5 if not last else 0 :] == ["penstock.error"]
            assert (answer.status, answer.field("penstock-end")) == (204, "error")


async def test_an_id_that_the_stream_never_had_is_a_conflict_and_in_an_address_a_mistake() -> None:
    for pieces in (OWN, FIVE):
        async with upstream(saying(*pieces)) as up, serve(relay := relayed(up.url)) as url:
            target = f"/_penstock/streams/{(await fetch(url)).stream}"
            for asked, more, status in (
                ("", since("77"), 409),
                ("", since("77") + EVENTS, 409),
                ("?after=x7", "", 400),
                ("", since(str(Place("A" * 22, 1, 1))), 409),
                (f"?after={Place('A' * 22, 1, 1)}", "", 409),
            ):
                refused = await fetch(url, target + asked, more=more)
                assert refused.status == status, (asked, more)
            await settled(relay)  # and nobody is left attached
    async with upstream(saying(b'{"a":1}\n', head=NDJSON)) as up, serve(relayed(up.url)) as url:
        target = f"/_penstock/streams/{(await fetch(url)).stream}"
        assert (await fetch(url, target, more=since("7"))).body == b'{"a":1}\n'
        assert (await fetch(url, f"{target}?after=x7")).status == 400


async def test_of_an_id_that_may_have_been_evicted_the_gap_is_told() -> None:
    count = 300
    big = [b"id: %d\ndata: %b\n\n" % (number, b"x" * 5000) for number in range(1, count + 1)]
    store = MemoryLog(retention=Retention(max_stream_bytes=20_000))
    async with upstream(saying(*big)) as up, serve(relay := relayed(up.url, store=store)) as url:
        target = f"/_penstock/streams/{(await fetch(url)).stream}"
        await settled(relay)
        (info,) = await streams_of(relay).log.streams()
        assert info.earliest > 1
        got, answer = await as_event_source(url, target, "1")
        assert [event.type for event in got] == ["penstock.gap", *["message"] * (count - info.earliest)]
        assert answer.status == 204
        assert (await fetch(url, target, more=since("1"))).status == 410


async def test_a_generators_own_ids_are_places_too_and_a_key_may_name_another_stream_by_now() -> None:
    async def items() -> AsyncIterator[Event]:
        for number in range(1, 4):
            yield Event(data=str(number), id=f"step-ä-{number}")

    relay = Relay("http://127.0.0.1:9", store="memory://")

    async def begin(request: Request) -> Response:
        return await relay.stream(request, items, key="k")

    async def again(request: Request) -> Response:
        return await relay.resume(request, key="k")

    routes = [Route("/begin", begin, methods=["POST"]), Route("/again", again)]
    async with serve(Starlette(routes=routes, lifespan=relay.lifespan)) as url:
        assert (await fetch(url, "/begin", "POST")).whole
        for last, data in (("step-ä-2", ["3"]), ("of-another", ["1", "2", "3"])):
            got, answer = await as_event_source(url, "/again", last)
            assert [event.data for event in got] == data
            assert answer.status == 204
        await settled(relay)
