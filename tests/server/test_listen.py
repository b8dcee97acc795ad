from __future__ import annotations

import socket

import pytest

from penstock.errors import PenstockError
from penstock.server import ListenError, address, bind, bound_to, parse_listen


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        (":8080", "127.0.0.1", 8080),
        ("localhost:0", "localhost", 0),
        ("[::1]:8080", "::1", 8080),
        ("[::]:65535", "::", 65535),
        (" 0.0.0.0:1 ", "0.0.0.0", 1),
    ],
)
def test_host_and_port(value: str, host: str, port: int) -> None:
    assert parse_listen(value) == (host, port)


def test_what_an_empty_host_means_is_the_callers() -> None:
    assert parse_listen(":1", default_host="::") == ("::", 1)


@pytest.mark.parametrize(
    "value",
    ["", "8080", "localhost", "localhost:", "h:x", "h:-1", "h:65536", "h:٣", "::1:8080", "[::1]", "[h]:1", "[::1:80",
     "a b:1", "http://h:1", "u@h:1", "h:99999999999999999999"],
)  # fmt: skip
def test_what_is_neither_is_refused_with_the_form(value: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT") as refused:
        parse_listen(value)
    assert repr(value) in str(refused.value)


def test_port_0_is_a_free_one_by_the_time_it_is_bound() -> None:
    with bind("127.0.0.1", 0) as sock:
        host, _, port = bound_to(sock).partition(":")
        assert (host, port != "0") == ("127.0.0.1", True)
        socket.create_connection((host, int(port)), timeout=5).close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_ipv6_is_written_in_brackets() -> None:
    with bind("::1", 0) as sock:
        assert bound_to(sock).startswith("[::1]:")
    assert address("::1", 80) == "[::1]:80"


def test_a_busy_port_is_one_clear_line() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ListenError) as refused:
            bind("127.0.0.1", port)
    assert str(refused.value).startswith(
        f"cannot listen on 127.0.0.1:{port}: the address is already in use; stop what holds it or choose another"
    )
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, PenstockError)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("no-such-host.invalid", "the host 'no-such-host.invalid' is unknown"),
        ("192.0.2.1", "this machine has no such address"),
        ("a" * 64 + ".example", "is unknown"),
    ],
)
def test_other_refusals_say_why(host: str, why: str) -> None:
    with pytest.raises(ListenError, match=why):
        bind(host, 0)
