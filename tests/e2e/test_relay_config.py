"""`penstock relay` by a file, with an operator's side and pages of other origins: real processes."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import PATIENCE, Server, eventually, penstock

pytestmark = pytest.mark.e2e

APP = "https://app.example.com"

CONFIG = """
[[routes]]
path = "/events"
upstream = "{url}"
owner = "header:X-User"
on_disconnect = "detach"
response_headers.add = {{ X-Route = "events" }}
cors = {{ origins = ["https://app.example.com"], credentials = true }}

[[routes]]
path = "/generate"
methods = ["GET"]
upstream = "{url}"
log = "none"
response_headers.add = {{ X-Route = "generate" }}
"""


def ask(url: str, method: str = "GET", **headers: str) -> Any:
    """The answer, an error's too."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, None, named, method=method), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        return error


@pytest.fixture
def relay(serve: Serve, origin: Server, tmp_path: Path) -> Server:
    file = tmp_path / "relay.toml"
    file.write_text(CONFIG.format(url=origin.url))
    return serve("relay", "--config", file, "--admin-listen", "127.0.0.1:0")


def test_each_request_goes_by_its_route_and_others_are_404(relay: Server) -> None:
    with ask(f"{relay.url}/generate?chunks=2&interval=0") as passed:
        assert passed.headers["x-route"] == "generate"
        assert passed.headers["penstock-stream"] is None
    for stranger in (ask(f"{relay.url}/file"), ask(f"{relay.url}/generate", "POST")):
        with stranger:
            assert stranger.status == 404
            assert json.load(stranger)["detail"] == "no route is for this request"


def test_a_stream_of_a_route_is_resumed_by_its_owner_alone(relay: Server) -> None:
    with ask(f"{relay.url}/events?count=5&interval=0", X_User="ann") as first:
        assert first.headers["x-route"] == "events"
        stream = f"{relay.url}{first.headers['location']}"
        whole = first.read()
    with ask(stream, X_User="ann") as again:
        assert again.read() == whole
    for stranger in (ask(stream), ask(stream, X_User="bob")):
        with stranger:
            assert stranger.status == 404


def test_the_operator_sees_what_runs_and_counts_what_ended(relay: Server) -> None:
    admin = relay.listening["admin"]
    with ask(f"{relay.url}/events?count=3&interval=0", X_User="ann") as first:
        stream = first.headers["penstock-stream"]
        first.read()
    with ask(f"{admin}/_penstock/streams") as listed:
        [shown] = json.load(listed)["streams"]
    assert (shown["id"], shown["reason"], shown["events"]) == (stream, "done", 3)

    def counted() -> bool:
        with ask(f"{admin}/_penstock/metrics") as metrics:
            return 'penstock_relay_streams_ended_total{reason="done"} 1.0' in metrics.read().decode()

    eventually(counted, "count of the stream")
    with ask(f"{admin}/_penstock/info") as info:
        told = json.load(info)
    assert (told["public"], told["store"], told["promise"]) == (relay.url, "memory://", "fast")
    with ask(f"{admin}/_penstock/") as page:
        assert b"<!doctype html>" in page.read()
        assert "script-src 'self'" in page.headers["content-security-policy"]


def test_the_operator_stops_a_stream_of_anybody(relay: Server) -> None:
    admin = relay.listening["admin"]
    with ask(f"{relay.url}/events?count=100000&interval=0.01", X_User="ann") as endless:
        endless.readline()
        with ask(f"{admin}/_penstock/streams/{endless.headers['penstock-stream']}", "DELETE") as stopped:
            assert stopped.status == 204
        assert b"penstock.error" in b"".join(iter(lambda: _line(endless), b""))


def _line(response: Any) -> bytes:
    """A line; nothing once the answer has been broken off."""
    try:
        line: bytes = response.readline()
    except OSError:
        return b""
    return line


def test_the_operators_side_is_for_no_page_that_was_sent_there_by_name(relay: Server) -> None:
    admin = relay.listening["admin"]
    for host, status in (("evil.example", 400), ("localhost:1", 200), ("10.1.2.3:9090", 200)):
        with ask(f"{admin}/_penstock/health", Host=host) as answer:
            assert answer.status == status
    with ask(f"{relay.url}/_penstock/metrics") as hidden:
        assert hidden.status == 404


def test_the_operators_side_says_which_methods_there_are(relay: Server) -> None:
    for path in ("", "page.js", "metrics", "info"):
        with ask(f"{relay.listening['admin']}/_penstock/{path}", "PUT") as refused:
            assert refused.status == 405
            assert sorted(refused.headers["allow"].split(", ")) == ["GET", "HEAD"]


