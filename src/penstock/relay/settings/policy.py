"""What a route of the relay decides, as frozen values: nothing here is a rule about time, and nothing does any I/O.

A `Policy` is everything that may differ from one route to another. Of several, `choose` takes the first whose `Match`
fits; what bounds the store that all of them share is not here, but in `penstock.relay.settings.config`.

The values are checked where they are made, and a ValueError says what is wrong without the value of a header.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, Self, TypeAlias

from penstock.client.seam import absolute_url, shown
from penstock.client.settings import Timeout
from penstock.eventlog.base import Promise
from penstock.relay.settings.cors import Cors
from penstock.relay.settings.match import Match, segments
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.settings.units import duration
from penstock.relay.streams.ends import DIALECTS, Dialect
from penstock.relay.streams.feed import Ids
from penstock.relay.upstream.headers import Raw
from penstock.resilience.breaker import Breaker
from penstock.resilience.retry import Retry
from penstock.wire import headers as fields
from penstock.wire.terminator import PROFILES, Terminator

Log = Literal["auto", "all", "none"]
WithoutStore = Literal["refuse", "live"]
Leaving = Literal["auto", "cancel", "grace", "detach"]
Network: TypeAlias = IPv4Network | IPv6Network

GRACE = 30.0
"""Seconds that a reader has to come back, where nothing else is said."""

PATIENCE = Timeout(connect=5.0, first_event=300.0, between_events=300.0)
"""How long the upstream is waited for, where nothing else is said: a model may think for minutes."""

_TRIES_ONCE = Retry(retries=0)


@dataclass(frozen=True, slots=True)
class OnDisconnect:
    """What becomes of the upstream when the last reader leaves.

    Attributes:
        kind: "cancel" it at once; a "grace" for somebody to come back; "detach", and run to its end; or "auto".
        grace: For "grace" and "auto", seconds that somebody has.
    """

    kind: Leaving = "auto"
    grace: float = GRACE

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "cancel", "grace", "detach") or not 0 < self.grace < math.inf:
            raise ValueError(
                f'on_disconnect is "auto", "cancel", "grace" or "detach", with a grace of more than 0 seconds; '
                f"got {self.kind!r}, {self.grace}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``auto``, ``cancel``, ``grace``, ``grace:30s``, ``auto:30s`` or ``detach``.

        Raises:
            ValueError: It is none of them.
        """
        kind, colon, time = text.strip().partition(":")
        try:
            if kind not in ("auto", "cancel", "grace", "detach") or (colon and kind not in ("auto", "grace")):
                raise ValueError
            return cls(kind, duration(time) if colon else GRACE)  # type: ignore[arg-type]  # looked up above
        except ValueError:
            raise ValueError(
                f"{text!r} is not what happens on a disconnect: write auto, cancel, grace:30s or detach"
            ) from None

    def resolved(self, *, can_resume: bool) -> OnDisconnect:
        """What "auto" comes to, once the request is known: a grace if it can resume, else a cancel."""
        if self.kind != "auto":
            return self
        return OnDisconnect("grace" if can_resume else "cancel", self.grace)

    def __str__(self) -> str:
        return f"grace:{self.grace:g}s" if self.kind == "grace" else self.kind


