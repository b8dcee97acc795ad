"""Every key of the relay's configuration file, and how its value is read.

A reader returns what a value means, or raises a ValueError that says what is wrong with it and what to write; which key
it is and where is added by `penstock.relay.settings.document`. No message has the value of a header, or a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import Any

from penstock.client.seam import shown
from penstock.relay.settings.cors import check_origin
from penstock.relay.settings.document import Items, Key, Names, Node, Substituted, Table, Tables
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import (
    Network,
    OnDisconnect,
    OwnerFrom,
    check_root_path,
    check_upstream,
    checked_type,
)
from penstock.relay.settings.rules import HeaderRules, check_field
from penstock.relay.settings.store import Store
from penstock.relay.settings.units import duration, size
from penstock.relay.streams.ends import DIALECTS
from penstock.resilience.classify import RULES
from penstock.resilience.retry import FINAL, Retry
from penstock.wire.headers import check_header
from penstock.wire.terminator import Terminator

SECRET = "PENSTOCK_SECRET"
"""The environment variable that holds what owners are hashed with."""

MOST_WORKERS = 256

MOST = 10**9
"""No number is more: beyond it there is nothing to count, and floats and timers give out."""


# -- how a value is read ----------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_said(value)} is not text: write it in quotes")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_said(value)} is not a choice: write true or false, without quotes")
    return value


def _whole(least: int, most: int = MOST) -> Callable[[Any], int]:
    """A whole number within bounds."""
    bounds = f"{least} or more" if most == MOST else f"from {least} to {most}"

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{_said(value)} is not a whole number: write one that is {bounds}")
        if not least <= value <= most:
            raise ValueError(f"{value} is out of range: it is {bounds}")
        return value

    return read


def _number(least: float, most: float = MOST, *, above: bool = False) -> Callable[[Any], float]:
    """A number within bounds; `above` leaves out the lower one."""
    bounds = f"{'more than' if above else 'at least'} {least:g}" + ("" if most == MOST else f", up to {most:g}")

    def read(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{_said(value)} is not a number: write one, {bounds}")
        if not least <= value <= most or (above and value == least):
            raise ValueError(f"{value} is out of range: it is {bounds}")
        return float(value)

    return read


def _seconds(value: Any, *, zero: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f'{_said(value)} is not a duration: write seconds, or a number with a unit, as "30s"')
    seconds = duration(value)
    if not zero and not seconds:
        raise ValueError("0 is no time to wait: write more")
    return seconds


def _some_seconds(value: Any) -> float:
    return _seconds(value, zero=False)


def _lease(value: Any) -> float:
    seconds = _seconds(value)
    if seconds < 1:
        raise ValueError("is too short: a process that is busy for a moment would lose its streams; write 1s or more")
    return seconds


def _patience(value: Any) -> float | None:
    """A time to wait, where ``none`` is for ever."""
    if value == "none":
        return None
    try:
        return _seconds(value, zero=False)
    except ValueError as error:
        raise ValueError(f'{error}; "none" waits for ever') from None


def _size(least: int, *, unbounded: bool = False) -> Callable[[Any], int | None]:
    """A size; where there may be none, ``none`` is no bound."""

    def read(value: Any) -> int | None:
        if unbounded and value == "none":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f'{_said(value)} is not a size: write bytes, or a number with a unit, as "16M"')
        bytes_ = size(value)
        if bytes_ < least:
            raise ValueError(f"{bytes_} is out of range: it is {least} or more")
        return bytes_

    return read


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{_said(value)} is none of {', '.join(words)}")
        return str(value)

    return read


def _said(value: Any) -> str:
    """A value as it stands in the file, near enough."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return repr(value)


def _checked(check: Callable[[str], object]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        check(_text(value))
        return str(value)

    return read


def _address(value: Any) -> str:
    # The form alone, and the server, which binds it, reads the rest: it is a stranger to this room.
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:.%]+\]|[^\s:/@\[\]]*):(\d{1,5})", _text(value), re.ASCII)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT: write it as 127.0.0.1:8081, :8081 or [::1]:8081")
    return str(value)


