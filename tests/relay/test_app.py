"""The relay as an application of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from penstock.errors import InvalidURL
from penstock.relay.app import Relay
from penstock.testing import serve
from tests.relay.peers import (
    SERVERS,
    Peer,
    Serve,
    answering,
    ask,
    dial,
    response,
    upstream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest) -> Serve:
    return SERVERS[request.param]


# -- a gateway


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x", "http://", "http://x:0", "/path"])
async def test_an_upstream_that_is_none_is_told_at_once(url: str) -> None:
    with pytest.raises(InvalidURL):
        Relay(url)


async def test_a_header_that_no_request_can_carry_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="X-A"):
        Relay("http://x", headers={"X-A": "1\n2"})


async def test_a_relay_that_points_at_itself_finds_the_loop() -> None:
    entries: list[Scope] = []
    relays: list[Relay] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entries.append(scope)
        await relays[0](scope, receive, send)

    async with serve(app) as url:
        relays.append(Relay(url))
        async with relays[0].lifespan():
            reader, body = await ask(url, method="POST", body=b"around")
            assert reader.status == 508
            assert "came back" in reader.problem(body)["detail"]
            assert len([scope for scope in entries if scope["type"] == "http"]) == 2


async def test_two_relays_in_a_row_are_no_loop() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as inner, serve(Relay(inner)) as outer:
        reader, _ = await ask(outer)
        assert reader.status == 200
        (via,) = up.peers[0].all("via")
        assert len(via.split(", ")) == 2


UPGRADE = "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"


async def test_a_websocket_is_refused() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{UPGRADE}\r\n".encode())
        await reader.take_head()
        assert reader.status == 501
        assert not up.peers


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_a_websocket_that_a_server_offers_as_one_is_refused(extensions: dict[str, Any]) -> None:
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        said.append(message)

    await Relay("http://x")({"type": "websocket", "path": "/", "headers": [], "extensions": extensions}, receive, send)
    if extensions:
        assert said[0] == {"type": "websocket.http.response.start", "status": 501, "headers": []}
        assert json.loads(said[1]["body"])["status"] == 501
    else:
        assert said[0]["type"] == "websocket.close"


async def test_another_upgrade_is_ignored() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url:
        reader, body = await ask(url, more="Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")
        assert (reader.status, body) == (200, b"ok")
        assert not up.peers[0].has("upgrade")
        assert not up.peers[0].has("http2-settings")


async def test_a_mounted_relay_hides_where_it_is_from_the_upstream_but_not_from_the_reader() -> None:
    async with upstream(answering(response(more="Location: /v1/next\r\n", status="302 Found"))) as up:
        relay = Relay(up.url + "/v1")
        async with serve(Starlette(routes=[Mount("/api", relay)], lifespan=relay.lifespan)) as url:
            reader, _ = await ask(url, "/api/a%2Fb?q=1")
            assert up.peers[0].head.startswith(b"GET /v1/a%2Fb?q=1 HTTP/1.1\r\n")
            assert reader.all("location") == ["/api/next"]


async def test_credentials_in_the_upstreams_url_are_not_in_the_host() -> None:
    async with (
        upstream(answering(response())) as up,
        serve(Relay(up.url.replace("http://", "http://user:s3cret@"))) as url,
    ):
        await ask(url)
        assert up.peers[0].all("host") == [up.url.removeprefix("http://")]
        assert b"s3cret" not in up.peers[0].head


async def test_the_lifespan_closes_the_upstreams_connections(served: Serve) -> None:
    closed = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(response())
        await peer.gone()
        closed.set()

    async with upstream(play) as up:
        async with served(Relay(up.url)) as url:
            await ask(url)
            assert not closed.is_set()
        async with asyncio.timeout(20):
            await closed.wait()


async def test_an_application_can_be_started_again() -> None:
    async with upstream(answering(response())) as up:
        app = Relay(up.url)
        for _ in range(2):
            async with serve(app) as url:
                assert (await ask(url))[0].status == 200
