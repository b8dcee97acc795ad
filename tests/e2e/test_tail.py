"""`penstock tail` against real servers: formats, metrics, retries, breaker, output."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.e2e.canned import Canned
from tests.e2e.conftest import Start
from tests.e2e.process import PATIENCE, PENSTOCK, Server, one_line, penstock

pytestmark = pytest.mark.e2e

FIVE = [*({"Count": count, "Data": f"Event {count}"} for count in range(1, 5)), {"Data": "Stream completed"}]


def invocation(origin: Server, query: str = "") -> str:
    """A URL of its own: the origin counts failures by URL."""
    return f"{origin.url}/trigger_invocation?interval=0.01&test={uuid.uuid4().hex}{query}"


def test_five_events_and_the_metrics(origin: Server) -> None:
    done = penstock("tail", invocation(origin), "-d", '{"query": "hello"}')
    assert done.code == 0
    assert [json.loads(line) for line in done.out.splitlines()] == FIVE
    shown = re.sub(r"Duration: \d+\.\d\ds", "Duration: …", done.err)
    assert shown == (
        "\n=== Streaming Metrics ===\nDuration: …\nTotal Events: 5\nSuccessful: 5\nFailed: 0\nRetries: 0\n"
        "Success Rate: 100.0%\n=======================\nStream completed successfully\n"
    )


def test_five_events_and_the_metrics_as_json(origin: Server) -> None:
    done = penstock("tail", invocation(origin), "-d", '{"query": "hello"}', "--json")
    assert (done.code, done.err) == (0, "")
    *events, last = done.records
    assert [json.loads(each["event"]["data"]) for each in events] == FIVE
    assert {(each["event"]["type"], each["event"]["id"]) for each in events} == {("message", "")}
    metrics = last["metrics"]
    assert metrics.pop("duration") >= metrics.pop("first_event") > 0
    assert metrics.pop("bytes") > 0
    expected = {"total": 5, "successful": 5, "failed": 0, "retries": 0, "reconnects": 0}
    assert metrics == {**expected, "success_rate": 100.0, "reason": "complete"}


def test_two_failures_are_two_retries(origin: Server) -> None:
    url = invocation(origin, "&status=503&times=2")
    done = penstock("tail", url, "-d", '{"query": "hello"}', "--json")
    assert done.code == 0
    retries = [each["retry"] for each in done.records if "retry" in each]
    assert [each["attempt"] for each in retries] == [2, 3]
    assert {each["after"]["type"] for each in retries} == {"StatusError"}
    assert all(each["after"]["retryable"] for each in retries)
    assert len([each for each in done.records if "event" in each]) == 5
    assert done.records[-1]["metrics"]["retries"] == 2


def test_retries_are_told_on_stderr(origin: Server) -> None:
    done = penstock("tail", invocation(origin, "&status=503&times=1"), "-d", '{"query": "hello"}')
    assert done.code == 0
    assert len(done.out.splitlines()) == 5
    assert re.search(r"^penstock: POST \S+ answered 503 .*; attempt 2 in \d+\.\d s$", done.err, re.MULTILINE)
    assert "Retries: 1\n" in done.err


def test_retry_after_is_obeyed(origin: Server) -> None:
    url = invocation(origin, "&status=429&times=1&retry_after=2")
    done = penstock("tail", url, "-d", '{"query": "hello"}', "--json")
    assert done.code == 0
    (retry,) = [each["retry"] for each in done.records if "retry" in each]
    assert retry["pause"] >= 2


def test_a_closed_port_opens_the_breaker_after_three_failures(closed_port: str) -> None:
    done = penstock("tail", f"{closed_port}/", "--retries", "9")
    assert (done.code, done.out) == (1, "")
    told = [line for line in done.err.splitlines() if line.startswith("penstock: ")]
    assert ["attempt 2" in told[0], "attempt 3" in told[1], len(told)] == [True, True, 3]
    assert f"circuit breaker open for {closed_port} after 3 failures in a row" in told[2]
    assert "connection refused" in told[2]
    assert done.err.endswith(told[2] + "\n")


def test_a_closed_port_is_told_as_the_last_object(closed_port: str) -> None:
    done = penstock("tail", f"{closed_port}/", "--json")
    assert (done.code, done.err) == (1, "")
    assert set(done.error) == {"category", "type", "message", "url", "retryable"}
    assert (done.error["category"], done.error["type"]) == ("network", "CircuitOpenError")
    assert (done.error["url"], done.error["retryable"]) == (closed_port, True)
    assert "after 3 failures" in done.error["message"]


def test_without_retries_one_refused_connection_is_enough(closed_port: str) -> None:
    done = penstock("tail", f"{closed_port}/", "--retries", "0", "--json")
    assert done.code == 1
    assert [next(iter(each)) for each in done.records] == ["metrics", "error"]
    assert done.error["type"] == "ConnectError"
    assert done.error["url"] == f"{closed_port}/"


def test_until_stops_after_its_item(origin: Server) -> None:
    url = f"{origin.url}/events?count=1000&interval=0.001"
    done = penstock("tail", url, "--until", '{"n":3}')
    assert (done.code, done.out) == (0, '{"n":1}\n{"n":2}\n{"n":3}\n')
    assert "Stream completed successfully" in done.err


def test_last_event_id_goes_on_after_it(origin: Server) -> None:
    done = penstock("tail", f"{origin.url}/events?count=4&interval=0", "--last-event-id", "2", "--json")
    assert [each["event"]["id"] for each in done.records if "event" in each] == ["3", "4"]


def test_a_stream_that_breaks_goes_on_after_its_last_event(origin: Server) -> None:
    url = f"{origin.url}/events?count=5&interval=0.01&cut_after=2"
    done = penstock("tail", url, "--json")
    assert done.code == 0
    assert [each["event"]["id"] for each in done.records if "event" in each] == list("12345")
    metrics = done.records[-1]["metrics"]
    assert (metrics["reconnects"], metrics["retries"]) == (2, 2)


def test_a_stream_without_ids_that_breaks_is_a_failure_and_not_played_again(origin: Server) -> None:
    done = penstock("tail", invocation(origin, "&cut_after=2"), "-d", '{"query": "hello"}', "--json")
    assert done.code == 1
    assert [next(iter(each)) for each in done.records] == ["event", "event", "metrics", "error"]
    assert (done.error["category"], done.error["type"]) == ("stream", "StreamTruncated")


def test_collect_tells_everything_again(origin: Server) -> None:
    url = f"{origin.url}/events?count=2&interval=0"
    done = penstock("tail", url, "--collect")
    assert done.out == '{"n":1}\n{"n":2}\n'
    assert done.err.endswith(
        '\n=== Collected Response Data ===\n1: {"n":1}\n2: {"n":2}\nTotal responses collected: 2\n'
        "==============================\n"
    )
    assert {"collected": ['{"n":1}', '{"n":2}']} in penstock("tail", url, "--collect", "--json").records


def test_raw_writes_the_bytes_as_they_come(prepared: Canned) -> None:
    body = bytes(range(256)) * 300
    url = prepared.answer("/raw", "application/octet-stream", body)
    command = [*PENSTOCK, "tail", "--raw", url]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=PATIENCE, check=True).stdout == body


@pytest.mark.parametrize(
    ("given", "stdin", "content_type", "body"),
    [
        ("@{file}", b"", "application/json", b'{"query": "file"}'),
        ("@-", b'["stdin"]', "application/json", b'["stdin"]'),
    ],
    ids=["file", "stdin"],
)
def test_a_body_makes_a_post(
    prepared: Canned, tmp_path: Path, given: str, stdin: bytes, content_type: str, body: bytes
) -> None:
    file = tmp_path / "body.json"
    file.write_text('{"query": "file"}')
    url = prepared.answer(f"/body/{uuid.uuid4().hex}", "text/event-stream", b"data: ok\n\n")
    done = penstock("tail", url, "-d", given.format(file=file), input=stdin)
    assert (done.code, done.out) == (0, "ok\n"), done.err
    (asked,) = [each for each in prepared.asked if url.endswith(each.path)]
    assert (asked.method, asked.headers["Content-Type"], asked.body) == ("POST", content_type, body)


def test_method_and_headers_are_sent(prepared: Canned) -> None:
    url = prepared.answer("/sent", "text/event-stream", b"data: ok\n\n")
    headers = ("-H", "X-One: 1", "--header", "Content-Type:application/x-thing", "-H", "Authorization: Bearer a:b")
    done = penstock("tail", url, "-X", "REPORT", "-d", "{}", *headers)
    assert done.code == 0, done.err
    asked = prepared.asked[-1]
    sent = {name: asked.headers.get_all(name) for name in ("X-One", "Content-Type", "Authorization", "Accept")}
    assert asked.method == "REPORT"
    assert sent["X-One"] == ["1"]
    assert sent["Content-Type"] == ["application/x-thing"]
    assert sent["Authorization"] == ["Bearer a:b"]
    assert "text/event-stream" in (sent["Accept"] or [""])[0]


def test_verbose_tells_of_requests_and_ends(origin: Server) -> None:
    done = penstock("tail", "-v", f"{origin.url}/events?count=1")
    assert done.code == 0
    told = [line.split(" INFO ")[1] for line in done.err.splitlines() if " INFO " in line]
    assert [line.split(" ")[0] for line in told] == ["Sending", "Response", "Body"]


@pytest.mark.parametrize("options", [(), ("--json",), ("--raw",)], ids=["plain", "json", "raw"])
def test_a_reader_that_has_enough_is_no_failure(origin: Server, start: Start, options: tuple[str, ...]) -> None:
    url = f"{origin.url}/events?count=100000&interval=0.001"
    tail = start("tail", *options, url, stdout=subprocess.PIPE)
    assert tail.process.stdout is not None
    assert tail.process.stdout.readline()
    tail.process.stdout.close()
    assert tail.ended() == 0
    assert tail.err == ""


def test_an_item_that_utf8_cannot_write_is_written_as_json_writes_it(prepared: Canned) -> None:
    url = prepared.answer("/surrogate", "application/x-ndjson", rb'{"a":"\ud800"}' + b"\n")
    assert penstock("tail", url).out == '{"a":"\\ud800"}\n'
    done = penstock("tail", url, "--json")
    assert done.records[0] == {"record": {"a": "\ud800"}}
    assert done.code == 0


def test_data_is_utf8_whatever_the_locale(prepared: Canned) -> None:
    url = prepared.answer("/utf8", "text/event-stream", "data: é\n\n".encode())
    done = penstock("tail", url, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.out) == (0, "é\n")


def test_a_full_disk_under_stdout_is_told(origin: Server) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*PENSTOCK, "tail", f"{origin.url}/events?count=2"]
        for options in ([], ["--json"], ["--raw"]):
            done = subprocess.run(
                [*command, *options], stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False, text=True
            )
            assert done.returncode == 1
            assert one_line(done.stderr).startswith("stdout: No space left on device")