def _store(value: Any) -> Store:
    try:
        return Store(str(_text(value)))
    except ValueError:
        if not isinstance(value, Substituted):
            raise
        raise ValueError(f"{value!r} gives no store: write none, memory://, sqlite:///FILE or redis://HOST") from None


def _upstream(value: Any) -> str:
    url = _text(value)
    try:
        check_upstream(url)
    except ValueError:
        if not isinstance(value, Substituted):
            raise
        raise ValueError(f"{value!r} gives no URL: write http://HOST or https://HOST, without a query") from None
    if shown(url) != url:
        raise ValueError("holds a user name or password, which is not sent: write request_headers.add.Authorization")
    return str(url)


def _method(value: Any) -> str:
    Match("/", frozenset({_text(value)}))
    return str(value.upper())


def _early(value: Any) -> float | None:
    if isinstance(value, bool):
        return 0.0 if value else None
    try:
        return _seconds(value)
    except ValueError:
        raise ValueError(f"{_said(value)} is neither true, false, nor a time after which") from None


def _dialect(value: Any) -> str | None:
    dialect = _one_of("auto", *DIALECTS)(value)
    return None if dialect == "auto" else dialect


def _network(value: Any) -> Network:
    text = _text(value)
    try:
        return ip_network(text)
    except ValueError:
        try:
            meant = f": write {ip_network(text, strict=False)}, or an address alone"
        except ValueError:
            meant = ": write it as 10.0.0.0/8, or an address alone"
        raise ValueError(f"{value!r} is not a network{meant}") from None


def _field(name: str, value: Any) -> str:
    check_field(name, _text(value))
    return str(value)


def _per_cause(name: str, value: Any) -> int:
    if name not in RULES:
        raise ValueError(f"there is no such cause; there are {', '.join(sorted(RULES.keys() - FINAL))}")
    retries = _whole(0)(value)
    Retry(per_cause={name: retries})
    return retries


def _switch(value: Any) -> dict[str, Any] | None:
    """``true`` is a table with nothing in it, ``false`` none."""
    try:
        return {} if _flag(value) else None
    except ValueError:
        raise ValueError(f"{_said(value)} is neither true, false, nor a table") from None


def _off(value: Any) -> None:
    if value is not False:
        raise ValueError(f"{_said(value)} is neither a table nor false")


def _retries(value: Any) -> dict[str, Any]:
    return {"retries": _whole(0)(value)}


def _terminator(said: dict[str, Any]) -> Terminator:
    result = Terminator(**said)
    if result == Terminator():
        raise ValueError('says nothing: write data or event, or the name of a profile in its place, as "openai"')
    return result


# -- the keys ---------------------------------------------------------------------------------------------------------

_WORDS = Items(_text, one_will_do=True)

