"""The file as a whole: what it comes to, every mistake at once, and the page that documents it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.client.settings import Timeout
from penstock.errors import PenstockError
from penstock.eventlog.base import Retention
from penstock.relay.settings.config import Config, ConfigError, contradictions, describe, load, parse
from penstock.relay.settings.cors import Cors
from penstock.relay.settings.document import Items, Key, Names, Node, Table, Tables
from penstock.relay.settings.keys import FILE
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import PATIENCE, OnDisconnect, OwnerFrom, Policy, RelayLimits
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.settings.store import Store
from penstock.resilience.breaker import Breaker
from penstock.resilience.retry import Retry
from penstock.wire.terminator import PROFILES, Terminator

PAGE = Path(__file__).parents[3] / "docs" / "relay-config.md"
UP = '[defaults]\nupstream = "http://up.test"\n'
SECRET = {"PENSTOCK_SECRET": "a long and random text"}


def config(text: str, **environ: str) -> Config:
    return parse(text, source="relay.toml", environ=environ)


def mistakes(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        config(text, **environ)
    return [str(mistake) for mistake in error.value.mistakes]


# -- what a file comes to


def test_the_least_there_is() -> None:
    assert config(UP) == Config(default=Policy(upstream="http://up.test"))
    assert config(UP).route("POST", "/any") is config(UP).default or config(UP).default is not None
    only = config('[[routes]]\npath = "/a"\nupstream = "http://up.test"')
    assert only == Config(routes=(Policy(upstream="http://up.test", match=Match("/a")),))
    assert only.route("GET", "/b") is None


def test_a_route_is_laid_over_the_defaults() -> None:
    said = config(
        """
        [defaults]
        upstream = "http://up.test"
        log_types = ["text/plain"]
        timeout = { connect = 1, total = 9 }
        retry = 2
        breaker = { failure_threshold = 5 }
        request_headers.add = { Authorization = "a", X-One = "1" }
        cors.origins = ["https://app.test"]
        terminator = { data = "x" }
        owner = "header:X-User"

        [[routes]]
        path = "/a"
        upstream = "http://other.test"
        log_types = []
        timeout = { connect = 2 }
        retry.idempotent = true
        breaker = false
        request_headers.add.authorization = "b"
        request_headers.drop = ["Cookie"]
        cors = false
        terminator.event = "end"
        owner = "none"

        [[routes]]
        path = "/b"
        breaker.recovery_timeout = 5
        retry = 7
        cors.credentials = true
        """
    )
    a, b = said.routes
    assert a == Policy(
        upstream="http://other.test",
        match=Match("/a"),
        timeout=dataclasses.replace(PATIENCE, connect=2.0, total=9.0),
        retry=Retry(retries=2, idempotent=True),
        request_headers=HeaderRules({"authorization": "b", "x-one": "1"}, ["cookie"]),
        terminator=Terminator(event="end"),
    )
    assert b.breaker == Breaker(failure_threshold=5, recovery_timeout=5.0)
    assert b.retry.retries == 7
    assert b.cors == Cors(("https://app.test",), credentials=True)
    assert b.owner == OwnerFrom("header", "x-user")
    assert said.default is not None
    assert said.default.timeout == dataclasses.replace(PATIENCE, connect=1.0, total=9.0)
    assert [said.route("GET", path) for path in ("/a/x", "/b", "/c")] == [a, b, said.default]


def test_an_upstream_from_the_command_line_goes_before_the_defaults() -> None:
    for text in ("", UP, '[[routes]]\npath = "/a"'):
        said = parse(text, source="relay.toml", environ={}, upstream="http://given.test")
        assert {policy.upstream for policy in said.policies} == {"http://given.test"}


# -- mistakes


def test_every_mistake_at_once() -> None:
    text = """\
listn = "127.0.0.1:8081"
workers = 2
secret = "x"

[defaults]
upstream = "https://up.test/v1?x=1"
timeout.conect = 5
promise = "durable"

[[routes]]
path = "/v1/chat"
on_disconnect = "grase:30s"
request_headers.add = { Authorization = "Bearer ${NO_KEY}", Content-Length = "3" }

