"""A relay that goes by a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import penstock
from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.relay.app import Relay
from penstock.relay.settings.config import Config
from penstock.relay.settings.cors import Cors
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import OwnerFrom, Policy
from penstock.relay.settings.store import Store
from penstock.testing import serve
from tests.relay.peers import CHUNKED, upstream
from tests.relay.readers import fetch, saying, streams_of

pytestmark = pytest.mark.anyio

APP = "https://app.example.com"


async def test_without_a_default_a_request_that_no_route_is_for_is_404() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up:
        relay = Relay.configured(Config(routes=(Policy(upstream=up.url, match=Match("/v1", frozenset({"GET"}))),)))
        async with serve(relay) as url:
            assert (await fetch(url, "/v1/x")).status == 200
            for refused in (await fetch(url, "/v2"), await fetch(url, "/v1", "POST")):
                assert (refused.status, refused.problem["detail"]) == (404, "no route is for this request")
    with pytest.raises(RuntimeError, match=r"write one in \[defaults\]"):
        _ = relay.upstream


async def test_a_relay_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to relay to"):
        Relay.configured(Config())


async def test_a_file_is_read_and_its_mistakes_are_told(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('store = "none"\n[defaults]\nupstream = "http://localhost:9"\n')
    bad.write_text('workers = 0\n[defaults]\nupstream = "localhost"\n')
    relay = Relay.configured(good)
    assert (relay.upstream, relay.kept) == ("http://localhost:9", None)
    with pytest.raises(penstock.ConfigError, match="has 2 mistakes"):
        Relay.configured(str(bad))


async def test_the_store_keeps_what_the_configuration_says() -> None:
    retention = Retention(age=1.0, max_streams=7)
    relay = Relay.configured(Config(default=Policy(upstream="http://x"), retention=retention))
    assert relay.kept is not None
    assert isinstance(relay.kept.log, MemoryLog)
    assert relay.kept.log.retention == retention


async def test_owners_that_outlive_the_process_need_a_secret_that_does_too(tmp_path: Path) -> None:
    policy = Policy(upstream="http://x", owner=OwnerFrom("header", "x-user"))
    with pytest.raises(ValueError, match="configure a secret"):
        Relay.configured(Config(default=policy, store=Store(f"sqlite:///{tmp_path}/log.db")))


async def test_a_streams_address_asks_for_the_owner_of_its_own_route() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up:
        routes = tuple(
            Policy(upstream=up.url, match=Match(f"/{name}"), owner=OwnerFrom("header", f"x-{name}")) for name in "ab"
        )
        async with serve(Relay.configured(Config(routes=routes))) as url:
            first = await fetch(url, "/a", more="X-A: ann\r\n")
            address = f"/_penstock/streams/{first.stream}"
            again = await fetch(url, address, more="X-A: ann\r\n")
            assert (again.status, again.plain) == (200, first.plain)
            for stranger in ("X-B: ann\r\n", "X-A: bob\r\n", ""):
                assert (await fetch(url, address, more=stranger)).status == 404


async def test_a_made_up_secret_is_another_in_each_relay() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up:
        policy = Policy(upstream=up.url, owner=OwnerFrom("header", "x-user"))
        owners = set()
        for _ in range(2):
            relay = Relay.configured(Config(default=policy))
            async with serve(relay) as url:
                await fetch(url, more="X-User: ann\r\n")
                owners |= {info.owner for info in await streams_of(relay).log.streams()}
        assert len(owners) == 2


async def test_what_the_upstream_says_of_cors_goes_through_where_the_route_says_nothing() -> None:
    theirs = CHUNKED.replace(b"\r\n\r\n", b"\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
    asked = f"Origin: {APP}\r\n"
    async with upstream(saying(b"data: 1\n\n", head=theirs)) as up:
        silent = Policy(upstream=up.url)
        strict = Policy(upstream=up.url, match=Match("/strict"), cors=Cors(("https://other.example",)))
        async with serve(Relay.configured(Config(routes=(strict,), default=silent))) as url:
            assert (await fetch(url, "/x", more=asked)).field("access-control-allow-origin") == "*"
            assert (await fetch(url, "/strict", more=asked)).field("access-control-allow-origin") is None
            preflight = asked + "Access-Control-Request-Method: GET\r\n"
            assert (await fetch(url, "/strict", "OPTIONS", preflight)).status == 403
            passed = await fetch(url, "/x", "OPTIONS", preflight)
            assert (passed.status, passed.plain) == (200, b"data: 1\n\n")
            assert (await fetch(url, "/_penstock/client.js", "OPTIONS", preflight)).status == 403


async def test_a_route_is_found_below_where_the_relay_is_mounted() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up:
        relay = Relay.configured(Config(routes=(Policy(upstream=up.url, match=Match("/v1")),)))
        async with serve(Starlette(routes=[Mount("/api", relay)], lifespan=relay.lifespan)) as url:
            assert (await fetch(url, "/api/v1/x")).status == 200
            assert (await fetch(url, "/api/x")).status == 404
            assert b"export" in (await fetch(url, "/api/_penstock/client.js")).body