_TIMEOUT = Table(
    {
        "connect": Key(_patience),
        "first_event": Key(_patience),
        "between_events": Key(_patience),
        "total": Key(_patience),
        "content_only": Key(_flag),
    }
)
_LIMITS = Table(
    {
        "max_header_bytes": Key(_size(1)),
        "max_body_bytes": Key(_size(0, unbounded=True)),
        "max_replay_bytes": Key(_size(0)),
        "max_event_bytes": Key(_size(1)),
        "max_streams": Key(_whole(1)),
        "max_readers": Key(_whole(1)),
    },
    hints={
        "max_stream_bytes": "is the store's: write it in [retention]",
        "max_bytes": "is the store's: write it in [retention]",
    },
)
_RETRY = Table(
    {
        "retries": Key(_whole(0)),
        "idempotent": Key(_flag),
        "retry_after_maximum": Key(_seconds),
        "per_cause": Names(_per_cause),
        "backoff": Table(
            {
                "initial": Key(_seconds),
                "maximum": Key(_seconds),
                "factor": Key(_number(1)),
                "jitter": Key(_one_of("full", "none")),
                "curve": Key(_one_of("exponential", "quadratic")),
            }
        ),
        "budget": Table(
            {"share": Key(_number(0)), "floor": Key(_number(0)), "window": Key(_some_seconds)},
            short=_off,
        ),
    },
    short=_retries,
)
_BREAKER = Table(
    {
        "failure_threshold": Key(_whole(1)),
        "recovery_timeout": Key(_seconds),
        "half_open_probes": Key(_whole(1)),
        "failure_rate": Key(_number(0, 1, above=True)),
        "window": Key(_some_seconds),
        "minimum_calls": Key(_whole(1)),
    },
    short=_switch,
)
_HEADERS = Table({"add": Names(_field, one_case=True), "drop": Items(_checked(lambda name: HeaderRules(drop=[name])))})
_CORS = Table(
    {
        "origins": Items(_checked(check_origin)),
        "credentials": Key(_flag),
        "headers": Items(_checked(partial(check_header, value=""))),
        "expose": Items(_checked(partial(check_header, value=""))),
        "max_age": Key(_seconds),
    },
    short=_off,
)
_POLICY: dict[str, Node] = {
    "upstream": Key(_upstream),
    "log": Key(_one_of("auto", "all", "none")),
    "log_types": Items(lambda value: checked_type(_text(value))),
    "on_disconnect": Key(lambda value: OnDisconnect.parse(_text(value))),
    "timeout": _TIMEOUT,
    "keep_alive": Key(_seconds),
    "early_headers": Key(_early),
    "terminator": Table(
        {
            "data": Key(_text),
            "event": _WORDS,
            "error": _WORDS,
            "ping": _WORDS,
            "payload": Key(_one_of("error", "type")),
        },
        short=lambda value: Terminator.named(_text(value)),
        build=_terminator,
    ),
    "dialect": Key(_dialect),
    "limits": _LIMITS,
    "owner": Key(lambda value: OwnerFrom.parse(_text(value))),
    "ids": Key(_one_of("auto", "ours", "upstream")),
    "promise": Key(_one_of("fast", "durable")),
    "without_store": Key(_one_of("refuse", "live")),
    "retry": _RETRY,
    "breaker": _BREAKER,
    "request_headers": _HEADERS,
    "response_headers": _HEADERS,
    "root_path": Key(_checked(check_root_path)),
    "trusted_proxies": Items(_network),
    "cors": _CORS,
}
_RELAY: dict[str, Node] = {
    "listen": Key(_address),
    "admin_listen": Key(_address),
    "store": Key(_store),
    "lease": Key(_lease),
    "workers": Key(_whole(1, MOST_WORKERS)),
    "grace": Key(_seconds),
    "retention": Table(
        {
            "age": Key(_seconds),
            "max_stream_bytes": Key(_size(1)),
            "max_bytes": Key(_size(1)),
            "max_streams": Key(_whole(1)),
        }
    ),
}
_ABOVE = dict.fromkeys(_RELAY, "concerns the whole relay: write it before the first [table]")
_ABOVE["retention"] = "concerns the whole relay: write it as [retention]"
_DEFAULTS = Table(_POLICY, hints={**_ABOVE, **dict.fromkeys(("path", "methods"), "belongs to a route: [[routes]]")})
_ROUTE = Table({"path": Key(_checked(Match)), "methods": Items(_method), **_POLICY}, hints=_ABOVE)

FILE = Table(
    {**_RELAY, "defaults": _DEFAULTS, "routes": Tables(_ROUTE)},
    hints={
        **dict.fromkeys(_ROUTE.keys, "concerns a route: write it in [defaults], or below its [[routes]]"),
        "secret": f"never stands in a file: set the environment variable {SECRET}",
    },
)
"""Every key that there is."""