[[routes]]
path = "/v1/chat/completions"
limits = { max_event_bytes = "64X" }
cors = { origins = ["*"], credentials = true }

[[routes]]
log = "none"
ids = "ours"
"""
    assert mistakes(text) == [
        "line 1: listn: there is no such key here; is listen meant?",
        "line 2: workers: 2 processes cannot share memory://: set store to sqlite:///FILE, or workers to 1",
        "line 3: secret: never stands in a file: set the environment variable PENSTOCK_SECRET",
        (
            "line 6: defaults.upstream: the upstream https://up.test/v1 has a query or a fragment "
            "after it: every request brings its own"
        ),
        "line 7: defaults.timeout.conect: there is no such key here; is connect meant?",
        (
            "line 8: defaults.promise: durable cannot be had of memory://, which ends with the process: set store to "
            "sqlite:///FILE"
        ),
        (
            "line 12: routes[0].on_disconnect: 'grase:30s' is not what happens on a disconnect: write auto, cancel, "
            "grace:30s or detach"
        ),
        (
            "line 13: routes[0].request_headers.add.Authorization: the environment variable NO_KEY is not set, "
            "or empty: set it, or write $${NO_KEY} for the text"
        ),
        (
            "line 13: routes[0].request_headers.add.Content-Length: Content-Length is not set by hand: the relay "
            "frames its messages itself"
        ),
        "line 16: routes[1].path: is never reached: all of it goes by routes[0]; move it before that one",
        (
            "line 17: routes[1].limits.max_event_bytes: '64X' is not a size: write bytes, or a number with a unit, as "
            '"64K", "16M", "1G"'
        ),
        'line 18: routes[1].cors: credentials are not for every origin: name the origins in the place of "*"',
        'line 20: routes[2].path: is missing: write which requests the route is for, path = "/" for all',
        "line 22: routes[2].ids: ids of ours would lead nowhere: the route logs nothing",
    ]


def test_the_error_lists_them_all() -> None:
    with pytest.raises(ConfigError) as error:
        config("workers = 0\nlog = 1\n" + UP)
    assert isinstance(error.value, PenstockError)
    assert str(error.value) == (
        "relay.toml has 2 mistakes:\n"
        "  line 1: workers: 0 is out of range: it is from 1 to 256\n"
        "  line 2: log: concerns a route: write it in [defaults], or below its [[routes]]"
    )
    first, second = error.value.mistakes
    assert (first.line, first.key, second.line, second.key) == (1, "workers", 2, "log")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is nothing to relay to: write [defaults] and upstream below it, or a route"),
        ("workers = 1", "there is nothing to relay to: write [defaults] and upstream below it, or a route"),
        ("[defaults]", "there is nothing to relay to: write [defaults] and upstream below it, or a route"),
        (
            '[[routes]]\npath = "/a"',
            "line 1: routes[0].upstream: is missing: write where the requests go, here or in [defaults]",
        ),
        (
            "[defaults\n",
            (
                "line 1: not TOML: Expected ']' at the end of a table declaration; what else there is, is told "
                "once this is"
            ),
        ),
        (
            UP + "retry.idempotent = true",
            "line 3: defaults.retry: says nothing without retries: write how many there may be",
        ),
        (
            UP + "cors.credentials = true",
            "line 3: defaults.cors: no origin is allowed: name those that are, or leave CORS out",
        ),
        (
            UP + "retry = { retries = 1, budget = { floor = 0.01, window = 1 } }",
            "line 3: defaults.retry: 0.01 retries per second are less than one",
        ),
        ("retention.max_bytes = 5\n" + UP, "line 1: retention: retention needs age >= 0, 0 < max_stream_bytes <= max"),
    ],
)
def test_one_mistake(text: str, told: str) -> None:
    (message,) = mistakes(text)
    assert message.startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers = 2\n" + UP, ["line 1: workers: 2 processes cannot share memory://"]),
        ('store = "none"\nworkers = 2\n' + UP, []),
        ('listen = ":80"\nadmin_listen = ":80"\n' + UP, ["line 2: admin_listen: is what readers are served on"]),
        ('listen = ":0"\nadmin_listen = ":0"\n' + UP, []),
        (UP + 'promise = "durable"', ["line 3: defaults.promise: durable cannot be had of memory://"]),
        ('store = "none"\n' + UP + 'promise = "durable"', ["line 4: defaults.promise: nothing could be durable"]),
        ('store = "none"\n' + UP + 'on_disconnect = "grace"', ["line 4: defaults.on_disconnect: nobody could come"]),
        ('store = "none"\n' + UP + 'on_disconnect = "detach"', []),
        (
            'store = "redis://x"\n' + UP + 'owner = "none"\npromise = "durable"\nwithout_store = "live"',
            ["line 6: defaults.without_store: live sends what is stored nowhere"],
        ),
        ('store = "redis://x"\nlease = "5s"\n' + UP + 'owner = "none"\nwithout_store = "live"', []),
        ('store = "none"\n' + UP + 'ids = "ours"', ["line 4: defaults.ids: ids of ours would lead nowhere"]),
        (UP + 'log = "none"\nids = "ours"', ["line 4: defaults.ids: ids of ours would lead nowhere"]),
        (UP + 'on_disconnect = "grace"\n[[routes]]\npath = "/a"\nlog = "none"', []),
        (
            UP + '[[routes]]\npath = "/a"\nlog = "none"\non_disconnect = "grace"',
            ["line 6: routes[0].on_disconnect: nob"],
        ),
        ('store = "none"\n' + UP + "early_headers = true", ["line 4: defaults.early_headers: there is no stream to"]),
        (UP + 'early_headers = true\n[[routes]]\npath = "/a"\nlog = "none"', []),
        ('store = "sqlite:///f"\n' + UP, ["line 2: defaults.owner: is missing"]),
        ('store = "sqlite:///f"\n' + UP + 'owner = "none"', []),
        ('store = "sqlite:///f"\n' + UP + 'log = "none"', []),
        ('store = "sqlite:///f"\n' + UP + 'owner = "header:X"', ["PENSTOCK_SECRET: is not set in the environment"]),
        (UP + 'owner = "header:X"', []),
        ('store = "none"\nworkers = 2\n' + UP + 'owner = "header:X"', ["PENSTOCK_SECRET: is not set"]),
        (UP + 'limits.max_event_bytes = "9M"', ["line 3: defaults.limits.max_event_bytes: 9 MiB are more than"]),
        ('retention.max_stream_bytes = "1M"\n' + UP, ["line 2: defaults.limits.max_event_bytes: 4 MiB are more than"]),
        (
            UP + '[[routes]]\npath = "/a/"\nmethods = ["GET"]\n[[routes]]\npath = "/a"\nmethods = ["get", "HEAD"]',
            ["line 7: routes[1].path: is never reached: all of it goes by routes[0]"],
        ),
        (
            UP + '[[routes]]\npath = "/a"\n[[routes]]\npath = "/a"',
            ["line 6: routes[1].path: has the same path and methods as routes[0]; take one of them out"],
        ),
        (UP + '[[routes]]\npath = "/a"\nmethods = ["GET"]\n[[routes]]\npath = "/a"', []),
    ],
)
def test_what_does_not_go_together(text: str, told: list[str]) -> None:
    try:
        config(text)
        found = []
    except ConfigError as error:
        found = [str(mistake) for mistake in error.mistakes]
    assert len(found) == len(told), found
    assert [message for message, start in zip(found, told, strict=True) if not message.startswith(start)] == []


@pytest.mark.parametrize(
    "text",
    [
        'store = "sqlit:///f"\nworkers = 2\n' + UP + 'promise = "durable"',
        'store = "${STORE}"\nworkers = 2\n' + UP,
        "workers = 2x".replace("x", ".0") + "\n" + UP,
        UP + '[[routes]]\npath = "v1"\n[[routes]]\npath = "/v1"',
        UP + '[[routes]]\npath = "/v1"\nmethods = [1]\n[[routes]]\npath = "/v1"\nmethods = ["GET"]',
        'store = "sqlite:///f"\n' + UP + 'owner = "X-User"',
        UP + 'cors = { origins = ["x"], credentials = true }',
        UP + 'upstrem = "http://other.test"',
        '[defaults]\nupstream = "up.test"\n[[routes]]\npath = "/a"',
    ],
)
def test_a_mistake_is_not_told_again_as_a_contradiction(text: str) -> None:
    assert len(mistakes(text)) == 1


def test_a_secret_is_taken_from_the_environment_only() -> None:
    owned = 'store = "sqlite:///f"\n' + UP + 'owner = "header:X"'
    assert config(owned, **SECRET).secret == b"a long and random text"
    assert config(UP).secret is None
    assert mistakes(owned, PENSTOCK_SECRET="short") == [
        "PENSTOCK_SECRET: is too short to keep anything secret: 16 bytes at the least"
    ]


def test_configurations_that_no_file_holds_are_judged_too() -> None:
    policy = Policy(upstream="http://up.test", promise="durable", owner=OwnerFrom("header", "x"))
    found = list(contradictions(Config(default=policy, workers=2)))
    assert [each.path for each in found] == [("workers",), ("defaults", "promise"), ("PENSTOCK_SECRET",)]
    assert list(contradictions(Config(default=policy, store=Store("sqlite:///f"), workers=2, secret=b"x" * 16))) == []
    assert list(contradictions(Config(default=Policy(upstream="http://up.test"), store=Store("sqlite:///f")))) == []


# -- files


def test_a_file_is_read_with_the_processs_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "relay.toml"
    path.write_bytes(
        b"\xef\xbb\xbf" + (UP + 'request_headers.add.X-Key = "${RELAY_KEY}"\n').replace("\n", "\r\n").encode()
    )
    monkeypatch.setenv("RELAY_KEY", "k")
    monkeypatch.setenv("PENSTOCK_SECRET", SECRET["PENSTOCK_SECRET"])
    said = load(path)
    assert said.default is not None
    assert said.default.request_headers.added == ((b"x-key", b"k"),)
    assert said.secret == b"a long and random text"
    assert load(path, environ={"RELAY_KEY": "other"}).secret is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a mistake:\n  it cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="it cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'# \nlisten = "\xe9"\n')
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load(tmp_path / "latin.toml")


# -- nothing leaks, nothing crashes


def keys_of(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every key of the file, as it is written: a route's without the route."""
    if isinstance(node, Tables):
        node = node.each
    if isinstance(node, Table):
        if path and node.short is not None:
            yield path, node
        for key, inner in node.keys.items():
            yield from keys_of(inner, f"{path}.{key}" if path else key)
    else:
        yield path, node


