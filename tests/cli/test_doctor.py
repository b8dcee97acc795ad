"""`penstock doctor` in this process; nginx is in tests/e2e, the findings in tests/doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.e2e.canned import Canned

EVENTS = b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n"


def test_what_cannot_be_told_is_no_failure(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/one", "application/x-ndjson", b'{"a": 1}\n')
    done = run("doctor", url)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("url      200 HTTP/1.1 length application/x-ndjson; 1 record in 1 burst, from 0.")
    assert lines[3].startswith("NOTE     cannot-tell: whether anything is held back cannot be told: came one record")
    assert lines[-1] == "Nothing wrong was seen, but this stream does not show whether anything holds it back."
    assert done.err.splitlines() == [
        "listening to the URL, for at most 10 s",
        "listening to the URL, offering gzip, for at most 10 s",
    ]


def test_what_is_wrong_is_exit_1_with_figures_and_remedies(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/whole", "text/event-stream", EVENTS)
    done = run("doctor", url, "--events", "10", "--seconds", "5")
    assert done.code == 1
    assert "\nWARNING  buffered: somebody had the whole stream before its first byte came" in done.out
    assert f"; content length {len(EVENTS)}" in done.out
    for who in (
        "nginx: proxy_buffering off;",
        "Caddy: flush_interval -1",
        "HAProxy: ",
        "Cloudflare: ",
        "anywhere: X-A",
    ):
        assert f"\n         → {who}" in done.out
    assert "WARNING  last-event-id: " in done.out
    assert done.out.splitlines()[-1] == "2 warnings, 1 note"


def test_json_is_an_object_per_finding_and_a_summary(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/whole", "text/event-stream", EVENTS)
    done = run("doctor", url, "--json")
    assert (done.code, done.err) == (1, "")
    *findings, last = done.records
    assert [each["finding"]["kind"] for each in findings] == ["buffered", "last-event-id", "cacheable"]
    first = findings[0]["finding"]
    assert set(first) == {"kind", "severity", "says", "because", "mend"}
    assert first["because"]["items"] == 2
    assert {"software": "nginx", "setting": "proxy_buffering off;"}.items() <= first["mend"][0].items()
    summary = last["summary"]
    assert {name: summary[name] for name in ("upstream", "verdict", "problems", "warnings", "notes")} == {
        "upstream": None,
        "verdict": "wrong",
        "problems": 0,
        "warnings": 2,
        "notes": 1,
    }
    assert set(summary["heard"]) == {"url", "gzip"}
    assert summary["heard"]["url"]["framing"] == "length"


def test_a_body_makes_it_a_post_that_is_sent_once(run: Run, prepared: Canned, tmp_path: Path) -> None:
    url = prepared.answer("/chat", "text/event-stream", EVENTS)
    body = tmp_path / "body.json"
    body.write_text('{"stream": true}')
    before = len(prepared.asked)
    run("doctor", url, "-d", f"@{body}", "-H", "X-Key: k", "--upstream", url)
    asked = prepared.asked[before:]
    assert [(each.method, each.body, each.headers["X-Key"]) for each in asked] == [
        ("POST", b'{"stream": true}', "k")
    ] * 2
    assert {each.headers["Content-Type"] for each in asked} == {"application/json"}


def test_what_a_server_says_reaches_no_terminal_raw(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/escape", "text/plain; x=\x9b31m", b"a\n")
    done = run("doctor", url)
    assert "\x9b" not in done.out
    assert "\ufffd31m" in done.out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["doctor"], "Missing argument 'URL'"),
        (["doctor", "localhost/x"], "'localhost/x' is not a full URL"),
        (["doctor", "http://localhost/", "--upstream", "x"], "'x' is not a full URL"),
        (["doctor", "http://localhost/", "-X", "GE T"], "'GE T' is not an HTTP method"),
        (["doctor", "http://localhost/", "-H", "x"], "'x' is not a header"),
        (["doctor", "http://localhost/", "--seconds", "0"], "0 is not a time to wait"),
        (["doctor", "http://localhost/", "--events", "0"], "--events"),
    ],
)
def test_wrong_usage_is_exit_2(run: Run, arguments: list[str], what: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert what in done.err


def test_a_status_that_fails_is_exit_1_and_no_finding(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/gone", "text/plain", b"gone\n", 410)
    done = run("doctor", url, "--json")
    assert done.code == 1
    assert [next(iter(json.loads(line))) for line in done.out.splitlines()] == ["error"]
    assert "answered 410 Gone: gone" in done.error["message"]
