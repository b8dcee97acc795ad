from __future__ import annotations

from typing import get_args

import pytest

from penstock.doctor.hops import NAMES
from penstock.doctor.remedies import REMEDIES, Kind, mend


def test_every_remedy_is_for_somebody_who_can_be_seen_or_for_all() -> None:
    for kind, remedies in REMEDIES.items():
        for remedy in remedies:
            assert remedy.software in {"any", *NAMES}, (kind, remedy)
            assert remedy.setting, kind
        assert len(set(remedies)) == len(remedies), kind


def test_what_can_be_mended_has_remedies() -> None:
    assert set(get_args(Kind)) - set(REMEDIES) == {"refused", "delayed", "cannot-tell"}


@pytest.mark.parametrize("kind", ["buffered", "compressed", "timed-out"])
def test_the_common_proxies_are_covered(kind: Kind) -> None:
    assert {"nginx", "caddy", "haproxy", "apache", "cloudflare", "any"} <= {each.software for each in REMEDIES[kind]}


def test_who_was_seen_is_told_alone_and_what_works_anywhere_last() -> None:
    assert [remedy.software for remedy in mend("buffered", ("nginx",))] == ["nginx", "any"]
    everybody = mend("buffered", ())
    assert len(everybody) == len(REMEDIES["buffered"])
    assert everybody[-1].software == "any"
    # One that has no such setting says as little as none.
    assert mend("buffered", ("heroku",)) == everybody
    assert mend("cannot-tell", ("nginx",)) == ()
