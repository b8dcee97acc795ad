from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from penstock.engine.connection import Exchange, Patience
from penstock.engine.dial import Origin, dial
from penstock.errors import ConnectError, ConnectTimeout, ReadTimeout, StreamTruncated
from penstock.testing import script, wait_request
from tests.engine.talk import GET, SOON, nothing_left, whole

pytestmark = pytest.mark.anyio

OKAY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ask(origin: Origin, patience: Patience = SOON) -> bytes:
    connection = await dial(origin, 5)
    exchange = Exchange(connection, GET, patience)
    try:
        await exchange.start()
        return await whole(exchange)
    finally:
        await exchange.close()
        connection.abort()
        await connection.gone()


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, int]]:
    """An address where nothing answers, not even with a refusal: a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            with contextlib.suppress(OSError):
                each.connect(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Have a name resolve to these addresses; there is no other way to have one that does."""

    async def getaddrinfo(self: object, host: str, port: int, **_: object) -> list[object]:
        return [
            (socket.AF_INET6 if ":" in where else socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))
            for where, port in addresses
        ]

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo, raising=False)


# -- addresses -------------------------------------------------------------------------------------------------------


async def test_localhost_with_only_one_family_listening() -> None:
    async with nothing_left(), script(wait_request(), OKAY) as server:
        assert await ask(Origin("localhost", server.port)) == b"ok"


async def test_an_address_in_six() -> None:
    try:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    async with server:
        connection = await dial(Origin("::1", server.sockets[0].getsockname()[1]), 5)
        connection.abort()
        await connection.gone()
    await asyncio.sleep(0.01)


async def test_a_local_address() -> None:
    async with nothing_left(), script(wait_request(), OKAY) as server:
        connection = await dial(Origin("127.0.0.1", server.port), 5, "127.0.0.2")
        assert connection.transport.get_extra_info("sockname")[0] == "127.0.0.2"
        connection.abort()
        await connection.gone()


async def test_what_is_silent_is_passed_by_after_a_quarter_of_a_second(
    anyio_backend: tuple[str, dict[str, bool]],
) -> None:
    if anyio_backend[1]["use_uvloop"]:
        pytest.skip("uvloop's resolver cannot be told what to answer")
    with silent() as nowhere, pytest.MonkeyPatch.context() as patch:
        async with nothing_left(), script(wait_request(), OKAY) as server:
            resolving(patch, nowhere, ("127.0.0.1", server.port))
            began = time.monotonic()
            assert await ask(Origin("x", 0)) == b"ok"
            assert time.monotonic() - began > 0.2


async def test_what_refuses_is_passed_by_at_once(anyio_backend: tuple[str, dict[str, bool]]) -> None:
    if anyio_backend[1]["use_uvloop"]:
        pytest.skip("uvloop's resolver cannot be told what to answer")
    with pytest.MonkeyPatch.context() as patch:
        async with nothing_left(), script(wait_request(), OKAY) as server:
            resolving(patch, ("::1", 1), ("127.0.0.1", 1), ("127.0.0.1", server.port))
            began = time.monotonic()
            assert await ask(Origin("x", 0)) == b"ok"
            assert time.monotonic() - began < 0.2
            resolving(patch, ("127.0.0.1", 1), ("::1", 1))
            with pytest.raises(ConnectError) as caught:
                await dial(Origin("x", 0), 5)
            assert caught.value.reason == "refused"
            resolving(patch)
            with pytest.raises(ConnectError, match=r"no address|No route") as caught:
                await dial(Origin("x", 0), 5)
            assert caught.value.reason == "unreachable"


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 1, "refused"),
        ("localhost", 1, "refused"),
        ("nowhere.invalid", 80, "dns"),
        ("x" * 70 + ".example", 80, "dns"),
        ("a..b", 80, "dns"),
    ],
)
async def test_no_connection(host: str, port: int, reason: str) -> None:
    async with nothing_left():
        with pytest.raises(ConnectError) as caught:
            await dial(Origin(host, port), 0.5)
        assert caught.value.reason == reason


async def test_a_connect_timeout() -> None:
    with silent() as (host, port):
        async with nothing_left():
            began = time.monotonic()
            with pytest.raises(ConnectTimeout) as caught:
                await dial(Origin(host, port), 0.2)
            assert (caught.value.reason, "reachable" in str(caught.value)) == ("timeout", True)
            assert 0.15 < time.monotonic() - began < 20


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cancelling_at_every_turn(host: str) -> None:
    async with nothing_left(), script(wait_request(), OKAY, repeat=True) as server:
        made = 0
        for turns in range(40):
            task = asyncio.create_task(dial(Origin(host, server.port), 5))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.002 * (turns > 25))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                connection = await task
                connection.abort()
                await connection.gone()
                made += 1
        assert made
        await asyncio.sleep(0.01)
    with silent() as (silent_host, port):
        async with nothing_left():
            task = asyncio.create_task(dial(Origin(silent_host, port), 5))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# -- Unix sockets ----------------------------------------------------------------------------------------------------


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OKAY)
        await reader.read()
        writer.close()

    with pytest.raises(ConnectError) as caught:
        await dial(Origin("x", 80, path=path), 5)
    assert caught.value.reason == "refused"
    async with (
        nothing_left(),
        await asyncio.start_unix_server(answer, path),
    ):
        assert await ask(Origin("x", 80, path=path)) == b"ok"
        await asyncio.sleep(0.01)


