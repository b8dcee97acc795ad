"""`penstock tail` against real servers: formats, metrics, retries, breaker, chats, output.

On a terminal it is in test_tail_terminal.py, with recordings in test_tail_recording.py.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import struct
import subprocess
import termios
import time
import uuid
from pathlib import Path
from typing import IO

import pytest

from penstock.testing import close, pause, script, wait_request
from penstock.testing.script import Step
from tests.e2e.canned import Canned
from tests.e2e.conftest import Start
from tests.e2e.process import PATIENCE, PENSTOCK, SIGNALS, Server, eventually, one_line, penstock

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
    assert metrics.pop("gap_max") > 0
    assert metrics.pop("gap_p50") > 0
    assert metrics.pop("gap_p99") > 0
    expected = {"total": 5, "successful": 5, "failed": 0, "retries": 0, "reconnects": 0, "replayed": 0, "restarts": 0}
    ended = {"success_rate": 100.0, "reason": "complete", "cause": "", "breaker": "closed", "streams": 1}
    assert metrics == {**expected, **ended}


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


def test_verbose_tells_of_connections_and_lines_and_measures(origin: Server) -> None:
    done = penstock("tail", "-v", f"{origin.url}/events?count=2&interval=0.01&cut_after=1")
    assert done.code == 0
    told = [line.split(" ", 2)[2] for line in done.err.splitlines() if re.match(r"\d{4}/\d\d/\d\d ", line)]
    first = told[: told.index(next(line for line in told if line.startswith("WARNING Interrupted: ")))]
    assert [" ".join(line.split(" ")[:2]) for line in first if not line.startswith("DEBUG")] == [
        "INFO Starting",
        "INFO Sending",
        "INFO Response",
        "INFO Connected",
        "WARNING Body",
    ]
    lines = [line.removeprefix("DEBUG Processing line: ") for line in told if line.startswith("DEBUG")]
    assert lines == ["id: 1", "retry: 1000", 'data: {"n":1}', "", "id: 2", "retry: 1000", 'data: {"n":2}', ""]
    assert re.search(r"^penstock: http.* broke off .*; attempt 2 after event '1' in \d\.\d s$", done.err, re.MULTILINE)
    table = done.err.partition("Success Rate: 100.0%\n")[2]
    assert re.fullmatch(
        r"Bytes: 66\nFirst Event: \d\.\d{3}s\nGaps: p50 \S+s, p99 \S+s, max \S+s\nReconnects: 2\nReplayed: 0\n"
        r"Reason: complete\nCircuit Breaker: closed\n=+\nStream completed successfully\n",
        table,
    )


def test_verbose_as_json(prepared: Canned) -> None:
    url = prepared.answer("/verbose", "text/event-stream", b": hi\n\ndata: a\n\ndata: b")
    done = penstock("tail", "-v", "--json", url)
    assert (done.code, done.err) == (0, "")
    about = {"url": url, "status": 200, "content_type": "text/event-stream", "attempt": 1}
    *told, last = done.records
    assert told[0] == {"connected": about}
    lines = [each["processing"] for each in told if "processing" in each]
    assert lines == [": hi", "", "data: a", "", "data: b"]
    rest = [each for each in told[1:] if "processing" not in each]
    assert rest == [{"comment": "hi"}, {"event": {"type": "message", "data": "a", "id": ""}}]
    assert (last["metrics"]["total"], last["metrics"]["failed"]) == (2, 1)


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


# -- the policies --------------------------------------------------------------------------------------------------


def test_never_connects_again_after_a_break(origin: Server) -> None:
    done = penstock("tail", f"{origin.url}/events?count=3&interval=0&cut_after=2", "--reconnect", "never", "--json")
    assert done.code == 1
    assert [next(iter(each)) for each in done.records] == ["event", "event", "metrics", "error"]
    assert done.error["type"] == "StreamTruncated"


def test_strict_connects_again_until_there_is_nothing_more(origin: Server) -> None:
    done = penstock("tail", f"{origin.url}/events?count=2&interval=0", "--reconnect", "strict", "--json")
    assert done.code == 0
    (retry,) = [each["retry"] for each in done.records if "retry" in each]
    assert (retry["after"], retry["last_event_id"], retry["pause"]) == (None, "2", 1.0)  # as its `retry:` asks
    assert [each["event"]["id"] for each in done.records if "event" in each] == ["1", "2"]


@pytest.mark.parametrize(
    ("terminator", "body", "items"),
    [
        ("openai", b"data: {}\n\ndata: [DONE]\n\n", 2),
        ("data:fin", b"data: 1\n\ndata: fin\n\ndata: never\n\n", 2),
        ("event:end", b"data: 1\n\nevent: end\ndata: x\n\n", 2),
        ("none", b"data: 1\n\n", 1),
    ],
)
def test_a_stream_that_ends_as_it_must_and_one_that_does_not(
    prepared: Canned, terminator: str, body: bytes, items: int
) -> None:
    url = prepared.answer(f"/ends/{terminator}", "text/event-stream", body)
    done = penstock("tail", url, "--terminator", terminator)
    assert (done.code, len(done.out.splitlines())) == (0, items), done.err
    url = prepared.answer(f"/ends-not/{terminator}", "text/event-stream", b"data: {}\n\n")
    done = penstock("tail", url, "--terminator", terminator, "--json")
    if terminator == "none":
        assert done.code == 0
    else:
        assert (done.code, done.error["type"]) == (1, "StreamTruncated")
        assert "the stream ended without its" in done.error["message"]


def test_the_breaker_opens_after_as_many_failures_as_it_is_told(closed_port: str) -> None:
    done = penstock("tail", closed_port, "--breaker", "1/300", "--json")
    assert [next(iter(each)) for each in done.records] == ["metrics", "error"]
    assert done.records[0]["metrics"]["breaker"] == "open"
    assert (done.error["type"], done.error["retryable"]) == ("CircuitOpenError", True)
    assert re.search(r"the next attempt is allowed in (299|300) s", done.error["message"])
    done = penstock("tail", closed_port, "--breaker", "2", "--retries", "1", "--json")
    assert done.error["type"] == "RetriesExhausted"


@pytest.mark.anyio
async def test_keep_alives_are_no_content() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n"
    alive = [step for _ in range(100) for step in (pause(0.2), b": still here\n\n")]
    async with script([wait_request(), head, *alive]) as server:
        options = ("--timeout-between", "1", "--content-only", "--json")
        done = await asyncio.to_thread(penstock, "tail", server.url, *options)
    assert (done.code, done.error["type"]) == (1, "StreamStalled")
    assert "nothing but signs of life for 1 s" in done.error["message"]


@pytest.mark.anyio
async def test_a_server_that_plays_again_is_told_of_once() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    events = b"".join(b"id: %d\nretry: 0\ndata: %d\n\n" % (number, number) for number in (1, 2, 3))
    cut: list[Step] = [wait_request(), head + b"Content-Length: 999\r\n\r\n" + events[:60], close()]
    whole: list[Step] = [wait_request(), head + b"\r\n" + events, close()]
    async with script(cut, whole) as server:
        done = await asyncio.to_thread(penstock, "tail", server.url)
    assert (done.code, done.out) == (0, "1\n2\n3\n"), done.err
    assert done.err.count("the server plays the stream again; what had come is left out") == 1
    assert b"\r\nlast-event-id: 2\r\n" in server.requests[1].lower()


# -- chats ---------------------------------------------------------------------------------------------------------

QUESTION = '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


def test_the_text_of_a_chat_and_nothing_else(origin: Server) -> None:
    done = penstock("tail", "--text", f"{origin.url}/v1/chat/completions?interval=0", "-d", QUESTION)
    assert done.code == 0
    assert re.fullmatch(r"You said: hi And this is the answer, .*\.\n", done.out)
    assert "Stream completed successfully" in done.err
    done = penstock("tail", "--text", "--json", f"{origin.url}/v1/chat/completions?tokens=3&interval=0", "-d", QUESTION)
    assert [each["text"] for each in done.records if "text" in each] == ["You", " said:", " hi"]


def test_a_chat_that_breaks_off_ends_its_line_and_fails(origin: Server) -> None:
    url = f"{origin.url}/v1/chat/completions?interval=0&cut_after=3"
    done = penstock("tail", "--text", url, "-d", QUESTION)
    assert (done.code, done.out) == (1, "You said:\n")
    assert "broke off" in one_line(done.err)


@pytest.mark.parametrize(
    ("body", "code", "out", "said"),
    [
        (b'data: {"choices":[{"delta":{"content":"a\\n"}}]}\n\ndata: [DONE]\n\n', 0, "a\n", ""),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', 1, "a\n", "the stream ended without its '[DONE]'"),
        (b'data: {"choices":[]}\n\ndata: {"error":{"message":"busy"}}\n\n', 1, "", "itself said that it failed: busy"),
        (
            (
                b'event: content_block_delta\ndata: {"delta":{"type":"text_delta","text":"a"}}\n\n'
                b'event: error\ndata: {"error":{"type":"overloaded_error","message":"no"}}\n\n'
            ),
            1,
            "a\n",
            "no (overloaded_error)",
        ),
        (b"data: 1\n\n", 1, "", "this is no chat stream that --text knows"),
        (b"", 0, "", ""),
    ],
    ids=["whole", "short", "failed", "anthropic failed", "no chat", "no event"],
)
def test_how_chats_end(prepared: Canned, body: bytes, code: int, out: str, said: str) -> None:
    url = prepared.answer(f"/chat/{uuid.uuid4().hex}", "text/event-stream", body, 200 if body else 204)
    done = penstock("tail", "--text", url)
    assert (done.code, done.out) == (code, out), done.err
    assert said in (one_line(done.err) if code else done.err)


# -- stdout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["plain", "json"])
def test_a_reader_that_leaves_is_noticed_while_nothing_comes(
    origin: Server, start: Start, options: tuple[str, ...]
) -> None:
    tail = start("tail", *options, f"{origin.url}/events?count=2&interval=3600", stdout=subprocess.PIPE)
    assert tail.process.stdout is not None
    assert tail.process.stdout.readline()
    tail.process.stdout.close()
    assert (tail.ended(), tail.err) == (0, "")


@pytest.mark.parametrize(("signum", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("options", [(), ("--json",), ("--raw",)], ids=["plain", "json", "raw"])
def test_a_reader_that_does_not_read_holds_up_no_signal(
    origin: Server, start: Start, options: tuple[str, ...], signum: int, code: int, word: str
) -> None:
    url = f"{origin.url}/events?count=1000000&interval=0"
    tail = start("tail", *options, url, stdout=subprocess.PIPE)
    pipe = tail.process.stdout
    assert pipe is not None

    def stands_still() -> bool:
        before = _unread(pipe)
        time.sleep(0.1)  # long for one that writes as fast as it can
        return before > 32768 and _unread(pipe) == before

    eventually(stands_still, "full pipe")
    tail.kill(signum)
    assert tail.ended() == code
    if "--json" not in options:
        assert one_line(tail.err) == word
        assert "Total Events: " in tail.err


def _unread(pipe: IO[bytes]) -> int:
    """How many bytes wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0])


def test_long_items_come_whole_through_a_pipe(prepared: Canned) -> None:
    long = "é\U0001f600" * 40_000
    url = prepared.answer("/long", "text/event-stream", f"data: {long}\n\n".encode())
    assert penstock("tail", url).out == long + "\n"
    (event, _) = penstock("tail", url, "--json").records
    assert event["event"]["data"] == long


def test_a_body_that_is_not_there(origin: Server, tmp_path: Path) -> None:
    done = penstock("tail", origin.url, "-d", f"@{tmp_path}/missing")
    assert (done.code, done.out) == (1, "")
    assert one_line(done.err).startswith(f"{tmp_path}/missing: No such file or directory")
