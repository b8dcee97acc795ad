"""Bad streams, read by a process of its own: a typed error that says where and what, what came before it, flat memory.

The reader is the library in a fresh interpreter, so that its memory is its own: what is measured is the highest it ever
stood, above where it stood after a stream that is good.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.client.peers import SSE, answer, chunk, chunked, counting, fields_of
from tests.e2e.process import PATIENCE, needs_proc, one_line, penstock

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, needs_proc]

MIB = 1024 * 1024
FLAT = 48 * MIB
"""An event may have 16 MiB: while one is found to be too long, it is held and so is the buffer that it outgrew."""

READER = """
import asyncio, json, sys
import penstock
from penstock.client.notices import Malformed

def highest():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

async def main(good, bad, options):
    count, first, malformed, error = 0, [], [], None
    told = lambda notice: isinstance(notice, Malformed) and malformed.append(notice)
    how = {"terminator": options.get("terminator"), "on_notice": told}
    headers = options.get("headers", {})
    async with penstock.AsyncClient(retry=0, timeout=options.get("timeout")) as client:
        await client.get(good).collect()
        before = highest()
        request = client.get(bad).headers(headers)
        if "model" in options:
            stream = request.events(model=lambda value: value, **how)
        else:
            stream = request.events(**how)
        try:
            async with stream:
                async for event in stream:
                    count += 1
                    if count <= 5:
                        first.append(event if "model" in options else list(event))
        except penstock.PenstockError as caught:
            error = {name: getattr(caught, name, None) for name in ("category", "url", "limit", "status")}
            error |= {"type": type(caught).__name__, "message": str(caught)}
        metrics = stream.metrics.to_dict()
        print(json.dumps({"count": count, "first": first, "error": error, "grown": highest() - before,
                          "malformed": [each.reason for each in malformed], "metrics": metrics,
                          "last_event_id": stream.last_event_id}))

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
"""


@dataclass
class Server:
    """One that serves a good stream at /good, and a bad one everywhere else.

    Attributes:
        bad: The pieces of the bad response, as they go on the wire; they may be endless.
        heads: The requests for it.
    """

    url: str = ""
    bad: Callable[[], Iterator[bytes]] = lambda: iter(())
    heads: list[bytes] = field(default_factory=list)
    sent: int = 0


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    here = Server()

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET /good"):
            writer.write(chunked(b"data: good\n\n", type=SSE))
            return
        here.heads.append(head)
        for piece in here.bad():
            writer.write(piece)
            here.sent += len(piece)
            await writer.drain()

    async with counting(answering) as server:
        here.url = server.url
        yield here


@pytest.fixture
async def server(anyio_backend: object) -> AsyncIterator[Server]:
    async with serving() as here:
        yield here


async def read(server: Server, path: str = "/bad?who=me", **options: Any) -> Any:
    """What a fresh process makes of the bad stream."""
    arguments = [f"{server.url}/good", f"{server.url}{path}", json.dumps(options)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def told(server: Server, *options: str, path: str = "/bad") -> tuple[dict[str, Any], str]:
    """What the command line says of it: the error as an object, and as a line."""
    run: Callable[..., Awaitable[Any]] = asyncio.to_thread
    url = f"{server.url}{path}"
    machine = await run(penstock, "tail", url, "--json", "--retries", "0", *options)
    human = await run(penstock, "tail", url, "--retries", "0", *options)
    assert (machine.code, human.code) == (1, 1)
    return machine.error, one_line(human.err)


def endless(first: bytes, again: bytes) -> Callable[[], Iterator[bytes]]:
    """A stream with an event in it, and then the same again and again."""
    head = chunked(b"id: 1\ndata: 1\n\n" + first, type=SSE, end=False)
    return lambda: itertools.chain((head,), itertools.repeat(chunk(again)))


# -- what the standard says what to make of


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\ndata: 3\n\n", [["message", "1", ""], ["message", "3", ""]]),
        (b"data: a\xff\xc3\n\ndata: \xf0\x9f\x98\n\n", [["message", "a\ufffd\ufffd", ""], ["message", "\ufffd", ""]]),
        (b"id: 1\ndata: 1\n\nid: 2\x00\ndata: 2\n\n", [["message", "1", "1"], ["message", "2", "1"]]),
        (b"retry: -1\nretry: 1e9\nretry: 99999999999999999999999\ndata: 1\n\n", [["message", "1", ""]]),
        (b"id: 7\n\nevent\ndata\n\n", [["message", "", "7"]]),
    ],
    ids=["byte-order marks", "invalid UTF-8", "NUL in an id", "negative retry", "empty fields"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
async def test_what_the_standard_knows_is_no_failure(
    server: Server, body: bytes, events: list[list[str]], apart: bool
) -> None:
    pieces = [body[at : at + 1] for at in range(len(body))] if apart else [body]
    server.bad = lambda: iter([chunked(*pieces, type=SSE)])
    result = await read(server)
    assert (result["error"], result["first"]) == (None, events)
    assert result["metrics"]["reason"] == "complete"
    assert result["last_event_id"] == events[-1][2]


# -- what outgrows a limit


@pytest.mark.parametrize(
    "bad",
    [
        endless(b"data: ", b"x" * 65536),
        endless(b"", b"data: " + b"y" * 1000 + b"\n"),
        endless(b"", b"data\n" * 10_000),
        endless(b": ", b"z" * 65536),
        endless(b"event: ", b"t" * 65536),
        endless(b"", b"n" * 65536),
    ],
    ids=["line", "event", "event of empty lines", "comment", "type", "field name"],
)
async def test_what_has_no_end_is_ended(server: Server, bad: Callable[[], Iterator[bytes]]) -> None:
    server.bad = bad
    result = await read(server)
    error = result["error"]
    assert (error["type"], error["category"], error["limit"]) == ("LimitExceeded", "application", "max_event_bytes")
    assert error["url"] == f"{server.url}/bad?who=me"
    assert error["message"].startswith(f"{server.url}/bad?who=me: ")
    assert "max_event_bytes" in error["message"]
    assert result["first"] == [["message", "1", "1"]]
    assert result["grown"] < FLAT
    metrics = result["metrics"]
    assert (metrics["total"], metrics["failed"], metrics["reason"], metrics["cause"]) == (2, 1, "failed", "limit")


async def test_comments_without_end_cost_no_memory_and_are_ended_by_a_timer(server: Server) -> None:
    server.bad = endless(b"", (b": " + b"keep-alive " * 100 + b"\n") * 60)
    result = await read(server, timeout=1.5)
    assert (result["error"]["type"], result["error"]["category"]) == ("StreamStalled", "stream")
    assert "not finished within the total timeout of 1.5 s" in result["error"]["message"]
    assert result["first"] == [["message", "1", "1"]]
    assert result["metrics"]["bytes"] > 16 * MIB, "more than any limit of one event"
    assert result["grown"] < FLAT


@pytest.mark.parametrize("coding", ["gzip", "deflate", "many members"])
async def test_a_bomb_is_not_let_off(server: Server, coding: str) -> None:
    first, zeros = b"id: 1\ndata: 1\n\n", b": " + bytes(8 * MIB - 3) + b"\n"
    if coding == "many members":
        pieces = [gzip.compress(first), *[gzip.compress(zeros)] * 20]
    else:
        packer = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
        pieces = [packer.compress(first) + packer.flush(zlib.Z_SYNC_FLUSH)]
        pieces += [packer.compress(zeros) for _ in range(20)] + [packer.flush()]
    bomb = [piece for piece in pieces if piece]
    assert sum(map(len, bomb)) < MIB // 4, "which stand for 160 MiB"
    field = f"Content-Encoding: {'deflate' if coding == 'deflate' else 'gzip'}\r\n".encode()
    head = chunked(type=SSE, end=False).replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n")
    server.bad = lambda: iter([head, *map(chunk, bomb), b"0\r\n\r\n"])
    result = await read(server)
    error = result["error"]
    assert (error["type"], error["category"], error["limit"]) == ("LimitExceeded", "application", "max_ratio")
    assert error["url"] == f"{server.url}/bad?who=me"
    assert error["message"].startswith(f"{server.url}/bad?who=me: ")
    assert "max_ratio=200" in error["message"]
    assert result["first"] == [["message", "1", "1"]]
    assert result["grown"] < FLAT


# -- what is another thing than was asked for


async def test_a_page_in_the_place_of_a_stream(server: Server) -> None:
    page = answer(b"<html>" + b"x" * MIB, "200 OK", "Content-Type: text/html; charset=utf-8")
    server.bad = lambda: iter([page])
    result = await read(server)
    assert (result["error"]["type"], result["error"]["category"]) == ("ContentTypeError", "server")
    assert "this is text/html; charset=utf-8, not a stream of text/event-stream" in result["error"]["message"]
    assert (result["error"]["url"], result["count"]) == (f"{server.url}/bad?who=me", 0)


async def test_truncated_json_in_an_event_is_told_and_left_out(server: Server) -> None:
    payloads = ['{"n": 1}', '{"n": ', '{"n": 3}', "", '{"n": 5}']
    body = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    server.bad = lambda: iter([chunked(body, type=SSE)])
    result = await read(server, model=True)
    assert (result["error"], result["first"]) == (None, [{"n": 1}, {"n": 3}, {"n": 5}])
    assert len(result["malformed"]) == 2
    assert "is not JSON" in result["malformed"][0]
    metrics = result["metrics"]
    assert (metrics["total"], metrics["successful"], metrics["failed"]) == (5, 3, 2)


@pytest.mark.parametrize(
    ("terminator", "block"),
    [
        ("openai", b'data: {"error": {"message": "out of memory", "type": "server_error"}}\n\n'),
        ("anthropic", b'event: error\ndata: {"type": "error", "error": {"message": "out of memory"}}\n\n'),
        (
            "openai-responses",
            b'event: response.failed\ndata: {"response": {"error": {"message": "out of memory"}}}\n\n',
        ),
    ],
)
async def test_an_error_in_the_stream_is_the_streams_error(server: Server, terminator: str, block: bytes) -> None:
    server.bad = lambda: iter([chunked(b"data: 1\n\n", block, b"data: never\n\n", type=SSE)])
    result = await read(server, terminator=terminator)
    error = result["error"]
    assert (error["type"], error["category"]) == ("InBandError", "stream")
    assert error["message"].startswith(f"{server.url}/bad?who=me: ")
    assert "out of memory" in error["message"]
    assert result["first"] == [["message", "1", ""]]
    assert result["metrics"]["cause"] == "in_band_server"


# -- where a redirect leads


async def test_a_redirect_in_a_circle_ends(server: Server) -> None:
    server.bad = lambda: iter([answer(b"", "302 Found", "Location: /bad?again")])
    result = await read(server)
    assert (result["error"]["type"], result["error"]["category"]) == ("ProtocolError", "server")
    assert "more than 20 redirects" in result["error"]["message"]
    assert result["error"]["url"] == f"{server.url}/bad?again"
    assert len(server.heads) == 21


async def test_credentials_do_not_go_to_another_origin_with_the_request(server: Server) -> None:
    secrets = {"Authorization": "Bearer t", "Cookie": "c=1", "X-API-Key": "k", "X-Other": "stays"}
    async with serving() as other:
        other.bad = lambda: iter([chunked(b"data: there\n\n", type=SSE)])
        server.bad = lambda: iter([answer(b"", "307 Elsewhere", f"Location: {other.url}/there")])
        result = await read(server, headers=secrets)
        assert (result["error"], result["first"]) == (None, [["message", "there", ""]])
        here, there = fields_of(server.heads[0]), fields_of(other.heads[0])
    assert {name.lower() for name in secrets} <= here.keys()
    assert here.keys() & {name.lower() for name in secrets} - there.keys() == {"authorization", "cookie", "x-api-key"}
    assert there["accept"] == SSE


# -- and on the command line


@pytest.mark.parametrize(
    ("bad", "options", "type", "category", "says"),
    [
        (endless(b"data: ", b"x" * 65536), (), "LimitExceeded", "application", "max_event_bytes"),
        (endless(b": ", b"x" * 65536), (), "LimitExceeded", "application", "max_event_bytes"),
        (
            lambda: iter([chunked(b'data: {"error": {"message": "no"}}\n\n', type=SSE)]),
            ("--terminator", "openai"),
            "InBandError",
            "stream",
            "the stream itself said that it failed: no",
        ),
        (
            lambda: iter([answer(b"<p>", "200 OK", "Content-Type: text/html")]),
            (),
            "ContentTypeError",
            "server",
            "text/html",
        ),
        (lambda: iter([answer(b"", "302 Found", "Location: /bad")]), (), "ProtocolError", "server", "20 redirects"),
    ],
    ids=["endless line", "endless comment", "in-band error", "HTML", "redirects"],
)
async def test_the_command_line_tells_it_in_one_line(
    server: Server, bad: Callable[[], Iterator[bytes]], options: tuple[str, ...], type: str, category: str, says: str
) -> None:
    server.bad = bad
    error, line = await told(server, *options)
    assert (error["type"], error["category"]) == (type, category)
    assert error["url"] == f"{server.url}/bad"
    assert error["message"] == line
    assert line.startswith(f"{server.url}/bad: ")
    assert says in line
