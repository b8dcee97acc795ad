"""One relay after the other on one file of streams, an origin whose bytes can be told, and readers that come back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from penstock.wire import sse
from tests.e2e.conftest import Serve
from tests.e2e.process import Server, served_by
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, chunk, dial, request
from tests.relay.readers import EVENTS, OUR_ID, Answer, dechunked, fetch, plain, since

SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))
MANY = 1_000_000  # more blocks than anybody waits for
LOST = b'event: penstock.error\ndata: {"error":{"type":"producer_lost","message":'

CONFIG = """
store = "sqlite:///{file}"

[defaults]
upstream = "{upstream}"
owner = "none"
ids = "ours"
promise = "{promise}"
"""


def block(stream: str, number: int) -> bytes:
    """The blocks of a stream, one by one: what the origin sends can be told from the stream's name."""
    chance = random.Random(f"{SEED} {stream} {number}")
    text = "".join(chance.choices("abc{}: ä", k=chance.choice((0, 3, 20, 300, 9000))))
    return f"data: {stream} {number} {text}\n\n".encode()


class Origin:
    """Sends ``/<stream>?blocks=N`` one block after the other.

    Attributes:
        sent: How many, by stream.
        enough: Set to end them all at once.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.enough = asyncio.Event()

    async def play(self, peer: Peer) -> None:
        while True:
            target = (await peer.take_head()).split(b" ")[1].decode()
            stream, _, blocks = target[1:].partition("?blocks=")
            chance = random.Random(f"{SEED} {target}")
            await peer.send(CHUNKED)
            for number in range(int(blocks)):
                if self.enough.is_set():
                    break
                self.sent[stream] += 1
                await peer.send(chunk(block(stream, number)))
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))
            await peer.send(LAST_CHUNK)


def prefix_of(body: bytes, stream: str) -> int:
    """How many of a stream's blocks a body is, to the byte; fails where it is anything else."""
    for number in itertools.count():
        if not body:
            return number
        expected = block(stream, number)
        assert body.startswith(expected), f"{stream}: block {number} is {body[: len(expected)][:200]!r}"
        body = body[len(expected) :]
    raise AssertionError


@dataclass
class Reader:
    """Reads until the relay dies, and knows then what a browser would."""

    stream: str
    blocks: int
    id: str = ""  # the relay's name for the stream
    last: str = ""  # Last-Event-ID
    kept: bytes = b""  # the whole blocks that came
    events: int = 0
    whole: bool = False
    told: bool = False  # that the stream was lost
    workers: tuple[int, ...] = ()
    worker: int = 0  # which of them it was served by
    asleep: bool = False  # does not read until it is too late
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def target(self) -> str:
        return f"/{self.stream}?blocks={self.blocks}"

    async def read(self, url: str, over: asyncio.Event | None = None) -> None:
        """Begin the stream, join it where its id is known, or go on with it, and read to the connection's end."""
        target = f"/_penstock/streams/{self.id}" if self.id else self.target
        raw = b""
        self.has_begun.clear()
        try:
            async with dial(url, receive_buffer=4096 if self.asleep else None) as peer:
                await peer.send(request(target, more=EVENTS + (since(self.last) if self.last else "")))
                await peer.take_head()
                assert peer.status == 200, peer.head
                (self.id,) = peer.all("penstock-stream")
                if self.workers:
                    mine = peer.writer.get_extra_info("sockname")[1]
                    self.worker = served_by(self.workers, int(url.rpartition(":")[2]), mine)
                self.has_begun.set()
                if self.asleep and over is not None:
                    await over.wait()
                while data := await peer.reader.read(1 << 16):
                    raw += data
                    self.events += data.count(b"\ndata: ")
        except (OSError, asyncio.IncompleteReadError):
            pass  # how a killed relay leaves
        finally:
            self.has_begun.set()
        body, self.whole = dechunked(raw)
        blocks = sse.BlockCutter().feed(body)
        if blocks:
            found = OUR_ID.match(blocks[-1])
            assert found is not None, blocks[-1]
            self.last = found[1].decode()
        if blocks and plain(blocks[-1]).startswith(LOST):
            self.told = True
            del blocks[-1]
        self.kept += plain(b"".join(blocks))


def parted(answer: Answer) -> tuple[bytes, bytes, str]:
    """What an answer has of the stream, its terminal event, and the id of that."""
    *blocks, last = sse.BlockCutter().feed(answer.body)
    found = OUR_ID.match(last)
    assert found is not None, last
    return plain(b"".join(blocks)), plain(last), found[1].decode()


async def told(url: str, reader: Reader) -> tuple[int, bool]:
    """Come back after the crash, and see that all one is told is true.

    Returns:
        How many of the stream's blocks are left, and whether it was lost.
    """
    by_id = f"/_penstock/streams/{reader.id}"
    again = reader.target if reader.last else by_id
    answer = await fetch(url, again, more=EVENTS + (since(reader.last) if reader.last else ""))
    if answer.status == 204:
        assert prefix_of(reader.kept, reader.stream) == reader.blocks, "a clean end of what is not whole"
        return reader.blocks, False
    if answer.status in (410, 502):  # nothing but its name was ever stored
        assert "ended before it began" in answer.problem["detail"]
        return 0, True
    assert answer.status == 200, answer.peer.head
    if answer.whole:
        assert prefix_of(reader.kept + answer.plain, reader.stream) == reader.blocks
        return reader.blocks, False
    rest, terminal, id_ = parted(answer)
    assert terminal.startswith(LOST), terminal
    for target in (reader.target, by_id):
        assert (await fetch(url, target, more=EVENTS + since(id_))).status == 204
    whole = await fetch(url, by_id)
    assert not whole.whole
    left, terminal, _ = parted(whole)
    assert terminal.startswith(LOST)
    blocks = prefix_of(left, reader.stream)
    if rest:
        assert reader.kept + rest == left
    assert reader.kept.startswith(left) or left.startswith(reader.kept)
    return blocks, True


class Lives:
    """One relay after the other, on one file."""

    def __init__(self, serve: Serve, folder: Path, upstream: str, promise: str) -> None:
        self._serve = serve
        self.file = folder / "log.db"
        self._config = folder / "relay.toml"
        self._config.write_text(CONFIG.format(file=self.file, upstream=upstream, promise=promise))
        self.durable = promise == "durable"
        self.relay: Server

    def locked(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Nothing can be stored meanwhile."""
        connection = sqlite3.connect(self.file, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return contextlib.closing(connection)

    @property
    def url(self) -> str:
        return self.relay.url

    async def begin(self, *options: str) -> None:
        self.relay = await asyncio.to_thread(self._serve, "relay", "--config", self._config, *options)

    def kill(self) -> None:
        self.relay.kill(signal.SIGKILL)
        assert self.relay.ended() == -signal.SIGKILL
