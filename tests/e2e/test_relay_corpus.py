"""Hostile requests, raw, through a real `penstock relay` before an upstream that records every byte it is sent.

What must be refused never becomes a request there, and the upstream never sees more requests than were meant. All cases
are played at once: each reader has an address of its own, 127.1.x.y, by which X-Forwarded-For tells whose a request is.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import PATIENCE
from tests.e2e.recorder import Arrived, Recorder, recording
from tests.raw import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux answers on all of 127.0.0.0/8"),
]

CORPUS = Path(__file__).parents[1] / "corpus"

# Entries of the shared corpus that reject what we take, and why that is harmless behind a gateway that frames anew ...
LEFT_OUT = {
    "invalid/006.http": "a request line over gunicorn's limit of 4,094 bytes; ours is larger",
    "invalid/007.http": "a field over gunicorn's limit of 8,190 bytes; ours is on the whole head",
    "invalid/008.http": "the same",
    "invalid/009.http": "more fields than gunicorn's limit of 100; ours is 256",
    "invalid/010.http": "gunicorn was set to fields of 10 bytes",
    "invalid/011.http": "gunicorn was set to 2 fields",
    "invalid/012.http": "gunicorn was set to fields of 98 bytes",
    "invalid/017.http": "a field over gunicorn's limit of 8,190 bytes",
    "invalid/019.http": "gunicorn's own reading of two fields that proxies set; the one is replaced by us",
    "invalid/040.http": "Transfer_Encoding is a name like any other, and no framing; gunicorn was set to refuse",
    "invalid/041.http": "two Content-Types: nothing of the framing, and for the application to judge",
    "invalid/chunked_07.http": "Transfer_Encoding again",
    "invalid/limit_header_default_01.http": "a field over gunicorn's limit of 8,190 bytes",
    "rfc9110_trailer_forbidden": "trailers do not go on, whatever they name",
    "No extension after semicolon": "chunks' extensions do not go on, whatever they hold",
    "Unbalanced chunk extensions quoting": "the same",
}

# ... and entries that it accepts and we refuse, or that never come to their end.
STRICTER = {
    "Content-Length` (surrounding)": "the body does not come",
    "Content-Length reset": "the body does not come",
    "valid/099.http": "the body does not come",
    "valid/009.http": "a coding beside a length",
    "valid/025": "a coding other than chunked",
    "valid/029.http": "the same",
    "valid/030.http": "the same",
    "as last transfer-encoding": "the same",
    "gzip_chunked": "the same",
    "te_identity_chunked": "the same",
    "/ Parsing and setting flag": "what completes a head completes no chunks",
    "M-SEARCH": "* is a target of OPTIONS alone",
    "request with ICE": "not HTTP",
    "request with RTSP": "not HTTP",
    "No HTTP version": "HTTP/0.9",
    "valid/027.http": "a target that is not percent-encoded",
    "valid/031.http": "a method that is none of the registered",
    "target_authority": "CONNECT",
}

# Entries that are only wrong, or only wait, for want of their end: to complete them is to make them right.
UNFINISHED = ("chunked_missing_final_crlf", "Missing last-chunk", "Fragmented")

QUIET = 0.3  # seconds without a word after which a connection is taken to wait for more


@dataclass(frozen=True)
class Case:
    """Bytes to send, and what is to come of them.

    Attributes:
        name: What it is.
        raw: The bytes.
        least: Whole requests that the upstream must see.
        most: Whole requests that it may see.
        requests: The very requests, method and target and body, where they are known.
        status: Of the last answer, where that is known.
        absent: Fields that no request has at the upstream.
    """

    name: str
    raw: bytes
    least: int
    most: int
    requests: list[list[str]] | None = None
    status: int | None = None
    absent: tuple[str, ...] = ()


@dataclass
class Told:
    """What the reader of a case was told."""

    got: bytes = b""
    closed: bool = False

    @property
    def statuses(self) -> list[int]:
        return [status for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.got) if (status := int(each)) >= 200]

    @property
    def refused(self) -> bool:
        """Whether the last answer is a refusal after which there is nothing more to say."""
        last = self.statuses[-1] if self.statuses else 0
        return (400 <= last < 500 and last != 404) or last in (501, 505)


async def played(relay: str, upstream: Recorder, cases: list[Case]) -> list[str]:
    """Send all cases, each on a connection of its own; what is wrong, case by case."""
    limit = asyncio.Semaphore(128)
    told: dict[str, Told] = {}

    async def play(address: str, case: Case) -> None:
        async with limit:
            told[address] = await _sent(address, int(relay.rpartition(":")[2]), case, upstream)

    addresses = {f"127.1.{number // 250}.{number % 250 + 1}": case for number, case in enumerate(cases)}
    async with asyncio.TaskGroup() as group:
        for address, case in addresses.items():
            group.create_task(play(address, case))
    # What was only half a request has been let go of, now that its reader is gone.
    await until(lambda: upstream.reading == 0, PATIENCE)
    assert len(upstream.requests) == sum(len(upstream.of(address)) for address in addresses)
    wrong = [
        f"{case.name}: {wrong}"
        for address, case in addresses.items()
        for wrong in _judged(case, told[address], upstream.of(address))
    ]
    return wrong + upstream.strange


async def _sent(address: str, port: int, case: Case, upstream: Recorder) -> Told:
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    told = Told()

    async def read() -> None:
        while not told.closed:
            try:
                data = await reader.read(65536)
            except ConnectionResetError:
                data = b""
            told.got += data
            told.closed = not data

    reading = asyncio.create_task(read())
    try:
        writer.write(case.raw)
        if case.status is not None:
            await until(lambda: told.closed or told.statuses[-1:] == [case.status], PATIENCE)
        if case.least:
            await until(lambda: told.closed or len(upstream.of(address)) >= case.least, PATIENCE)
        await asyncio.wait({reading}, timeout=QUIET)
        if told.refused:
            await asyncio.wait({reading}, timeout=PATIENCE)
    finally:
        reading.cancel()
        writer.transport.abort()
    return told


def _judged(case: Case, told: Told, arrived: list[Arrived]) -> Iterator[str]:
    whole = [[each.method, each.target, each.body.decode("latin-1")] for each in arrived if each.whole]
    if not case.least <= len(whole) <= case.most:
        yield f"not {case.least} to {case.most} requests reached the upstream but {whole}; the reader got {told.got!r}"
    elif case.requests is not None and whole != case.requests:
        yield f"{whole} reached the upstream, and not {case.requests}"
    if case.status is not None and told.statuses[-1:] != [case.status]:
        yield f"the last answer is not {case.status}: {told.got!r}"
    if any(status >= 500 and status not in (501, 505) for status in told.statuses):
        yield f"it failed: {told.statuses}"
    if told.refused and not told.closed:
        yield f"refused with {told.statuses[-1]}, but not closed"
    for name in case.absent:
        if any(each.all(name.encode()) for each in arrived):
            yield f"{name} reached the upstream"


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recording() as recorder:
        yield recorder


# -- our own cases


def own_cases() -> Iterator[Case]:
    for file in ("http1_requests.json", "relay_requests.json"):
        for each in json.loads((CORPUS / file).read_text())["cases"]:
            if "Upgrade: websocket" in each["input"]:
                continue  # 501, says the relay
            count = len(each["requests"])
            raw, absent = each["input"].encode("latin-1"), tuple(each.get("absent", ()))
            yield Case(each["name"], raw, count, count, each["requests"], each["status"], absent)


async def test_our_own_cases(serve: Serve, upstream: Recorder) -> None:
    wrong = await played(serve("relay", upstream.url).url, upstream, list(own_cases()))
    assert not wrong, "\n".join(wrong)


# -- the shared corpus


def shared_cases(file: Path) -> Iterator[Case]:
    """Each entry as it is, and completed: with a Host, and its end, where it lacks them."""
    for entry in json.loads(file.read_text()):
        name, raw = entry["name"], base64.b64decode(entry["input_b64"])
        if entry["type"] != "request" or any(part in name for part in LEFT_OUT):
            continue
        most = _meant(entry)
        yield Case(name, raw, 0, most)
        if any(part in name for part in UNFINISHED):
            continue
        sound = entry["verdict"] == "accept" and entry["mode"] in ("request", "strict")
        must = sound and not any(part in name for part in STRICTER)
        yield Case(f"{name}, completed", _completed(raw), int(must), max(most, int(must)))


def _meant(entry: dict[str, Any]) -> int:
    """How many requests its sender meant, at the most."""
    if entry["verdict"] in ("reject", "wait"):
        return int(entry.get("messages") or 0)
    return int(entry.get("messages") or (2 if "req2" in entry.get("expect_py", "") else 1))


def _completed(raw: bytes) -> bytes:
    begin = raw.lstrip(b"\r\n")
    line, end, rest = begin.partition(b"\r\n")
    host = b"" if b"\nhost:" in raw.lower() else b"Host: completed\r\n"
    return raw[: len(raw) - len(begin)] + line + (end or b"\r\n") + host + rest + b"\r\n\r\n"


async def test_the_shared_corpus(serve: Serve, upstream: Recorder) -> None:
    folder = os.environ.get("PENSTOCK_CORPUS")
    if folder is None:
        pytest.skip("PENSTOCK_CORPUS names no folder")
    cases = list(shared_cases(Path(folder) / "http1_corpus.json"))
    wrong = await played(serve("relay", upstream.url).url, upstream, cases)
    assert not wrong, "\n".join(wrong)
