"""Hops: an upstream of every kind of body, one relay or two in a row, and a proxy that does harm at one place between.

*front* is between the reader and the relay, *back* between the relay and its upstream, *middle* between two relays.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from penstock import Timeout
from penstock.relay.app import Relay
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.testing import serve
from tests.e2e.fault_proxy import Plan, Proxy, fault_proxy
from tests.relay.peers import CHUNKED, LAST_CHUNK, PATIENCE, Peer, chunk, response, upstream
from tests.relay.readers import NDJSON

Hop = Literal["front", "middle", "back"]
Kind = Literal["events", "lines", "file", "upload"]


@dataclass
class Upstream:
    """What is at the far end: bodies of every kind out of a seed, and a count of what it was asked.

    Attributes:
        records: Of an event stream and of NDJSON.
        content: Of a file.
        calls: By path.
        whole: The uploads that came whole, as digests.
        pace: Seconds between two records.
        gone: Set when a connection was closed on it before it had answered.
    """

    records: dict[str, list[bytes]]
    content: bytes
    pace: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    whole: list[str] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def drawn(cls, chance: random.Random, *, records: int = 30, size: int = 60_000, pace: float = 0.0) -> Upstream:
        def text() -> bytes:
            return bytes(chance.choices(b'abc{}:" ', k=chance.choice((0, 3, 40, 700)))) + "ä€".encode()

        events = [b"data: %d %b\n\n" % (number, text()) for number in range(records)]
        lines = [b"%d %b\n" % (number, text()) for number in range(records)]
        return cls({"events": events, "lines": lines}, chance.randbytes(size), pace)

    def body(self, kind: Kind) -> bytes:
        return b"".join(self.records[kind]) if kind in self.records else self.content

    async def play(self, peer: Peer) -> None:
        try:
            while True:
                head = await peer.take_head()
                path = head.split(b" ")[1].decode()[1:]
                self.calls[path] += 1
                await self._answer(peer, path)
        except (OSError, asyncio.IncompleteReadError):
            self.gone.set()
            raise

    async def _answer(self, peer: Peer, path: str) -> None:
        if path == "file":
            await peer.send(response(self.content))
        elif path == "upload":
            body = await peer.body()
            self.whole.append(hashlib.sha256(body).hexdigest())
            await peer.send(response(json.dumps({"sha256": self.whole[-1]}).encode()))
        else:
            await peer.send(CHUNKED if path == "events" else NDJSON)
            for record in self.records[path]:
                await peer.send(chunk(record))
                await asyncio.sleep(self.pace)
            await peer.send(LAST_CHUNK)


@dataclass
class Hops:
    """A reader's URL, and the proxy at one of the hops behind it."""

    url: str
    proxy: Proxy


@contextlib.asynccontextmanager
async def hops(
    hop: Hop,
    *plans: Plan,
    far: Upstream,
    chained: bool = False,
    on_disconnect: str = "grace:20s",
    wait: float = PATIENCE,
) -> AsyncIterator[Hops]:
    """An upstream, one relay or two in a row, and the proxy at that hop."""
    assert chained or hop != "middle"
    async with contextlib.AsyncExitStack() as stack:
        up = await stack.enter_async_context(upstream(far.play))
        url = up.url
        proxy: Proxy | None = None
        for number in range(1 + chained):
            if hop == ("back", "middle")[number]:
                proxy = await stack.enter_async_context(fault_proxy(url, *plans))
                url = proxy.url
            policy = Policy(
                upstream=url,
                ids="ours",
                on_disconnect=OnDisconnect.parse(on_disconnect),
                timeout=Timeout(connect=PATIENCE, first_event=wait, between_events=wait),
            )
            url = await stack.enter_async_context(serve(Relay(url, store="memory://", policy=policy)))
        if proxy is None:
            proxy = await stack.enter_async_context(fault_proxy(url, *plans))
            url = proxy.url
        yield Hops(url, proxy)
