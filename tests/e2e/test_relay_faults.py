"""Every pair of hops with a proxy between that does harm: what may cost nothing costs nothing, what costs is told.

=========  =====================================  ==================================================================
where      harmless                               harm
=========  =====================================  ==================================================================
front      slowly, or one byte at a time:         the reader resumes with nothing lost or doubled, and the upstream
           nothing changes                        is called once; an upload is never taken for whole
middle,    the same                               a failure in the stream's own words, and no clean end; before the
back                                              headers a 502 or 504
=========  =====================================  ==================================================================

The hops are those of `tests.e2e.hops`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import pytest

from penstock import AsyncClient, Backoff, Retry, Timeout
from penstock.relay.app import Relay
from penstock.testing import serve
from penstock.wire import sse
from tests.e2e.fault_proxy import Harm, Leg, Plan
from tests.e2e.hops import Hop, Kind, Upstream, hops
from tests.relay.peers import PATIENCE, until, upstream
from tests.relay.readers import EVENTS, OUR_ID, Answer, asking, dechunked, fetch, plain, since

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))
HOPS: tuple[Hop, ...] = ("front", "middle", "back")
HARMS: tuple[Harm, ...] = ("stall", "cut", "reset", "half-close")
STALL = 0.6  # seconds of silence that are a stall, where there is one

T = TypeVar("T")


# -- the readers ------------------------------------------------------------------------------------------------------


async def resuming(url: str) -> list[bytes]:
    """The events as a client gets them that resumes by itself, as the upstream wrote them."""
    patience = Timeout(connect=PATIENCE, first_event=PATIENCE, between_events=STALL)
    retry = Retry(retries=8, backoff=Backoff(initial=0.01, maximum=0.05), budget=None)
    async with AsyncClient(url, retry=retry, timeout=patience) as client, client.get("/events").events() as events:
        return [b"data: %b\n\n" % event.data.encode() async for event in events]


async def by_offset(url: str) -> bytes:
    """The bytes of a stream of lines, for a reader that goes on by their number where it was cut off."""
    kept, stream = b"", ""
    while True:
        target = f"/_penstock/streams/{stream}?offset={len(kept)}" if stream else "/lines"
        answer = await read(url, target)
        if answer is None:
            continue
        if answer.status == 204:
            return kept
        assert answer.status in (200, 206), answer.peer.head
        stream = answer.stream
        kept += answer.body
        if answer.whole:
            return kept


async def read(url: str, target: str, **given: Any) -> Answer | None:
    """An answer, whichever way it ends; None where there was no head."""
    try:
        return await fetch(url, target, **given)
    except (OSError, asyncio.IncompleteReadError):
        return None


def blocks_of(body: bytes) -> list[bytes]:
    return sse.BlockCutter().feed(body)


async def together(work: Iterable[Coroutine[Any, Any, T]], at_a_time: int = 32) -> list[T]:
    """Do all of it, so much at a time; the first failure ends the rest, and no task outlives it."""
    before = asyncio.all_tasks()
    limit = asyncio.Semaphore(at_a_time)

    async def limited(one: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await one

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(limited(one)) for one in work]
    await until(lambda: asyncio.all_tasks() <= before)
    return [task.result() for task in tasks]


# -- what changes nothing ---------------------------------------------------------------------------------------------

HARMLESS = {
    "one byte at a time": Leg(piece=1),
    "slowly": Leg(piece=100, pause=0.001),
}


@pytest.mark.parametrize("how", HARMLESS)
async def test_what_is_only_slow_changes_nothing(how: str) -> None:
    await together(slow(hop, HARMLESS[how]) for hop in HOPS)


async def slow(hop: Hop, leg: Leg) -> None:
    """Read and send a body of every kind."""
    far = Upstream.drawn(random.Random(SEED), records=12, size=4000)
    plans = [Plan(leg, leg)] * 20
    async with hops(hop, *plans, far=far, chained=hop == "middle") as way:
        url = way.url
        events, lines, file, upload, resumed = await asyncio.gather(
            fetch(url, "/events", more=EVENTS),
            fetch(url, "/lines"),
            fetch(url, "/file"),
            fetch(url, "/upload", "POST", body=far.content),
            resuming(url),
        )
        assert all(answer.whole and answer.status == 200 for answer in (events, lines, file, upload))
        assert plain(events.body) == far.body("events")
        assert lines.body == far.body("lines")
        assert file.body == far.content
        assert upload.problem == {"sha256": hashlib.sha256(far.content).hexdigest()}
        assert resumed == far.records["events"]
        assert far.calls == {"events": 2, "lines": 1, "file": 1, "upload": 1}
        assert len(way.proxy.passages) <= len(plans)


# -- what a reader loses, it gets when it comes back ------------------------------------------------------------------


async def test_a_reader_that_is_cut_off_again_and_again_gets_every_event_once() -> None:
    async def comes_back(harm: Harm, chained: bool) -> None:
        far = Upstream.drawn(random.Random(SEED), records=40, pace=0.002)
        plans = [Plan(down=Leg(harm, at=(b"\n\n", 7)))] * (1 if harm == "stall" else 4)
        async with hops("front", *plans, far=far, chained=chained) as way:
            assert await resuming(way.url) == far.records["events"]
            assert [passage.harmed for passage in way.proxy.passages[: len(plans)]] == [True] * len(plans)
            assert far.calls == {"events": 1}

    await together(comes_back(harm, chained) for harm in HARMS for chained in (False, True))


async def test_lines_go_on_by_their_offset() -> None:
    async def goes_on(harm: Harm) -> None:
        far = Upstream.drawn(random.Random(SEED), records=40, pace=0.002)
        plans = [Plan(down=Leg(harm, at=700 + 100 * number)) for number in range(4)]
        async with hops("front", *plans, far=far) as way:
            assert await by_offset(way.url) == far.body("lines")
            assert sum(passage.harmed for passage in way.proxy.passages) == 4
            assert far.calls == {"lines": 1}

    await together(goes_on(harm) for harm in HARMS if harm != "stall")


async def test_a_reader_that_closes_its_half_has_left() -> None:
    await together([leaves_by_half("cancel"), leaves_by_half("grace:20s")])


async def leaves_by_half(policy: str) -> None:
    """Close the half of a reader's connection that it asks on, in the middle of the answer."""
    far = Upstream.drawn(random.Random(SEED), records=2000, pace=0.01)
    async with hops("front", far=far, on_disconnect=policy) as way:
        async with asking(way.url, "/events", more=EVENTS) as reader:
            await reader.take_head()
            first = await reader.chunk()
            way.proxy.passages[0].do("half-close", "up")
            await reader.gone()  # nobody is written to any more
        if policy == "cancel":
            async with asyncio.timeout(PATIENCE):
                await far.gone.wait()
            return
        id_ = OUR_ID.findall(first)[-1].decode()
        async with asking(way.url, "/events", more=EVENTS + since(id_)) as again:
            await again.take_head()
            assert plain(first + await again.chunk()).startswith(b"".join(far.records["events"][:2]))
        assert not far.gone.is_set()
        assert far.calls == {"events": 1}


