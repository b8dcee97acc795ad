from __future__ import annotations

import pytest

from penstock.relay.upstream.headers import (
    Raw,
    Refused,
    body_length,
    framing,
    settable,
    to_reader,
    to_upstream,
    with_set,
)


def sent(headers: Raw, *, more: Raw | None = None, length: int | None = 0, peer: str | None = "10.0.0.9") -> Raw:
    return to_upstream(
        headers, host="up.test:81", length=length, peer=peer, scheme="https", via="penstock-1", more=more or []
    )


def values(headers: Raw, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


# -- to the upstream


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"12")], 12),
        ([(b"content-length", b"12"), (b"content-length", b"12")], 12),
        ([(b"transfer-encoding", b"chunked")], None),
    ],
)
def test_the_length_of_a_request_body(headers: Raw, length: int | None) -> None:
    assert body_length(headers) == length


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        *([(b"content-length", value)] for value in (b"x", b"-1", b"+1", b"1, 1", b"0x10", b"1_0", b"\xb2", b"")),
    ],
)
def test_a_framing_that_two_servers_could_read_differently_is_refused(headers: Raw) -> None:
    with pytest.raises(Refused) as refused:
        body_length(headers)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("length", "always", "expected"),
    [
        (None, False, [(b"transfer-encoding", b"chunked")]),
        (0, False, []),
        (0, True, [(b"content-length", b"0")]),
        (7, False, [(b"content-length", b"7")]),
    ],
)
def test_framing_is_our_own(length: int | None, always: bool, expected: Raw) -> None:
    assert framing(length, always=always) == expected


