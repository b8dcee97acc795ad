"""`penstock tail` in this process; what needs a process of its own is in tests/e2e."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run
from tests.e2e.canned import Canned


def test_events_and_other_items_as_data(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/sse", "text/event-stream", b"event: x\nid: 1\ndata: a\ndata: b\n\ndata\n\n: end\n\n")
    assert run("tail", url).out == "a\nb\n\n"
    events = [each["event"] for each in run("tail", url, "--json").records if "event" in each]
    assert events == [{"type": "x", "data": "a\nb", "id": "1"}, {"type": "message", "data": "", "id": "1"}]
    url = prepared.answer("/ndjson", "application/x-ndjson", b'{"a" : "\xc3\xa9"}\n"text"\n3\n')
    records: list[object] = [{"a": "é"}, "text", 3]
    for options in ((), ("--format", "ndjson")):
        assert run("tail", url, *options).out == '{"a":"é"}\n"text"\n3\n'
        assert [each["record"] for each in run("tail", url, *options, "--json").records if "record" in each] == records
    assert run("tail", url, "--format", "text").out == '{"a" : "é"}\n"text"\n3\n'
    assert run("tail", url, "--format", "text", "--json").records[1] == {"line": '"text"'}


def test_an_unfinished_event_counts_as_failed(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/unfinished", "text/event-stream", b"data: a\n\ndata: b")
    done = run("tail", url)
    assert (done.code, done.out) == (0, "a\n")
    assert "Total Events: 2\nSuccessful: 1\nFailed: 1\nRetries: 0\nSuccess Rate: 50.0%\n" in done.err


def test_nothing_at_all(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/nothing", "text/event-stream", b"", 204)
    done = run("tail", url)
    assert (done.code, done.out) == (0, "")
    assert "Total Events: 0\n" in done.err


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        ('{"a":1}', "application/json"),
        (" \n[1]", "application/json"),
        ('"text"', "application/json"),
        ("text", "text/plain; charset=utf-8"),
        ("", "text/plain; charset=utf-8"),
        ("1", "text/plain; charset=utf-8"),
    ],
)
def test_a_body_is_json_by_its_first_byte(run: Run, prepared: Canned, data: str, content_type: str) -> None:
    url = prepared.answer("/body", "text/event-stream", b"data: ok\n\n")
    assert run("tail", url, "-d", data).code == 0
    asked = prepared.asked[-1]
    assert (asked.method, asked.body, asked.headers["Content-Type"]) == ("POST", data.encode(), content_type)


def test_a_method_of_ones_own_with_a_body(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/put", "text/event-stream", b"data: ok\n\n")
    assert run("tail", url, "-X", "put", "-d", "{}", "-H", "content-type: a/b").code == 0
    assert (prepared.asked[-1].method, prepared.asked[-1].headers.get_all("content-type")) == ("PUT", ["a/b"])


def test_last_event_id_is_sent(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/resumed", "text/event-stream", b"data: ok\n\n")
    assert run("tail", url, "--last-event-id", "a b", "-H", "X: y").code == 0
    assert prepared.asked[-1].headers["Last-Event-ID"] == "a b"
    assert run("tail", url, "--last-event-id", "a\nb").code == 2


def test_until_also_with_json(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/until", "application/x-ndjson", b'{"done": false}\n{"done": true}\n{"more": 1}\n')
    assert run("tail", url, "--until", '{"done":true}').out == '{"done":false}\n{"done":true}\n'
    records = run("tail", url, "--until", '{"done":true}', "--json").records
    assert [next(iter(each)) for each in records] == ["record", "record", "metrics"]


def test_metrics_are_told_of_a_failure_too(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/html", "text/html", b"<html>")
    done = run("tail", url)
    assert done.code == 1
    assert "Total Events: 0\n" in done.err
    assert "Success Rate: 0.0%\n" in done.err
    assert "Stream completed" not in done.err
    assert [next(iter(each)) for each in run("tail", url, "--json").records] == ["metrics", "error"]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/event-stream", b"data: a\ndata: b\n\nid: 7\nevent: x\ndata: c\n\n", ["a\nb", "c"]),
        ("application/x-ndjson", b'{"a": 1}\n\n[2,\t"\xc3\xa9"]\n', ['{"a":1}', '[2,"é"]']),
        ("text/plain", b"one\ntwo\r\nthree", ["one", "two", "three"]),
    ],
    ids=["sse", "ndjson", "text"],
)
def test_auto_goes_by_the_content_type(
    run: Run, prepared: Canned, content_type: str, body: bytes, expected: list[str]
) -> None:
    url = prepared.answer(f"/auto/{content_type}", content_type, body)
    done = run("tail", url)
    assert (done.code, done.out) == (0, "".join(f"{each}\n" for each in expected)), done.err


@pytest.mark.parametrize(
    ("format", "content_type", "body", "expected"),
    [
        (
            "sse",
            "text/event-stream",
            b": hi\nid: 1\ndata: a\n\n",
            {"event": {"type": "message", "data": "a", "id": "1"}},
        ),
        ("ndjson", "application/jsonl", b'{"a":null}\n', {"record": {"a": None}}),
        ("text", "application/json", b"{}", {"line": "{}"}),
    ],
)
def test_a_format_can_be_asked_for(
    run: Run, prepared: Canned, format: str, content_type: str, body: bytes, expected: dict[str, object]
) -> None:
    url = prepared.answer(f"/format/{format}", content_type, body)
    done = run("tail", url, "--format", format, "--json")
    assert done.code == 0
    assert done.records[0] == expected
