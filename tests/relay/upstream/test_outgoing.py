from __future__ import annotations

import asyncio
import socket

import pytest

from penstock.client.settings import Timeout
from penstock.errors import (
    CircuitOpenError,
    ConnectError,
    ConnectTimeout,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    WriteTimeout,
)
from penstock.relay.app import Relay
from penstock.relay.upstream.outgoing import answer_to, target_of
from penstock.testing import close, pause, reset, script, serve, wait_request
from tests.relay.peers import Peer, answering, ask, dial, request, response, upstream

pytestmark = pytest.mark.anyio


# -- the target

TARGETS = [
    "/",
    "/a%2Fb%2fc",
    "//double//slash/",
    "/a;b=1;c",
    "/a/../b/./c",
    "/%E2%82%AC%00%0d%0A",
    "/a+b%20c",
    "/x?a=1&a=2&b",
    "/x?q=%2F%26&sp=a+b",
    "/x?a?b?c",
    "/x?=&&",
    "/:@!$&'()*,~",
    '/q?x=[1]|"a"{}^`<>',
    "/" + "a" * 6000,
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", ["", "/base/v1"])
async def test_the_target_goes_on_byte_for_byte(target: str, base: str) -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url + base)) as url:
        reader, _ = await ask(url, target)
        assert reader.status == 200
        assert up.peers[0].head.split(b"\r\n")[0] == f"GET {base}{target} HTTP/1.1".encode()


async def test_an_absolute_target_never_chooses_the_upstream() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url:
        await ask(url, "http://169.254.169.254/latest?x=1")
        assert up.peers[0].head.startswith(b"GET /latest?x=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ({"path": "/a b", "raw_path": None, "query_string": b""}, b"/v1/a%20b"),
        ({"path": "/a", "query_string": b"q"}, b"/v1/a?q"),
        ({"path": "/m/a", "raw_path": b"/m/a%2F", "root_path": "/m"}, b"/v1/a%2F"),
        ({"path": "/a", "raw_path": b"/a?q", "query_string": b"q"}, b"/v1/a?q"),
    ],
)
async def test_the_target_by_any_server(scope: dict[str, object], target: bytes) -> None:
    assert target_of(scope, "http://up.test/v1") == target


async def test_a_target_is_never_empty() -> None:
    assert target_of({"path": "/m", "raw_path": b"/m", "root_path": "/m"}, "http://up.test") == b"/"


# -- what its failures mean


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (CircuitOpenError("", retry_after=1.0), 503, "destination_unavailable"),
        (ConnectTimeout(""), 504, "connection_timeout"),
        (ReadTimeout(""), 504, "http_response_timeout"),
        (WriteTimeout(""), 504, "http_response_timeout"),
        (ConnectError("", reason="refused"), 502, "connection_refused"),
        (ConnectError("", reason="dns"), 502, "dns_error"),
        (ConnectError("", reason="tls"), 502, "tls_protocol_error"),
        (ConnectError("", reason="unreachable"), 502, "destination_ip_unroutable"),
        (ProtocolError(""), 502, "http_protocol_error"),
        (ReadError(""), 502, "connection_terminated"),
    ],
)
async def test_what_a_failure_is_to_the_reader(error: PenstockError, status: int, kind: str) -> None:
    said = answer_to(error)
    assert (said[0], said[2]) == (status, kind)
    assert said[1]


def told(reader: Peer, body: bytes, secret: str) -> tuple[int, str]:
    """The status and Proxy-Status of a problem that does not tell where the upstream lives."""
    problem = reader.problem(body)
    assert problem["status"] == reader.status
    assert problem["detail"]
    assert secret.encode() not in reader.head + body
    (said,) = reader.all("proxy-status")
    return reader.status, said.removeprefix("penstock; error=")


async def test_an_upstream_that_refuses_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with serve(Relay(f"http://127.0.0.1:{port}")) as url:
        assert told(*await ask(url), str(port)) == (502, "connection_refused")


async def test_an_upstream_of_an_unknown_name() -> None:
    async with serve(Relay("http://nowhere.invalid")) as url:
        assert told(*await ask(url), "nowhere") == (502, "dns_error")


