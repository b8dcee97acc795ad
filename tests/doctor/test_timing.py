"""What arrival times are taken for, with an upstream and without."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from penstock.doctor.findings import Examination
from penstock.doctor.probe import Item, Piece, Probe
from penstock.doctor.timing import timing
from tests.doctor.heard import AT_ONCE, STEADY, events


def found(through: Probe, upstream: Probe | None = None) -> list[str]:
    return [f"{each.kind} {each.severity}" for each in timing(Examination(through, upstream=upstream))]


def later(instants: Sequence[float], by: float) -> list[float]:
    return [at + by for at in instants]


def in_batches(every: float) -> list[float]:
    return [every * (int(at / every) + 1) for at in STEADY]


@pytest.mark.parametrize(
    ("through", "expected"),
    [
        pytest.param(events(STEADY), [], id="as sent"),
        pytest.param(events(later(STEADY, 0.2)), [], id="a far server"),
        pytest.param(events([1.3 * at for at in STEADY]), [], id="a server that was slower this time"),
        pytest.param(events(AT_ONCE), ["buffered problem"], id="all at once at the end"),
        pytest.param(events([1.2] * 12 + STEADY[12:]), ["buffered problem"], id="the first part at once"),
        pytest.param(events(in_batches(0.4)), ["coalesced warning"], id="in batches"),
        pytest.param(events(later(STEADY, 1.5)), ["delayed warning"], id="late, but flowing"),
        pytest.param(events([], ended="bounded", ended_at=10.0), ["buffered problem"], id="nothing at all"),
        pytest.param(Probe("", ended_at=10.0), ["buffered problem"], id="not even headers"),
    ],
)
def test_against_an_upstream(through: Probe, expected: list[str]) -> None:
    assert found(through, events(STEADY)) == expected


def test_a_hiccup_of_the_machine_is_no_buffer() -> None:
    draw = random.Random(1)
    for _ in range(50):
        stalled = draw.uniform(0, 2)
        hiccup = [max(at, stalled + 0.25) if stalled <= at else at for at in STEADY]
        assert found(events(hiccup), events(STEADY)) == []


def test_an_upstream_that_shows_no_rhythm_is_no_measure() -> None:
    assert found(events(AT_ONCE), events(AT_ONCE)) == ["cannot-tell note"]
    assert found(events([2.0]), events([0.1])) == ["cannot-tell note"]


def test_a_live_feed_is_not_laid_on_itself() -> None:
    upstream = events(STEADY)
    others = [Item(item.at, f"other {item.text}", f"9{item.id}") for item in events(AT_ONCE).items]
    # It came at once in the second run: that may be the feed's doing, and is said with less certainty.
    assert found(events(AT_ONCE, items=tuple(others)), upstream) == ["buffered warning"]
    flowing = [Item(item.at, f"other {item.text}", f"9{item.id}") for item in upstream.items]
    assert found(events(STEADY, items=tuple(flowing)), upstream) == []


def test_ids_of_a_relays_own_do_not_make_another_stream() -> None:
    renamed = tuple(Item(item.at, item.text, f"relay-{item.id}") for item in events(AT_ONCE).items)
    assert found(events(AT_ONCE, items=renamed), events(STEADY)) == ["buffered problem"]


CLOCKED = [f"[12:00:{at:06.3f}]" for at in STEADY]


@pytest.mark.parametrize(
    ("through", "expected"),
    [
        pytest.param(events(STEADY), [], id="as sent"),
        pytest.param(events(AT_ONCE), ["buffered warning"], id="all at once after a silence"),
        pytest.param(events(AT_ONCE, texts=CLOCKED), ["buffered problem"], id="at once, and sent over time"),
        pytest.param(events(later(STEADY, 3.0), texts=CLOCKED), [], id="late, and sent over time"),
        pytest.param(events(in_batches(0.4), texts=CLOCKED), ["coalesced warning"], id="in batches, sent over time"),
        pytest.param(events(in_batches(1.0), texts=CLOCKED), ["buffered problem"], id="in two, sent over time"),
        pytest.param(events(in_batches(0.4)), ["coalesced warning"], id="in batches"),
        pytest.param(events([0.1] * 20), ["cannot-tell note"], id="at once, without a silence"),
        pytest.param(events([3.0]), ["cannot-tell note"], id="one event"),
        pytest.param(events([0.1, 3.0, 3.0, 3.0, 3.1, 7.0, 7.0]), [], id="batches of a server's own rhythm"),
        pytest.param(events([], ended="bounded", ended_at=10.0), ["buffered warning"], id="nothing within the bound"),
        pytest.param(events([], ended="complete"), ["cannot-tell note"], id="an empty body"),
        pytest.param(events([], status=204), ["cannot-tell note"], id="nothing to say"),
        pytest.param(Probe("", ended_at=10.0), ["buffered warning"], id="not even headers"),
        pytest.param(
            events(STEADY, headers={"content-length": "400", "transfer-encoding": None}),
            ["buffered warning"],
            id="a length that no stream can know",
        ),
        pytest.param(
            events(STEADY, pieces=tuple(Piece(at, 4096, 4, cut=True) for at in (0.5, 1.0, 1.5, 2.0))),
            ["coalesced warning"],
            id="cut where a buffer was full",
        ),
    ],
)
def test_alone(through: Probe, expected: list[str]) -> None:
    assert found(through) == expected


def test_only_an_event_stream_is_known_to_be_live() -> None:
    page = events(STEADY, unit="line", headers={"content-type": "text/plain", "content-length": "400"})
    assert found(page) == []


def test_a_fast_stream_is_one_long_burst_and_no_batches() -> None:
    fast = [0.002 * number for number in range(500)]
    assert found(events(fast)) == []
    assert found(events(fast), events(fast)) == []


def test_what_cannot_be_told_apart_says_how_it_can() -> None:
    for through in (events(AT_ONCE), events(in_batches(0.4)), events([], ended="bounded", ended_at=10.0)):
        (finding,) = timing(Examination(through))
        assert "--upstream" in finding.says
