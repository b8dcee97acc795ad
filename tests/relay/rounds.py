"""Seeded rounds of (start, cut, resume), with a second reader and a slow one now and then."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass

from penstock.relay.app import Relay
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.testing import serve
from penstock.wire import sse
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, chunk, dial, request, upstream
from tests.relay.readers import NDJSON, OUR_ID, plain, rest_of, settled, since

AT_A_TIME = 8
COMMENT = b": comment\n"


@dataclass
class Round:
    """What one origin sends, in which pieces, and what its readers do."""

    number: int
    chance: random.Random
    lines: bool
    body: bytes
    pieces: list[bytes]

    @property
    def relayed(self) -> bytes:
        """The body, less the blank lines behind comments that stand behind an event: there they have none."""
        if self.lines:
            return self.body
        comments = re.match(rb"(?:: comment\n\n)*", self.body)
        assert comments is not None
        return comments[0] + self.body[comments.end() :].replace(COMMENT + b"\n", COMMENT)

    @classmethod
    def drawn(cls, number: int, seed: int) -> Round:
        chance = random.Random(seed * 1_000_003 + number)
        lines = chance.random() < 0.3
        records = [_record(chance, lines) for _ in range(chance.randint(1, 60))]
        if not lines:
            records.append(b"data: [DONE]\n\n")
        body = b"".join(records)
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randint(0, 30)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
        return cls(number, chance, lines, body, pieces)


def _record(chance: random.Random, lines: bool) -> bytes:
    text = bytes(chance.choices(b'abc{}:" \xc3\xa4', k=chance.choice((0, 3, 20, 300, 9000)))).replace(b"\n", b"")
    if lines:
        return text + b"\n"
    kind = chance.random()
    if kind < 0.1:
        return COMMENT + b"\n"
    end = chance.choice((b"\n", b"\r\n"))
    return (
        (b"event: e" + end if kind < 0.3 else b"")
        + b"data: "
        + text
        + end
        + (b"data: 2" + end if kind > 0.8 else b"")
        + end
    )


class Reader:
    """One that is cut off at random, comes back, and keeps what it knows to have."""

    def __init__(self, url: str, round: Round, *, slow: bool = False) -> None:
        self._url = url
        self._round = round
        self._slow = slow
        self._target = f"/round/{round.number}"
        self.stream = ""
        self.has_begun = asyncio.Event()
        self.last = ""
        self.kept = b""
        self.cuts = 0

    async def run(self, stream: str = "") -> None:
        """Read to the end, coming back as often as it takes."""
        chance = self._round.chance
        self.stream = stream
        while True:
            cut = (
                None if self._slow or self.cuts >= 4 else chance.choice((None, chance.randrange(len(self._round.body))))
            )
            async with dial(self._url, receive_buffer=4096 if self._slow else None) as peer:
                await peer.send(self._request(chance))
                await peer.take_head()
                if peer.status == 204:
                    return
                assert peer.status in (200, 206), (peer.head, await peer.rest())
                self.stream = peer.all("penstock-stream")[0]
                self.has_begun.set()
                if cut is None:
                    answer = await rest_of(peer)
                    assert answer.whole, answer.body[-200:]
                    self._take(answer.body)
                    return
                self.cuts += 1
                body = await _some(peer, cut)
                self._take(body)
                if chance.random() < 0.5:
                    peer.reset()

    def _request(self, chance: random.Random) -> bytes:
        by_id = f"/_penstock/streams/{self.stream}"
        if not self.stream:
            return request(self._target)
        if self._round.lines:
            return request(f"{by_id}?offset={len(self.kept)}")
        if not self.last:
            return request(by_id)
        if chance.random() < 0.4:
            return request(self._target, more=since(self.last))
        return request(by_id, more=since(self.last)) if chance.random() < 0.5 else request(f"{by_id}?after={self.last}")

    def _take(self, body: bytes) -> None:
        """What is known: of bytes all, of events those up to the last whole one with an id."""
        if self._round.lines:
            self.kept += body
            return
        blocks = sse.BlockCutter().feed(body)
        while blocks and not OUR_ID.search(blocks[-1]):
            blocks.pop()
        if blocks:
            self.kept += b"".join(blocks)
            found = OUR_ID.search(blocks[-1])
            assert found is not None
            self.last = found[1].decode()


async def _some(peer: Peer, size: int) -> bytes:
    """The body's beginning, as it comes."""
    body = b""
    while len(body) < size:
        piece = await peer.chunk()
        if not piece:
            break
        body += piece
    return body[:size] if size else b""


async def play_rounds(rounds: int, seed: int, store: str) -> None:
    """Play them, some at a time, and see that nothing is lost or doubled, and each upstream is called once."""
    drawn = [Round.drawn(number, seed) for number in range(rounds)]
    calls: Counter[int] = Counter()

    async def play(peer: Peer) -> None:
        while True:
            head = await peer.take_head()
            number = int(head.split(b" ")[1].rpartition(b"/")[2])
            calls[number] += 1
            mine = drawn[number]
            await peer.send(NDJSON if mine.lines else CHUNKED)
            for piece in mine.pieces:
                await peer.send(chunk(piece))
                if len(piece) % 3 == 0:
                    await asyncio.sleep(0.001 * (len(piece) % 5))
            await peer.send(LAST_CHUNK)

    async with upstream(play) as up:
        policy = Policy(upstream=up.url, on_disconnect=OnDisconnect("grace", 60.0))
        relay = Relay(up.url, store=store, policy=policy)
        async with serve(relay) as url:
            limit = asyncio.Semaphore(AT_A_TIME)

            async def one(mine: Round) -> None:
                async with limit, asyncio.timeout(50):
                    await _play(url, mine)

            await asyncio.gather(*map(one, drawn))
            await settled(relay)
    assert calls == Counter(range(rounds))


async def _play(url: str, mine: Round) -> None:
    first = Reader(url, mine)
    others = [Reader(url, mine, slow=slow) for slow in (False, True) if mine.chance.random() < 0.3]

    async def joined(other: Reader) -> None:
        await first.has_begun.wait()
        await other.run(first.stream)

    await asyncio.gather(first.run(), *map(joined, others))
    for reader in (first, *others):
        assert plain(reader.kept) == mine.relayed, f"round {mine.number}: {reader.cuts} cuts"
