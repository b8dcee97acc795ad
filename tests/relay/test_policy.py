from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidURL
from penstock.relay.headers import Raw
from penstock.relay.policy import (
    Cors,
    HeaderRules,
    Match,
    OnDisconnect,
    OwnerFrom,
    Policy,
    RelayLimits,
    choose,
    segments,
)
from penstock.wire.terminator import PROFILES

UP = "http://up.test/v1"


def policy(**said: Any) -> Policy:
    return Policy(upstream=UP, **said)


# -- which requests


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("/", ["/", "", "/a", "/a/b/"], []),
        ("/v1/chat", ["/v1/chat", "/v1/chat/", "/v1/chat/x/y", "//v1/./chat"], ["/v1/chats", "/v1", "/", "/V1/chat"]),
        ("/v1/", ["/v1", "/v1/", "/v1/a"], ["/v12"]),
        ("/v1/*/events", ["/v1/a/events", "/v1/a/events/"], ["/v1/events", "/v1/a/b/events", "/v1/a/events/c"]),
        ("/v1/*/**", ["/v1/a", "/v1/a/b/c"], ["/v1", "/v2/a"]),
        ("/*", ["/a", "/a/"], ["/", "/a/b"]),
        ("/**", ["/", "/a/b"], []),
        ("/ä b", ["/ä b/c"], ["/ä"]),
    ],
)
def test_paths(pattern: str, fitting: list[str], others: list[str]) -> None:
    assert [path for path in fitting if not policy(match=Match(pattern)).matches("GET", path)] == []
    assert [path for path in others if policy(match=Match(pattern)).matches("GET", path)] == []


def test_a_path_cannot_be_dressed_up_as_one_of_another_route() -> None:
    public, secret = policy(match=Match("/public")), policy(match=Match("/admin"))
    for path in ("/public/../admin", "/public/./x/../../admin", "/../admin", "//admin", "/public//..//admin"):
        assert choose([public, secret], "GET", path) is secret, path


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b"])))
def test_what_remains_of_a_path_has_nothing_left_to_resolve(parts: list[str]) -> None:
    resolved = segments("/" + "/".join(parts))
    assert {".", "..", ""}.isdisjoint(resolved)
    assert segments("/" + "/".join(resolved)) == resolved


def test_methods() -> None:
    match = Match("/", frozenset({"get", "POST"}))
    assert match.methods == {"GET", "HEAD", "POST"}
    assert match.fits("HEAD", [])
    assert not match.fits("DELETE", [])
    assert Match("/").fits("PURGE", [])
    assert str(match) == "GET|POST /"


def test_the_first_that_fits_is_taken() -> None:
    posts, all_of_it, rest = policy(match=Match("/v1", frozenset({"POST"}))), policy(match=Match("/v1")), policy()
    routes = [posts, all_of_it, rest]
    assert choose(routes, "POST", "/v1/a") is posts
    assert choose(routes, "GET", "/v1/a") is all_of_it
    assert choose(routes, "GET", "/") is rest
    assert choose(routes[:2], "GET", "/") is None


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (Match("/"), Match("/v1")),
        (Match("/v1"), Match("/v1/*/events")),
        (Match("/*/**"), Match("/v1/a")),
        (Match("/v1"), Match("/v1", frozenset({"POST"}))),
        (Match("/v1", frozenset({"GET", "POST"})), Match("/v1/x", frozenset({"HEAD"}))),
        (Match("/*/*"), Match("/a/*")),
    ],
)
def test_what_is_never_reached(earlier: Match, later: Match) -> None:
    assert earlier.covers(later)
    assert not later.covers(earlier)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (Match("/v1/a"), Match("/v1")),
        (Match("/v1/a"), Match("/v1/*")),
        (Match("/v1/*"), Match("/v1/a")),
        (Match("/v1", frozenset({"POST"})), Match("/v1")),
        (Match("/v1", frozenset({"POST"})), Match("/v1", frozenset({"GET", "POST"}))),
        (Match("/v1/*"), Match("/v1/*/**")),
        (Match("/v1"), Match("/v12")),
    ],
)
def test_what_is_reached_all_the_same(earlier: Match, later: Match) -> None:
    assert not earlier.covers(later)


PARTS = st.lists(st.sampled_from(["a", "b", "*"]), max_size=3)
MATCHES = st.builds(
    lambda parts, more, methods: Match("/" + "/".join([*parts, *more]), frozenset(methods)),
    PARTS,
    st.sampled_from([[], ["**"]]),
    st.sets(st.sampled_from(["GET", "POST"])),
)


@given(MATCHES, MATCHES, st.sampled_from(["GET", "HEAD", "POST", "PUT"]), st.lists(st.sampled_from("abc"), max_size=4))
def test_what_is_covered_fits_before(earlier: Match, later: Match, method: str, path: list[str]) -> None:
    if earlier.covers(later) and later.fits(method, path):
        assert earlier.fits(method, path)


@pytest.mark.parametrize(
    "path",
    ["", "v1", "/a?b", "/a#b", "/a//b", "/a/../b", "/.", "/a*", "/**/a", "/a/***", "/a%20b", "http://a/b"],
)
def test_paths_that_could_never_fit(path: str) -> None:
    with pytest.raises(ValueError, match=r"is not a path|fits no request"):
        Match(path)


@pytest.mark.parametrize("method", ["", "PO ST", "G\r\nET"])
def test_what_is_no_method(method: str) -> None:
    with pytest.raises(ValueError, match="is not a method"):
        Match("/", frozenset({method}))


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


# -- fields


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
    shown = repr(policy(request_headers=HeaderRules({"Authorization": "Bearer s3cret"}, ["Cookie"])))
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


# -- pages of other origins


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
