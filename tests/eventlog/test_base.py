"""Names that nobody guesses, and bounds that can be kept."""

from __future__ import annotations

import base64

import pytest

from penstock.eventlog.base import Retention, new_stream_id


def test_a_stream_is_named_by_128_random_bits() -> None:
    names = {new_stream_id() for _ in range(1000)}
    assert len(names) == 1000
    assert {len(base64.urlsafe_b64decode(name + "==")) for name in names} == {16}


@pytest.mark.parametrize(
    "wrong", [{"age": -1}, {"max_stream_bytes": 0}, {"max_stream_bytes": 10, "max_bytes": 9}, {"max_streams": 0}]
)
def test_retention_is_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="retention needs"):
        Retention(**wrong)
