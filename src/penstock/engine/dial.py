"""A connection to a host: names resolved, addresses raced, TLS agreed.

Happy eyeballs: the addresses are tried in turn, IPv6 and IPv4 alternating, each a quarter of a second after the one
before or at once when that one failed; the first that answers wins and the others are dropped.

Source:
    RFC 8305
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.engine.connection import Connection
from penstock.errors import ConnectError, ConnectTimeout

STAGGER_SECONDS = 0.25

_UNREACHED = "no connection in time; is the host reachable?"

Address = tuple[int, int, int, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a connection is to; connections to equal ones are interchangeable.

    Attributes:
        host: Name or address, without brackets.
        port: The port.
        tls: The TLS settings, or None for plaintext.
        server_name: The name that TLS asks for and checks.
        path: Of a Unix socket, in the place of host and port.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    path: str | None = None


async def dial(origin: Origin, timeout: float | None, local_address: str | None = None) -> Connection:
    """Connect.

    Cancellation: every attempt under way is closed.

    Raises:
        ConnectTimeout: Not within the timeout; the message says whether it was TLS that did not come.
        ConnectError: Refused, unknown, unreachable, or no TLS; see its reason.
    """
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            if origin.path is not None:
                return await _over_path(origin, origin.path)
            sock = await _reach(origin, local_address)
            return await _over(sock, origin)
    except TimeoutError:
        hangs_in_tls = sock is not None and origin.tls is not None
        why = "no TLS handshake in time; does TLS listen there?" if hangs_in_tls else _UNREACHED
        raise ConnectTimeout(why, reason="timeout") from None
    except ssl.SSLCertVerificationError as error:
        raise ConnectError(f"its certificate cannot be trusted: {error.verify_message}", reason="tls") from error
    except ssl.SSLError as error:
        raise ConnectError(f"no TLS connection: {error.reason or error}", reason="tls") from error
    except socket.gaierror as error:
        raise ConnectError(f"there is no host {origin.host!r}", reason="dns") from error
    except UnicodeError as error:
        raise ConnectError(f"{origin.host!r} is no host name", reason="dns") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error) or "no connection"
        raise ConnectError(why, reason=_reason(error)) from error


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.ECONNREFUSED | errno.ENOENT:
            return "refused"
        case errno.ECONNRESET | errno.EPIPE | errno.ECONNABORTED:
            return "reset"
        case errno.ENETUNREACH | errno.EHOSTUNREACH | errno.EADDRNOTAVAIL | errno.EHOSTDOWN | errno.ENETDOWN:
            return "unreachable"
        case errno.ETIMEDOUT:
            return "timeout"
        case _:
            return "other"


async def _reach(origin: Origin, local_address: str | None) -> socket.socket:
    """A socket that is connected to the host: TCP stands, TLS does not yet."""
    loop = asyncio.get_running_loop()
    addresses = _literal(origin.host, origin.port) or await loop.getaddrinfo(
        origin.host, origin.port, type=socket.SOCK_STREAM
    )
    return await _race(loop, _alternating(addresses), local_address)


async def _over(sock: socket.socket, origin: Origin) -> Connection:
    """The connection over a connected socket, which is closed where there is none."""
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(loop), sock=sock, ssl=origin.tls, server_hostname=_server_name(origin)
        )
    except BaseException:
        sock.close()
        raise
    return connection


async def _over_path(origin: Origin, path: str) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(
        lambda: Connection(loop), path, ssl=origin.tls, server_hostname=_server_name(origin)
    )
    return connection


def _server_name(origin: Origin) -> str | None:
    return (origin.server_name or origin.host) if origin.tls else None


def _literal(host: str, port: int) -> list[tuple[Any, ...]]:
    """The address that a host is, if it is one: no resolver, and so no thread, is needed to tell."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []


def _alternating(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    """The addresses with their families in turn, the resolver's favourite first."""
    by_family: dict[int, list[Address]] = {}
    for family, kind, protocol, _, address in found:
        by_family.setdefault(family, []).append((family, kind, protocol, address))
    turns = itertools.zip_longest(*by_family.values())
    return [address for turn in turns for address in turn if address is not None]


async def _race(loop: asyncio.AbstractEventLoop, addresses: list[Address], local: str | None) -> socket.socket:
    if len(addresses) == 1:
        return await _socket_to(loop, addresses[0], local)
    waiting = addresses[::-1]
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException | None = None
    won: socket.socket | None = None
    try:
        while won is None and (waiting or attempts):
            if waiting:
                attempts.add(loop.create_task(_socket_to(loop, waiting.pop(), local)))
            done, attempts = await asyncio.wait(
                attempts, timeout=STAGGER_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                error = attempt.exception()
                if error is not None:
                    failure = failure or error
                elif won is None:
                    won = attempt.result()
                else:
                    attempt.result().close()
    finally:
        for attempt in attempts:
            attempt.cancel()
        for attempt in attempts:
            attempt.add_done_callback(_dropped)
    if won is None:
        raise failure or OSError(errno.EHOSTUNREACH, "the name has no address")
    return won


def _dropped(attempt: asyncio.Task[socket.socket]) -> None:
    """An attempt that was not needed: close what it may have opened all the same."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _socket_to(loop: asyncio.AbstractEventLoop, address: Address, local: str | None) -> socket.socket:
    family, kind, protocol, where = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if local is not None:
            sock.bind((local, 0))
        await _connected(loop, sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(loop: asyncio.AbstractEventLoop, sock: socket.socket, where: Any) -> None:
    """`loop.sock_connect`, without what uvloop does first: ask its thread pool about an address that is known."""
    if sys.platform == "win32":  # whose loop watches no sockets
        await loop.sock_connect(sock, where)
        return
    code = sock.connect_ex(where)
    if code in (errno.EINPROGRESS, errno.EAGAIN, errno.EINTR):
        writable = loop.create_future()
        loop.add_writer(sock, _tell, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _tell(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)
