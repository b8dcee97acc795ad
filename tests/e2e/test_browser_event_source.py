"""A browser's own EventSource through `penstock relay`: cut, drained and handed over, and sent home at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from penstock.testing import serve as served
from tests.e2e.browser import Browser
from tests.e2e.conftest import Serve
from tests.e2e.fault_proxy import Leg, Passage, Plan, Proxy, fault_proxy
from tests.e2e.process import PATIENCE, Server, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(120)]

CLOSED = 2
COUNT = 40

# One EventSource for each URL that the page is asked for with, and all that it has been told.
PAGE = """<!doctype html>
<title>EventSource</title>
<link rel="icon" href="data:,">
<script>
  window.sources = new URLSearchParams(location.search).getAll("url").map((url) => {
    const source = new EventSource(url);
    const told = { source, data: [], opens: 0, errors: 0, said: [] };
    source.onopen = () => { told.opens += 1; };
    source.onerror = () => { told.errors += 1; };
    source.onmessage = ({ data }) => told.data.push(JSON.parse(data).n);
    source.addEventListener("penstock.error", ({ data }) => told.said.push(JSON.parse(data).error.type));
    return told;
  });
</script>
"""

CONFIG = """
admin_listen = "127.0.0.1:0"
store = "{store}"
grace = "{grace}"

[defaults]
upstream = "{upstream}"
owner = "none"
ids = "ours"
cors = {{ origins = ["{site}"] }}
"""


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as running:
        yield running


@pytest.fixture(scope="module")
def site(portal: BlockingPortal) -> Iterator[str]:
    """The page's own origin."""
    app = Starlette(routes=[Route("/", lambda request: HTMLResponse(PAGE))])
    with portal.wrap_async_context_manager(served(app)) as url:
        yield url


@contextlib.contextmanager
def proxied(portal: BlockingPortal, target: str, *plans: Plan) -> Iterator[Proxy]:
    with portal.wrap_async_context_manager(fault_proxy(target, *plans)) as proxy:
        yield proxy


def open_sources(browser: Browser, site: str, *urls: str) -> None:
    browser.open(f"{site}/?{urlencode([('url', url) for url in urls])}")


def told(browser: Browser, source: int = 0) -> dict[str, Any]:
    """What an EventSource has been told so far, and its state."""
    found: dict[str, Any] = browser.run(
        "(({ source, ...told }) => ({ ...told, state: source.readyState }))(window.sources[arguments[0]])", source
    )
    return found


def begun(browser: Browser, source: int) -> None:
    browser.until(lambda: len(told(browser, source)["data"]) >= 5, "events")


def closed(browser: Browser, source: int = 0) -> dict[str, Any]:
    """Wait until an EventSource has given up, which only a 204 may make it do; what it was told."""
    browser.until(lambda: told(browser, source)["state"] == CLOSED, "an end", 3 * PATIENCE)
    return told(browser, source)


def requests(passages: list[Passage]) -> list[bytes]:
    """The requests that went through, each with its fields."""
    heads = b"".join(bytes(passage.up) for passage in passages).split(b"\r\n\r\n")
    return [head for head in heads if head.startswith(b"GET ")]


def streams(relay: Server) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{relay.listening['admin']}/_penstock/streams", timeout=PATIENCE) as response:
        listed: list[dict[str, Any]] = json.load(response)["streams"]
    return listed


def test_it_is_cut_three_times_and_shows_every_event_once(
    shared: Browser, portal: BlockingPortal, site: str, serve: Serve, origin: Server, tmp_path: Path
) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(CONFIG.format(store="memory://", grace="1s", upstream=origin.url, site=site))
    relay = serve("relay", "--config", config)
    cuts = (
        Plan(down=Leg("reset", (b"\ndata:", 5))),
        Plan(down=Leg("cut", (b"\ndata: {", 5))),  # in the middle of an event
        Plan(down=Leg("reset", (b"\nid:", 5))),
    )
    with proxied(portal, relay.url, *cuts) as proxy:
        open_sources(shared, site, f"{proxy.url}/events?count={COUNT}&interval=0.05")
        heard = closed(shared)
        assert heard["data"] == list(range(1, COUNT + 1))
        assert [passage.harmed for passage in proxy.passages[:3]] == [True] * 3
        assert (heard["opens"], heard["errors"]) == (4, 5), "three cuts, the end, and the 204"
        asked = requests(proxy.passages)
        assert [b"last-event-id: " in head.lower() for head in asked] == [False, True, True, True, True]
        assert bytes(proxy.passages[-1].down).count(b"HTTP/1.1 204") == 1
        [stream] = streams(relay)
        assert (stream["events"], stream["reason"]) == (COUNT, "done"), "the upstream was asked once"
        # An EventSource of the same relay comes and goes: the first one has long had its time to come back.
        open_other = "window.sources.push({ source: new EventSource(arguments[0]), data: [] })"
        shared.run(open_other, f"{relay.url}/events?count=1")
        browser_state = "window.sources[1].source.readyState"
        shared.until(lambda: shared.run(browser_state) == CLOSED, "the end of another", 3 * PATIENCE)
        assert len(requests(proxy.passages)) == len(asked)
    shared.complaints()


def test_a_drained_relay_hands_it_over(
    shared: Browser, portal: BlockingPortal, site: str, serve: Serve, origin: Server, tmp_path: Path
) -> None:
    config = tmp_path / "relay.toml"
    store = f"sqlite:///{tmp_path / 'streams.db'}"
    config.write_text(CONFIG.format(store=store, grace="8s", upstream=origin.url, site=site))
    first, second = serve("relay", "--config", config), serve("relay", "--config", config)
    with proxied(portal, first.url) as proxy:
        finite, endless = f"/events?count={COUNT}&interval=0.05", "/events?count=100000&interval=0.05"
        # One is cut in the drain and comes back to the other relay; one stays to its end; one has none in time.
        open_sources(shared, site, *(f"{proxy.url}{path}" for path in (finite, f"{finite}&a=stays", endless)))
        for source in range(3):
            begun(shared, source)
        proxy.target = second.url
        first.kill(signal.SIGTERM)
        eventually(lambda: not ready(first), "a drain")
        assert ready(second)
        leaving = next(each for each in proxy.passages if finite.encode() + b" " in each.up)
        portal.call(leaving.do, "reset")
        for source in (0, 1):
            heard = closed(shared, source)
            assert (heard["data"], heard["said"]) == (list(range(1, COUNT + 1)), [])
        heard = closed(shared, 2)
        assert heard["said"] == ["cancelled"], "told once that the stream has ended, and how"
        assert heard["data"] == list(range(1, len(heard["data"]) + 1))
        assert first.ended() == 143
        ends = {(each["reason"], each["events"]) for each in streams(second)}
        assert ends == {("done", COUNT), ("cancelled", len(heard["data"]))}
        assert len(streams(second)) == 3, "the second has asked the upstream for nothing"
    shared.complaints()


def ready(relay: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{relay.url}/_penstock/ready", timeout=PATIENCE) as response:
            return bool(response.status == 200)
    except OSError:
        return False
