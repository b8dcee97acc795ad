"""Which requests a route is for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.relay.settings.match import Match, segments
from penstock.relay.settings.policy import Policy, choose


def policy(**said: Any) -> Policy:
    return Policy(upstream="http://up.test/v1", **said)


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
    routes = [policy(match=Match(pattern))]
    assert [path for path in fitting if choose(routes, "GET", path) is None] == []
    assert [path for path in others if choose(routes, "GET", path) is not None] == []


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