async def test_an_upstream_that_speaks_no_tls() -> None:
    async with (
        script(b"this is no TLS\r\n", close()) as server,
        serve(Relay(server.url.replace("http:", "https:"))) as url,
    ):
        assert told(*await ask(url), str(server.port)) == (502, "tls_protocol_error")


FAILURES: dict[str, tuple[list[object], tuple[int, str]]] = {
    "closed at once": ([close()], (502, "connection_terminated")),
    "closed after the request": ([wait_request(), close()], (502, "connection_terminated")),
    "reset": ([wait_request(), reset()], (502, "connection_terminated")),
    "closed in the head": ([wait_request(), b"HTTP/1.1 200 OK\r\nX-", close()], (502, "connection_terminated")),
    "garbage": ([wait_request(), b"SSH-2.0-OpenSSH_9.6\r\n\r\n", close()], (502, "http_protocol_error")),
    "a bad length": ([wait_request(), b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"], (502, "http_protocol_error")),
    "lengths that differ": (
        [wait_request(), b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
        (502, "http_protocol_error"),
    ),
    "no final status": (
        [wait_request(), b"HTTP/1.1 999 Hm\r\nContent-Length: 0\r\n\r\n"],
        (502, "http_protocol_error"),
    ),
    "a switch nobody asked for": (
        [wait_request(), b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
        (502, "http_protocol_error"),
    ),
    "a field that no server writes": (
        [wait_request(), b"HTTP/1.1 200 OK\r\nX-A: \x01\r\nContent-Length: 0\r\n\r\n"],
        (502, "http_protocol_error"),
    ),
    "silence": ([wait_request(), pause(60)], (504, "http_response_timeout")),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("body", [b"", b'{"query":"x"}'], ids=["GET", "POST"])
async def test_an_upstream_that_fails_before_its_headers(name: str, body: bytes) -> None:
    steps, expected = FAILURES[name]
    async with script(*steps) as server:  # type: ignore[arg-type]
        relay = Relay(server.url, timeout=Timeout(connect=5, first_event=0.3 if name == "silence" else 20))
        async with serve(relay) as url:
            answer = await ask(url, method="POST" if body else "GET", body=body)
            assert told(*answer, str(server.port)) == expected
            assert server.connections == 1  # not sent twice


async def test_a_head_request_to_a_dead_upstream_has_no_body() -> None:
    async with script(close()) as server, serve(Relay(server.url)) as url:
        reader, body = await ask(url, method="HEAD")
        assert (reader.status, body) == (502, b"")


async def test_the_relay_recovers_when_the_upstream_does() -> None:
    async with (
        script([close()], [wait_request(), response(b"back"), close()]) as server,
        serve(Relay(server.url)) as url,
    ):
        assert (await ask(url))[0].status == 502
        reader, body = await ask(url)
        assert (reader.status, body) == (200, b"back")


async def test_a_kept_connection_that_the_upstream_has_closed_is_not_used_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(response(b"one"))  # and closes, though it did not say so

    async with upstream(play) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        for number in (1, 2, 3):
            await reader.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.take_head()
            assert (reader.status, await reader.body()) == (200, b"one")
            assert len(up.peers) == number
            await asyncio.sleep(0.05)  # the close is on its way


async def test_connections_to_the_upstream_are_kept() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url:
        for _ in range(3):
            await ask(url)
        assert len(up.peers) == 1


async def test_informational_answers_are_left_out() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    async with upstream(answering(early + response(b"whole"))) as up, serve(Relay(up.url)) as url:
        reader, body = await ask(url)
        assert (reader.status, body) == (200, b"whole")


async def test_reading_a_request_pipelined_behind_another() -> None:
    async with upstream(answering(response())) as up, serve(Relay(up.url)) as url, dial(url) as reader:
        await reader.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" + request("/2"))
        for _ in range(2):
            await reader.take_head()
            assert await reader.body() == b"ok"
        assert [peer.head.split()[1] for peer in up.peers][-1] == b"/2"
