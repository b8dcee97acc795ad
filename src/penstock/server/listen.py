"""Where a server listens: ``HOST:PORT`` read, and the socket bound.

Binding is apart from serving, so that a busy port is told before anything is started, and so that port 0 is a number
by the time that the first line is printed. A failure is one line that says what, where and what to do.

Several processes on one address: one of them holds it (:func:`hold`), each that serves binds beside it
(:func:`bind_beside`). On Linux every one has a socket of its own, and the kernel deals the connections out evenly, by a
hash of their addresses; elsewhere they accept from one socket. One socket would do on Linux too, but then whoever wakes
first accepts: of 200 connections made one after another, four uvloop processes took 99, 66, 33 and 2 from one socket,
and 56, 48, 56 and 40 from four. A stream stays where it was accepted, so nothing evens that out later.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from penstock.errors import PenstockError

BACKLOG = 2048
"""Connections that may wait to be accepted; the kernel caps it at its own limit (net.core.somaxconn)."""


_ONE_SOCKET_EACH = sys.platform == "linux"  # elsewhere SO_REUSEPORT does not deal out: one socket gets everything


class ListenError(PenstockError):
    """The address cannot be listened on: in use, not permitted, not this machine's, unknown."""


def parse_listen(value: str, *, default_host: str = "127.0.0.1") -> tuple[str, int]:
    """Read ``HOST:PORT``.

    Args:
        value: ``127.0.0.1:8080``, ``:8080`` (default_host), ``[::1]:8080``, ``localhost:0`` (any free port).
        default_host: What an empty host means.
    Returns:
        The host, without brackets, and the port.
    Raises:
        ValueError: It is not of that form; the message says which form is meant.
    """
    host, colon, port = value.strip().rpartition(":")
    if not colon:
        raise ValueError(f"{value!r} is not HOST:PORT, e.g. 127.0.0.1:8080 or :8080")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{value!r} is not HOST:PORT: the port is a number from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{value!r} is not HOST:PORT: brackets are for an IPv6 address, e.g. [::1]:8080")
    elif any(mark in host for mark in ":[]"):
        raise ValueError(f"{value!r} is not HOST:PORT: an IPv6 address stands in brackets, e.g. [::1]:8080")
    if any(mark.isspace() or mark in "/@" for mark in host):
        raise ValueError(f"{value!r} is not HOST:PORT: a host has no spaces, / or @")
    return host or default_host, int(port)


def address(host: str, port: int) -> str:
    """Write ``HOST:PORT`` as a URL wants it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_to(sock: socket.socket) -> str:
    """Tell the ``HOST:PORT`` that a bound socket really has, the port that stood for 0 included."""
    host, port = sock.getsockname()[:2]
    return address(host, port)


def bind(host: str, port: int) -> socket.socket:
    """Bind and listen; the socket is ready for a server, and accepts into its backlog from now on.

    Args:
        host: A name or an address; the first address that it resolves to is taken.
        port: 0 for any free one.
    Raises:
        ListenError: One line on why not.
    """
    sock = _bound(host, port)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address(host, port)}: {_why(error, port)}") from error
    return sock


def hold(host: str, port: int) -> socket.socket:
    """Bind for several processes: nobody else gets the address, and whoever connects is refused until one listens.

    Args:
        host: A name or an address; the first address that it resolves to is taken.
        port: 0 for any free one.
    Raises:
        ListenError: One line on why not.
    """
    sock = _bound(host, port)
    if _ONE_SOCKET_EACH:
        # Only now, so that an address in use has been found out; and the other option off, so that from here on nobody
        # can bind beside it but a process of the same user with the same option.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def bind_beside(held: socket.socket, *, one_socket_each: bool | None = None) -> socket.socket:
    """Bind to a held address, in each process that is to serve there; its server listens when it is ready.

    Args:
        held: What :func:`hold` gave, in this process or inherited; it stays open.
        one_socket_each: Whether to take a socket of one's own; by default as is best on this system.
    Raises:
        ListenError: One line on why not.
    """
    if not (_ONE_SOCKET_EACH if one_socket_each is None else one_socket_each):
        return held.dup()
    sock = socket.socket(held.family, held.type, held.proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(held.getsockname())
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {bound_to(held)}: {_why(error, held.getsockname()[1])}") from error
    return sock


def _bound(host: str, port: int) -> socket.socket:
    where = address(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"cannot listen on {where}: the host {host!r} is unknown; listen on 127.0.0.1 or 0.0.0.0, or check the name"
        ) from error
    family, kind, protocol, _, target = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {where}: {_why(error, port)}") from error
    return sock


def _why(error: OSError, port: int) -> str:
    reasons = {
        errno.EADDRINUSE: (
            "the address is already in use; stop what holds it or choose another with --listen (port 0 is any free one)"
        ),
        errno.EACCES: f"no permission for port {port}; choose one from 1024 up with --listen",
        errno.EADDRNOTAVAIL: "this machine has no such address; listen on 127.0.0.1 or 0.0.0.0",
    }
    known = reasons.get(error.errno or 0)
    return known or f"{os.strerror(error.errno) if error.errno else error}; choose another with --listen"
