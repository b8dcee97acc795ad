"""What the operator's listener answers; the page itself is looked at in tests/e2e/test_page.py."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from penstock.relay.app import Relay
from penstock.relay.operator.admin import Admin
from penstock.testing import serve
from tests.e2e.held import EVENTS, Held, held
from tests.e2e.process import PATIENCE, eventually
from tests.relay.operator.page.relayed import Relayed, relayed
from tests.relay.readers import fetch


@pytest.fixture(scope="module")
def serving() -> Iterator[tuple[Held, Relayed]]:
    with held() as upstream, relayed(upstream.url) as running:
        yield upstream, running


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.headers, refusal.read()


def listed(relay: Relayed) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask(f"{relay.admin}/_penstock/streams")[2])["streams"]
    return found


def test_when_the_first_event_came_is_known_after_the_end_too() -> None:
    with held() as upstream, relayed(upstream.url) as relay:
        with urllib.request.urlopen(f"{relay.public}/events", timeout=PATIENCE) as response:
            [stream] = listed(relay)
            assert (stream["state"], stream["events"], stream["first_event"]) == ("running", 0, None)
            upstream.says(3)
            stream = eventually(lambda: next((each for each in listed(relay) if each["events"] == 3), None), "3 events")
            first = stream["first_event"]
            assert 0 < first <= stream["duration"]
            assert stream["readers"] == 1
            upstream.says(EVENTS)
            assert response.read().count(b"data:") == EVENTS
        stream = eventually(lambda: next((each for each in listed(relay) if each["state"] == "ended"), None), "an end")
        assert (stream["reason"], stream["events"], stream["first_event"]) == ("done", EVENTS, first)
        metrics = eventually(
            lambda: (
                told
                if b'ended_total{reason="done"} 1.0' in (told := ask(f"{relay.admin}/_penstock/metrics")[2])
                else b""
            ),
            "its end in the metrics",
        )
        assert b"penstock_relay_first_event_seconds_count 1.0" in metrics


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_penstock/", 200),
        ("GET", "/_penstock/page.js", 200),
        ("GET", "/_penstock/info", 200),
        ("GET", "/_penstock/streams", 200),
        ("GET", "/_penstock/metrics", 200),
        ("GET", "/_penstock/ready", 200),
        ("GET", "/_penstock/nothing", 404),
        ("GET", "/_penstock/../admin.py", 404),
        ("GET", "/_penstock/%2e%2e/admin.py", 404),
        ("POST", "/_penstock/info", 405),
        ("DELETE", "/_penstock/streams/nobody", 404),
        ("GET", "/elsewhere", 404),
    ],
)
def test_every_answer_is_safe_in_a_browser(serving: tuple[Held, Relayed], method: str, path: str, status: int) -> None:
    code, fields, _ = ask(f"{serving[1].admin}{path}", method)
    assert code == status
    said = fields["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"} <= set(said)
    assert "trusted-types" in said, "with no policy by which a text could become a script"
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cross-origin-resource-policy"] == "same-origin"
    assert fields.get_all("cache-control") == ["no-store"]
    assert fields["access-control-allow-origin"] is None


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:9", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("evil.test", 400), ("127.0.0.1.evil.test:80", 400)],
)
def test_a_name_that_was_made_to_point_here_is_not_answered(
    serving: tuple[Held, Relayed], host: str, status: int
) -> None:
    assert ask(f"{serving[1].admin}/_penstock/streams", Host=host)[0] == status


def test_a_stream_is_stopped_once(serving: tuple[Held, Relayed]) -> None:
    upstream, relay = serving
    upstream.says(1)
    with urllib.request.urlopen(f"{relay.public}/events", timeout=PATIENCE) as response:
        stream = f"{relay.admin}/_penstock/streams/{response.headers['penstock-stream']}"
        assert ask(stream, "DELETE")[0] == 204
        with pytest.raises(http.client.IncompleteRead) as broken:
            response.read()
        assert b"event: penstock.error" in broken.value.partial
    ended = eventually(lambda: next((each for each in listed(relay) if each["reason"] == "cancelled"), None), "its end")
    assert ended["id"] in stream
    assert ask(stream, "DELETE")[0] == 409


@pytest.mark.anyio
async def test_a_store_that_does_not_tell_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database, and never was one" * 100)
    relay = Relay("http://up.test", store=f"sqlite:///{path}")
    assert relay.kept is not None
    async with serve(Admin(relay.kept, relay.routes, public="", store="sqlite", hosts=["reader.test"])) as url:
        for method, target in (("GET", ""), ("DELETE", "/" + "A" * 22)):
            answer = await fetch(url, f"/_penstock/streams{target}", method)
            assert answer.status == 503
            assert "log.db" in answer.problem["detail"]
            assert answer.field("cache-control") == "no-store"
