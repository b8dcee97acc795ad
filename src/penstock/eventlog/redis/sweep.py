"""What is seen to now and then: whether a server will do, and how much is kept of all streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penstock.errors import StoreError
from penstock.eventlog.base import Retention
from penstock.eventlog.redis.address import Place
from penstock.eventlog.redis.scripts import CENSUS, EVICT, KEEP, KEEP_RUNNING, OLDEST, Script, bucket_of
from penstock.eventlog.redis.servers import FORBIDDEN, Servers, had

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket

logger = logging.getLogger("penstock.eventlog")

LEAST_VERSION = 7
EVICTED_AT_ONCE = 256

COUNT_HOLDS = 1.0
"""Seconds after which what was counted is old."""


async def check_servers(servers: Servers) -> None:
    """See that each server is one that will do.

    Raises:
        StoreError: It is too old.
        RedisError, OSError, TimeoutError: It does not answer.
    """
    for place in servers.places:
        told = await _info(servers, place)
        version = told.get("redis_version", "")
        if version and int(version.partition(".")[0]) < LEAST_VERSION:
            raise StoreError(
                f"{servers.address.shown}: {place} is Redis {version}; {LEAST_VERSION} or later is needed",
                reason="unavailable",
            )
        policy = told.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            logger.warning(
                "%s: maxmemory-policy of %s is %s, so that Redis may drop streams that are still read: "
                "set it to noeviction",
                servers.address.shown, place, policy,
            )  # fmt: skip


async def check_durable(servers: Servers) -> None:
    """See that what each server acknowledges is on its disk.

    Raises:
        StoreError: It is not, or nobody may ask.
        RedisError, OSError, TimeoutError: It does not answer.
    """
    for place in servers.places:
        try:
            answer = await servers.lane(place).run("CONFIG", "GET", "append*")
        except FORBIDDEN as error:
            logger.warning("%s: %s does not tell how it writes to its disk: %s", servers.address.shown, place, error)
            found = "it does not tell (allow its user CONFIG GET)"
        else:
            told = dict(zip(answer[::2], answer[1::2], strict=True))
            if (told.get(b"appendonly"), told.get(b"appendfsync")) == (b"yes", b"always"):
                continue
            found = ", ".join(f"{name} {told[name.encode()].decode()}" for name in ("appendonly", "appendfsync"))
        raise StoreError(
            f"{servers.address.shown}: nothing is durable on {place}, where {found}: "
            "that takes appendonly yes and appendfsync always",
            reason="unavailable",
        )


async def _info(servers: Servers, place: Place) -> dict[str, str]:
    try:
        answer: bytes = await servers.lane(place).run("INFO")
    except FORBIDDEN:
        return {}
    lines = answer.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


class Sweep:
    """What all streams take together, and who goes when that is too much.

    Other processes open and append too, and what they did since the last count is not in it. The more streams there
    are, the longer a count takes: one is under way at a time, and it holds for a second. Room is made for a twentieth
    of `max_streams` at once, and takes no count.

    Args:
        buckets: All of the log's.
        retention: How much is kept.

    Attributes:
        opened: Streams that were opened here since they were counted.
        stored: Bytes that were stored here since then.
    """

    def __init__(self, buckets: Sequence[Bucket], retention: Retention) -> None:
        self.opened = 0
        self.stored = 0
        self._buckets = buckets
        self._retention = retention
        self._streams = 0
        self._running = 0
        self._bytes = 0
        self._excess = 0
        self._counted_at = float("-inf")
        self._opening = 0  # those for whom there is room
        self._wanting = 0  # those who wait for some
        self._now: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._kept_at = time.monotonic()

    def refusal(self, *, counted: bool) -> tuple[str, str] | None:
        """The limit that leaves no room for another stream, and in words; None where there is room.

        Args:
            counted: Whether room was just made; with an older count there has to be room for a tenth more.
        """
        if self._excess > 0:
            return "max_bytes", "the log is full of streams that run, and keeps no more"
        limit = self._retention.max_streams
        holds = counted or time.monotonic() - self._counted_at < COUNT_HOLDS
        if self._taken >= (limit if holds else limit - limit // 10):
            return "max_streams", f"{limit} streams run, and the log keeps no more"
        return None

    @contextmanager
    def room(self, *, counted: bool) -> Iterator[bool]:
        """Whether there is room for another stream; it is kept until it is opened, or is not."""
        has_room = self.refusal(counted=counted) is None
        self._opening += has_room
        try:
            yield has_room
        finally:
            self._opening -= has_room

    @property
    def _taken(self) -> int:
        return self._streams + self.opened + self._opening

    @property
    def is_due(self) -> bool:
        """Whether so much was stored that it is time for another count."""
        return self.stored > self._retention.max_bytes // 16

    def stream_limit(self) -> int:
        """Bytes that one stream may keep: less, where all together are beyond the bound."""
        limit = self._retention.max_stream_bytes
        return min(limit, self._retention.max_bytes // max(self._running, 1)) if self._excess else limit

    async def run(self) -> None:
        """Count, and drop what is too much: of those that have ended, the ones that will be forgotten first.

        Raises:
            StoreError: Redis does not answer.
        """
        self.stored = 0
        self._counted_at = float("-inf")
        await self._share()

    async def make_room(self) -> None:
        """Have room for a stream, if some that have ended can go; where the count is old, count first.

        Raises:
            StoreError: Redis does not answer.
        """
        self._wanting += 1
        try:
            await self._share()
        finally:
            self._wanting -= 1

    async def _share(self) -> None:
        """Wait for the next turn, which all who ask before it begins have in common. It goes on if they leave."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._turn(self._now))
            self._next.add_done_callback(had)
        await asyncio.shield(self._next)

    async def _turn(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._now, self._next = self._next, None
        if time.monotonic() - self._counted_at >= COUNT_HOLDS:
            await self._count()
        await self._shed()
        await self._keep()

    async def _count(self) -> None:
        opened = self.opened
        tokens = [bucket.token for bucket in self._buckets]
        asked = [bucket.send(CENSUS, token or "") for bucket, token in zip(self._buckets, tokens, strict=True)]
        running = ended = held = 0
        for bucket, token, answer in zip(self._buckets, tokens, asked, strict=True):
            count = await bucket.answer(answer)
            running += count[0]
            ended += count[1]
            held += count[2] + count[3]
            bucket.compare(token, [name.decode() for name in count[4]], [name.decode() for name in count[5]])
        self._running, self._streams, self._bytes = running, running + ended, held
        self.opened -= opened
        self._counted_at = time.monotonic()

    async def _shed(self) -> None:
        limit = self._retention.max_streams
        streams_over = self._taken + self._wanting - limit
        if streams_over > 0:
            streams_over = max(streams_over, self._taken + limit // 20 - limit)
        bytes_over = self._bytes - self._retention.max_bytes
        if streams_over > 0 or bytes_over > 0:
            enough = EVICTED_AT_ONCE if bytes_over > 0 else min(streams_over, EVICTED_AT_ONCE)
            oldest = sorted(
                (score, size, number, name)
                for number, found in enumerate(await self._all(OLDEST, enough))
                for name, score, size in found
            )
            forgotten = oldest[: max(streams_over, 0)]
            await self._evict("all", [(number, name) for _, _, number, name in forgotten])
            self._streams -= len(forgotten)
            self._bytes -= sum(size for _, size, _, _ in forgotten)
            emptied = []
            for _, size, number, name in oldest[len(forgotten) :]:
                if self._bytes <= self._retention.max_bytes:
                    break
                if size:
                    emptied.append((number, name))
                    self._bytes -= size
            await self._evict("records", emptied)
        self._excess = max(self._bytes - self._retention.max_bytes, 0)
        if self._excess:
            most = self.stream_limit()
            for each in self._buckets:
                for stream in list(each.live.values()):
                    if stream._stored_bytes() > most:
                        stream._make_room()

    async def _all(self, script: Script, *arguments: Any) -> list[Any]:
        asked = [(bucket, bucket.send(script, *arguments)) for bucket in self._buckets]
        return [await bucket.answer(answer) for bucket, answer in asked]

    async def _evict(self, what: str, streams: Sequence[tuple[int, bytes]]) -> None:
        ids = defaultdict(list)
        for bucket, name in streams:
            ids[bucket].append(name)
        for bucket, some in ids.items():
            await self._buckets[bucket].write(EVICT, what, *some)

    async def _keep(self) -> None:
        """Have streams that run for long kept for longer, now and then."""
        now = time.monotonic()
        if now - self._kept_at > KEEP / 24:
            self._kept_at = now
            for bucket in self._buckets:
                if bucket.live:
                    await bucket.write(KEEP_RUNNING, KEEP * 1000, *bucket.live)
                for stream in list(bucket.live):
                    home = self._buckets[bucket_of(stream)]
                    if home is not bucket:
                        await home.answer(home.run("PEXPIRE", home.key("bucket", stream), KEEP * 1000))
