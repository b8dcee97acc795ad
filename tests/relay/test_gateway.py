"""What the gateway makes of streams: resume, join, stop, and who may; on every server."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.app import Relay
from penstock.relay.settings.policy import OnDisconnect, OwnerFrom, Policy, RelayLimits
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.streams.marks import Place
from penstock.testing import serve
from penstock.wire.terminator import PROFILES
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, Serve, chunk, response, until, upstream
from tests.relay.readers import (
    EVENTS,
    NDJSON,
    OUR_ID,
    Answer,
    Origin,
    asking,
    fetch,
    origin,
    plain,
    rest_of,
    saying,
    settled,
    since,
    streams_of,
)
from tests.relay.servers import EVERY_SERVER

pytestmark = pytest.mark.anyio

FIVE = [b"data: %d\n\n" % number for number in range(1, 6)]


@pytest.fixture(params=EVERY_SERVER)
def served(request: pytest.FixtureRequest) -> Serve:
    return cast("Serve", request.param)


def relayed(url: str, **policy: Any) -> Relay:
    policy.setdefault("on_disconnect", OnDisconnect("detach"))
    store = policy.pop("store", "memory://")
    routes = policy.pop("routes", ())
    return Relay(url, store=store, policy=Policy(upstream=url, **policy), routes=routes, secret="s")


@asynccontextmanager
async def relaying(served: Serve = serve, **policy: Any) -> AsyncIterator[tuple[str, Origin, Relay]]:
    async with origin() as up:
        relay = relayed(up.url, **policy)
        async with served(relay) as url:
            yield url, up, relay
            await settled(relay)


# -- what a logged answer looks like


async def test_a_logged_answer_says_how_to_come_back(served: Serve) -> None:
    async with upstream(saying(*FIVE)) as up, served(relay := relayed(up.url)) as url:
        answer = await fetch(url, "/events?x=1")
        assert (answer.status, answer.whole) == (200, True)
        assert answer.field("location") == f"/_penstock/streams/{answer.stream}"
        assert answer.field("cache-control") == "no-store, no-transform"
        assert answer.field("x-content-type-options") == "nosniff"
        assert answer.field("x-accel-buffering") == "no"
        assert answer.plain == b"".join(FIVE)
        assert answer.ids == [str(Place(answer.stream, 1, number)) for number in range(1, 6)]
        await settled(relay)


async def test_what_is_no_stream_passes_through_as_it_was() -> None:
    plain_answer = response(b"<p>", "Content-Type: text/html\r\nCache-Control: max-age=5\r\nSet-Cookie: a=1\r\n")

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(plain_answer)

    async with upstream(play) as up, serve(relay := relayed(up.url)) as url:
        answer = await fetch(url)
        assert (answer.status, answer.body, answer.whole) == (200, b"<p>", True)
        assert answer.field("cache-control") == "max-age=5"
        assert answer.field("set-cookie") == "a=1"
        assert not answer.peer.has("penstock-stream")
        assert not answer.peer.has("location")
        assert await streams_of(relay).log.streams() == []


async def test_a_bad_status_is_no_stream() -> None:
    head = CHUNKED.replace(b"200 OK", b"500 No")
    async with upstream(saying(b"data: no\n\n", head=head)) as up, serve(relay := relayed(up.url)) as url:
        answer = await fetch(url)
        assert (answer.status, answer.body) == (500, b"data: no\n\n")
        assert await streams_of(relay).log.streams() == []


async def test_the_upstreams_own_location_stays_and_its_penstock_fields_go() -> None:
    more = b"Location: /jobs/1\r\nPenstock-Stream: forged\r\nPenstock-Offset: 9\r\nETag: x\r\n\r\n"
    async with upstream(saying(*FIVE, head=CHUNKED[:-2] + more)) as up, serve(relayed(up.url)) as url:
        answer = await fetch(url)
        assert answer.field("location") == "/jobs/1"
        assert answer.stream != "forged"
        assert not answer.peer.has("penstock-offset")
        assert answer.field("etag") == "x"


async def test_a_cookie_is_for_the_first_reader_and_neither_stored_nor_replayed() -> None:
    head = CHUNKED[:-2] + b"Set-Cookie: session=secret\r\nSet-Cookie: b=2\r\n\r\n"
    async with upstream(saying(*FIVE, head=head)) as up, serve(relay := relayed(up.url)) as url:
        first = await fetch(url)
        assert first.peer.all("set-cookie") == ["session=secret", "b=2"]
        again = await fetch(url, f"/_penstock/streams/{first.stream}")
        assert again.plain == first.plain
        assert not again.peer.has("set-cookie")
        stream = await streams_of(relay).log.get(first.stream)
        assert stream is not None
        assert b"secret" not in stream.head


async def test_a_logged_route_asks_for_identity_and_takes_a_coded_stream_for_bytes() -> None:
    coded = gzip.compress(b"".join(FIVE))
    head = CHUNKED[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    async with origin() as up, serve(relayed(up.url)) as url:
        async with asking(url, more="Accept-Encoding: gzip, br\r\n") as reader:
            call = await up.call()
            assert call.peer.all("accept-encoding") == ["identity"]
            await call.head(head)
            await call.send(coded[:10], coded[10:])
            await call.end()
            await reader.take_head()
            answer = await rest_of(reader)
        assert answer.field("content-encoding") == "gzip"
        assert (answer.body, answer.whole) == (coded, True)
        rest = await fetch(url, f"/_penstock/streams/{answer.stream}?offset=10")
        assert (rest.status, rest.body) == (206, coded[10:])


@pytest.mark.parametrize("target", ["/", "/_penstock/streams/"])
async def test_head_has_the_fields_and_ends_at_once(target: str, served: Serve) -> None:
    async with relaying(served) as (url, up, relay), asking(url) as reader:
        call = await up.call()
        await call.head()
        await call.send(FIVE[0])
        await reader.take_head()
        stream = reader.all("penstock-stream")[0]
        if target != "/":
            answer = await fetch(url, target + stream, "HEAD")
            assert answer.field("penstock-stream") == stream
        else:
            async with asking(url, target, "HEAD") as other:
                await (await up.call(1)).head()
                await other.take_head()
                answer = await rest_of(other)
            up.calls[1].over.set()
            assert not answer.peer.has("penstock-stream")
            assert len(await streams_of(relay).log.streams()) == 1
        assert (answer.status, answer.body) == (200, b"")
        await call.end()
        assert (await rest_of(reader)).whole


async def test_rules_for_the_answers_fields_hold_for_what_passes_and_for_what_is_kept() -> None:
    rules = HeaderRules({"X-Ours": "1"}, drop=["server"])

    async def play(peer: Peer) -> None:
        while True:
            await peer.take_head()
            if b" /plain " in peer.head:
                await peer.send(response(b"ok", "Server: secret\r\n"))
            else:
                await peer.send(CHUNKED[:-2] + b"Server: secret\r\n\r\n" + chunk(FIVE[0]) + LAST_CHUNK)

    async with upstream(play) as up, serve(relayed(up.url, response_headers=rules)) as url:
        for target in ("/plain", "/events"):
            answer = await fetch(url, target)
            assert answer.field("x-ours") == "1"
            assert "secret" not in answer.peer.all("server")


# -- coming back


@pytest.mark.parametrize("how", ["same request", "by id", "after", "after as a number"])
async def test_a_reader_that_was_cut_off_comes_back_and_misses_nothing(how: str, served: Serve) -> None:
    async with relaying(served) as (url, up, _):
        async with asking(url, "/chat", "POST", body=b'{"q":1}') as reader:
            call = await up.call()
            await call.head()
            await call.send(*FIVE[:2])
            await reader.take_head()
            stream = reader.all("penstock-stream")[0]
            seen = b""
            while seen.count(b"data:") < 2:
                seen += await reader.chunk()
            reader.reset()
        await call.send(FIVE[2])
        last = Answer(reader, seen, whole=False).ids[-1]
        target, more, method, body = f"/_penstock/streams/{stream}", "", "GET", b""
        match how:
            case "same request":
                target, more, method, body = "/chat", since(last), "POST", b'{"q":1}'
            case "by id":
                more = since(last)
            case "after":
                target += f"?after={last}"
            case _:
                target += "?after=2"
        async with asking(url, target, method, more, body) as again:
            await again.take_head()
            assert again.status == 200
            assert again.all("penstock-stream") == [stream]
            assert plain(await again.chunk()) == FIVE[2]
            await call.send(*FIVE[3:])
            await call.end()
            rest = await rest_of(again)
        assert rest.whole
        assert plain(seen) + FIVE[2] + rest.plain == b"".join(FIVE)
        assert len(up.calls) == 1


async def test_nothing_follows_a_stream_that_is_known_to_its_end(served: Serve) -> None:
    async with upstream(saying(*FIVE)) as up, served(relayed(up.url)) as url:
        first = await fetch(url, "/e")
        for target, more in (
            ("/e", since(first.ids[-1])),
            (f"/_penstock/streams/{first.stream}", since(first.ids[-1])),
            (f"/_penstock/streams/{first.stream}?after=5", ""),
            (f"/_penstock/streams/{first.stream}?after=500", ""),
        ):
            answer = await fetch(url, target, more=more)
            assert (answer.status, answer.body) == (204, b"")
        assert len(up.peers[0].head)
        assert len(up.peers) == 1


async def test_the_id_of_another_requests_stream_is_a_conflict() -> None:
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url)) as url:
        first = await fetch(url, "/e?a=1", "POST", body=b"one")
        assert first.whole
        id_ = since(first.ids[0])
        for target, method, body in (
            ("/e?a=1", "POST", b"two"),
            ("/e?a=2", "POST", b"one"),
            ("/f?a=1", "POST", b"one"),
            ("/e?a=1", "PUT", b"one"),
            ("/e?a=1", "GET", b""),
        ):
            answer = await fetch(url, target, method, id_, body)
            assert answer.status == 409, (target, method, body)
        assert (await fetch(url, "/e?a=1", "POST", id_, b"one")).plain == b"".join(FIVE[1:])
        assert len(up.peers) == 1


async def test_a_request_is_the_same_however_its_body_is_framed_and_however_long_it_is() -> None:
    body = b"x" * 3_000_000
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url)) as url:
        first = await fetch(url, "/e", "POST", body=body)
        async with asking(url) as reader:
            pass
        async with asking(url, "/e", "POST", "Transfer-Encoding: chunked\r\n" + since(first.ids[3])) as reader:
            await reader.send(chunk(body[:100]) + chunk(body[100:]) + LAST_CHUNK)
            await reader.take_head()
            answer = await rest_of(reader)
        assert (answer.status, answer.plain) == (200, FIVE[4])


async def test_an_answer_to_half_a_request_is_not_anothers_to_resume() -> None:
    async with origin(reads_body=False) as up, serve(relay := relayed(up.url)) as url:
        async with asking(url, "/e", "POST", "Content-Length: 4\r\n") as reader:
            await reader.send(b"ab")
            call = await up.call()
            await call.head()
            await call.send(*FIVE)
            await call.end()
            await reader.take_head()
            first = await rest_of(reader)
            assert first.ids
        for body in (b"ab", b"abcd"):
            assert (await fetch(url, "/e", "POST", since(first.ids[0]), body)).status == 409
        await settled(relay)


async def test_a_stream_that_is_not_there_is_not_found() -> None:
    async with relaying() as (url, up, _):
        nowhere = "A" * 22
        for target, method, more in (
            ("/e", "GET", since(str(Place(nowhere, 1, 1)))),
            (f"/_penstock/streams/{nowhere}", "GET", ""),
            (f"/_penstock/streams/{nowhere}", "DELETE", ""),
            ("/_penstock/streams/", "GET", ""),
            ("/_penstock/streams/..%2f..%2fetc%2fpasswd", "GET", ""),
        ):
            assert (await fetch(url, target, method, more)).status == 404
        assert up.calls == []


@pytest.mark.parametrize(
    "query", ["after=x", "after=-1", "offset=", "offset=1e3", "after=%D9%A3", "after=1&offset=x", "after=0&offset=1"]
)
async def test_a_place_that_is_none_is_refused(query: str) -> None:
    async with upstream(saying(*FIVE)) as up, serve(relay := relayed(up.url)) as url:
        first = await fetch(url)
        assert (await fetch(url, f"/_penstock/streams/{first.stream}?{query}")).status == 400
        await settled(relay)  # and nobody is left attached


async def test_an_event_stream_has_no_offsets_and_other_methods_are_refused() -> None:
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url)) as url:
        first = await fetch(url)
        assert (await fetch(url, f"/_penstock/streams/{first.stream}?offset=3")).status == 400
        assert (await fetch(url, f"/_penstock/streams/{first.stream}", "PUT")).status == 405


# -- bytes


@pytest.mark.parametrize("kind", [b"application/octet-stream", b"application/x-ndjson"])
async def test_bytes_are_resumed_by_offset(kind: bytes, served: Serve) -> None:
    head = CHUNKED.replace(b"text/event-stream", kind)
    pieces = [b'{"a":1}\n', b'{"b":2}\n', b'{"c":3}\n']
    whole = b"".join(pieces)
    async with relaying(served, log="all") as (url, up, _), asking(url) as reader:
        call = await up.call()
        await call.head(head)
        await call.send(pieces[0])
        await reader.take_head()
        stream = reader.all("penstock-stream")[0]
        assert await reader.chunk() == pieces[0]
        async with asking(url, f"/_penstock/streams/{stream}?offset=5") as other:
            await other.take_head()
            assert other.status == 200
            assert other.all("penstock-offset") == ["5"]
            beyond = await fetch(url, f"/_penstock/streams/{stream}?offset=100")
            assert (beyond.status, beyond.problem["offset"]) == (416, len(pieces[0]))
            await call.send(*pieces[1:])
            await call.end()
            rest = await rest_of(other)
            assert (rest.body, rest.whole) == (whole[5:], True)
        assert (await rest_of(reader)).whole
        for offset in (0, 5, 8, 23):
            finished = await fetch(url, f"/_penstock/streams/{stream}?offset={offset}")
            assert (finished.status, finished.body) == (206, whole[offset:])
            assert finished.field("penstock-offset") == str(offset)
            assert finished.field("content-range") == f"bytes {offset}-23/24"
        assert (await fetch(url, f"/_penstock/streams/{stream}?offset=24")).status == 204
        beyond = await fetch(url, f"/_penstock/streams/{stream}?offset=25")
        assert (beyond.status, beyond.problem["offset"]) == (416, 24)
        if kind == b"application/octet-stream":
            assert (await fetch(url, f"/_penstock/streams/{stream}?after=1")).status == 400
        assert (await fetch(url, f"/_penstock/streams/{stream}?after=0&offset=5")).status == 400


# -- several readers


async def test_several_readers_get_the_same_and_a_slow_one_slows_nobody(served: Serve) -> None:
    event = b"data: " + b"x" * 20_000 + b"\n\n"
    count = 150
    async with relaying(served) as (url, up, relay), asking(url) as first:
        call = await up.call()
        await call.head()
        await first.take_head()
        target = f"/_penstock/streams/{first.all('penstock-stream')[0]}"
        async with asking(url, target, receive_buffer=4096) as slow, asking(url, target) as other:
            await slow.take_head()
            await other.take_head()
            for number in range(count):
                await call.send(event)
                for reader in (first, other):
                    got = 0
                    while got < len(event):  # with the slow one stuck, each event is here before the next is sent
                        got += len(plain(await reader.chunk()))
                    assert got == len(event), number
            await call.end()
            answers = [await rest_of(reader) for reader in (first, other)]
            assert all(answer.whole for answer in answers)
            assert streams_of(relay).running == 0
            late = await rest_of(slow)
            assert (late.plain, late.whole) == (event * count, True)
            assert len(up.calls) == 1


async def test_readers_of_one_stream_are_counted_and_bounded() -> None:
    async with relaying(limits=RelayLimits(max_readers=2)) as (url, up, _), asking(url) as first:
        call = await up.call()
        await call.head()
        await first.take_head()
        target = f"/_penstock/streams/{first.all('penstock-stream')[0]}"
        async with asking(url, target) as second:
            await second.take_head()
            assert (await fetch(url, target)).status == 429
            later = await fetch(url, target, more=EVENTS)
            assert (later.status, later.whole) == (200, False)
            assert later.body.startswith(b"retry: ")
            assert later.body.count(b"\n") == 1
            second.reset()
        await until(lambda: len(up.calls) == 1)

        async def joined() -> bool:
            answer = await fetch(url, target, "HEAD")
            return answer.status == 200

        async with asyncio.timeout(20):
            while not await joined():
                pass
        await call.end()
        assert (await rest_of(first)).whole


# -- owners, keys


def owned(**policy: Any) -> dict[str, Any]:
    return {"owner": OwnerFrom("header", "x-user"), **policy}


def user(name: str) -> str:
    return f"X-User: {name}\r\n"


async def test_a_stranger_finds_nothing() -> None:
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url, **owned())) as url:
        mine = await fetch(url, "/e", more=user("ann"))
        target = f"/_penstock/streams/{mine.stream}"
        for who in (user("bob"), ""):
            for method in ("GET", "HEAD", "DELETE", "PUT"):
                assert (await fetch(url, target, method, who)).status == 404
            assert (await fetch(url, "/e", more=who + since(mine.ids[0]))).status == 404
        assert (await fetch(url, target, more=user("ann"))).plain == b"".join(FIVE)
        assert (await fetch(url, "/e", more=user("ann") + since(mine.ids[3]))).plain == FIVE[4]


async def test_an_idempotency_key_joins_what_runs(served: Serve) -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with relaying(served, **owned()) as (url, up, _):
        async with (
            asking(url, "/e", "POST", more, b"one") as first,
            asking(url, "/e", "POST", more, b"one") as second,
        ):
            call = await up.call()
            other = asyncio.create_task(fetch(url, "/e", "POST", more, b"two"))
            await call.head()
            await call.send(FIVE[0])
            await first.take_head()
            await second.take_head()
            assert first.all("penstock-stream") == second.all("penstock-stream")
            assert (await other).status == 422
            assert (await fetch(url, "/f", "POST", more, b"one")).status == 422
            await call.send(*FIVE[1:])
            await call.end()
            assert (await rest_of(first)).plain == (await rest_of(second)).plain == b"".join(FIVE)
        again = await fetch(url, "/e", "POST", more, b"one")  # what has ended well is replayed
        assert (again.status, again.stream, again.plain) == (200, first.all("penstock-stream")[0], b"".join(FIVE))
        assert (await fetch(url, "/e", "POST", more, b"two")).status == 422
        assert len(up.calls) == 1


@pytest.mark.parametrize("first", ["broken", "stopped", "refused", "empty"])
async def test_an_idempotency_key_asks_anew_for_what_did_not_end_well(first: str) -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with relaying(**owned()) as (url, up, relay):
        async with asking(url, "/e", "POST", more, b"one") as reader:
            call = await up.call()
            await call.head(CHUNKED.replace(b"200 OK", b"503 No") if first == "refused" else CHUNKED)
            await reader.take_head()
            match first:
                case "broken":
                    call.reset()
                case "stopped":
                    target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
                    assert (await fetch(url, target, "DELETE", user("ann"))).status == 204
                case _:
                    await call.end()
            assert (await rest_of(reader)).whole is (first in ("refused", "empty"))
        await until(lambda: streams_of(relay).running == 0)
        async with asking(url, "/e", "POST", more, b"one") as again:
            if first != "empty":  # which is an answer, too
                call = await up.call(1)
                await began(call, again, "mid-stream")
                await call.end()
            else:
                await again.take_head()
            assert again.status == 200
            assert (await rest_of(again)).whole
        assert len(up.calls) == (1 if first == "empty" else 2)


async def test_an_idempotency_key_without_an_owner_or_of_another_one_joins_nothing() -> None:
    async with relaying(**owned()) as (url, up, _):
        key = "Idempotency-Key: k\r\n"
        async with (
            asking(url, "/e", "POST", key + user("ann"), b"one"),
            asking(url, "/e", "POST", key + user("bob"), b"one"),
            asking(url, "/e", "POST", key, b"one"),
            asking(url, "/e", "POST", key, b"one"),
        ):
            for number in range(4):
                await (await up.call(number)).head()
                await up.calls[number].end()


async def test_who_joins_counts_as_a_reader_while_the_upstream_is_still_silent() -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with (
        relaying(**owned(on_disconnect=OnDisconnect("cancel"))) as (url, up, relay),
        asking(url, "/e", "POST", more, b"one") as second,
    ):
        async with asking(url, "/e", "POST", more, b"one") as first:
            call = await up.call()
            await until(lambda: [session.readers for session in streams_of(relay).sessions] == [2])
            first.reset()
        await until(lambda: [session.readers for session in streams_of(relay).sessions] == [1])
        await call.head()
        await call.send(*FIVE)
        await call.end()
        await second.take_head()
        assert (await rest_of(second)).plain == b"".join(FIVE)


async def test_who_joins_is_told_why_there_is_no_answer() -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with relaying(**owned()) as (url, up, relay):
        one = asyncio.create_task(fetch(url, "/e", "POST", more, b"one"))
        call = await up.call()
        two = asyncio.create_task(fetch(url, "/e", "POST", more, b"one"))
        await until(lambda: [session.readers for session in streams_of(relay).sessions] == [2])
        call.reset()
        assert [(await each).status for each in (one, two)] == [502, 502]


# -- the reader leaves


@pytest.mark.parametrize("phase", ["head", "first byte", "mid-stream"])
@pytest.mark.parametrize("kind", ["cancel", "auto"])
async def test_a_reader_that_leaves_cancels_the_upstream(phase: str, kind: Any, served: Serve) -> None:
    async with relaying(served, on_disconnect=OnDisconnect(kind)) as (url, up, _):
        async with asking(url, "/e", "POST", body=b"one") as reader:
            call = await up.call()
            await began(call, reader, phase)
            reader.reset()
        await call.cancelled()


async def began(call: Any, reader: Peer, phase: str) -> None:
    if phase == "head":
        return
    await call.head()
    await reader.take_head()
    if phase == "mid-stream":
        await call.send(FIVE[0])
        await reader.chunk()


@pytest.mark.parametrize("phase", ["head", "first byte", "mid-stream"])
async def test_a_reader_that_leaves_a_detached_stream_leaves_it_running(phase: str, served: Serve) -> None:
    async with relaying(served) as (url, up, relay):
        async with asking(url, "/e", "POST", body=b"one") as reader:
            call = await up.call()
            await began(call, reader, phase)
            reader.reset()
        await until(lambda: all(not session.readers for session in streams_of(relay).sessions))
        if phase == "head":
            await call.head()
        await call.send(*FIVE[1 if phase == "mid-stream" else 0 :])
        await call.end()
        await until(lambda: streams_of(relay).running == 0)
        (info,) = await streams_of(relay).log.streams()
        assert info.ended is not None
        assert info.ended.reason == "done"
        answer = await fetch(url, f"/_penstock/streams/{info.id}")
        assert (answer.plain, answer.whole) == (b"".join(FIVE), True)


@pytest.mark.parametrize("sign", [EVENTS, "Last-Event-ID: 7\r\n", "Idempotency-Key: k\r\n"])
async def test_auto_gives_a_grace_to_who_can_come_back(sign: str) -> None:
    async with relaying(on_disconnect=OnDisconnect("auto", 0.3)) as (url, up, relay):
        async with asking(url, more=sign) as reader:
            call = await up.call()
            await began(call, reader, "mid-stream")
            target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
            reader.reset()
        await until(lambda: [session.readers for session in streams_of(relay).sessions] == [0])
        async with asking(url, target) as again:  # within the grace, which begins anew when this one leaves
            await again.take_head()
            await again.chunk()
            await asyncio.sleep(0.5)
            await call.send(FIVE[1])
            assert plain(await again.chunk()) == FIVE[1]
            again.reset()
        await call.cancelled()
        answer = await fetch(url, target)
        assert (answer.plain.count(b"data: 1"), answer.whole) == (1, False)


@pytest.mark.parametrize("kind", ["cancel", "detach"])
async def test_a_request_that_was_never_whole_is_cancelled_whatever_the_policy(kind: Any) -> None:
    async with origin(reads_body=False) as up:
        relay = relayed(up.url, on_disconnect=OnDisconnect(kind))
        async with serve(relay) as url:
            for answered in (False, True):
                async with asking(url, "/e", "POST", "Content-Length: 100\r\n") as reader:
                    await reader.send(b"half")
                    call = await up.call(int(answered))
                    if answered:
                        await call.head()
                        await reader.take_head()
                    reader.reset()
                await call.cancelled()
            await settled(relay)


async def test_delete_stops_a_stream_in_any_case(served: Serve) -> None:
    async with relaying(served) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
        assert (await fetch(url, target, "DELETE")).status == 204
        await call.cancelled()
        rest = await rest_of(reader)
        assert not rest.whole
        assert b"event: penstock.error" in rest.body
        assert b"the stream was stopped" in rest.body
        assert (await fetch(url, target, "DELETE")).status == 204
        # The terminal event has an id: an EventSource that comes back with it is told to stop.
        assert (await fetch(url, target, more=since(rest.ids[-1]))).status == 204
        again = await fetch(url, f"{target}?after=1")
        assert (again.status, again.body, again.whole) == (200, rest.body, False)


# -- bad ends

OPENAI = b'data: {"object":"chat.completion.chunk"}\n\n'
ANTHROPIC = b'event: message_start\ndata: {"type":"message_start"}\n\n'


@pytest.mark.parametrize(
    ("first", "head", "policy", "said"),
    [
        (b"data: x\n\n", CHUNKED, {}, b'event: penstock.error\ndata: {"error":{"type":"upstream_error"'),
        (OPENAI, CHUNKED, {}, b'data: {"error":{"message":'),
        (ANTHROPIC, CHUNKED, {}, b'event: error\ndata: {"type":"error","error":{"type":"api_error"'),
        (b'data: {"type":"RUN_STARTED"}\n\n', CHUNKED, {}, b'data: {"type":"RUN_ERROR"'),
        (
            b'data: {"type":"start"}\n\n',
            CHUNKED[:-2] + b"X-Vercel-AI-UI-Message-Stream: v1\r\n\r\n",
            {},
            b'data: {"type":"error","errorText":',
        ),
        (OPENAI, CHUNKED, {"dialect": "penstock"}, b"event: penstock.error\n"),
        (b'{"a":1}\n', NDJSON, {}, b'{"error":{"type":"upstream_error"'),
    ],
)
async def test_a_bad_end_is_said_in_the_streams_own_words(
    first: bytes, head: bytes, policy: dict[str, Any], said: bytes
) -> None:
    async with relaying(**policy) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await call.head(head)
        await call.send(first)
        await reader.take_head()
        await reader.chunk()
        await call.send(b"data: half")
        call.reset()
        rest = await rest_of(reader)
        assert not rest.whole
        assert rest.plain.startswith(said)
        assert b"half" not in rest.body
        assert up.url.encode()[7:] not in rest.body
        if head is not NDJSON:
            assert rest.body.startswith(b"id: ")
            assert rest.body.endswith(b"\n\n")


async def test_a_bad_end_never_has_the_last_chunk(served: Serve) -> None:
    async with relaying(served) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await call.head()
        await call.send(FIVE[0])
        await reader.take_head()
        await reader.chunk()
        call.reset()
        rest = await rest_of(reader)
        assert b"penstock.error" in rest.body
        assert not rest.whole


async def test_bytes_that_break_off_just_break_off() -> None:
    head = CHUNKED.replace(b"text/event-stream", b"audio/mpeg")
    async with relaying(log="all") as (url, up, _), asking(url) as reader:
        call = await up.call()
        await call.head(head)
        await call.send(b"abc")
        await reader.take_head()
        assert await reader.chunk() == b"abc"
        call.reset()
        rest = await rest_of(reader)
        assert (rest.body, rest.whole) == (b"", False)
        again = await fetch(url, f"/_penstock/streams/{rest.stream}?offset=1")
        assert (again.status, again.body, again.whole) == (200, b"bc", False)


@pytest.mark.parametrize(
    ("last", "whole", "said"),
    [
        (b"data: [DONE]\n\n", True, b""),
        (b"data: more\n\n", False, b"event: penstock.error"),
        (b'data: {"error":{"message":"overloaded"}}\n\n', False, b": the stream has said so itself\n"),
    ],
)
async def test_a_stream_is_whole_when_its_own_protocol_says_so(last: bytes, whole: bool, said: bytes) -> None:
    async with (
        upstream(saying(b"data: a\n\n", last)) as up,
        serve(relayed(up.url, terminator=PROFILES["openai"])) as url,
    ):
        answer = await fetch(url)
        assert answer.whole is whole
        assert answer.plain.startswith(b"data: a\n\n" + last + said)
        assert (await fetch(url, "/", more=since(answer.ids[-1]))).status == 204


# -- gaps


def small() -> MemoryLog:
    """A log that holds less than comes, and as much as may come in one read of a socket."""
    return MemoryLog(retention=Retention(max_stream_bytes=400_000))


@pytest.mark.parametrize("head", [CHUNKED, NDJSON])
async def test_what_was_evicted_is_told_and_never_skipped_in_silence(head: bytes, served: Serve) -> None:
    events = [b"data: %03d %b\n\n" % (number, b"x" * 5000) for number in range(200)]
    if head is NDJSON:
        events = [b'{"n":%d,"x":"%b"}\n' % (number, b"x" * 5000) for number in range(200)]
    async with upstream(saying(*events, head=head)) as up, served(relayed(up.url, store=small())) as url:
        first = await fetch(url)
        assert (first.plain, first.whole) == (b"".join(events), True)
        target = f"/_penstock/streams/{first.stream}?after=3"
        refused = await fetch(url, target)
        assert refused.status == 410
        earliest = refused.problem["earliest"]
        assert 3 < earliest < 200
        told = await fetch(url, target, more=EVENTS)
        if head is NDJSON:
            assert told.status == 410
            return
        gap = b'event: penstock.gap\ndata: {"requested":3,"earliest":%d}\n\n' % earliest
        assert (told.status, told.whole) == (200, True)
        assert told.plain == gap + b"".join(events[earliest:])


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("kept", [20_000, 400_000], ids=["less than one read of a socket", "more"])
async def test_the_source_waits_for_the_fastest_reader_however_small_the_log(
    store: str, kept: int, served: Serve, tmp_path: Path
) -> None:
    events = [b"data: %04d %b\n\n" % (number, b"x" * 5000) for number in range(1000)]
    retention = Retention(max_stream_bytes=kept)
    log = MemoryLog(retention=retention) if store == "memory" else SqliteLog(tmp_path / "log", retention=retention)
    async with upstream(saying(*events)) as up, served(relay := relayed(up.url, store=log)) as url:
        async with asking(url, receive_buffer=8192) as slow:
            await slow.take_head()
            await until(lambda: all(session.producer.paused for session in streams_of(relay).sessions))
            answer = await rest_of(slow)
            assert (answer.plain, answer.whole) == (b"".join(events), True)
        await settled(relay)


async def test_a_reader_that_the_log_has_overtaken_is_told_and_the_others_miss_nothing() -> None:
    events = [b"data: %04d %b\n\n" % (number, b"x" * 5000) for number in range(2000)]
    async with relaying(store=small()) as (url, up, _), asking(url) as first:
        call = await up.call()
        await call.head()
        await first.take_head()
        target = f"/_penstock/streams/{first.all('penstock-stream')[0]}"
        async with asking(url, target, more=EVENTS, receive_buffer=8192) as stuck:
            await stuck.take_head()
            for begin in range(0, len(events), 20):
                batch = b"".join(events[begin : begin + 20])
                await call.send(batch)
                got = bytearray()
                while len(plain(bytes(got))) < len(batch):
                    got += await first.chunk()
                assert plain(bytes(got)) == batch
            await call.end()
            assert (await rest_of(first)).whole
            late = await rest_of(stuck)
        assert late.whole
        assert late.plain.count(b"event: penstock.gap") >= 1
        assert late.plain.endswith(events[-1])


# -- limits, drain


async def test_over_the_limit_of_streams_there_is_a_refusal_and_an_event_source_comes_back() -> None:
    async with relaying(limits=RelayLimits(max_streams=1)) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        assert (await fetch(url, "/e", "POST", body=b"x")).status == 503
        later = await fetch(url, "/e", more=EVENTS)
        assert (later.status, later.whole) == (200, False)
        assert later.body.startswith(b"retry: ")
        await call.end()
        assert (await rest_of(reader)).whole
        assert len(up.calls) == 1


async def test_a_log_that_is_full_of_running_streams_takes_no_other() -> None:
    store = MemoryLog(retention=Retention(max_streams=1))
    async with relaying(store=store) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        refused = asyncio.create_task(fetch(url))
        other = await up.call(1)
        await other.head()
        assert (await refused).status == 503
        await other.cancelled()
        await call.end()
        assert (await rest_of(reader)).whole


async def test_an_event_that_is_too_long_ends_the_stream_as_an_error() -> None:
    limits = RelayLimits(max_event_bytes=1000)
    async with relaying(limits=limits) as (url, up, _), asking(url) as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        await call.send(b"data: " + b"x" * 2000)
        await call.cancelled()
        rest = await rest_of(reader)
        assert not rest.whole
        assert b"penstock.error" in rest.body
        assert b"xxx" not in rest.body


@pytest.mark.parametrize("framing", ["Content-Length: 50\r\n", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("log", ["auto", "none"])
async def test_a_body_that_is_too_long_is_refused(framing: str, log: Any) -> None:
    async with (
        origin() as up,
        serve(relayed(up.url, log=log, limits=RelayLimits(max_body_bytes=10))) as url,
        asking(url, "/e", "POST", framing) as reader,
    ):
        await reader.send(chunk(b"x" * 50) + LAST_CHUNK if "chunked" in framing else b"x" * 50)
        await reader.take_head()
        assert reader.status == 413


async def test_a_body_that_is_too_long_is_refused_whatever_it_would_have_found() -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    policy = owned(limits=RelayLimits(max_body_bytes=10))
    async with relaying(**policy) as (url, up, _), asking(url, "/e", "POST", more, b"one") as reader:
        call = await up.call()
        await call.head()
        await call.send(FIVE[0])
        await reader.take_head()
        (id_,) = OUR_ID.findall(await reader.chunk())
        chunked = "Transfer-Encoding: chunked\r\n"
        long = chunk(b"x" * 50) + LAST_CHUNK
        for asked in (more + chunked, user("ann") + since(id_.decode()) + chunked):
            async with asking(url, "/e", "POST", asked) as other:
                await other.send(long)
                await other.take_head()
                assert other.status == 413
        assert len(up.calls) == 1
        await call.end()


async def test_a_stream_that_has_ended_has_no_more_readers_than_may_be_either() -> None:
    piece = b"data: " + b"x" * 1_000_000 + b"\n\n"
    async with (
        upstream(saying(*[piece] * 7)) as up,
        serve(relay := relayed(up.url, limits=RelayLimits(max_readers=1))) as url,
    ):
        target = f"/_penstock/streams/{(await fetch(url)).stream}"
        async with asking(url, target, receive_buffer=4096) as slow:
            await slow.take_head()
            assert (await fetch(url, target)).status == 429
            slow.reset()
        await settled(relay)
        assert (await fetch(url, target)).whole


async def test_a_relay_that_drains_begins_nothing_new_and_lets_readers_come_back() -> None:
    more = user("ann") + "Idempotency-Key: k\r\n"
    async with relaying(**owned()) as (url, up, relay), asking(url, "/e", "POST", more, b"one") as reader:
        call = await up.call()
        await began(call, reader, "mid-stream")
        draining = asyncio.create_task(relay.drain(20))
        await until(lambda: streams_of(relay).draining)
        assert (await fetch(url, "/_penstock/ready")).status == 503
        assert (await fetch(url, "/_penstock/health")).status == 200
        assert (await fetch(url, "/e", "POST", body=b"x")).status == 503
        later = await fetch(url, "/e", more=EVENTS)
        assert (later.status, later.whole) == (200, False)
        target = f"/_penstock/streams/{reader.all('penstock-stream')[0]}"
        async with (
            asking(url, target, more=user("ann")) as again,
            asking(url, "/e", "POST", more, b"one") as joined,
        ):
            await again.take_head()
            await joined.take_head()
            assert (again.status, joined.status) == (200, 200)
            await call.send(*FIVE[1:])
            await call.end()
            for each in (again, joined):
                assert (await rest_of(each)).plain == b"".join(FIVE)
        await draining
        assert (await rest_of(reader)).whole


async def test_streams_that_a_stopping_relay_cuts_off_say_when_to_come_back() -> None:
    async with origin() as up:
        relay = relayed(up.url)
        async with serve(relay) as url, asking(url) as reader:
            call = await up.call()
            await began(call, reader, "mid-stream")
            stopping = asyncio.create_task(streams_of(relay).aclose())
            rest = await rest_of(reader)
            await stopping
        await call.cancelled()
        assert not rest.whole
        assert b"\nretry: " in rest.body


async def test_a_stream_is_one_line_in_the_log_however_many_read_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "penstock.relay")
    async with upstream(saying(*FIVE)) as up, serve(relay := relayed(up.url)) as url:
        answer = await fetch(url, "/e?secret=1")
        assert (await fetch(url, f"/_penstock/streams/{answer.stream}")).plain == b"".join(FIVE)
        await settled(relay)
        (line,) = (record.getMessage() for record in caplog.records if record.name == "penstock.relay")
        assert line.startswith(f"stream {answer.stream}: done after 5 events, 45 bytes, ")


async def test_no_task_stays_behind() -> None:
    before = asyncio.all_tasks()
    async with relaying(on_disconnect=OnDisconnect("grace", 0.01)) as (url, up, _):
        for number in range(8):
            async with asking(url, more=EVENTS) as reader:
                call = await up.call(number)
                if number % 4:
                    await began(call, reader, "mid-stream" if number % 2 else "first byte")
                if number % 3 == 0:
                    call.reset()
                reader.reset()
            await call.cancelled()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()


async def test_a_keep_alive_is_one_line_and_for_events_only(served: Serve) -> None:
    async with relaying(served, keep_alive=0.05, log="all") as (url, up, _):
        async with asking(url) as reader:
            call = await up.call()
            await call.head()
            await reader.take_head()
            await call.send(b"data: 1\n")  # half a block: nothing may come between its lines
            got = b""
            while got.count(b": keep-alive\n") < 3:
                got += await reader.chunk()
            await call.send(b"data: 2\n\n")
            await call.end()
            rest = await rest_of(reader)
            body = got + rest.body
        assert body.replace(b": keep-alive\n", b"") == f"id: {rest.ids[0]}\n".encode() + b"data: 1\ndata: 2\n\n"
        assert b"keep-alive\n\n" not in body
        async with asking(url) as reader:
            call = await up.call(1)
            await call.head(NDJSON)
            await call.send(b"{}\n")
            await reader.take_head()
            assert await reader.chunk() == b"{}\n"
            await asyncio.sleep(0.3)
            await call.end()
            assert (await rest_of(reader)).body == b""
