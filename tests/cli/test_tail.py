"""`penstock tail` in this process; what needs a process of its own is in tests/e2e."""

from __future__ import annotations

import re
from pathlib import Path

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
    assert done.err.splitlines()[-1] == "Stream completed, 1 event could not be used"


def test_a_whole_stream_is_completed_successfully(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/whole", "text/event-stream", b"data: a\n\n")
    assert run("tail", url).err.splitlines()[-1] == "Stream completed successfully"


def test_a_chats_piece_that_cannot_be_read_fails_after_the_text_before_it(run: Run, prepared: Canned) -> None:
    piece = b'data: {"choices":[{"index":0,"delta":{"content":%s}}]}\n\n'
    body = piece % b'"The answer is "' + piece % b"3" + piece % b'"NOT ' + piece % b'"yes"' + b"data: [DONE]\n\n"
    done = run("tail", "--text", prepared.answer("/chat-torn", "text/event-stream", body))
    assert (done.code, done.out) == (1, "The answer is \n")
    assert "is no JSON" in done.err.splitlines()[-1]
    assert "Stream completed" not in done.err


@pytest.mark.parametrize("option", [("-d", "@{}"), ("--save", "{}")], ids=lambda option: option[0])
def test_a_path_that_is_not_there_is_no_url(
    run: Run, prepared: Canned, tmp_path: Path, option: tuple[str, str]
) -> None:
    url = prepared.answer("/whole", "text/event-stream", b"data: a\n\n")
    name, value = option
    done = run("tail", url, name, value.format(tmp_path / "nowhere" / "x"))
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.endswith("No such file or directory; check the path")


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


RECORDING = (
    b'{"penstock":1,"url":"http://x/s","status":200,"headers":[["content-type","text/event-stream"]],'
    b'"recorded_at":"2026-01-31T12:00:00+00:00"}\n{"at":0,"data":"data: a\\n\\n"}\n{"end":"complete","at":0}\n'
)

USAGE = [
    ((), "Missing argument 'URL'"),
    (("http://x", "--listen", ":0"), "--replay FILE"),
    (("http://x", "--replay", "f"), "takes the place of a URL"),
    (("--replay", "f", "-X", "GET"), "--request is for a server"),
    (("--replay", "f", "-d", "x"), "--data is for a server"),
    (("--replay", "f", "--timeout-first", "1"), "--timeout-first is for a server"),
    (("--replay", "f", "--save", "g"), "--save is for a server"),
    (("http://x", "--raw", "--text"), "are for items"),
    (("http://x", "--text", "--collect"), "--text writes one text"),
    (("http://x", "--text", "--format", "ndjson"), "--text writes one text"),
    (("http://x", "--format", "text", "--terminator", "openai"), "are for event streams"),
    (("http://x", "--raw", "--reconnect", "strict"), "are for event streams"),
    (("http://x", "--reconnect", "often"), "resilient"),
    (("http://x", "--terminator", "mine"), "data:\\[DONE\\]"),
    (("http://x", "--breaker", "0"), "as 3/30"),
]


@pytest.mark.parametrize(("arguments", "said"), USAGE, ids=lambda value: " ".join(value) if value else "")
def test_what_does_not_go_together(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run("tail", *arguments)
    assert (done.code, done.out) == (2, "")
    assert re.search(said, done.err), done.err
    assert done.err.endswith("see `penstock tail --help`\n")


def test_a_recording_is_shown_as_if_it_came_now(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(RECORDING)
    done = run("tail", "--replay", path, "--collect")
    assert (done.code, done.out) == (0, "a\n")
    assert done.err.endswith("1: a\nTotal responses collected: 1\n==============================\n")
    path.write_bytes(RECORDING.replace(b'"complete"', b'"failed"'))
    assert run("tail", "--replay", path, "--json").error["type"] == "StreamTruncated"


def test_until_and_the_metrics_of_a_stream_that_was_left(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/left", "text/event-stream", b"data: a\n\ndata: b\n\n")
    metrics = run("tail", url, "--until", "a", "--json").records[-1]["metrics"]
    assert (metrics["total"], metrics["reason"]) == (1, "cancelled")


def test_last_event_id_goes_with_every_format(run: Run, prepared: Canned) -> None:
    url = prepared.answer("/resumed-text", "text/plain", b"a\n")
    for options in ((), ("--format", "text"), ("--raw",)):
        assert run("tail", url, "--last-event-id", "7", *options).out == "a\n"
        assert prepared.asked[-1].headers.get_all("Last-Event-ID") == ["7"]
    url = prepared.answer("/resumed-events", "text/event-stream", b"data: a\n\nid: 9\ndata: b\n\n")
    events = [each["event"]["id"] for each in run("tail", url, "--last-event-id", "7", "--json").records[:-1]]
    assert events == ["7", "9"]