RELAY_KEYS = dict(keys_of(Table({key: node for key, node in FILE.keys.items() if key not in ("defaults", "routes")})))
ROUTE_KEYS = dict(keys_of(FILE.keys["routes"]))


def written(key: str, value: str) -> str:
    """A file that says one thing, and is otherwise sound."""
    if key in RELAY_KEYS:
        return f"{key} = {value}\n{UP}"
    route = '[[routes]]\nupstream = "http://up.test"\npath = "/a"\n'
    return "\n".join(line for line in route.splitlines() if not line.startswith(f"{key} ")) + f"\n{key} = {value}\n"


@pytest.mark.parametrize("key", [*RELAY_KEYS, *ROUTE_KEYS])
def test_what_a_variable_holds_is_in_no_message_and_no_repr(key: str) -> None:
    node = {**RELAY_KEYS, **ROUTE_KEYS}[key]
    for held in ("s3cret", "http://s3cret:s3cret@s3cret.test:99999/?s3cret", "s3cret\nX: s3cret", "sqlit://s3cret@x"):
        value = '"${HELD}"'
        if isinstance(node, Items):
            value = f"[{value}]"
        if isinstance(node, Names):
            value = f"{{ X-Key = {value} }}"
        try:
            shown = repr(config(written(key, value), HELD=held))
        except ConfigError as error:
            shown = str(error)
            assert key.partition(".")[0] in shown
        if key not in ("terminator.data", "terminator.event", "terminator.error", "terminator.ping"):
            assert "s3cret" not in shown.replace("header:s3cret", "")


