"""The relay's configuration: a TOML file read, checked as a whole, and told in words.

::

    listen = "127.0.0.1:8081"           what concerns the whole relay stands first

    [defaults]                          what every route begins with, and, if it has an upstream,
    upstream = "https://api.example"    what goes for a request that no route is for

    [[routes]]                          the first one that fits a request is its policy
    path = "/v1/chat/completions"

A route's tables are laid over those of the defaults key by key; any other value takes the place of theirs.

`load` finds every mistake at once. Each key is read on its own; then a whole is made of what was good, and looked
through for what does not go together (`contradictions`), less what depends on a key that is wrong already. What a file
cannot hold is the secret that owners are hashed with: files are copied and committed. It is PENSTOCK_SECRET's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any, NamedTuple

from penstock.client.seam import shown
from penstock.client.settings import Timeout
from penstock.errors import PenstockError
from penstock.eventlog.base import Retention
from penstock.relay.settings.cors import Cors
from penstock.relay.settings.document import Document, Mistake, merged
from penstock.relay.settings.keys import FILE, SECRET
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import PATIENCE, Policy, RelayLimits, choose
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.settings.store import LEASE, Store
from penstock.relay.settings.toml_lines import Path
from penstock.relay.settings.units import spelled_duration, spelled_size
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker
from penstock.resilience.budget import RetryBudget
from penstock.resilience.retry import Retry

LEAST_SECRET = 16
"""Bytes that a secret has at the least."""


class ConfigError(PenstockError):
    """A configuration that cannot be served; the text lists all that is wrong with it.

    Attributes:
        source: The file.
        mistakes: In the order of their lines.
    """

    def __init__(self, source: str, mistakes: tuple[Mistake, ...]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n  ".join([f"{source} has {count}:", *map(str, mistakes)]))
        self.source = source
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All that `penstock relay` goes by.

    Attributes:
        listen: Where readers are served, ``HOST:PORT``.
        admin_listen: Where the operator is; None is nowhere.
        store: Where streams are kept.
        retention: How much of them.
        lease: Seconds without a sign of life after which a process that shares the store has lost its streams.
        workers: Processes that share the address.
        grace: Seconds for running streams once the relay is told to end.
        secret: What owners are hashed with; None lets the relay make one up that ends with it.
        routes: The policies, in order.
        default: That of a request which no route is for; None answers 404.
    """

    listen: str = "127.0.0.1:8081"
    admin_listen: str | None = None
    store: Store = field(default_factory=Store)
    retention: Retention = field(default_factory=lambda: Retention(age=600.0))
    lease: float = LEASE
    workers: int = 1
    grace: float = 5.0
    secret: bytes | None = field(default=None, repr=False)
    routes: tuple[Policy, ...] = ()
    default: Policy | None = None

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The routes, then the default."""
        return self.routes if self.default is None else (*self.routes, self.default)

    def route(self, method: str, path: str) -> Policy | None:
        """The policy that a request goes by; `choose` says what of it."""
        return choose(self.policies, method, path)


# -- the whole --------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], *, upstream: str | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Read a configuration file.

    Args:
        path: The file.
        upstream: What stands in the place of ``defaults.upstream``.
        environ: The environment; the process's by default.
    Raises:
        ConfigError: It cannot be read or served; all its mistakes are told.
    """
    source = str(path)
    try:
        text = File(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(source, (Mistake(None, "", f"it cannot be read: {error.strerror or error}"),)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(source, (Mistake(line, "", "not UTF-8: save the file in that encoding"),)) from None
    return parse(text, source=source, upstream=upstream, environ=os.environ if environ is None else environ)


def parse(text: str, *, source: str, environ: Mapping[str, str], upstream: str | None = None) -> Config:
    """Make a configuration of a file's text; pure.

    Raises:
        ConfigError: It cannot be served; all its mistakes are told.
    """
    document = Document(text, environ)
    said = {} if document.mistakes else document.read(FILE)
    if document.mistakes and not document.lines:
        raise ConfigError(source, tuple(document.mistakes))
    config = _Assembly(document, said, environ, upstream).config()
    if document.mistakes:
        raise ConfigError(source, tuple(sorted(document.mistakes, key=lambda mistake: mistake.line or 0)))
    return config


class _Assembly:
    """A configuration made of what was read well; what is wrong with the whole is noted in the document."""

    def __init__(
        self, document: Document, said: dict[str, Any], environ: Mapping[str, str], upstream: str | None
    ) -> None:
        self._document = document
        self._said = said
        self._environ = environ
        self._defaults: dict[str, Any] = dict(said.get("defaults", {}))
        self._has_default = upstream is not None or document.has(("defaults", "upstream"))
        if upstream is not None:
            self._defaults["upstream"] = upstream

    def config(self) -> Config:
        document, said = self._document, self._said
        routes = [self._route(index, route) for index, route in enumerate(said.get("routes", []))]
        if not routes and not self._has_default and not document.has(("routes",)):
            document.add((), "there is nothing to relay to: write [defaults] and upstream below it, or a route")
        config = Config(
            **{
                key: said[key]
                for key in ("listen", "admin_listen", "store", "lease", "workers", "grace")
                if key in said
            },
            retention=self._made(("retention",), Retention, {"age": 600.0, **said.get("retention", {})}, Retention()),
            secret=self._secret(),
            routes=tuple(routes),
            default=self._policy(self._defaults, ("defaults",)) if self._has_default else None,
        )
        for found in contradictions(config, written=self._written):
            if not any(document.is_bad(path) for path in map(self._where, (found.path, *found.because))):
                document.add(self._where(found.path), found.message)
        return config

    def _secret(self) -> bytes | None:
        secret = self._environ.get(SECRET, "").encode()
        if secret and len(secret) < LEAST_SECRET:
            self._document.add((SECRET,), f"is too short to keep anything secret: {LEAST_SECRET} bytes at the least")
        return secret or None

    def _where(self, path: Path) -> Path:
        """Where a route's key is written: with it, or in the defaults."""
        if path[:1] == ("routes",) and not self._document.has(path):
            inherited = ("defaults", *path[2:])
            if len(inherited) > 1 and self._document.has(inherited):
                return inherited
        return path

    def _written(self, path: Path) -> bool:
        return self._document.has(path)

    def _route(self, index: int, route: Any) -> Policy:
        path: Path = ("routes", index)
        said: dict[str, Any] = route if isinstance(route, dict) else {}
        if not self._document.has((*path, "path")):
            self._document.add((*path, "path"), 'is missing: write which requests the route is for, path = "/" for all')
        return self._policy(merged(self._defaults, said), path)

    def _policy(self, said: dict[str, Any], path: Path) -> Policy:
        said = dict(said)
        if "upstream" not in said and not self._document.has(self._where((*path, "upstream"))):
            self._document.add((*path, "upstream"), "is missing: write where the requests go, here or in [defaults]")
        match = Match(said.pop("path", "/"), frozenset(said.pop("methods", ())))
        said.setdefault("upstream", "http://unknown.invalid")  # where it is missing, nothing else is
        for name, (make, otherwise) in _PARTS.items():
            if name in said:
                value = said[name]
                where = (*path, name)
                said[name] = otherwise if value is None else self._made(where, make, value, otherwise)
        return Policy(match=match, **said)

    def _made(self, path: Path, make: Callable[..., Any], said: dict[str, Any], otherwise: Any) -> Any:
        """One value of a table's keys, which may not go together."""
        try:
            return make(**said)
        except ValueError as error:
            if not self._document.is_bad(self._where(path)):
                self._document.add(self._where(path), str(error))
            return otherwise


def _made_timeout(**said: Any) -> Timeout:
    return replace(PATIENCE, **said)


def _made_retry(**said: Any) -> Retry:
    if "retries" not in said:
        raise ValueError("says nothing without retries: write how many there may be")
    said = dict(said)
    if "backoff" in said:
        said["backoff"] = Backoff(**said["backoff"])
    if said.get("budget") is not None:
        said["budget"] = RetryBudget(**said["budget"])
    return Retry(**said)


def _made_cors(**said: Any) -> Cors:
    return Cors(**{"origins": (), **said})


_PARTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "timeout": (_made_timeout, PATIENCE),
    "limits": (RelayLimits, RelayLimits()),
    "retry": (_made_retry, Retry(retries=0)),
    "breaker": (Breaker, None),
    "request_headers": (HeaderRules, HeaderRules()),
    "response_headers": (HeaderRules, HeaderRules()),
    "cors": (_made_cors, None),
}
"""What of a policy is made of a table's keys, and what stands in its place where that fails."""


class Contradiction(NamedTuple):
    """Settings that do not go together.

    Attributes:
        path: The one to change.
        message: Why, and to what.
        because: The others.
    """

    path: Path
    message: str
    because: tuple[Path, ...] = ()


def contradictions(config: Config, *, written: Callable[[Path], bool] = lambda path: True) -> Iterator[Contradiction]:
    """What in a configuration does not go together, each key by itself being sound.

    Args:
        written: Whether a key was said, rather than left at its default.
    """
    store: Path = ("store",)
    if config.workers > 1 and config.store.kind == "memory":
        yield Contradiction(
            ("workers",),
            f"{config.workers} processes cannot share memory://: set store to sqlite:///FILE, or workers to 1",
            (store,),
        )
    if config.admin_listen is not None and config.admin_listen == config.listen and not config.listen.endswith(":0"):
        yield Contradiction(
            ("admin_listen",), "is what readers are served on: give it a port of its own", (("listen",),)
        )
    places: list[tuple[Path, Policy]] = [(("routes", index), policy) for index, policy in enumerate(config.routes)]
    for index, (place, policy) in enumerate(places):
        for before, earlier in places[:index]:
            if earlier.match.covers(policy.match):
                same = earlier.match == policy.match
                why = "has the same path and methods as" if same else "is never reached: all of it goes by"
                hint = "take one of them out" if same else "move it before that one"
                keys = tuple((*route, key) for route in (before, place) for key in ("path", "methods"))
                yield Contradiction((*place, "path"), f"{why} routes[{before[1]}]; {hint}", keys)
                break
    if config.default is not None:
        places.append((("defaults",), config.default))
    for place, policy in places:
        yield from _against_the_store(config, policy, place, written)
    owned = [place for place, policy in places if policy.owner is not None and policy.log != "none"]
    if owned and config.secret is None and (config.store.persistent or config.workers > 1):
        yield Contradiction(
            (SECRET,),
            f"is not set in the environment: the owners in {config.store} are hashed with it, and must be the same "
            "after a restart and in every process; set it to a long random text",
            (store, *((*place, "owner") for place in owned)),
        )


def _against_the_store(
    config: Config, policy: Policy, place: Path, written: Callable[[Path], bool]
) -> Iterator[Contradiction]:
    """What one route asks of a store that does not give it."""
    store: Path = ("store",)
    kept = config.store.kind != "none"
    if not kept or policy.log == "none":
        # What a route has from the defaults goes for the others; it is only wrong where it can go for none.
        why = "nothing is kept in the store none" if not kept else "the route logs nothing"
        because = store if not kept else (*place, "log")
        for key, wrong, need in (
            ("on_disconnect", policy.on_disconnect.kind == "grace", "nobody could come back to a stream"),
            ("ids", policy.ids == "ours", "ids of ours would lead nowhere"),
            ("promise", policy.promise == "durable", "nothing could be durable"),
            ("early_headers", policy.early_headers is not None, "there is no stream to begin before the upstream's"),
        ):
            if wrong and (not kept or written((*place, key))):
                yield Contradiction((*place, key), f"{need}: {why}", (because,))
        return
    if policy.promise == "durable" and not config.store.persistent:
        yield Contradiction(
            (*place, "promise"),
            f"durable cannot be had of {config.store}, which ends with the process: set store to sqlite:///FILE",
            (store,),
        )
    if policy.promise == "durable" and policy.without_store == "live":
        yield Contradiction(
            (*place, "without_store"),
            'live sends what is stored nowhere, and promise is "durable": take one of them out',
            ((*place, "promise"),),
        )
    nobody_said = not written((*place, "owner")) and not written(("defaults", "owner"))
    if policy.owner is None and config.store.persistent and nobody_said:
        yield Contradiction(
            (*place, "owner"),
            f"is missing: {config.store} keeps streams for longer than their readers stay; write header:NAME or "
            'cookie:NAME, or "none" for the stream\'s id alone to give access',
            (store,),
        )
    if policy.limits.max_event_bytes > config.retention.max_stream_bytes:
        yield Contradiction(
            (*place, "limits", "max_event_bytes"),
            f"{spelled_size(policy.limits.max_event_bytes)} are more than the store keeps of a stream "
            f"({spelled_size(config.retention.max_stream_bytes)}): set it lower, or retention.max_stream_bytes higher",
            (("retention", "max_stream_bytes"), ("retention",)),
        )


# -- in words ---------------------------------------------------------------------------------------------------------


def describe(config: Config) -> str:
    """What a relay listens on, keeps and promises; lines for a banner."""
    lines = [f"listens on http://{config.listen}" + (f", with {config.workers} workers" if config.workers > 1 else "")]
    if config.admin_listen is not None:
        lines.append(f"shows the operator its page, streams and metrics on http://{config.admin_listen}")
    lines.append(_kept(config))
    for policy in config.policies:
        name = "everything else" if policy is config.default and config.routes else str(policy.match)
        if policy is config.default and not config.routes:
            name = "everything"
        lines.append(f"{name} → {shown(policy.upstream)}")
        lines += [f"  {line}" for line in _promised(config, policy)]
    if config.default is None:
        lines.append("everything else is answered with 404")
    lines.append(f"told to end, it gives running streams {spelled_duration(config.grace)}")
    return "\n".join(lines)


def _kept(config: Config) -> str:
    if config.store.kind == "none":
        return "keeps nothing: each answer goes to its one reader, as it comes"
    where = "memory, and loses them with the process" if config.store.kind == "memory" else str(config.store)
    kept = config.retention
    return (
        f"keeps streams in {where}: {spelled_size(kept.max_stream_bytes)} of each, {spelled_size(kept.max_bytes)} in "
        f"all, for {spelled_duration(kept.age)} after their end"
    )


def _promised(config: Config, policy: Policy) -> list[str]:
    """What one route keeps, and for whom."""
    if config.store.kind == "none" or policy.log == "none":
        leaves = "runs on" if policy.on_disconnect.kind == "detach" else "is cancelled"
        return [f"nothing is kept; when the reader leaves, the upstream {leaves}"]
    kinds = ["every answer"] if policy.log == "all" else ["event streams", "NDJSON", *policy.log_types]
    what = " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
    how = "stored before they are sent" if policy.promise == "durable" else "sent at once: a crash may lose the last"
    grace = spelled_duration(policy.on_disconnect.grace)
    leaves = {
        "auto": f"has {grace} to come back if its request can resume, else the upstream is cancelled",
        "cancel": "and is the last one cancels the upstream",
        "grace": f"has {grace} to come back",
        "detach": "leaves the upstream to run to its end",
    }[policy.on_disconnect.kind]
    early: list[str] = []
    if policy.early_headers is not None:
        when = f"after {spelled_duration(policy.early_headers)}" if policy.early_headers else "at once"
        early = [f"a reader of events is answered {when}, whatever the upstream will say"]
    away = ["without the store it is relayed live, and not kept"] if policy.without_store == "live" else []
    who = "whoever has a stream's id" if policy.owner is None else f"its owner alone, by {policy.owner}"
    return [f"keeps {what}, {how}", f"a reader that leaves {leaves}", f"read again by {who}", *early, *away]