# -- what the relay loses, it says ------------------------------------------------------------------------------------


async def broken(hop: Hop, kind: Kind, harm: Harm, chance: random.Random, at: int | None = None) -> str:
    """Break an answer off between a relay and what is behind it, and see what its reader makes of that.

    Returns:
        What happened, in a word, for a round that drew nothing.
    """
    far = Upstream.drawn(chance, size=30_000, pace=0.0005)
    drawn = chance.choice((80, len(far.body(kind)) + 200, len(far.body(kind)) + 200))  # in the head, or anywhere
    place = chance.randrange(drawn) if at is None else at
    chained = hop == "middle" or chance.random() < 0.3
    wait = STALL if harm == "stall" else PATIENCE
    async with hops(hop, Plan(down=Leg(harm, place)), far=far, chained=chained, wait=wait) as way:
        answer = await fetch(way.url, f"/{kind}")
        came, harmed = bytes(way.proxy.passages[0].down), way.proxy.harmed
        assert far.calls == {kind: 1}
    if not harmed:
        assert answer.whole
        return "nothing"
    head, mark, rest = came.partition(b"\r\n\r\n")
    if not mark or (harm == "stall" and answer.status == 504):  # on a busy machine silence begins early
        assert answer.status == (504 if harm == "stall" else 502), head
        return "no head"
    assert answer.status == 200
    assert not answer.whole, "a broken stream looks complete"
    body = dechunked(rest)[0] if b"chunked" in head.lower() else rest
    match kind:
        case "events":
            whole = [plain(block) for block in blocks_of(body) if b"data:" in block]
            got = [plain(block) for block in blocks_of(answer.body)]
            told = [block for block in got if block.startswith(b"event: penstock.error\n")]
            assert got[len(got) - len(told) :] == told, "something came behind the error"
            got = got[: len(got) - len(told)]
            assert 1 <= len(told) <= 1 + chained  # the one tells of the other's telling
            assert json.loads(told[0].partition(b"data: ")[2])["error"]["type"] == "upstream_error"
        case "lines":
            whole = body.splitlines(keepends=True)
            whole = whole[: body.count(b"\n")]
            got = answer.body.splitlines(keepends=True)
            assert json.loads(got.pop())["error"]["type"] == "upstream_error"
            if got and got[-1].startswith(b'{"error"'):
                got.pop()
        case _:
            whole, got = [bytes([each]) for each in body], [bytes([each]) for each in answer.body]
    # A reset may overtake what was sent before it, and patience may end before what is there was looked at.
    assert got == (whole[: len(got)] if harm in ("reset", "stall") else whole)
    return "broken"


