"""Each key of the file by itself: what it takes, what it makes of it, and what it refuses and why."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from penstock.relay.settings.document import Document
from penstock.relay.settings.keys import FILE
from penstock.relay.settings.policy import OnDisconnect, OwnerFrom
from penstock.relay.settings.store import Store
from penstock.wire.terminator import PROFILES, Terminator


def read(text: str) -> tuple[dict[str, Any], list[str]]:
    document = Document(text, {})
    said = document.read(FILE)
    return said, [mistake.message for mistake in document.mistakes]


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ('listen = "127.0.0.1:80"', "127.0.0.1:80"),
        ('listen = ":0"', ":0"),
        ('listen = "[::1]:80"', "[::1]:80"),
        ('store = "none"', Store("none")),
        ("workers = 256", 256),
        ('grace = "0"', 0.0),
        ("grace = 1.5", 1.5),
    ],
)
def test_what_the_relay_is_told(line: str, meaning: object) -> None:
    said, mistakes = read(line)
    assert mistakes == []
    assert list(said.values()) == [meaning]


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ('upstream = "https://up.test/v1"', "https://up.test/v1"),
        ('log = "none"', "none"),
        ('log_types = ["Text/Plain"]', ("text/plain",)),
        ('on_disconnect = "grace:5s"', OnDisconnect("grace", 5)),
        ('timeout.total = "none"', {"total": None}),
        ('timeout.connect = "250ms"', {"connect": 0.25}),
        ("timeout.content_only = true", {"content_only": True}),
        ("keep_alive = 0", 0.0),
        ("early_headers = true", 0.0),
        ("early_headers = false", None),
        ('early_headers = "2s"', 2.0),
        ('terminator = "openai"', PROFILES["openai"]),
        ('terminator.event = "end"', Terminator(event="end")),
        (
            'terminator = { data = "x", error = ["a", "b"], payload = "type" }',
            Terminator(data="x", error=("a", "b"), payload="type"),
        ),
        ('dialect = "auto"', None),
        ('dialect = "ag-ui"', "ag-ui"),
        ('limits.max_body_bytes = "none"', {"max_body_bytes": None}),
        ('limits.max_body_bytes = "1.5K"', {"max_body_bytes": 1536}),
        ("limits.max_streams = 3", {"max_streams": 3}),
        ('owner = "none"', None),
        ('owner = "cookie:sid"', OwnerFrom("cookie", "sid")),
        ("retry = 3", {"retries": 3}),
        ("retry.per_cause = { throttled = 3, tls = 0 }", {"per_cause": {"throttled": 3, "tls": 0}}),
        ("retry.budget = false", {"budget": None}),
        ("retry.backoff.factor = 1.5", {"backoff": {"factor": 1.5}}),
        ("breaker = true", {}),
        ("breaker = false", None),
        ("breaker.failure_rate = 1", {"failure_rate": 1.0}),
        ('request_headers.add.X-Key = "é"', {"add": {"x-key": "é"}}),
        ('response_headers.drop = ["Server"]', {"drop": ("Server",)}),
        ('root_path = "/api"', "/api"),
        (
            'trusted_proxies = ["10.0.0.0/8", "::1"]',
            (ip_network("10.0.0.0/8"), ip_network("::1")),
        ),
        ("cors = false", None),
        ('cors.origins = ["*"]', {"origins": ("*",)}),
    ],
)
def test_what_a_route_is_told(line: str, meaning: object) -> None:
    said, mistakes = read(f"[defaults]\n{line}")
    assert mistakes == []
    assert list(said["defaults"].values()) == [meaning]


def test_which_requests_a_route_is_for() -> None:
    said, mistakes = read('[[routes]]\npath = "/a/*"\nmethods = ["get"]')
    assert mistakes == []
    assert said == {"routes": [{"path": "/a/*", "methods": ("GET",)}]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('listen = "127.0.0.1"', "write it as 127.0.0.1:8081"),
        ('listen = "::1:80"', "[::1]:8081"),
        ('listen = "a:65536"', "is not HOST:PORT"),
        ('listen = "http://a:80"', "is not HOST:PORT"),
        ("listen = 80", "80 is not text: write it in quotes"),
        ('store = "mysql://x"', "is not a store: write none, memory://, sqlite:///FILE"),
        ('lease = "100ms"', "is too short: a process that is busy for a moment would lose its streams"),
        ('defaults.without_store = "wait"', "'wait' is none of refuse, live"),
        ("workers = 0", "0 is out of range: it is from 1 to 256"),
        ("workers = 257", "from 1 to 256"),
        ("workers = true", "true is not a whole number"),
        ('workers = "2"', "'2' is not a whole number"),
        ("grace = -1", "-1 is not a duration"),
        ("grace = [1]", "a list is not a duration"),
        ("grace = nan", "nan is not a duration"),
        ("grace = 2020-01-01", "is not a duration"),
        ("retention.max_bytes = 0", "0 is out of range: it is 1 or more"),
        ("retention.age = {}", "a table is not a duration"),
        ('secret = "x"', "set the environment variable PENSTOCK_SECRET"),
        ('upstream = "http://a"', "write it in [defaults]"),
        ("[route]", "is routes meant?"),
        ("[[default]]", "is defaults meant?"),
    ],
)
def test_what_the_relay_refuses(line: str, told: str) -> None:
    _, (message,) = read(line)
    assert told in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('upstream = "up.test"', "write it with http:// or https://"),
        ('upstream = "http://up.test/?a=1"', "has a query or a fragment"),
        ('upstream = "http://u:s3cret@up.test"', "write request_headers.add.Authorization"),
        ('log = "some"', "'some' is none of auto, all, none"),
        ('log_types = ["text"]', "is not a media type"),
        ('log_types = "text/plain"', "is a list: write it in brackets"),
        ('on_disconnect = "never"', "write auto, cancel, grace:30s or detach"),
        ("timeout = 30", "write [defaults.timeout] and its keys below it"),
        ("timeout.total = 0", "0 is no time to wait"),
        ('timeout.total = "never"', '"none" waits for ever'),
        ('timeout.content_only = "yes"', "write true or false, without quotes"),
        ('keep_alive = "15 sec"', "is not a duration"),
        ('early_headers = "soon"', "neither true, false, nor a time after which"),
        ('terminator = "opnai"', "it is one of openai, openai-responses, anthropic, none"),
        ("terminator = 3", "3 is not text"),
        ("terminator = {}", "says nothing"),
        ('terminator = { data = "a ", event = "b" }', "white space around data"),
        ('terminator = { event = "a", error = "a" }', "means one thing"),
        ('dialect = "french"', "is none of auto, penstock, openai"),
        ("limits.max_event_bytes = 0", "it is 1 or more"),
        ('limits.max_event_bytes = "none"', "is not a size"),
        ("limits.max_bytes = 1", "write it in [retention]"),
        ("limits.max_readers = 1.0", "1.0 is not a whole number"),
        ('owner = "X-User"', "write header:NAME or cookie:NAME"),
        ('ids = "theirs"', "is none of auto, ours, upstream"),
        ('promise = "sure"', "is none of fast, durable"),
        ("retry = -1", "it is 0 or more"),
        ("retry.after_first_event = 'restart'", "there is no such key here"),
        ("retry.per_cause.dsn = 1", "there is no such cause; there are connect_timeout"),
        ("retry.per_cause.url = 1", "another attempt cannot mend 'url'"),
        ("retry.backoff.factor = 0.5", "it is at least 1"),
        ("retry.budget = true", "neither a table nor false"),
        ('breaker = "on"', "neither true, false, nor a table"),
        ("breaker.failure_rate = 0", "it is more than 0, up to 1"),
        ("breaker.failure_rate = inf", "it is more than 0, up to 1"),
        ("request_headers.add.Content-Length = '1'", "the relay frames its messages itself"),
        ("request_headers.add.Penstock-Stream = '1'", "the relay's own words"),
        ("request_headers.add.X-Key = 1", "1 is not text"),
        ('request_headers.add.X-Key = "a\\nb"', "LF at character 1"),
        ("request_headers.add.'X Key' = ''", "is not a header name"),
        ('request_headers.drop = ["Host"]', "no request is without it"),
        ('response_headers.drop = ["Transfer-Encoding"]', "frames its messages itself"),
        ('root_path = "api"', "begins with / and ends without"),
        ('trusted_proxies = ["10.0.0.1/8"]', "write 10.0.0.0/8, or an address alone"),
        ('trusted_proxies = ["proxy"]', "write it as 10.0.0.0/8"),
        ("trusted_proxies = [3]", "3 is not text"),
        ("cors = true", "neither a table nor false"),
        ('cors.origins = ["https://app.test/"]', "a browser sends https://app.test"),
        ('cors.headers = ["a b"]', "is not a header name"),
        ('path = "/a"', "belongs to a route: [[routes]]"),
        ("workers = 2", "write it before the first [table]"),
        ("[defaults.retention]\nage = 1", "write it as [retention]"),
    ],
)
def test_what_a_route_refuses(line: str, told: str) -> None:
    _, (message,) = read(f"[defaults]\n{line}")
    assert told in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('path = "v1"', "begins with /"),
        ('path = "/v1/a*"', "fits no request"),
        ("path = 1", "1 is not text"),
        ('methods = ["GE T"]', "is not a method"),
        ('methods = "GET"', "is a list"),
    ],
)
def test_what_is_no_request(line: str, told: str) -> None:
    _, (message,) = read(f"[[routes]]\n{line}")
    assert told in message