def test_the_operators_page_may_read_and_stop_streams(relay: Server) -> None:
    page = relay.listening["admin"]
    asks = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "last-event-id"}
    with ask(f"{relay.url}/generate", "OPTIONS", Origin=page, **asks) as allowed:
        assert allowed.status == 204
        assert allowed.headers["access-control-allow-origin"] == page
    with ask(f"{relay.url}/_penstock/streams/x", "OPTIONS", Origin=page, **asks) as ours:
        assert "DELETE" in ours.headers["access-control-allow-methods"]
    with ask(f"{relay.url}/generate?chunks=1&interval=0", Origin=page) as read:
        assert read.headers["access-control-allow-origin"] == page


def test_pages_of_the_origins_that_a_route_names_may_read_it_and_no_others(relay: Server) -> None:
    asks = {"Access_Control_Request_Method": "GET"}
    target = f"{relay.url}/events?count=1&interval=0"
    with ask(target, "OPTIONS", Origin=APP, **asks) as allowed:
        assert allowed.status == 204
        assert allowed.headers["access-control-allow-origin"] == APP
        assert allowed.headers["access-control-allow-credentials"] == "true"
        assert "last-event-id" in allowed.headers["access-control-allow-headers"]
        assert allowed.headers["access-control-max-age"] == "600"
    with ask(target, "OPTIONS", Origin="https://evil.example", **asks) as refused:
        assert refused.status == 403
        assert refused.headers["access-control-allow-origin"] is None
    with ask(target, Origin=APP, X_User="ann") as read:
        assert read.headers["access-control-allow-origin"] == APP
        assert "penstock-stream" in read.headers["access-control-expose-headers"]
        assert read.headers["vary"] == "Origin"
        stream = f"{relay.url}{read.headers['location']}"
    with ask(stream, Origin=APP, X_User="ann") as resumed:
        assert (resumed.status, resumed.headers["access-control-allow-origin"]) == (200, APP)
    with ask(f"{relay.url}/generate?chunks=1&interval=0", Origin=APP) as other:
        assert other.headers["access-control-allow-origin"] is None


def test_the_browsers_module_is_served_and_known_again(relay: Server) -> None:
    with ask(f"{relay.url}/_penstock/client.js") as module:
        assert module.headers["content-type"] == "text/javascript; charset=utf-8"
        assert module.headers["x-content-type-options"] == "nosniff"
        assert b"export" in module.read()
        tag = module.headers["etag"]
    with ask(f"{relay.url}/_penstock/client.js", If_None_Match=tag) as same:
        assert (same.status, same.read()) == (304, b"")
    with ask(f"{relay.url}/_penstock/client.js", "POST") as wrong:
        assert wrong.status == 405


def is_draining(url: str) -> bool:
    with ask(f"{url}/_penstock/ready") as ready:
        return bool(ready.status == 503)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_relay_that_drains_is_not_ready_and_still_resumes(
    serve: Serve, origin: Server, tmp_path: Path, store: str
) -> None:
    where = "memory://" if store == "memory" else f"sqlite:///{tmp_path / 'log.db'}"
    relay = serve("relay", origin.url, "--grace", "60", "--store", where, "--admin-listen", "127.0.0.1:0")
    with ask(f"{relay.url}/_penstock/ready") as ready:
        assert ready.status == 200
    with ask(f"{relay.url}/events?count=100000&interval=0.01") as running:
        first = running.readline()
        stream = f"{relay.url}{running.headers['location']}"
        relay.kill(signal.SIGTERM)
        for url in (relay.url, relay.listening["admin"]):
            eventually(partial(is_draining, url), "end of being ready")
        with ask(stream) as resumed:
            assert resumed.readline() == first
        with ask(f"{relay.url}/events?count=1") as late:
            assert late.status == 503
        assert ask(f"{relay.url}/_penstock/health").status == 200
        relay.kill(signal.SIGTERM)
    assert relay.ended() == 143
    assert "Traceback" not in relay.err


def test_the_banner_says_what_is_kept_and_promised(serve: Serve, start: Any, closed_port: str) -> None:
    relay = start("relay", closed_port, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    assert relay.said("penstock relay on http://127.0.0.1:").endswith(f" to {closed_port}")
    relay.said("shows the operator its page, streams and metrics on http://127.0.0.1:")
    relay.said("keeps streams in memory, and loses them with the process")
    relay.said("read again by whoever has a stream's id")
    relay.kill(signal.SIGTERM)
    assert relay.ended() == 143
    assert relay.out == ""


def test_a_store_that_cannot_be_opened_is_told_before_anything_is_served(tmp_path: Path) -> None:
    where = tmp_path / "no-folder" / "log.db"
    done = penstock("relay", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--store", f"sqlite:///{where}")
    assert (done.code, done.out) == (1, "")
    assert "no-folder" in done.err
    assert "Traceback" not in done.err
