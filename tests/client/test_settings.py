from __future__ import annotations

import dataclasses

import pytest

from penstock import Limits, Timeout


def test_the_defaults_are_bounded_but_for_the_total() -> None:
    assert Timeout() == Timeout(connect=5, first_event=30, between_events=60, total=None)
    assert Limits() == Limits(max_idle=100, max_idle_per_host=10, idle_timeout=90)


def test_a_number_is_the_total_and_none_is_for_ever() -> None:
    assert Timeout.of(30) == Timeout(total=30.0)
    assert Timeout.of(None) == Timeout(connect=None, first_event=None, between_events=None, total=None)
    timeout = Timeout(connect=1)
    assert Timeout.of(timeout) is timeout


@pytest.mark.parametrize(("value", "field"), [(Timeout(), "total"), (Limits(), "max_idle")])
def test_settings_are_frozen(value: object, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, 1)
