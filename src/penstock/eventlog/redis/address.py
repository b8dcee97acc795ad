"""What a URL of a Redis names.

=========================================  ===========================================================================
URL                                        names
=========================================  ===========================================================================
``redis://[user:password@]host[:port]/db`` one server
``redis+unix:///path``                     one server, by its socket; ``?db=1`` for another database
``redis+sentinel://host,host/service/db``  the master that the Sentinels tell, now and after a failover
``redis+cluster://host,host``              a cluster, of which these are some nodes
=========================================  ===========================================================================

``rediss`` for ``redis`` is TLS to all of them. User and password go to the servers, and to Sentinels that ask for some.
``?ssl_ca_certs=``, ``ssl_certfile=`` and ``ssl_keyfile=`` name files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

FORMS: Final = (
    "redis://HOST:PORT/DB, redis+sentinel://HOST,HOST/SERVICE, redis+cluster://HOST,HOST or redis+unix:///PATH "
    "(rediss for TLS)"
)
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379, "unix": 0}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says.

    Attributes:
        kind: "", "sentinel", "cluster" or "unix".
        places: The hosts it names; for a socket, its path.
        service: What the Sentinels call the master.
        secure: Whether over TLS.
        options: For each connection; they hold the password.
        shown: The URL without it.
    """

    kind: str
    places: tuple[Place, ...]
    service: str
    secure: bool
    options: dict[str, Any] = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL.

        Raises:
            ValueError: It is none of a Redis.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # it says what it does not like, a password too
            raise ValueError(f"{url.partition('://')[0]}://… is not a URL: write {FORMS}") from None
        family, _, kind = parts.scheme.partition("+")
        login, at, hosts = parts.netloc.rpartition("@")
        shown = f"{parts.scheme}://{hosts}{parts.path}"
        path = [unquote(part) for part in parts.path.split("/")[1:] if part]
        query = parse_qs(parts.query, keep_blank_values=True)
        known = family in ("redis", "rediss") and kind in _PORTS and not (family == "rediss" and kind == "unix")
        if not known or not (hosts or kind == "unix") or query.keys() - {*_FILES, "db"} or parts.fragment:
            raise ValueError(f"{shown!r} names no Redis: write {FORMS}")
        options: dict[str, Any] = {}
        if at:
            user, _, password = login.partition(":")
            options |= {"username": unquote(user) or None, "password": unquote(password)}
        if family == "rediss":
            options |= {name: query[name][-1] for name in _FILES if name in query}
        service = ""
        if kind == "sentinel":
            service = path.pop(0) if path else "mymaster"
        if kind == "unix":
            places = [Place(unquote(parts.path), 0)]
            path = []
        else:
            places = [_place(host, _PORTS[kind], shown) for host in hosts.split(",")]
        db = query["db"][-1] if "db" in query else path.pop(0) if path else "0"
        if path or not db.isdecimal() or (kind == "cluster" and db != "0") or (kind == "" and len(places) > 1):
            raise ValueError(f"{shown!r} names no Redis: write {FORMS}")
        return cls(kind, tuple(places), service, family == "rediss", {**options, "db": int(db)}, shown)


def _place(text: str, port: int, shown: str) -> Place:
    host, colon, digits = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, digits = text, str(port)
    if not digits.isdecimal() or not 0 < int(digits) < 65536:
        raise ValueError(f"{shown!r}: {digits!r} is no port")
    return Place(host.strip("[]") or "localhost", int(digits))
