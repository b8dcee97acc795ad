"""What pages of other origins are told, by the table of a route's Cors."""

from __future__ import annotations

import pytest

from penstock.relay.cors import allowed, exposed, preflight, replaced
from penstock.relay.policy import Cors

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