def test_secrets_are_not_shown() -> None:
    said = config(
        'store = "redis://:${PASSWORD}@localhost"\n'
        + UP
        + 'owner = "header:X-User"\nrequest_headers.add.Authorization = "Bearer ${KEY}"\n',
        PASSWORD="s3cret",
        KEY="s3cret",
        PENSTOCK_SECRET="s3cret s3cret s3cret",
    )
    assert said.store.url == "redis://:s3cret@localhost"
    assert "s3cret" not in repr(said) + describe(said)


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-2, 3),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", "none", "auto", "memory://", "sqlite:///f", "30s", "64K", "/a", "/*", "openai", "http://a", "*"]
    ),
    st.sampled_from(["header:a", "${A}", "${B}", "GET", "https://a.test", "text/plain", "10.0.0.0/8", "a:1"]),
    st.text("ab:/*${}", max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([key.rpartition(".")[2] for key in ROUTE_KEYS]), inner, max_size=3),
    ),
    max_leaves=5,
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(str(value), f"{value:.6f}")
    return json.dumps(value)


def tables(keys: list[str]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    pairs = st.tuples(st.sampled_from(keys), VALUES)
    return st.lists(pairs, max_size=4, unique_by=lambda pair: pair[0].partition(".")[0])


@given(
    tables(list(RELAY_KEYS)),
    st.none() | tables(list(ROUTE_KEYS)),
    st.lists(tables(["path", "methods", *ROUTE_KEYS]), max_size=3),
    st.dictionaries(st.sampled_from(["A", "PENSTOCK_SECRET"]), st.sampled_from(["", "30s", "/a", "x" * 16])),
)
def test_any_file_is_sound_or_its_mistakes_are_told_with_their_lines(
    relay: list[tuple[str, Any]],
    defaults: list[tuple[str, Any]] | None,
    routes: list[list[tuple[str, Any]]],
    environ: dict[str, str],
) -> None:
    lines = [f"{key} = {toml(value)}" for key, value in relay]
    for header, table in (("[defaults]", defaults), *(("[[routes]]", route) for route in routes)):
        if table is not None:
            lines += [header, *(f"{key} = {toml(value)}" for key, value in table)]
    wrong: ConfigError | None = None
    said: Config | None = None
    try:
        said = config("\n".join(lines), **environ)
    except ConfigError as error:
        wrong = error
    for mistake in wrong.mistakes if wrong is not None else ():
        assert str(mistake) in str(wrong)
        assert mistake.line is not None or mistake.key in ("", "PENSTOCK_SECRET")
        assert not mistake.message.startswith("not TOML")
    assert wrong is None or wrong.mistakes
    assert said is None or all(shown in describe(said) for shown in {policy.upstream for policy in said.policies})


# -- in words


def test_what_a_relay_says_of_itself() -> None:
    said = config(
        'store = "sqlite:///streams.db"\nadmin_listen = ":9090"\nworkers = 2\nretention.age = "1h"\n'
        + UP
        + 'owner = "none"\n[[routes]]\npath = "/v1"\nmethods = ["POST"]\npromise = "durable"\nowner = "cookie:sid"\n'
        'on_disconnect = "grace:1m"\nlog_types = ["text/plain"]\n[[routes]]\npath = "/files"\nlog = "none"\n',
        **SECRET,
    )
    assert describe(said).splitlines() == [
        "listens on http://127.0.0.1:8081, with 2 workers",
        "shows the operator its page, streams and metrics on http://:9090",
        "keeps streams in sqlite:///streams.db: 8 MiB of each, 256 MiB in all, for 1 h after their end",
        "POST /v1 → http://up.test",
        "  keeps event streams, NDJSON and text/plain, stored before they are sent",
        "  a reader that leaves has 1 min to come back",
        "  read again by its owner alone, by cookie:sid",
        "/files → http://up.test",
        "  nothing is kept; when the reader leaves, the upstream is cancelled",
        "everything else → http://up.test",
        "  keeps event streams and NDJSON, sent at once: a crash may lose the last",
        "  a reader that leaves has 30 s to come back if its request can resume, else the upstream is cancelled",
        "  read again by whoever has a stream's id",
        "told to end, it gives running streams 5 s",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (UP, ["keeps streams in memory, and loses them with the process:", "everything → http://up.test"]),
        ('store = "none"\n' + UP, ["keeps nothing: each answer goes to its one reader, as it comes"]),
        (
            'store = "none"\n' + UP + 'on_disconnect = "detach"',
            ["when the reader leaves, the upstream runs on"],
        ),
        (
            UP + 'log = "all"\non_disconnect = "cancel"',
            ["keeps every answer,", "and is the last one cancels the upstream"],
        ),
        (UP + 'on_disconnect = "detach"', ["a reader that leaves leaves the upstream to run to its end"]),
        (UP + "early_headers = true", ["a reader of events is answered at once, whatever the upstream will say"]),
        (UP + 'early_headers = "2s"', ["a reader of events is answered after 2 s, whatever"]),
        ('[[routes]]\npath = "/a"\nupstream = "http://u.test"', ["everything else is answered with 404"]),
    ],
)
def test_other_words(text: str, words: list[str]) -> None:
    said = describe(config(text))
    assert [each for each in words if each not in said] == []