@dataclass(frozen=True, slots=True)
class OwnerFrom:
    """Where the gateway reads who asks: a field or a cookie that what stands before it has checked.

    Attributes:
        kind: "header" or "cookie".
        name: The field's, in small letters, or the cookie's.
    """

    kind: Literal["header", "cookie"]
    name: str

    def __post_init__(self) -> None:
        if self.kind not in ("header", "cookie"):
            raise ValueError(f"an owner is read from a header or a cookie, not from a {self.kind!r}")
        fields.check_header(self.name, "")  # a cookie's name is a token too
        if self.kind == "header":
            object.__setattr__(self, "name", self.name.lower())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``header:NAME``, ``cookie:NAME``, or ``none``: nobody is asked, the stream's id alone gives access.

        Raises:
            ValueError: It is none of them.
        """
        kind, _, name = text.strip().partition(":")
        if text.strip() == "none":
            return None
        try:
            return cls(kind, name.strip())  # type: ignore[arg-type]  # checked there
        except ValueError:
            raise ValueError(f"{text!r} does not say who owns a stream: write header:NAME or cookie:NAME") from None

    def read(self, headers: Raw, secret: bytes) -> str | None:
        """Who asks, as a name that tells nothing; None for nobody.

        A field or cookie that comes twice with two values is nobody's: which one was checked cannot be told.

        Args:
            headers: The request's, names in small letters.
            secret: The key of the hash, so that what is stored cannot be guessed back from a list of users.
        """
        if self.kind == "header":
            name = self.name.encode()
            values = {value.strip(b" \t") for key, value in headers if key == name}
        else:
            pairs = (pair.partition(b"=") for key, value in headers if key == b"cookie" for pair in value.split(b";"))
            values = {value.strip(b" \t") for key, _, value in pairs if key.strip(b" \t") == self.name.encode()}
        if len(values) != 1 or not (value := values.pop()):
            return None
        said = f"{self.kind}:{self.name}\0".encode() + value
        return hmac.new(secret, said, hashlib.sha256).hexdigest()

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """The most that one route takes in and holds. What its store keeps is bounded by the store's `Retention`.

    Attributes:
        max_header_bytes: Of a request's fields; 431.
        max_body_bytes: Of a request's body, which is streamed and not held; None for no bound; 413.
        max_replay_bytes: Of a request's body that are held, to send it again before the first byte of an answer.
        max_event_bytes: Of one event, or one line of NDJSON, where the stream is logged.
        max_streams: Streams of the route that run at a time in one process; 503.
        max_readers: Readers of one stream in one process; 429, or for an EventSource an answer that it retries.
    """

    max_header_bytes: int = 64 * 1024
    max_body_bytes: int | None = None
    max_replay_bytes: int = 1024 * 1024
    max_event_bytes: int = 4 * 1024 * 1024
    max_streams: int = 10_000
    max_readers: int = 10_000

    def __post_init__(self) -> None:
        for name, least in (
            ("max_header_bytes", 1),
            ("max_body_bytes", 0),
            ("max_replay_bytes", 0),
            ("max_event_bytes", 1),
            ("max_streams", 1),
            ("max_readers", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {least} or more, got {value}")


# -- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that a route decides.

    Attributes:
        upstream: Where its requests go; a path in it goes before every request's own.
        match: Which requests are meant.
        log: Which answers are kept: "auto" event streams and NDJSON, "all", or "none".
        log_types: Media types that "auto" keeps as well.
        on_disconnect: What becomes of the upstream when the last reader leaves.
        timeout: How long the upstream is waited for.
        keep_alive: Seconds of silence after which an event stream's reader is sent a line; 0 never sends one.
        early_headers: Seconds after which a reader of events is answered before the upstream has; None waits for it.
        terminator: How the upstream's streams say that they are whole.
        dialect: How a failure in mid-stream is told; None goes by the content.
        limits: The most that is taken in and held.
        owner: Who may read a stream; None asks nobody, and the stream's id alone gives access.
        ids: Whose ids events carry: "ours", the "upstream"'s, or "auto": theirs where there are any.
        promise: "fast" sends and stores, "durable" stores and sends.
        without_store: What becomes of streams while the store is away: "refuse" a new one and stop what can be held no
            longer, or relay it "live" to those who are here, and keep nothing.
        retry: How often a request is tried again before the first byte of its answer.
        breaker: When to stop asking a failing upstream; None never stops.
        request_headers: Added to and dropped from what goes to the upstream.
        response_headers: Added to and dropped from what goes to the reader.
        root_path: The path at which a proxy before the relay shows it; it goes before the Locations it gives.
        trusted_proxies: Networks whose X-Forwarded-* are believed.
        cors: Which pages of other origins may read; None is none.
    Raises:
        InvalidURL: The upstream is no http or https URL.
        ValueError: A setting that means nothing; the message names it.
    """

    upstream: str
    match: Match = field(default_factory=Match)
    log: Log = "auto"
    log_types: tuple[str, ...] = ()
    on_disconnect: OnDisconnect = field(default_factory=OnDisconnect)
    timeout: Timeout = PATIENCE
    keep_alive: float = 15.0
    early_headers: float | None = None
    terminator: Terminator = PROFILES["none"]
    dialect: Dialect | None = None
    limits: RelayLimits = field(default_factory=RelayLimits)
    owner: OwnerFrom | None = None
    ids: Ids = "auto"
    promise: Promise = "fast"
    without_store: WithoutStore = "refuse"
    retry: Retry = _TRIES_ONCE
    breaker: Breaker | None = None
    request_headers: HeaderRules = field(default_factory=HeaderRules)
    response_headers: HeaderRules = field(default_factory=HeaderRules)
    root_path: str = ""
    trusted_proxies: tuple[Network, ...] = ()
    cors: Cors | None = None

    def __post_init__(self) -> None:
        check_upstream(self.upstream)
        for name, allowed in (
            ("log", ("auto", "all", "none")),
            ("ids", ("auto", "ours", "upstream")),
            ("promise", ("fast", "durable")),
            ("without_store", ("refuse", "live")),
            ("dialect", (None, *DIALECTS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}; got {getattr(self, name)!r}")
        object.__setattr__(self, "log_types", tuple(checked_type(type_) for type_ in self.log_types))
        for name in ("keep_alive", "early_headers"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < math.inf:
                raise ValueError(f"{name} is 0 seconds or more, got {seconds}")
        check_root_path(self.root_path)

    def logs(self, content_type: str | bytes | None) -> bool:
        """Whether an answer of that Content-Type is kept."""
        if self.log != "auto":
            return self.log == "all"
        essence = fields.media_type(content_type).essence
        return essence in self.log_types or fields.is_event_stream(content_type) or fields.is_ndjson(content_type)

    def trusts(self, peer: str | None) -> bool:
        """Whether a peer's X-Forwarded-* are believed; a peer without an IP address, as of a Unix socket, is not."""
        if not self.trusted_proxies or peer is None:
            return False
        try:
            address: IPv4Address | IPv6Address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # how a socket of both families shows an IPv4 peer
        return any(address in network for network in self.trusted_proxies)

    def __repr__(self) -> str:
        return f"Policy({self.match} → {shown(self.upstream)})"


def choose(policies: Iterable[Policy], method: str, path: str) -> Policy | None:
    """The first policy whose match fits a request; None if none does.

    Args:
        policies: In order.
        method: In capitals. For a CORS preflight, the one that it asks about.
        path: With its percent-encoding undone, as ASGI has it.
    """
    parts = segments(path)
    return next((policy for policy in policies if policy.match.fits(method, parts)), None)


def check_upstream(url: str) -> None:
    """Refuse what requests cannot be passed on to.

    Raises:
        InvalidURL: It is no http or https URL.
        ValueError: It has a query or a fragment, for which no request has a place.
    """
    absolute_url("", url)
    if "?" in url or "#" in url:
        base = shown(url).partition("#")[0].partition("?")[0]
        raise ValueError(f"the upstream {base} has a query or a fragment after it: every request brings its own")


def checked_type(type_: str) -> str:
    """A media type to compare with, without parameters and in small letters.

    Raises:
        ValueError: It is none.
    """
    essence = fields.media_type(type_).essence
    if not essence or ";" in type_:
        raise ValueError(f"{type_!r} is not a media type: write it without parameters, as application/json")
    return essence


def check_root_path(path: str) -> None:
    """Refuse a root path that would not make a path of what follows it.

    Raises:
        ValueError: The message says how it is written.
    """
    if path and (not path.startswith("/") or path.endswith("/") or path.startswith("//") or not path.isascii()):
        raise ValueError(f"{path!r} is not a root path: it begins with / and ends without, as /api")
    if any(mark in path for mark in "?#\\") or any(character <= " " for character in path):
        raise ValueError(f"{path!r} is not a root path: it has no query, fragment, backslash or space")