# -- TLS -------------------------------------------------------------------------------------------------------------


class Secure:
    """A certificate authority, what a server shows, and what a client trusts."""

    def __init__(self, *names: str) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(self.server)
        self.server.set_alpn_protocols(["h2", "http/1.1"])
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.client.set_alpn_protocols(["http/1.1"])


@contextlib.asynccontextmanager
async def secure_server(
    secure: Secure, answer: bytes = OKAY, *, cut: bool = False
) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that answers one request a connection and closes; with a proper farewell, unless it is cut off."""
    names: list[str] = []
    secure.server.sni_callback = lambda _, name, __: names.append(name)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if cut:
                sock = writer.get_extra_info("socket")
                with socket.socket(fileno=socket.dup(sock.fileno())) as own:
                    own.shutdown(socket.SHUT_RDWR)
                return
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=secure.server)
    try:
        yield server.sockets[0].getsockname()[1], names
    finally:
        server.close()
        await asyncio.sleep(0.02)


async def test_tls() -> None:
    secure = Secure("localhost", "127.0.0.1")
    async with nothing_left(), secure_server(secure) as (port, names):
        connection = await dial(Origin("localhost", port, secure.client), 5)
        assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        exchange = Exchange(connection, GET, SOON)
        await exchange.start()
        assert await whole(exchange) == b"ok"
        connection.abort()
        await connection.gone()
    assert names == ["localhost"]


async def test_tls_asks_for_another_name() -> None:
    secure = Secure("other.example")
    async with nothing_left(), secure_server(secure) as (port, names):
        assert await ask(Origin("127.0.0.1", port, secure.client, "other.example")) == b"ok"
    assert names == ["other.example"]


async def test_tls_that_cannot_be_trusted() -> None:
    secure, other = Secure("localhost"), Secure("localhost")
    async with nothing_left(), secure_server(secure) as (port, _):
        for origin in (Origin("localhost", port, other.client), Origin("127.0.0.1", port, secure.client)):
            with pytest.raises(ConnectError, match="cannot be trusted") as caught:
                await dial(origin, 5)
            assert caught.value.reason == "tls"
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_tls_to_who_does_not_speak_it() -> None:
    secure = Secure("localhost")
    async with nothing_left(), script(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        with pytest.raises(ConnectError) as caught:
            await dial(Origin("localhost", server.port, secure.client), 5)
        assert caught.value.reason == "tls"


async def test_a_tls_handshake_that_goes_nowhere() -> None:
    secure = Secure("localhost")
    async with nothing_left(), script([], repeat=True) as server:
        with pytest.raises(ConnectTimeout, match="no TLS handshake in time; does TLS listen there") as caught:
            await dial(Origin("127.0.0.1", server.port, secure.client), 0.5)
        assert "reachable" not in str(caught.value)
        task = asyncio.create_task(dial(Origin("localhost", server.port, secure.client), None))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_body_to_the_end_of_a_tls_connection_wants_a_proper_end() -> None:
    """Anyone between could cut a plain close short; TLS says whether it was the server."""
    secure = Secure("localhost")
    answer = b"HTTP/1.1 200 OK\r\n\r\nhello"
    async with nothing_left(), secure_server(secure, answer) as (port, _):
        assert await ask(Origin("localhost", port, secure.client)) == b"hello"
    async with nothing_left(), secure_server(secure, answer, cut=True) as (port, _):
        with pytest.raises(StreamTruncated):
            await ask(Origin("localhost", port, secure.client))


async def test_timers_and_large_bodies_over_tls() -> None:
    secure = Secure("localhost")
    size = 5_000_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with nothing_left(), secure_server(secure, answer + b"x" * size) as (port, _):
        assert len(await ask(Origin("localhost", port, secure.client))) == size
    async with nothing_left(), secure_server(secure, b"HTTP/1.1 ") as (port, _):
        with pytest.raises(Exception, match="without sending a response"):
            await ask(Origin("localhost", port, secure.client))
    async with nothing_left(), script([], repeat=True) as server:
        with pytest.raises(ReadTimeout):
            await ask(Origin("127.0.0.1", server.port), Patience(first=0.05))