# -- the page


def rows() -> list[list[str]]:
    table = PAGE.read_text().partition("## Every key")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| `")
    ]


def test_every_key_is_documented_once_and_nothing_else_is() -> None:
    documented = [row[0].strip("`") for row in rows()]
    assert sorted(documented) == sorted([*RELAY_KEYS, *ROUTE_KEYS])
    assert all(len(row) == 4 for row in rows())


ON = {
    "retry": "retry.retries = 1",
    "breaker": "breaker = {}",
    "cors": 'cors.origins = ["https://a.test"]',
}
"""What makes the keys of a table mean something."""


@pytest.mark.parametrize(("key", "default"), [(row[0].strip("`"), row[2]) for row in rows() if row[2] != "–"])
def test_a_documented_default_is_the_default(key: str, default: str) -> None:
    value = default.strip("`")
    table, _, below = key.partition(".")
    line = f"{key} = {value}"
    if below and table in ON:
        without = written("", "").replace("\n = \n", "\n") + ON[table]
        if table == "breaker":
            said = without.replace("breaker = {}", line)
        else:
            said = f"{without}\n{line}"
    else:
        without, said = written("keep_alive", "15"), written(key, value)
        if key in RELAY_KEYS:
            without = UP
    assert config(said) == config(without)
    assert line in said


