from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from penstock import DecodeError, StreamTruncated
from penstock.client.exchange import CREDENTIALS
from penstock.client.recording import MAX_LINE_BYTES, Piece, RecordedEnd, Recorder, Recording, load, replay
from penstock.testing import FakeClock, script, serve
from tests.client.peers import SSE, chunk, chunked, once

anyio = pytest.mark.anyio

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
HEAD = {"penstock": 1, "url": "http://x/", "status": 200, "headers": [], "recorded_at": AT.isoformat()}
END = {"end": "complete", "at": 9}


def record(path: Path, *pieces: Piece, end: RecordedEnd | None = None) -> Recording:
    with Recorder(path) as recorder:
        recorder.head(url="http://x/", status=200, headers=[("content-type", SSE)], recorded_at=AT)
        for piece in pieces:
            recorder.piece(*piece)
        if end is not None:
            recorder.end(end.reason, end.at, end.error)
    return load(path)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answer.jsonl"


# -- writing


def test_a_recording_is_lines_of_json(path: Path) -> None:
    with Recorder(path) as recorder:
        recorder.head(url="http://x/a?b=c", status=200, headers=[(b"Content-Type", b"text/plain"), ("X-A", "é")])
        recorder.piece(0.25, "data: é \u2028\0\n\n".encode())
        recorder.piece(0.25, b"")
        recorder.piece(1.23456789, "é".encode()[:1])
        recorder.piece(2, "é".encode()[1:])
        recorder.end("failed", 3.5, "it broke")
    head, *others = written(path)
    assert datetime.now(UTC).timestamp() - datetime.fromisoformat(head.pop("recorded_at")).timestamp() < 60
    assert head == {
        "penstock": 1,
        "url": "http://x/a?b=c",
        "status": 200,
        "headers": [["Content-Type", "text/plain"], ["X-A", "é"]],
    }
    assert others == [
        {"at": 0.25, "data": "data: é \u2028\0\n\n"},
        {"at": 1.234568, "base64": "ww=="},
        {"at": 2, "base64": "qQ=="},
        {"end": "failed", "at": 3.5, "error": "it broke"},
    ]
    assert "é \u2028".encode() in path.read_bytes()  # to be read by people