def test_the_host_is_the_upstreams_and_the_readers_is_told_in_x_forwarded() -> None:
    went = sent([(b"host", b"relay.test"), (b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-host", b"evil")])
    assert values(went, b"host") == [b"up.test:81"]
    assert values(went, b"x-forwarded-host") == [b"relay.test"]
    assert values(went, b"x-forwarded-for") == [b"10.0.0.9"]
    assert values(went, b"x-forwarded-proto") == [b"https"]


def test_a_reader_without_an_address_has_no_x_forwarded_for_not_even_its_own() -> None:
    assert not values(sent([(b"x-forwarded-for", b"6.6.6.6")], peer=None), b"x-forwarded-for")


def test_hop_by_hop_fields_and_those_that_connection_names_stay_here() -> None:
    went = sent(
        [
            (b"connection", b"keep-alive, X-Secret"),
            (b"keep-alive", b"timeout=5"),
            (b"x-secret", b"1"),
            (b"te", b"trailers"),
            (b"upgrade", b"h2c"),
            (b"proxy-authorization", b"Basic x"),
            (b"expect", b"100-continue"),
            (b"x-kept", b"1"),
            (b"cookie", b"a=1"),
        ]
    )
    names = {name for name, _ in went}
    assert names == {b"host", b"x-kept", b"cookie", b"via", b"x-forwarded-for", b"x-forwarded-proto"}


def test_a_repeated_field_stays_repeated_and_in_order() -> None:
    went = sent([(b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3")])
    assert [pair for pair in went if pair[0].startswith(b"x-") and len(pair[0]) == 3] == [
        (b"x-a", b"1"),
        (b"x-b", b"2"),
        (b"x-a", b"3"),
    ]


def test_via_is_appended_to_as_one_field() -> None:
    went = sent([(b"via", b"1.0 first"), (b"via", b"1.1 second")])
    assert values(went, b"via") == [b"1.0 first, 1.1 second, 1.1 penstock-1"]


def test_a_request_that_was_here_before_is_a_loop() -> None:
    with pytest.raises(Refused) as refused:
        sent([(b"via", b"1.1 penstock-1, 1.1 other")])
    assert refused.value.status == 508


@pytest.mark.parametrize("name", [b"host", b"authorization", b"x-forwarded-proto", b"x-forwarded-for"])
def test_a_field_of_the_operators_replaces_the_readers_and_ours(name: bytes) -> None:
    went = sent([(name, b"the reader's"), (name, b"again")], more=[(name, b"the operator's")])
    assert values(went, name) == [b"the operator's"]


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection", "Via"])
def test_nobody_sets_what_frames_a_request(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        settable({name: "1"})


def test_a_field_that_would_be_two_is_refused() -> None:
    with pytest.raises(ValueError, match="CR"):
        settable({"X-A": "1\r\nX-B: 2"})


def test_setting_replaces_every_field_of_the_name() -> None:
    assert with_set([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")], [(b"a", b"4")]) == [(b"b", b"2"), (b"a", b"4")]


# -- to the reader


def got(headers: Raw, *, status: int = 200, upstream: str = "http://up.test:81", root: str = "") -> Raw:
    return to_reader(headers, status=status, upstream=upstream, root=root)


def test_the_answers_hop_by_hop_fields_and_what_speaks_in_our_name_are_dropped() -> None:
    came = got(
        [
            (b"connection", b"close, x-hop"),
            (b"x-hop", b"1"),
            (b"keep-alive", b"timeout=5"),
            (b"penstock-stream", b"forged"),
            (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
            (b"content-length", b"3"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
        ]
    )
    assert came == [(b"content-length", b"3"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize(
    ("headers", "stream"),
    [
        ([(b"content-type", b"text/plain"), (b"content-length", b"3")], False),
        ([(b"content-type", b"text/plain")], True),
        ([(b"content-type", b"text/event-stream; charset=utf-8"), (b"content-length", b"3")], True),
        ([(b"content-type", b"application/x-ndjson"), (b"content-length", b"3")], True),
        ([(b"x-accel-buffering", b"yes")], True),
    ],
)
def test_a_stream_tells_proxies_not_to_buffer(headers: Raw, stream: bool) -> None:
    assert values(got(headers), b"x-accel-buffering") == ([b"no"] if stream else [])


def test_a_length_beside_a_transfer_coding_means_nothing() -> None:
    assert not values(got([(b"transfer-encoding", b"chunked"), (b"content-length", b"3")]), b"content-length")


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_has_no_length_either(status: int) -> None:
    assert got([(b"content-length", b"3"), (b"etag", b'"1"')], status=status) == [(b"etag", b'"1"')]


@pytest.mark.parametrize(
    ("location", "upstream", "root", "here"),
    [
        ("http://up.test:81/a?b=1#c", "http://up.test:81", "", "/a?b=1#c"),
        ("http://UP.test:81/a", "http://up.test:81", "", "/a"),
        ("http://up.test:81", "http://up.test:81", "", "/"),
        ("http://up.test/a", "http://up.test:80", "", "/a"),
        ("https://up.test/a", "http://up.test", "", "https://up.test/a"),
        ("http://other.test/a", "http://up.test", "", "http://other.test/a"),
        ("//other.test/a", "http://up.test", "", "//other.test/a"),
        ("next", "http://up.test/v1", "", "next"),
        ("?page=2", "http://up.test/v1", "", "?page=2"),
        ("/a", "http://up.test", "", "/a"),
        ("/v1/a", "http://up.test/v1", "", "/a"),
        ("/v1", "http://up.test/v1", "", "/"),
        ("/v10/a", "http://up.test/v1", "", "/v10/a"),
        ("http://up.test/v1/a", "http://up.test/v1", "/api", "/api/a"),
        ("http://up.test//other.test/a", "http://up.test", "", "/.//other.test/a"),
        ("http://up.test/v1//other.test/a", "http://up.test/v1", "", "/.//other.test/a"),
        ("http://[half", "http://up.test", "", "http://[half"),
        ("http://up.test:port/", "http://up.test", "", "http://up.test:port/"),
        ("http://up.test/caf\xe9", "http://up.test", "", "/caf\xe9"),
    ],
)
def test_a_location_on_the_upstreams_origin_is_made_one_on_ours(
    location: str, upstream: str, root: str, here: str
) -> None:
    came = got([(b"location", location.encode("latin-1"))], upstream=upstream, root=root)
    assert values(came, b"location") == [here.encode("latin-1")]
