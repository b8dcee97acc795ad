from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.doctor.probe import Item, Piece, Probe
from penstock.doctor.rhythm import (
    Burst,
    bursts,
    caught_up,
    held_mid_line,
    lags,
    longest_silence,
    per_burst,
    regular_gap,
)
from tests.doctor.heard import AT_ONCE, STEADY, events

INSTANTS = st.lists(st.floats(0, 100), max_size=30).map(sorted)


def test_what_comes_within_the_window_is_one_burst() -> None:
    assert bursts([]) == []
    assert bursts([1.0, 1.005, 1.012, 2.0]) == [Burst(1.0, 3), Burst(2.0, 1)]


@given(INSTANTS)
def test_no_item_is_in_two_bursts_or_none(instants: list[float]) -> None:
    assert sum(group.size for group in bursts(instants)) == len(instants)


def test_how_many_come_at_once_is_what_the_median_item_sees() -> None:
    assert per_burst([]) == 0
    assert per_burst([Item(at) for at in STEADY]) == 1
    assert per_burst([Item(at) for at in AT_ONCE]) == 20
    assert per_burst([Item(at) for at in (0.0, 1.0, 1.0, 1.0, 1.0)]) == 4


def test_gaps_that_are_alike() -> None:
    assert regular_gap(bursts([0.0, 1.0, 2.1, 3.0])) == pytest.approx(1.0)
    assert regular_gap(bursts([0.0, 1.0, 5.0])) is None
    assert regular_gap(bursts([0.0, 1.0])) is None


def test_the_longest_silence_may_be_the_last() -> None:
    assert longest_silence([], until=9.0) == 0
    assert longest_silence([1.0, 2.0, 5.0], until=5.5) == 3.0
    assert longest_silence([1.0, 2.0], until=9.0) == 7.0


def test_what_is_held_catches_up_and_what_is_far_does_not() -> None:
    assert caught_up([]) == 0
    assert caught_up([4.0, 3.0, 2.0, 1.0, 0.0]) == 4.0
    assert caught_up([2.0, 2.0, 2.0]) == 0.0
    assert caught_up([0.0, 1.0, 2.0]) == 0.0
    assert caught_up([0.0, 1.0, 0.1, 1.2, 0.5]) == pytest.approx(0.9)


@given(INSTANTS, st.floats(0, 10))
def test_a_constant_delay_is_no_catching_up(instants: list[float], delay: float) -> None:
    assert caught_up([at + delay - at for at in instants]) == pytest.approx(0.0, abs=1e-9)


def test_lags_by_order_of_items_and_by_bytes() -> None:
    direct, through = events(STEADY), events(AT_ONCE)
    assert lags(direct, through) == pytest.approx([late - early for early, late in zip(STEADY, AT_ONCE, strict=True)])
    pieces = Probe("", unit="piece", pieces=(Piece(1.0, 10, 1), Piece(2.0, 10, 1), Piece(3.0, 10, 1)))
    held = Probe("", unit="piece", pieces=(Piece(1.5, 5, 1), Piece(3.0, 15, 1)))
    assert lags(pieces, held) == [2.0, 1.0]  # the rest has not come


def test_a_buffer_that_was_full_shows_where_a_line_waits_for_its_rest() -> None:
    probe = Probe(
        "", pieces=(Piece(1.0, 9, 0, cut=True), Piece(1.05, 9, 1), Piece(2.0, 9, 0, cut=True), Piece(3.0, 9, 1))
    )
    assert held_mid_line(probe, longer_than=0.1) == 1