def test_the_example_is_sound() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    said = config(example, API_KEY="a", AGENTS_KEY="b", **SECRET)
    assert (said.store, said.workers, said.grace) == (Store("sqlite:///streams.db"), 2, 30.0)
    assert said.retention == Retention(age=600.0, max_bytes=1 << 30)
    chat, agents, files = said.routes
    assert said.default is not None
    assert chat.match == Match("/v1/chat/completions", frozenset({"POST"}))
    assert (chat.on_disconnect, chat.promise) == (OnDisconnect("grace", 60.0), "durable")
    assert (chat.terminator, chat.dialect) == (PROFILES["openai"], "openai")
    assert chat.cors == Cors(("https://app.example.com",), credentials=True)
    assert chat.retry.may_repeat("POST")
    assert agents.request_headers == HeaderRules({"authorization": "Bearer b"}, ["cookie"])
    assert (agents.upstream, agents.early_headers) == ("http://agents.internal:8000", 2.0)
    assert agents.terminator == Terminator(event="finished", error="failed")
    assert agents.logs("application/x-agent-trace")
    assert files.limits == RelayLimits(max_body_bytes=2 << 30)
    assert files.timeout == Timeout(connect=5.0, first_event=10.0, between_events=60.0)
    assert {policy.trusted_proxies for policy in said.policies} == {(ip_network("10.0.0.0/8"),)}
    assert said.route("POST", "/v1/chat/completions") is chat
    assert said.route("GET", "/v1/chat/completions") is said.default
    assert mistakes(example) != [], "its variables are needed"


def test_the_kinds_of_keys_are_all_there_are() -> None:
    assert {type(node) for node in (*RELAY_KEYS.values(), *ROUTE_KEYS.values())} == {Key, Items, Names, Table}
