"""What the relay believes of what readers and proxies say, and what it passes on of it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from penstock.relay.settings.policy import Policy
from penstock.testing import serve
from tests.relay.peers import Peer, answering, ask, response, upstream
from tests.relay.readers import asking, fetch, rest_of, saying, streams_of
from tests.relay.test_gateway import FIVE, began, relayed, relaying

pytestmark = pytest.mark.anyio

FORWARDED = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\n"


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        ([], ["127.0.0.1", "http", "reader.test"]),
        (["10.0.0.0/8"], ["127.0.0.1", "http", "reader.test"]),
        (["127.0.0.0/8"], ["192.0.2.1, 127.0.0.1", "https", "shop.test"]),
    ],
)
async def test_who_forwards_is_believed_if_it_is_trusted(networks: list[str], told: list[str]) -> None:
    trusted = tuple(ip_network(network) for network in networks)
    async with upstream(answering(response())) as up, serve(relayed(up.url, trusted_proxies=trusted)) as url:
        await ask(url, more=FORWARDED)
        seen = [up.peers[0].all(f"x-forwarded-{name}") for name in ("for", "proto", "host")]
        assert seen == [[each] for each in told]


async def test_an_id_of_the_upstreams_goes_to_the_upstream_and_its_ids_are_left_alone() -> None:
    events = [b"id: %d\ndata: x\n\n" % number for number in (8, 9)]
    async with upstream(saying(*events)) as up, serve(relayed(up.url)) as url:
        answer = await fetch(url, more="Accept: text/event-stream\r\nLast-Event-ID: 7\r\n")
        assert up.peers[0].all("last-event-id") == ["7"]
        assert (answer.body, answer.whole) == (b"".join(events), True)
        assert (await fetch(url, f"/_penstock/streams/{answer.stream}?after=1")).body == events[1]


async def test_without_owners_an_idempotency_key_is_the_upstreams_alone() -> None:
    key = "Idempotency-Key: k\r\n"
    async with relaying() as (url, up, relay), asking(url, "/e", "POST", key, b"one") as first:
        call = await up.call()
        await began(call, first, "mid-stream")
        async with asking(url, "/e", "POST", key, b"one") as second:
            other = await up.call(1)
            await began(other, second, "mid-stream")
            assert first.all("penstock-stream") != second.all("penstock-stream")
            assert [each.peer.all("idempotency-key") for each in up.calls] == [["k"], ["k"]]
            assert {info.key for info in await streams_of(relay).log.streams()} == {None}
            for each, reader in ((call, first), (other, second)):
                await each.end()
                assert (await rest_of(reader)).whole


async def test_a_redirect_is_the_readers_to_follow_with_its_own_credentials() -> None:
    async with upstream(answering(response())) as elsewhere:

        async def play(peer: Peer) -> None:
            await peer.take_head()
            await peer.send(response(b"", f"Location: {elsewhere.url}/x\r\n", "307 Temporary Redirect"))

        async with upstream(play) as up, serve(relayed(up.url)) as url:
            answer = await fetch(url, more="Authorization: Bearer secret\r\n")
            assert (answer.status, answer.field("location")) == (307, f"{elsewhere.url}/x")
            assert up.peers[0].all("authorization") == ["Bearer secret"]
        assert elsewhere.peers == []


async def test_ids_of_ours_are_for_the_relay_and_not_for_the_upstream() -> None:
    async with upstream(saying(*FIVE)) as up, serve(relayed(up.url, routes=[Policy(upstream=up.url)])) as url:
        first = await fetch(url)
        again = await fetch(url, more=f"Last-Event-ID: {first.ids[2]}\r\n")
        assert again.plain == b"".join(FIVE[3:])
        assert len(up.peers) == 1
