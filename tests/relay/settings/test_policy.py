from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest

from penstock.errors import InvalidURL
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import OnDisconnect, OwnerFrom, Policy, RelayLimits
from penstock.relay.upstream.headers import Raw
from penstock.wire.terminator import PROFILES

UP = "http://up.test/v1"


def policy(**said: Any) -> Policy:
    return Policy(upstream=UP, **said)


# -- the last reader leaves


@pytest.mark.parametrize(
    ("text", "kind", "grace"),
    [
        ("auto", "auto", 30),
        ("auto:1m", "auto", 60),
        ("cancel", "cancel", 30),
        ("grace", "grace", 30),
        ("grace:250ms", "grace", 0.25),
        ("grace:90", "grace", 90),
        (" detach ", "detach", 30),
    ],
)
def test_on_disconnect(text: str, kind: str, grace: float) -> None:
    said = OnDisconnect.parse(text)
    assert (said.kind, said.grace) == (kind, grace)
    assert OnDisconnect.parse(str(said)).kind == kind


@pytest.mark.parametrize(
    "text", ["", "never", "grace:", "grace:soon", "grace:0s", "cancel:3s", "detach:1s", "grace:-1"]
)
def test_what_is_no_disconnect_policy(text: str) -> None:
    with pytest.raises(ValueError, match="write auto, cancel, grace:30s or detach"):
        OnDisconnect.parse(text)


def test_auto_goes_by_whether_the_request_can_resume() -> None:
    auto = OnDisconnect("auto", 7)
    assert auto.resolved(can_resume=True) == OnDisconnect("grace", 7)
    assert auto.resolved(can_resume=False).kind == "cancel"
    for kind in ("cancel", "grace:2s", "detach"):
        said = OnDisconnect.parse(kind)
        assert said.resolved(can_resume=True) is said.resolved(can_resume=False) is said


# -- who asks

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize(
    ("where", "headers", "known"),
    [
        ("header:X-User", [(b"x-user", b"ada")], True),
        ("header:X-User", [(b"x-user", b" ada\t")], True),
        ("header:X-User", [(b"x-user", b"ada"), (b"x-user", b"ada")], True),
        ("header:X-User", [(b"x-user", b"ada"), (b"x-user", b"eve")], False),
        ("header:X-User", [(b"x-user", b"")], False),
        ("header:X-User", [(b"x-users", b"ada"), (b"cookie", b"x-user=ada")], False),
        ("cookie:sid", [(b"cookie", b"a=b; sid=ada; c=d")], True),
        ("cookie:sid", [(b"cookie", b"a=b"), (b"cookie", b"sid=ada")], True),
        ("cookie:sid", [(b"cookie", b"sid=ada; sid=eve")], False),
        ("cookie:sid", [(b"cookie", b"SID=ada")], False),
        ("cookie:sid", [(b"cookie", b"sid")], False),
        ("cookie:sid", [(b"sid", b"ada")], False),
        ("cookie:sid", [], False),
    ],
)
def test_owners_are_read(where: str, headers: Raw, known: bool) -> None:
    place = OwnerFrom.parse(where)
    assert place is not None
    owner = place.read(headers, SECRET)
    alone = place.read([(b"x-user", b"ada"), (b"cookie", b"sid=ada")], SECRET)
    assert alone is not None
    assert (owner == alone) is known
    assert (owner is None) is not known


def test_an_owners_name_tells_nothing_and_depends_on_the_secret() -> None:
    place = OwnerFrom("header", "X-User")
    names = {place.read([(b"x-user", user)], secret) for user in (b"ada", b"eve") for secret in (SECRET, b"x" * 16)}
    assert len(names) == 4
    assert all(name is not None and len(name) == 64 and "ada" not in name for name in names)
    elsewhere = OwnerFrom("cookie", "x-user").read([(b"cookie", b"x-user=ada")], SECRET)
    assert elsewhere not in names, "the same text in another place is another owner"


def test_owners_are_parsed() -> None:
    assert OwnerFrom.parse("none") is None
    assert str(OwnerFrom.parse("header:X-User")) == "header:x-user"
    assert str(OwnerFrom.parse("cookie:Sid")) == "cookie:Sid"
    for text in ("", "X-User", "header:", "header:a b", "cookie:a=b", "query:id", "header"):
        with pytest.raises(ValueError, match="write header:NAME or cookie:NAME"):
            OwnerFrom.parse(text)


# -- all of it


def test_the_defaults() -> None:
    said = policy()
    assert said.match == Match("/")
    assert (said.log, said.ids, said.promise, said.dialect, said.owner, said.cors) == (
        *("auto", "auto", "fast"),
        *(None, None, None),
    )
    assert said.on_disconnect == OnDisconnect("auto", 30.0)
    assert (said.keep_alive, said.early_headers) == (15.0, None)
    assert said.terminator is PROFILES["none"]
    assert (said.retry.retries, said.breaker) == (0, None)
    assert said.limits == RelayLimits()
    assert said.limits.max_replay_bytes == 1 << 20
    assert said.timeout.total is None


def test_a_policy_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy().log = "all"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(UP)  # type: ignore[call-arg]


def test_what_is_logged() -> None:
    auto = policy(log_types=("Text/Plain",))
    for kept in ("text/event-stream", "Text/Event-Stream; charset=x", b"application/x-ndjson", "text/plain;a=b"):
        assert auto.logs(kept), kept
    for other in ("application/json", "text/event-streams", "", None, "text/html"):
        assert not auto.logs(other), other
        assert policy(log="all").logs(other)
    assert not policy(log="none", log_types=("text/plain",)).logs("text/event-stream")


def test_which_peers_are_believed() -> None:
    said = policy(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.0.2.7")))
    for peer in ("10.1.2.3", "fd00::1", "::ffff:10.0.0.9", "fd00::1%eth0", "192.0.2.7"):
        assert said.trusts(peer), peer
    for stranger in ("11.0.0.1", "::1", "192.0.2.8", "unix", "", None, "10.0.0.1, 10.0.0.2"):
        assert not said.trusts(stranger), stranger
    assert not policy().trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"upstream": "up.test"}, "is not a full URL"),
        ({"upstream": "ftp://up.test"}, "scheme"),
        ({"upstream": "http://up.test/v1?key=s3cret"}, "has a query"),
        ({"upstream": "http://up.test/#x"}, "fragment"),
        ({"log": "some"}, "log is one of"),
        ({"ids": "theirs"}, "ids is one of"),
        ({"promise": "sure"}, "promise is one of"),
        ({"dialect": "french"}, "dialect is one of"),
        ({"log_types": ("text",)}, "is not a media type"),
        ({"log_types": ("text/plain; charset=x",)}, "without parameters"),
        ({"keep_alive": -1}, "keep_alive"),
        ({"early_headers": float("nan")}, "early_headers"),
        ({"root_path": "api"}, "begins with /"),
        ({"root_path": "/api/"}, "ends without"),
        ({"root_path": "//api"}, "begins with /"),
        ({"root_path": "/a b"}, "no query"),
    ],
)
def test_settings_that_mean_nothing(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        Policy(**{"upstream": UP, **said})
    assert "s3cret" not in str(refused.value)
    assert isinstance(refused.value, InvalidURL) == (said.get("upstream") in ("up.test", "ftp://up.test"))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RelayLimits)])
def test_limits_are_bounds(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RelayLimits(**{name: -1})
