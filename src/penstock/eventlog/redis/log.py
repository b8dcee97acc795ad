"""The event log in Redis, for relays on many machines: a server, what Sentinels look after, or a cluster.

Appends are held here and stored behind, those of all streams in one pipeline for each server, a *flush*:

========================================  =======================================================================
what is to be stored                      is flushed
========================================  =======================================================================
a start, an end, the first records of a   at once, or as soon as the flush before is done
stream
anything else                             after a tick: 2 ms, and longer the more streams took part in the flush
                                          before (0.1 ms each, 50 ms at the most)
what a flush that failed had              again after 0.1 s, then more slowly up to 1 s, until it is stored or the
                                          lease runs out
========================================  =======================================================================

Streams are spread over 16 buckets, each with a lease of its own: `redis_bucket` has what is done in one. A process has
one task for each bucket, two for each server, and two in `redis_keeper`; none for a stream or a record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from penstock.errors import LimitExceeded, StoreError
from penstock.eventlog.base import (
    DEFAULT_RETENTION,
    EventLog,
    Producer,
    Promise,
    Retention,
    Stream,
    StreamInfo,
    new_stream_id,
)
from penstock.eventlog.buffered import Backlog
from penstock.eventlog.live import Pause
from penstock.eventlog.redis.address import Address
from penstock.eventlog.redis.bucket import Bucket
from penstock.eventlog.redis.keeper import Keeper
from penstock.eventlog.redis.open import Opening
from penstock.eventlog.redis.scripts import BUCKETS, KEEP, LIST, LOOK, Row, bucket_of, id_in, name_of
from penstock.eventlog.redis.servers import FAILURES, Servers
from penstock.eventlog.redis.stored import StoredStream
from penstock.eventlog.redis.stream import RedisStream
from penstock.eventlog.redis.sweep import Sweep, check_durable, check_servers

TICK = 0.002
TICK_PER_STREAM = 0.0001
MAX_TICK = 0.05


class RedisLog(EventLog):
    """Streams in Redis 7 or Valkey; `docs/eventlog.md` says what it has to allow, and what survives what.

    Args:
        url: Which: ``redis://``, ``redis+sentinel://``, ``redis+cluster://`` or ``redis+unix://``; `redis_address` has
            the forms.
        retention: How much is kept. `max_bytes` and `max_streams` are for all who use the store, and are counted now
            and then: they can be overshot by what came since.
        lease: Seconds after which a process that does not renew its leases has lost its streams.
        max_backlog: Bytes that wait to be stored, beyond which sources are paused.
        timeout: Seconds that connecting, and an answer of Redis, may take.
        prefix: What the names of all keys begin with.
        new_id: Makes the names of streams that come without.

    Raises:
        ValueError: The URL names no Redis.
    """

    persistent = True
    shared = True
    distributed = True
    trouble: StoreError | None = None

    def __init__(
        self,
        url: str,
        *,
        retention: Retention = DEFAULT_RETENTION,
        lease: float = 15.0,
        max_backlog: int = 16 * 1024 * 1024,
        timeout: float = 5.0,
        prefix: str = "penstock",
        new_id: Callable[[], str] = new_stream_id,
    ) -> None:
        if not (lease > 0 and max_backlog > 0 and timeout > 0):
            raise ValueError(f"lease, max_backlog and timeout must be positive; got {lease}, {max_backlog}, {timeout}")
        self.address = Address.parse(url)
        self.retention = retention
        self._lease = lease
        self._timeout = timeout
        self._prefix = prefix
        self._new_id = new_id
        self._servers: Servers
        self._buckets: list[Bucket] = []
        self._sweep: Sweep
        self._closed = True
        self._keeper: Keeper
        self._durable_at: float | None = None
        self._stored: WeakValueDictionary[str, StoredStream] = WeakValueDictionary()
        self._backlog = Backlog(max_backlog)
        self._to_flush: dict[Bucket, None] = {}
        self._flush_timer: asyncio.Handle | None = None
        self._flush_is_soon = False
        self._last_streams = 0

    # -- opening and closing ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, see whether what is there will do, and end what producers that are gone have left."""
        self._closed = False
        self._servers = Servers(self.address, self._timeout)
        self._keeper = Keeper(self._servers, self._lease)
        try:
            try:
                await self._servers.locate()
                await check_servers(self._servers)
            except FAILURES as error:
                raise self._servers.told(error) from error
            self._buckets = [Bucket(self, number, self._prefix) for number in range(BUCKETS)]
            self._sweep = Sweep(self._buckets, self.retention)
            await self._sweep.run()
        except BaseException:
            self.abort()
            raise
        self._keeper.begin(self._buckets, self._sweep)

    async def aclose(self) -> None:
        """Store what is left, end what still runs here as ``producer_lost``, and close."""
        if self._closed:
            return
        try:
            for bucket in self._buckets:
                for stream in list(bucket.live.values()):
                    stream.end("producer_lost")
            deadline = time.monotonic() + self._timeout
            while any(bucket.busy for bucket in self._buckets) and self.trouble is None:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.001)
            retired = [answer for bucket in self._buckets for answer in bucket.retire()]
            if retired:
                await asyncio.wait(retired, timeout=self._timeout)
        finally:
            self.abort()
            await asyncio.sleep(0)

    def abort(self) -> None:
        """Close at once and store nothing more: what a crash would leave."""
        if self._closed:
            return
        self._closed = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._keeper.close()
        self._servers.close()
        for bucket in self._buckets:
            bucket.close()

    def _closed_error(self) -> StoreError:
        return StoreError(f"{self.address.shown}: the log is closed", reason="unavailable")

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    # -- streams ---------------------------------------------------------------------------------------------------

    async def open(
        self,
        key: str | None,
        owner: str,
        head: bytes,
        *,
        id: str | None = None,
        promise: Promise = "fast",
        replacing: str | None = None,
    ) -> tuple[Stream, Producer | None]:
        """Create a stream, or join the one that runs under that key; see `EventLog.open`."""
        self._check_open()
        if promise == "durable":
            await self._check_durable()
        number = bucket_of(id or self._new_id()) if key is None else bucket_of(name_of(owner, key))
        name = id or id_in(number, self._new_id)
        if bucket_of(name) != number:
            await self._point(name, number)
        opening = Opening(self._buckets[number], name, owner, key, head, promise, replacing)
        counted = False
        while True:
            with self._sweep.room(counted=counted) as has_room:
                opened = await opening.ask(is_full=not has_room)
            if isinstance(opened, RedisStream):
                return opened, opened
            match opened[0]:
                case b"joined":
                    if (joined := await self.get(opened[1].decode())) is not None:
                        return joined, None
                case b"taken":
                    raise ValueError(f"there is a stream {name!r} already")
                case b"full":
                    await self._sweep.make_room()
                    if (full := self._sweep.refusal(counted=True)) is not None:
                        raise LimitExceeded(full[1], limit=full[0])
                    counted = True

    async def _point(self, id: str, number: int) -> None:
        """Have a stream found that is in its key's bucket, and not in its id's."""
        if await self.get(id) is not None:
            raise ValueError(f"there is a stream {id!r} already")
        bucket = self._buckets[bucket_of(id)]
        await bucket.answer(bucket.run("SET", bucket.key("bucket", id), number, "PX", KEEP * 1000))

    async def get(self, id: str) -> Stream | None:
        """The stream of that id; None if there is none, or no longer."""
        self._check_open()
        bucket = self._buckets[bucket_of(id)]
        if (live := bucket.live.get(id)) is not None:
            return live
        answer = await bucket.ask(LOOK, id)
        if len(answer) == 1:
            bucket = self._buckets[int(answer[0])]
            answer = await bucket.ask(LOOK, id)
        return self._handle(bucket, answer)

    async def find(self, key: str, owner: str) -> Stream | None:
        """The latest stream of that key; None if there is none, or no longer."""
        self._check_open()
        bucket = self._buckets[bucket_of(name_of(owner, key))]
        return self._handle(bucket, await bucket.ask(LOOK, "", owner, key))

    def _handle(self, bucket: Bucket, answer: list[Any]) -> Stream | None:
        row = Row.of(answer[0].decode(), answer[1]) if answer else None
        if row is None:
            return None
        if (live := bucket.live.get(row.id)) is not None:
            return live
        stored = self._stored.get(row.id)
        if stored is None or stored.lease != row.lease:
            stored = self._stored[row.id] = StoredStream(bucket, row)
        else:
            stored.look_at(row)
        return stored

    async def streams(self, owner: str | None = None) -> list[StreamInfo]:
        """The streams there are, the latest opened first; those of one owner, or all."""
        self._check_open()
        wanted = b"" if owner is None else f"={owner}".encode()
        asked = [(bucket, bucket.put(LIST, wanted)) for bucket in self._buckets]
        infos = []
        for bucket, answer in asked:
            for name, fields, readers in await bucket.answer(answer):
                if (row := Row.of(name.decode(), fields)) is not None:
                    infos.append(self._info(bucket, row, readers))
        return sorted(infos, key=lambda info: info.opened_at, reverse=True)

    def _info(self, bucket: Bucket, row: Row, readers: list[bytes]) -> StreamInfo:
        live = bucket.live.get(row.id)
        here = live or self._stored.get(row.id)
        elsewhere = sum(
            int(count.partition(b" ")[0])
            for token, count in zip(readers[::2], readers[1::2], strict=True)
            if token.decode() != bucket.token
        )
        return StreamInfo(
            id=row.id,
            owner=row.owner,
            key=row.key,
            epoch=row.epoch,
            state=row.state if live is None else live.state,
            sequence=row.last if live is None else live.sequence,
            offset=row.offset if live is None else live.offset,
            earliest=row.dropped,
            readers=elsewhere + (0 if here is None else len(here._readers)),
            opened_at=row.opened_at,
            ended=row.end if live is None else live.ended,
            ended_at=row.ended_at,
        )

    async def _check_durable(self) -> None:
        """See that what Redis acknowledges is on its disk; once, and again when it was away."""
        if self._durable_at is None:
            try:
                await check_durable(self._servers)
            except FAILURES as error:
                raise self._servers.told(error) from error
            self._durable_at = time.monotonic()

    # -- flushing --------------------------------------------------------------------------------------------------

    def _flush_later(self, bucket: Bucket, *, urgent: bool) -> None:
        self._to_flush[bucket] = None
        if self._closed:
            return
        if self._flush_timer is not None:
            if self._flush_is_soon or not urgent:
                return
            self._flush_timer.cancel()
        loop = asyncio.get_running_loop()
        self._flush_is_soon = urgent
        if urgent:
            self._flush_timer = loop.call_soon(self._flush)
        else:
            tick = min(max(TICK, TICK_PER_STREAM * self._last_streams), MAX_TICK)
            self._flush_timer = loop.call_later(tick, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        self._flush_is_soon = False
        buckets, self._to_flush = self._to_flush, {}
        self._last_streams = sum(bucket.flush() for bucket in buckets)

    def _has_flushed(self) -> None:
        if self._backlog.has_eased():
            for bucket in self._buckets:
                for stream in list(bucket.live.values()):
                    stream._resume(Pause.BACKLOG)
        if self._sweep.is_due:
            self._keeper.sweep_soon()

    def _stream_limit(self) -> int:
        """Bytes that one stream may keep: less, where all together are beyond the bound."""
        return self._sweep.stream_limit()

    # -- keeping ---------------------------------------------------------------------------------------------------

    def _ms(self, seconds: float) -> int:
        return max(int(seconds * 1000), 1)

    def _look_again(self) -> None:
        """A server failed: it may be another one by now."""
        self._durable_at = None
        self._keeper.look_again()

    def _see_trouble(self) -> None:
        self.trouble = next((bucket.trouble for bucket in self._buckets if bucket.trouble is not None), None)
