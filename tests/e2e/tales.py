"""Streams that are drawn at random, and an origin that tells them: what a reader has of one can be told to the byte."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass

from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, chunk
from tests.relay.readers import NDJSON


@dataclass
class Tale:
    """What one origin sends, and how fast."""

    name: str
    records: list[bytes]
    pauses: list[float]
    lines: bool
    sent: int = 0
    calls: int = 0

    @classmethod
    def drawn(cls, name: str, chance: random.Random) -> Tale:
        lines = chance.random() < 0.25
        count = chance.choice((1, 40, 200, 600))
        records = []
        for number in range(count):
            text = "".join(chance.choices("abc{}: ä", k=chance.choice((0, 3, 20, 300, 2000))))
            said = json.dumps([name, number, text])
            records.append(f"{said}\n".encode() if lines else f"data: {said}\n\n".encode())
        pauses = [chance.choice((0, 0, 0.002, 0.01, 0.03)) for _ in records]
        return cls(name, records, pauses, lines)

    @property
    def body(self) -> bytes:
        return b"".join(self.records)

    def count_in(self, kept: bytes) -> int:
        """How many of the records a body is, to the byte; fails where it is anything else."""
        for number in range(len(self.records) + 1):
            if len(kept) == 0:
                return number
            assert number < len(self.records), f"{self.name}: {kept[:200]!r} comes after the end"
            assert kept.startswith(self.records[number]), f"{self.name}: record {number} is {kept[:200]!r}"
            kept = kept[len(self.records[number]) :]
        raise AssertionError


class Origin:
    """Tells a tale to whoever asks for ``/<name>``."""

    def __init__(self) -> None:
        self.tales: dict[str, Tale] = {}

    async def play(self, peer: Peer) -> None:
        while True:
            tale = self.tales[(await peer.take_head()).split(b" ")[1].decode()[1:]]
            tale.calls += 1
            await peer.send(NDJSON if tale.lines else CHUNKED)
            for record, pause in zip(tale.records, tale.pauses, strict=True):
                tale.sent += 1
                await peer.send(chunk(record))
                await asyncio.sleep(pause)
            await peer.send(LAST_CHUNK)