@given(st.lists(st.tuples(st.floats(0, 1e6), st.binary(min_size=1) | st.text(min_size=1).map(str.encode)), max_size=8))
def test_what_is_recorded_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[float, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("recording") / "x"
    pieces.sort()
    recording = record(path, *map(Piece._make, pieces), end=RecordedEnd("complete", 1e6))
    loaded = list(recording.pieces())
    assert [piece.data for piece in loaded] == [data for _, data in pieces]
    assert [piece.at for piece in loaded] == pytest.approx([at for at, _ in pieces], abs=1e-6)
    assert (recording.count, recording.bytes) == (len(pieces), sum(len(data) for _, data in pieces))
    assert (recording.url, recording.status, recording.recorded_at) == ("http://x/", 200, AT)
    assert recording.headers == (("content-type", SSE),)
    assert recording.end == RecordedEnd("complete", 1e6)


def test_a_huge_piece_can_be_read_again(path: Path) -> None:
    data = b"\0" * (MAX_LINE_BYTES // 4)
    recording = record(path, Piece(1, data), end=RecordedEnd("complete", 1))
    assert recording.bytes == len(data)
    assert max(map(len, path.read_bytes().split(b"\n"))) < MAX_LINE_BYTES


def test_times_never_go_back(path: Path) -> None:
    pieces = [Piece(1, b"a"), Piece(0.5, b"b"), Piece(2, b"c")]
    recording = record(path, *pieces, end=RecordedEnd("complete", 1.5))
    assert [piece.at for piece in recording.pieces()] == [1, 1, 2]
    assert recording.end.at == 2


def test_what_makes_no_recording_is_refused(path: Path) -> None:
    with Recorder(path) as recorder:
        with pytest.raises(RuntimeError, match="begins with its head"):
            recorder.piece(0, b"x")
        with pytest.raises(RuntimeError, match="begins with its head"):
            recorder.end("complete", 0)
        recorder.head(url="http://x/", status=200)
        with pytest.raises(RuntimeError, match="its head already"):
            recorder.head(url="http://x/", status=200)
        for at in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match="seconds after the head"):
                recorder.piece(at, b"x")
        with pytest.raises(ValueError, match="'complete', 'failed' or 'cancelled', not 'done'"):
            recorder.end("done", 0)  # type: ignore[arg-type]
        recorder.end("complete", 0)
        with pytest.raises(RuntimeError, match="has ended"):
            recorder.piece(1, b"x")
        with pytest.raises(RuntimeError, match="has ended"):
            recorder.end("complete", 1)
    assert load(path).count == 0


# -- under its name only when it is whole


def test_it_grows_beside_its_name(path: Path) -> None:
    path.write_text("the one before")
    with Recorder(path) as recorder:
        recorder.head(url="http://x/", status=200)
        recorder.piece(1, b"one")
        assert path.read_text() == "the one before"
        assert recorder.part.parent == path.parent
        assert b'"data":"one"' in recorder.part.read_bytes()
        recorder.end("complete", 1)
        assert not recorder.part.exists()
        assert load(path).count == 1
    assert list(path.parent.iterdir()) == [path]


def test_one_without_a_head_leaves_nothing(path: Path) -> None:
    path.write_text("the one before")
    with pytest.raises(ZeroDivisionError), Recorder(path):
        raise ZeroDivisionError
    Recorder(path).close()
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "the one before"


@pytest.mark.parametrize("left_by", [ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError])
def test_one_that_is_left_is_a_cancelled_one(path: Path, left_by: type[BaseException]) -> None:
    with pytest.raises(left_by), Recorder(path) as recorder:
        recorder.head(url="http://x/", status=200)
        recorder.piece(1.5, b"one")
        raise left_by
    recording = load(path)
    assert (recording.count, recording.end) == (1, RecordedEnd("cancelled", 1.5))
    assert list(path.parent.iterdir()) == [path]


def program(body: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with a recorder of this path that has its head and a piece."""
    text = f"""
    import os, resource, signal, sys
    from penstock.client.recording import Recorder
    with Recorder(sys.argv[1]) as recorder:
        recorder.head(url="http://x/", status=200)
        recorder.piece(1.5, b"one")
        {body}
    """
    command = [sys.executable, "-c", textwrap.dedent(text), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_one_that_is_killed_leaves_its_part_which_can_be_mended(path: Path) -> None:
    assert program("os.kill(os.getpid(), signal.SIGKILL)", path).returncode == -signal.SIGKILL
    (part,) = path.parent.iterdir()
    assert part.name.startswith("answer.jsonl.")
    assert part.suffix == ".part"
    with pytest.raises(DecodeError, match=r"line 3: the end is missing.* add the line (\{.*\})$") as caught:
        load(part)
    with part.open("a") as file:
        file.write(str(caught.value).rpartition("add the line ")[2] + "\n")
    assert (load(part).count, load(part).end) == (1, RecordedEnd("cancelled", 1.5))


def test_one_that_finds_no_room_leaves_nothing(path: Path) -> None:
    body = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); recorder.piece(2, b'x' * 10_000)"
    done = program(body, path)
    assert "OSError" in done.stderr
    assert done.returncode == 1
    assert list(path.parent.iterdir()) == []


def test_only_files_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="something else than a file"):
        Recorder("/dev/null")
    with pytest.raises(FileExistsError, match="something else than a file"):
        Recorder(tmp_path)
    with pytest.raises(FileNotFoundError):
        Recorder(tmp_path / "none" / "x")
    assert list(tmp_path.iterdir()) == []


# -- what is not written


@pytest.mark.parametrize(
    "name",
    [
        *CREDENTIALS,
        *("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "Set-Cookie2", "Mcp-Session-Id"),
        *("X-API-Key", "Api-Key", "apikey", "x_api_key", "x-goog-api-key", "Ocp-Apim-Subscription-Key", "X-Access-Key"),
        *("X-Auth-Token", "X-Amz-Security-Token", "X-CSRF-Token", "x-secret", "X-Client-Secret"),
    ],
)
def test_fields_that_are_credentials_are_not_written(path: Path, name: str) -> None:
    with Recorder(path) as recorder:
        recorder.head(url="http://x/", status=200, headers=[(name, "hush"), (name.encode(), b"hush"), ("server", "x")])
    assert b"hush" not in path.read_bytes()
    assert load(path).headers == (("server", "x"),)


@pytest.mark.parametrize(
    "name",
    [
        *("X-RateLimit-Remaining-Tokens", "anthropic-ratelimit-tokens-limit", "WWW-Authenticate", "Author", "x-design"),
        *("Idempotency-Key", "Surrogate-Key", "Sec-WebSocket-Key", "X-Request-Id", "Penstock-Stream", "Content-Type"),
    ],
)
def test_other_fields_are(path: Path, name: str) -> None:
    with Recorder(path) as recorder:
        recorder.head(url="http://x/", status=200, headers=[(name, "told")])
    assert load(path).headers == ((name, "told"),)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:hush@x:8000/a?b=c", "http://x:8000/a?b=c"),
        ("http://x/?api_key=hush&b=c&b", "http://x/?api_key=REDACTED&b=c&b"),
        ("http://x/?key=hush", "http://x/?key=REDACTED"),
        (
            "http://x/?a=1&accessToken=hush&X-Amz-Signature=hush",
            "http://x/?a=1&accessToken=REDACTED&X-Amz-Signature=REDACTED",
        ),
        ("http://x/?clientSecret=hush&apiKey=hush", "http://x/?clientSecret=REDACTED&apiKey=REDACTED"),
        ("http://x/?to%6ben=hush", "http://x/?to%6ben=REDACTED"),
        ("http://x/?max_tokens=5&monkey=b&token", "http://x/?max_tokens=5&monkey=b&token"),
        ("http://x/a?to=http://b@c#access_token=hush", "http://x/a?to=http://b@c"),
        ("//me:hush@x/a", "//x/a"),
        ("/a?sig=hush", "/a?sig=REDACTED"),
        ("/a", "/a"),
    ],
)
def test_credentials_in_urls_are_not_written(path: Path, url: str, shown: str) -> None:
    with Recorder(path) as recorder:
        recorder.head(url=url, status=302, headers=[("Location", url), ("content-location", url), ("x-a", "b=c")])
        recorder.end("failed", 0, f"{penstock.client.seam.shown(url)}: the body broke off")
    assert b"hush" not in path.read_bytes()
    recording = load(path)
    assert recording.url == shown
    assert recording.headers == (("Location", shown), ("content-location", shown), ("x-a", "b=c"))
    assert recording.end.error == f"{shown}: the body broke off"


# -- reading


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "line 1: the file is empty"),
        (["\n"], "line 1: it is not JSON"),
        (["data: 1\n"], "line 1: it is not JSON: .*'data: 1"),
        ([[1]], "line 1: it is not a JSON object"),
        ([{"at": 1}], 'line 1: it has no "penstock": this is no recording'),
        ([{**HEAD, "penstock": True}], 'line 1: it has no "penstock"'),
        ([{**HEAD, "penstock": 2}], "line 1: the recording is of version 2, and this Penstock reads version 1"),
        ([{**HEAD, "status": "200"}], 'line 1: "status" is not a status code'),
        ([{**HEAD, "status": 99}], 'line 1: "status"'),
        ([{**HEAD, "url": None}], 'line 1: "url" is missing, or no text'),
        ([{**HEAD, "headers": {"a": "b"}}], 'line 1: "headers" is not a list'),
        ([{**HEAD, "headers": [["a"]]}], 'line 1: "headers"'),
        ([{**HEAD, "headers": [["a", 1]]}], 'line 1: "headers"'),
        ([{**HEAD, "recorded_at": "yesterday"}], 'line 1: "recorded_at" is not a time as in 2026'),
        ([{**HEAD, "recorded_at": 5}], 'line 1: "recorded_at" is missing'),
        ([HEAD], r'line 2: the end is missing.*\{"end": "cancelled", "at": 0.0\}$'),
        ([HEAD, {"at": 1.5, "data": ""}], r'line 3: the end is missing.*\{"end": "cancelled", "at": 1.5\}$'),
        ([HEAD, '{"at": 1, "da'], "line 2: it is not JSON.*cut off: the recording was interrupted; take the line out"),
        ([HEAD, '{"at": 1, "da\n', END], "line 2: it is not JSON"),
        ([HEAD, {"at": 1}, END], 'line 2: it has to have one of "data", "base64" and "end"'),
        ([HEAD, {"at": 1, "data": "", "base64": ""}, END], "line 2: it has to have one of"),
        ([HEAD, {"at": 1, "data": 1}, END], 'line 2: "data" is missing, or no text'),
        ([HEAD, {"at": 1, "data": "\ud800"}, END], 'line 2: "data" holds half a surrogate pair'),
        ([HEAD, {"at": 1, "base64": "a*=="}, END], 'line 2: "base64" is not base64'),
        ([HEAD, {"at": 1, "base64": "abc"}, END], 'line 2: "base64" is not base64'),
        ([HEAD, {"at": 1, "base64": "é"}, END], 'line 2: "base64" is not base64'),
        ([HEAD, {"data": "x"}, END], 'line 2: "at" is not a number of seconds'),
        ([HEAD, {"at": "1", "data": "x"}, END], 'line 2: "at" is not a number'),
        ([HEAD, {"at": True, "data": "x"}, END], 'line 2: "at" is not a number'),
        ([HEAD, {"at": -1, "data": "x"}, END], 'line 2: "at" is not a number'),
        ([HEAD, '{"at": 1e999, "data": "x"}\n', END], 'line 2: "at" is not a number'),
        ([HEAD, '{"at": NaN, "data": "x"}\n', END], "line 2: it is not JSON"),
        ([HEAD, {"at": 10**400, "data": "x"}, END], 'line 2: "at" is not a number'),
        ([HEAD, {"at": 2, "data": "x"}, {"at": 1, "data": "x"}], 'line 3: "at" goes back, from 2 to 1'),
        ([HEAD, {"at": 10, "data": "x"}, END], 'line 3: "at" goes back, from 10 to 9'),
        ([HEAD, {"end": "done", "at": 1}], "line 2: \"end\" is not 'complete', 'failed' or 'cancelled'"),
        ([HEAD, {"end": ["complete"], "at": 1}], 'line 2: "end" is not'),
        ([HEAD, {"end": "failed"}], 'line 2: "at" is not a number'),
        ([HEAD, {"end": "failed", "at": 1, "error": {}}], 'line 2: "error" is missing, or no text'),
        ([HEAD, END, {"at": 10, "data": "x"}], "line 3: nothing comes after the end"),
        ([HEAD, HEAD, END], 'line 2: "at" is not a number'),
    ],
)
def test_what_is_no_recording_is_told_by_its_line(path: Path, lines: list[object], says: str) -> None:
    write(path, *lines)
    with pytest.raises(DecodeError, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: line ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_no_recording(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b\x08\xff\n")
    with pytest.raises(DecodeError, match="line 1: it is not UTF-8: this is no recording"):
        load(path)


def test_a_line_without_an_end_is_not_read_whole(path: Path) -> None:
    with path.open("wb") as sparse:
        sparse.write(json.dumps(HEAD).encode() + b"\n" + b'{"at": 1, "data": "')
        sparse.truncate(1 << 34)  # 16 GB, none of them on the disk
    with pytest.raises(DecodeError, match="line 2: it is longer than 67,108,864 bytes"):
        load(path)


def test_what_later_versions_may_add_is_ignored(path: Path) -> None:
    lines = [{**HEAD, "by": "x"}, {"at": 1, "data": "x", "note": 1}, {"at": 2, "base64": "/w=="}, {**END, "why": None}]
    recording = load(write(path, *lines))
    assert list(recording.pieces()) == [(1, b"x"), (2, b"\xff")]
    assert recording.end == RecordedEnd("complete", 9)


def test_the_last_line_needs_no_newline(path: Path) -> None:
    assert load(write(path, HEAD, json.dumps(END))).end == RecordedEnd("complete", 9)


def test_a_file_that_was_changed_since_is_noticed(path: Path) -> None:
    recording = record(path, Piece(1, b"one"), end=RecordedEnd("complete", 1))
    write(path, HEAD, {"at": 1, "data": "other"})
    with pytest.raises(DecodeError, match="line 3: the end is missing"):
        list(recording.pieces())


def test_memory_does_not_grow_with_the_recording(path: Path) -> None:
    data = "x" * 100_000
    with path.open("w") as file:
        file.write(json.dumps(HEAD) + "\n")
        file.writelines(json.dumps({"at": at, "data": data}) + "\n" for at in range(300))
        file.write(json.dumps({"end": "complete", "at": 300}))
    tracemalloc.start()
    try:
        recording = load(path)
        assert sum(len(piece.data) for piece in recording.pieces()) == recording.bytes == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


# -- replaying


class Sleeper:
    """A clock, and a sleep on it that oversleeps a little each time, as all sleeps do."""

    def __init__(self, late: float = 0.0) -> None:
        self.clock = FakeClock(1000)
        self.late = late
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(round(seconds, 6))
        self.clock.advance(seconds + self.late)


@anyio
@pytest.mark.parametrize(("speed", "due"), [(1.0, [1, 2, 4, 5]), (2.0, [0.5, 1, 2, 2.5]), (0.5, [2, 4, 8, 10])])
async def test_pieces_come_at_their_times(path: Path, speed: float, due: list[float]) -> None:
    recording = record(path, Piece(1, b"a"), Piece(2, b"b"), Piece(4, b"c"), end=RecordedEnd("complete", 5))
    sleeper = Sleeper()
    came = [
        (sleeper.clock() - 1000, data)
        async for data in replay(recording, speed=speed, sleep=sleeper.sleep, clock=sleeper.clock)
    ]
    assert came == [(due[0], b"a"), (due[1], b"b"), (due[2], b"c")]
    assert sleeper.clock() - 1000 == due[3]


@anyio
async def test_lateness_does_not_add_up(path: Path) -> None:
    recording = record(path, *(Piece(at, b"x") for at in range(100)), end=RecordedEnd("complete", 100))
    sleeper = Sleeper(late=0.01)
    assert len([piece async for piece in replay(recording, sleep=sleeper.sleep, clock=sleeper.clock)]) == 100
    assert sleeper.clock() - 1000 == pytest.approx(100.01)
    assert sleeper.slept[0] == 1
    assert sleeper.slept[1:] == [0.99] * 99


@anyio
async def test_a_slow_reader_is_caught_up_with(path: Path) -> None:
    recording = record(path, *(Piece(at, b"%d" % at) for at in (1, 2, 3, 10)), end=RecordedEnd("complete", 10))
    sleeper = Sleeper()
    pieces = replay(recording, sleep=sleeper.sleep, clock=sleeper.clock)
    assert await anext(pieces) == b"1"
    sleeper.clock.advance(5)
    assert [piece async for piece in pieces] == [b"2", b"3", b"10"]
    assert sleeper.slept == [1, 4]


@anyio
async def test_without_waiting(path: Path) -> None:
    recording = record(path, Piece(1000, b"a"), Piece(2000, b"b"), end=RecordedEnd("cancelled", 3000))

    async def never(seconds: float) -> None:
        pytest.fail("it slept")

    assert [piece async for piece in replay(recording, speed=math.inf, sleep=never)] == [b"a", b"b"]
    for speed in (0, -1, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            await anext(replay(recording, speed=speed))


@anyio
@pytest.mark.parametrize("said", ["http://x/: it broke off", ""])
async def test_a_failed_one_fails_again_when_it_did(path: Path, said: str) -> None:
    recording = record(path, Piece(1, b"a"), end=RecordedEnd("failed", 5, said))
    sleeper = Sleeper()
    pieces = replay(recording, sleep=sleeper.sleep, clock=sleeper.clock)
    assert await anext(pieces) == b"a"
    with pytest.raises(StreamTruncated) as caught:
        await anext(pieces)
    assert str(caught.value) == (said or "http://x/: the recorded body broke off")
    assert caught.value.url == "http://x/"
    assert sleeper.clock() - 1000 == 5


@anyio
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells which files are open")
async def test_one_that_is_left_closes_its_file(path: Path) -> None:
    def is_open() -> bool:
        return any(link.exists() and link.resolve() == path for link in Path("/proc/self/fd").iterdir())

    recording = record(path, Piece(0, b"a"), Piece(1, b"b"), end=RecordedEnd("complete", 1))
    assert not is_open()
    pieces = replay(recording)
    assert await anext(pieces) == b"a"
    assert is_open()
    await pieces.aclose()
    assert not is_open()


@anyio
@pytest.mark.parametrize("whole", [True, False])
async def test_a_real_stream_recorded_and_served_again(path: Path, whole: bool) -> None:
    body = b"".join(f"id: {n}\ndata: é{n}\n\n".encode() for n in range(5))
    cut = [body[i : i + 11] for i in range(0, len(body), 11)]
    raw = chunked(type=SSE, end=False) + b"".join(map(chunk, cut)) + (b"0\r\n\r\n" if whole else b"")
    clock = FakeClock()
    async with script(*once(raw)) as server, penstock.AsyncClient(server.url) as client:
        with Recorder(path) as recorder:
            async with client.get("/events?key=hush").send() as response:
                recorder.head(url=response.url, status=response.status, headers=response.headers.multi_items())
                try:
                    async for piece in response:
                        clock.advance(0.001)
                        recorder.piece(clock(), piece)
                except StreamTruncated as error:
                    recorder.end("failed", clock(), str(error))
                else:
                    recorder.end("complete", clock())
    recording = load(path)
    assert recording.end.reason == ("complete" if whole else "failed")
    assert b"hush" not in path.read_bytes()
    assert b"".join(piece.data for piece in recording.pieces()) == body

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-type", dict(recording.headers)["content-type"].encode())]
        await send({"type": "http.response.start", "status": recording.status, "headers": headers})
        async for piece in replay(recording):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serve(app) as url, penstock.AsyncClient(url, retry=penstock.Retry(retries=0)) as client:
        got: list[str] = []
        try:
            async with client.get("/").events() as events:
                async for event in events:
                    got.append(event.data)  # noqa: PERF401 – what came before a failure counts
        except StreamTruncated:
            assert not whole
        else:
            assert whole
        assert got == [f"é{n}" for n in range(5)]