async def test_what_breaks_off_behind_a_relay_is_told() -> None:
    kinds: tuple[Kind, ...] = ("events", "lines", "file")
    cases = [(hop, kind, harm, at) for harm in HARMS for hop in HOPS[1:] for kind in kinds for at in (30, 1000)]
    ends = await together((broken(hop, kind, harm, random.Random(SEED), at) for hop, kind, harm, at in cases), 12)
    for case, end in zip(cases, ends, strict=True):
        assert end == ("no head" if case[3] == 30 else "broken") or (case[2], end) == ("stall", "no head"), case


async def test_an_upload_that_breaks_off_is_never_whole() -> None:
    await together(broken_upload(hop, harm, 100_000) for hop in HOPS for harm in HARMS)


async def broken_upload(hop: Hop, harm: Harm, at: int) -> None:
    """Break an upload off, and see that nobody takes it for whole."""
    far = Upstream.drawn(random.Random(SEED), size=400_000)
    wait = STALL if harm == "stall" else PATIENCE
    async with (
        hops(hop, Plan(up=Leg(harm, at)), far=far, chained=hop == "middle", wait=wait) as way,
        asking(way.url, "/upload", "POST", body=far.content) as sender,
    ):
        if (hop, harm) == ("front", "stall"):
            await until(lambda: way.proxy.harmed)
            way.proxy.passages[0].do("reset")
        raw = await sender.rest()
        assert not raw or 502 <= int(raw.split(b" ", 2)[1]) <= 504, raw
        assert way.proxy.harmed
    assert far.whole == []
    assert far.calls["upload"] <= 1


# -- two relays in a row ----------------------------------------------------------------------------------------------


async def test_what_an_outer_relay_keeps_is_had_again_from_it_and_not_from_the_inner() -> None:
    far = Upstream.drawn(random.Random(SEED))
    async with (
        upstream(far.play) as up,
        serve(Relay(up.url, store="memory://")) as inner,
        serve(Relay(inner, store="memory://")) as outer,
    ):
        answer = await fetch(outer, "/events")
        assert plain(answer.body) == far.body("events")
        location = answer.field("location")
        assert location == f"/_penstock/streams/{answer.stream}"
        assert (await fetch(outer, location)).body == answer.body
        assert far.calls == {"events": 1}


async def test_a_reader_of_two_relays_in_a_row_comes_back_whatever_their_ids() -> None:
    far = Upstream.drawn(random.Random(SEED))
    async with (
        upstream(far.play) as up,
        serve(Relay(up.url, store="memory://")) as inner,
        serve(Relay(inner, store="memory://")) as outer,
    ):
        answer = await fetch(outer, "/events", more=EVENTS)
        again = await fetch(outer, "/events", more=EVENTS + since(answer.ids[9]))
        assert again.status == 200
        assert plain(again.body) == b"".join(far.records["events"][10:])
        assert far.calls == {"events": 1}


# -- at random --------------------------------------------------------------------------------------------------------


async def drawn_round(chance: random.Random) -> str:
    """Any harm anywhere, to any kind of body; what it was, in a word."""
    hop: Hop = chance.choice(("front", "middle", "back"))
    kind: Kind = chance.choice(("events", "lines", "file", "upload"))
    harm = chance.choice(HARMS)
    if kind == "upload":
        await broken_upload(hop, harm, chance.randrange(350_000))
        return "upload"
    if hop != "front":
        return await broken(hop, kind, harm, chance)
    if kind == "file" or (kind == "lines" and harm == "stall"):
        kind = "events"  # a reader of the others has nothing to go on by, or no patience to lose
    far = Upstream.drawn(chance, records=40, pace=0.002)
    plans = [Plan(down=Leg(harm, chance.randrange(200, 4000))) for _ in range(chance.randint(1, 4))]
    async with hops("front", *plans, far=far, chained=chance.random() < 0.3) as way:
        if kind == "lines":
            assert await by_offset(way.url) == far.body("lines")
        else:
            assert await resuming(way.url) == far.records["events"]
        known = b"\n\n" if kind == "events" else b"\r\n\r\n"  # by which the reader can come back
        if harm != "reset" and known in way.proxy.passages[0].down:
            assert far.calls[kind] == 1
    return "resumed" if way.proxy.harmed else "nothing"


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_many_rounds() -> None:
    print(f"seed {SEED}")
    ends = Counter(await together((drawn_round(random.Random(SEED * 1_000_003 + each)) for each in range(1000)), 8))
    print(ends)
    assert all(ends[each] > 15 for each in ("broken", "no head", "resumed", "upload"))
