from __future__ import annotations

import pytest

from penstock.testing import FakeClock


def test_time_passes_only_when_told_to() -> None:
    clock = FakeClock(5)
    assert (clock(), clock()) == (5, 5)
    clock.advance(1.5)
    clock.advance(0)
    assert clock() == 6.5


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_it_never_goes_back(seconds: float) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="cannot advance by"):
        clock.advance(seconds)
    assert clock() == 0
