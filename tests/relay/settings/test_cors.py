"""What pages of other origins are told, by the table of a route's Cors."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.relay.settings.cors import Cors, allowed, exposed, preflight, replaced

APP = "https://app.example.com"


@pytest.mark.parametrize(
    ("cors", "told"),
    [
        (Cors((APP,)), [(b"access-control-allow-origin", APP.encode()), (b"vary", b"Origin")]),
        (Cors(("*",)), [(b"access-control-allow-origin", b"*")]),
        (
            Cors((APP,), credentials=True),
            [
                (b"access-control-allow-origin", APP.encode()),
                (b"vary", b"Origin"),
                (b"access-control-allow-credentials", b"true"),
            ],
        ),
    ],
)
def test_an_origin_is_named_unless_anyone_may_read(cors: Cors, told: list[tuple[bytes, bytes]]) -> None:
    assert allowed(cors, APP) == told


def test_a_preflight_tells_what_may_be_sent_and_for_how_long() -> None:
    fields = dict(preflight(Cors((APP,), headers=("X-Mine",), max_age=60.5), APP, "POST"))
    assert fields[b"access-control-allow-methods"] == b"POST"
    assert {b"last-event-id", b"x-mine"} <= set(fields[b"access-control-allow-headers"].split(b", "))
    assert fields[b"access-control-max-age"] == b"60"


def test_a_page_reads_where_its_stream_is() -> None:
    [(name, value)] = exposed(Cors((APP,), expose=("X-Cost",)))
    assert name == b"access-control-expose-headers"
    assert {b"location", b"penstock-stream", b"x-cost"} <= set(value.split(b", "))


def test_what_the_upstream_says_gives_way() -> None:
    theirs = [(b"access-control-allow-origin", b"*"), (b"content-type", b"text/plain"), (b"vary", b"Accept")]
    assert replaced(theirs, [(b"vary", b"Origin")]) == [*theirs[1:], (b"vary", b"Origin")]


def test_cors() -> None:
    cors = Cors(("https://app.test", "http://localhost:3000"), credentials=True, headers=("X-Mine", "Accept"))
    assert cors.allows("https://app.test")
    assert not cors.allows("https://app.test.evil.test")
    assert not cors.allows("null")
    assert cors.headers[-1] == "x-mine"
    assert "last-event-id" in cors.headers
    assert {"penstock-stream", "location"} <= set(cors.expose)
    assert len(set(cors.headers)) == len(cors.headers)
    assert Cors(("*",)).allows("https://any.test")


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        ("app.test", ""),
        ("null", ""),
        ("", ""),
        ("https://app.test/", "https://app.test"),
        ("https://App.test", "https://app.test"),
        ("https://app.test:443", "https://app.test"),
        ("http://app.test:80/x", "http://app.test"),
        ("https://u:p@app.test", "https://app.test"),
        ("https://*.app.test/", ""),
        ("https://app.test:x", ""),
    ],
)
def test_origins_that_no_browser_sends(origin: str, hint: str) -> None:
    with pytest.raises(ValueError, match="is not an origin") as refused:
        Cors((origin,))
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        {"origins": ()},
        {"origins": ("*",), "credentials": True},
        {"origins": ("*", "https://a.test")},
        {"origins": ("https://a.test",), "headers": ("a b",)},
        {"origins": ("https://a.test",), "expose": ("a\r\nb",)},
        {"origins": ("https://a.test",), "max_age": -1},
    ],
)
def test_cors_that_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Cors(**said)
