"""Fields that a route adds and drops."""

from __future__ import annotations

import pytest

from penstock.relay.settings.policy import Policy
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.upstream.headers import Raw


def test_fields_are_added_in_the_place_of_others_and_dropped() -> None:
    rules = HeaderRules({"Authorization": "Bearer k", "X-New": "1"}, ["Cookie", "x-gone"])
    came: Raw = [
        (b"accept", b"*/*"),
        (b"cookie", b"a"),
        (b"authorization", b"mine"),
        (b"x-gone", b""),
        (b"cookie", b"b"),
    ]
    assert rules.apply(came) == [(b"accept", b"*/*"), (b"authorization", b"Bearer k"), (b"x-new", b"1")]
    assert HeaderRules().apply(came) is came
    assert rules
    assert not HeaderRules()


def test_values_are_not_shown() -> None:
    shown = repr(
        Policy(upstream="http://up.test", request_headers=HeaderRules({"Authorization": "Bearer s3cret"}, ["Cookie"]))
    )
    shown += repr(HeaderRules({"Authorization": "Bearer s3cret"}, ["Cookie"]))
    shown += repr(Policy(upstream="http://user:s3cret@up.test"))
    assert "s3cret" not in shown
    assert "HeaderRules(add=['authorization'], drop=['cookie'])" in shown


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Content-Length",
            "transfer-encoding",
            "Connection",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Expect",
            "Via",
        ),
        *("Penstock-Stream", "", "a b", "a:b"),
    ],
)
def test_fields_that_are_the_relays_own(name: str) -> None:
    with pytest.raises(ValueError, match=r"not set by hand|not a header name"):
        HeaderRules({name: "1"})
    with pytest.raises(ValueError, match=r"not set by hand|not a header name"):
        HeaderRules(drop=[name])


def test_a_value_that_would_be_two_fields_is_refused_and_not_told() -> None:
    with pytest.raises(ValueError, match="LF at character 6") as refused:
        HeaderRules({"X-Key": "s3cret\nX-Other: 1"})
    assert "s3cret" not in str(refused.value)


def test_host_may_be_another_and_not_none() -> None:
    assert HeaderRules({"Host": "other.test"}).added == ((b"host", b"other.test"),)
    with pytest.raises(ValueError, match="no request is without it"):
        HeaderRules(drop=["host"])
