"""One policy at work: requests on their way to the upstream, and again before the first byte of an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.relay.app import Relay
from penstock.relay.route import Held
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import Policy, RelayLimits
from penstock.relay.settings.rules import HeaderRules
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker
from penstock.resilience.retry import Retry
from penstock.testing import serve
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, chunk, response, until, upstream
from tests.relay.readers import asking, fetch, rest_of

pytestmark = pytest.mark.anyio

QUICK = Retry(retries=2, backoff=Backoff(initial=0.0, maximum=0.0), idempotent=True)


def relayed(url: str, **policy: Any) -> Relay:
    return Relay(url, store="memory://", policy=Policy(upstream=url, **policy))


class Failing:
    """An upstream whose first requests fail in a way of the test's."""

    def __init__(self, failures: int, how: str) -> None:
        self.failures, self.how = failures, how
        self.bodies: list[bytes] = []

    async def play(self, peer: Peer) -> None:
        while True:
            await peer.take_head()
            failing = len(self.bodies) < self.failures
            if failing and self.how == "half":
                self.bodies.append(await peer.chunk())
                peer.reset()
                return
            self.bodies.append(await peer.body())
            if not failing:
                await peer.send(CHUNKED + chunk(b"data: x\n\n") + LAST_CHUNK)
            elif self.how == "503":
                await peer.send(response(b"busy", status="503 Service Unavailable"))
            elif self.how == "after":
                await peer.send(CHUNKED + chunk(b"data: x\n\n"))
                peer.reset()
                return
            else:
                peer.reset()
                return


@pytest.mark.parametrize("how", ["503", "reset"])
@pytest.mark.parametrize(("failures", "status"), [(1, 200), (2, 200), (3, 0)])
async def test_what_fails_before_the_first_byte_is_tried_again(how: str, failures: int, status: int) -> None:
    failing = Failing(failures, how)
    async with upstream(failing.play) as up, serve(relayed(up.url, retry=QUICK)) as url:
        answer = await fetch(url, "/e", "POST", body=b"payload")
        assert answer.status == (status or {"503": 503, "reset": 502}[how])
        assert failing.bodies == [b"payload"] * min(failures + 1, 3)


async def test_a_stream_that_has_begun_is_not_asked_for_again() -> None:
    failing = Failing(1, "after")
    async with upstream(failing.play) as up, serve(relayed(up.url, retry=QUICK)) as url:
        assert not (await fetch(url, "/e", "POST", body=b"payload")).whole
        assert len(failing.bodies) == 1


async def test_a_body_that_was_not_whole_when_the_upstream_broke_goes_out_whole_again() -> None:
    failing = Failing(1, "half")
    async with (
        upstream(failing.play) as up,
        serve(relayed(up.url, retry=QUICK)) as url,
        asking(url, "/e", "POST", "Transfer-Encoding: chunked\r\n") as reader,
    ):
        await reader.send(chunk(b"one"))
        await until(lambda: bool(failing.bodies))
        await asyncio.sleep(0.05)  # the relay has seen the reset while it waits for more of the body
        await reader.send(chunk(b"two") + LAST_CHUNK)
        await reader.take_head()
        assert reader.status == 200
        assert (await rest_of(reader)).whole
    assert failing.bodies == [b"one", b"onetwo"]


async def test_a_body_that_is_not_held_is_not_sent_again() -> None:
    failing = Failing(1, "reset")
    limits = RelayLimits(max_replay_bytes=3)
    async with upstream(failing.play) as up, serve(relayed(up.url, retry=QUICK, limits=limits)) as url:
        assert (await fetch(url, "/e", "POST", body=b"payload")).status == 502
        assert failing.bodies == [b"payload"]


async def test_an_upstream_that_fails_and_fails_is_left_alone() -> None:
    failing = Failing(99, "reset")
    breaker = Breaker(failure_threshold=3, recovery_timeout=30.0)
    async with upstream(failing.play) as up, serve(relayed(up.url, breaker=breaker)) as url:
        assert [(await fetch(url)).status for _ in range(5)] == [502, 502, 502, 503, 503]
        assert len(failing.bodies) == 3


async def test_held_gives_what_was_read_and_goes_on_where_it_stood() -> None:
    pieces = [b"a", b"b", b"c"]

    async def more() -> Any:
        while pieces:
            yield pieces.pop(0)

    held = Held(more, 10)
    first = held.open()
    assert await anext(first) == b"a"
    await first.aclose()  # type: ignore[attr-defined]
    assert [piece async for piece in held.open()] == [b"a", b"b", b"c"]
    assert held.complete
    pieces.extend([b"x" * 20])
    assert [piece async for piece in held.open()] == [b"a", b"b", b"c", b"x" * 20]
    assert not held.complete


async def test_routes_have_policies_of_their_own() -> None:
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            heads.append(await peer.take_head())
            await peer.send(CHUNKED + chunk(b"data: x\n\n") + LAST_CHUNK)

    async with upstream(play) as up:
        rules = HeaderRules({"X-Key": "secret"}, drop=["X-Mine"])
        private = Policy(upstream=up.url + "/api", match=Match("/private"), request_headers=rules, log="none")
        relay = Relay(up.url, store="memory://", routes=[private])
        async with serve(relay) as url:
            kept = await fetch(url, "/e", more="X-Mine: 1\r\n")
            passed = await fetch(url, "/private/e", more="X-Mine: 1\r\n")
        assert kept.peer.has("penstock-stream")
        assert not passed.peer.has("penstock-stream")
        assert b"GET /e " in heads[0]
        assert b"x-mine: 1" in heads[0].lower()
        assert b"secret" not in heads[0]
        assert b"GET /api/private/e " in heads[1]
        assert b"x-mine" not in heads[1].lower()
        assert b"secret" in heads[1]


async def test_a_head_that_is_too_long_is_refused() -> None:
    async def play(peer: Peer) -> None:
        raise AssertionError("it went on")

    async with upstream(play) as up, serve(relayed(up.url, limits=RelayLimits(max_header_bytes=500))) as url:
        assert (await fetch(url, more=f"X-Long: {'x' * 600}\r\n")).status == 431


async def test_a_root_path_is_where_the_stream_is_found_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(CHUNKED + chunk(b"data: x\n\n") + LAST_CHUNK)

    async with upstream(play) as up, serve(relayed(up.url, root_path="/relay")) as url:
        answer = await fetch(url)
        assert answer.field("location") == f"/relay/_penstock/streams/{answer.stream}"
        again = await fetch(url, f"/_penstock/streams/{answer.stream}")
        assert again.field("location") == answer.field("location")
