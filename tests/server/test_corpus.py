"""What clients send, whole and in every kind of pieces: what is refused never becomes a request, and nothing hangs."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.testing import serve
from tests.raw import connected, until

pytestmark = pytest.mark.anyio

CASES = json.loads((Path(__file__).parent.parent / "corpus" / "http1_requests.json").read_text())["cases"]

# Of the shared corpus: what it rejects and we take.
TAKEN = {
    "invalid/006.http": "a request line over gunicorn's limit of 4,094 bytes; ours is larger",
    "invalid/007.http": "a field over gunicorn's limit of 8,190 bytes; ours is on the whole head",
    "invalid/008.http": "the same",
    "invalid/009.http": "the same",
    "invalid/041.http": "two Content-Types: nothing of the framing, and for the application to judge",
    "rfc9110_trailer_forbidden": "trailers are kept apart from the fields, whatever they name, and go nowhere",
}
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")


class Told(NamedTuple):
    """What became of some bytes: the requests that the application got whole, the answers, and the connection's end."""

    requests: list[list[str]]
    statuses: list[int]
    closed: bool


class App:
    """Answers whole requests with 200, and writes them down."""

    def __init__(self) -> None:
        self.running = 0
        self.requests: list[list[str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert not any(name in (b"authorization", b"digest") for name, _ in scope["headers"])
        self.running += 1
        try:
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                more = message["more_body"]
            self.requests.append([scope["method"], scope["raw_path"].decode(), body.decode("latin-1")])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        finally:
            self.running -= 1


async def comes(reading: asyncio.Future[bytes]) -> bool:
    """Whether anything comes: turns are counted and not time, for in each of them all have had theirs."""
    for _ in range(12):
        if reading.done():
            return True
        await asyncio.sleep(0.003)
    return reading.done()


async def told(slices: Iterable[bytes]) -> Told:
    app, got, closed = App(), bytearray(), False
    async with serve(app) as url:
        async with connected(url) as (reader, writer):
            for piece in slices:
                writer.write(piece)
                await asyncio.sleep(0)
            while not closed:
                reading = asyncio.ensure_future(reader.read(65536))
                if b"connection: close" not in got and not await comes(reading):
                    reading.cancel()
                    break
                async with asyncio.timeout(20):  # if it says that it closes, it does
                    data = await reading
                got += data
                closed = not data
        await until(lambda: not app.running)
    return Told(app.requests, [int(each) for each in STATUS.findall(got)], closed)


def all_splits(raw: bytes, seed: str) -> list[list[bytes]]:
    """Whole, byte by byte, and twice at random."""
    chance = random.Random(seed)
    found = [[raw]]
    for count in (len(raw), 3, 12):
        cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(count)) if count < len(raw) else range(len(raw))
        if len(cuts) <= 2000:
            at = [0, *cuts, len(raw)]
            found.append([raw[begin:end] for begin, end in itertools.pairwise(at) if begin < end])
    return found


async def however_it_comes(raw: bytes, seed: str) -> Told:
    outcomes = await asyncio.gather(*(told(slices) for slices in all_splits(raw, seed)))
    assert all(each == outcomes[0] for each in outcomes)
    return outcomes[0]


@pytest.mark.parametrize("case", CASES, ids=lambda each: each["name"])
async def test_a_case_of_the_corpus(case: dict[str, Any]) -> None:
    found = await however_it_comes(case["input"].encode("latin-1"), case["name"])
    assert found.requests == case["requests"]
    refused = [case["status"]] if case["status"] not in (200, None) else []
    assert found.statuses == [200] * len(case["requests"]) + refused
    assert found.closed == bool(refused or "Connection: close" in case["input"] or "HTTP/1.0" in case["input"])


def shared_cases() -> list[Any]:
    folder = os.environ.get("PENSTOCK_CORPUS")
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip("PENSTOCK_CORPUS names no folder"))]
    cases = json.loads((Path(folder) / "http1_corpus.json").read_text())
    return [pytest.param(each, id=each["name"]) for each in cases if each["type"] == "request"]


@pytest.mark.parametrize("case", shared_cases())
async def test_a_case_of_the_shared_corpus(case: dict[str, Any]) -> None:
    found = await however_it_comes(base64.b64decode(case["input_b64"]), case["name"])
    assert not any(status >= 500 and status not in (501, 505) for status in found.statuses)
    assert found.closed or not any(status >= 400 for status in found.statuses)
    taken = any(part in case["name"] for part in TAKEN) or case["mode"].startswith("cfg:")  # gunicorn's own settings
    if case["verdict"] == "reject":
        assert len(found.requests) <= case.get("messages", 0) or taken
    elif case["verdict"] == "wait":
        assert found == Told([], [], False)
    elif case["verdict"] == "status":
        assert any(low <= found.statuses[-1] <= high for low, high in case["status_ranges"])
        if case["body"] is not None and found.requests:
            assert found.requests[-1][2] == case["body"]
    elif "messages" in case:
        assert len(found.requests) <= max(1, case["messages"])
