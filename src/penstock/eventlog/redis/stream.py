"""A stream of the log in Redis that is produced here.

It waits for a flush, as `BufferedStream` has it.

One that outlives its place there is *adrift*: what is not stored, and what comes, is held for those who read it here,
up to a limit, and Redis has nothing to do with it any more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from penstock.errors import StreamGone
from penstock.eventlog.base import Page, Promise, Reason, State
from penstock.eventlog.batch import gap_in_bytes
from penstock.eventlog.buffered import Backlog, BufferedStream
from penstock.eventlog.followed import tell
from penstock.eventlog.live import Pause
from penstock.eventlog.reader import Reader
from penstock.eventlog.redis.read import Found
from penstock.eventlog.redis.scripts import pack

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket

CUTS = 16

ADRIFT_BYTES = 1024 * 1024
"""Bytes that are held of a stream that is adrift."""


class RedisStream(BufferedStream):
    """A stream that is produced here. `RedisLog.open` makes it."""

    __slots__ = ("_adrift", "_bucket", "_collecting_cut", "_cuts", "_elsewhere_by")

    def __init__(
        self, bucket: Bucket, id: str, owner: str, key: str | None, epoch: int, head: bytes, promise: Promise
    ) -> None:
        super().__init__(bucket.log._backlog, id, owner, key, epoch, head, promise)
        self._bucket = bucket
        # Places between batches, a sixteenth of a full log apart: where it can be cut off.
        self._cuts: deque[tuple[int, int]] = deque()
        self._collecting_cut: tuple[int, int] | None = None
        self._adrift = False
        self._elsewhere_by: dict[str, tuple[int, int]] = {}  # by their leases: how many read it, and the furthest

    # -- producing -------------------------------------------------------------------------------------------------

    def _outgrow(self) -> None:
        if self._adrift:
            self._drop()
        elif self._outlives and self._bucket.log.trouble is not None:
            self._backlog.is_full = True
            self._bucket.lose_one(self)
        else:
            super()._outgrow()

    def end(self, reason: Reason, detail: bytes = b"") -> bool:
        """End the stream; see `Producer.end`."""
        has_ended = super().end(reason, detail)
        if has_ended and self._adrift:
            self.state = State.ENDED  # nobody stores it
        return has_ended

    # -- reading ---------------------------------------------------------------------------------------------------

    def _attach(self, reader: Reader) -> None:
        super()._attach(reader)
        self._bucket.reports.of(self)

    def _detach(self, reader: Reader) -> None:
        super()._detach(reader)
        self._bucket.reports.of(self)

    def _report(self) -> tuple[int, int]:
        """How many read it here, for those who list."""
        return len(self._readers), 0

    def _heard_of_readers(self, token: str, readers: int, cursor: int) -> None:
        """So many read it in another process, and the furthest is there."""
        if readers:
            self._elsewhere_by[token] = (readers, cursor)
            self._bucket.tail.watch(token)
        else:
            self._elsewhere_by.pop(token, None)
        counts = self._elsewhere_by.values()
        self._attached_elsewhere(sum(count for count, _ in counts), max((cursor for _, cursor in counts), default=-1))

    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        if after >= self._stored_records:
            return self._unstored_page(after, 0, max_records, max_bytes)
        if self._adrift:
            self._check_earliest(after)
        stored = self._stored_records
        found = await self._bucket.read(self.id, self.epoch, after, None, max_records, max_bytes)
        return self._page(found, after, stored)

    async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
        page = self._unstored_bytes_page(offset, max_records, max_bytes)
        if page is not None:
            return page
        if self._adrift:
            raise gap_in_bytes(offset, self._stored_offset)
        stored = self._stored_records
        found = await self._bucket.read(self.id, self.epoch, 0, offset, max_records, max_bytes)
        if found.row is not None and offset < found.row.dropped_offset:
            raise gap_in_bytes(offset, found.row.dropped_offset)
        return self._page(found, None, stored)

    def _page(self, found: Found, after: int | None, stored: int) -> Page:
        """A page of what Redis has, which had so many records when it was asked for."""
        if found.row is None or found.row.last < stored:
            self._bucket.lose_one(self)
        if found.row is None:
            raise StreamGone(f"stream {self.id} has been forgotten")
        self.earliest = max(self.earliest, found.row.dropped)
        if after is not None:
            self._check_earliest(after)
        end = self.ended if self.ended is not None and found.after >= self.ended.sequence - 1 else None
        return Page(found.records, found.after, found.offset, end)

    # -- storing ---------------------------------------------------------------------------------------------------

    def _due(self, *, urgent: bool) -> None:
        self._bucket.mark(self, urgent=urgent)

    def _hurry(self) -> None:
        self._bucket.flush_later(urgent=True)

    def _collect(self, flush: list[Any], limit: int) -> None:
        """Add what is to be stored to a flush, as `lua/append.lua` wants it."""
        self._begin_collecting()
        self._collecting_cut = cut = self._cut(limit)
        start: str | bytes = ""
        if self._start_is_due:
            start = "=" if self._new_head is None else b"+" + self._new_head
        batches = self._batches()
        flush += (self.id, self._stored_records, start, len(batches))
        for cursor, offset, records in batches:
            flush += (cursor, offset, pack(records, offset))
        end = self._end
        flush += ("", "") if end is None else (end.reason, end.detail)
        flush += ("", "") if cut is None else cut

    def _cut(self, limit: int) -> tuple[int, int] | None:
        """Up to where records go: those beyond the limit, but not what the fastest reader has yet to read."""
        held = self.appended_offset - self._trimmed_offset
        if held <= limit:
            return None
        fastest = self._fastest()
        if fastest is None or self._goes_on(held, limit):
            fastest = self.appended
        found = None
        for sequence, offset in self._cuts:
            if sequence > fastest or offset > self.appended_offset - (limit - limit // 8):
                break
            found = sequence, offset
        return found

    def _collected(self, limit: int, cut: tuple[int, int] | None) -> None:
        self._bucket.log._sweep.stored += self._collecting_bytes
        super()._collected(limit, cut)
        while self._cuts and self._cuts[0][0] <= self.earliest:
            self._cuts.popleft()
        last_cut = self._cuts[-1][1] if self._cuts else self._trimmed_offset
        if self._stored_offset - last_cut >= limit // CUTS:
            self._cuts.append((self._stored_records, self._stored_offset))

    def _collected_partly(self, last: int, limit: int) -> None:
        """Of what was collected only so much is stored, by an earlier call: its answer was lost."""
        self._collecting = last - self._stored_records
        self._collecting_bytes = sum(map(len, self._unstored[: self._collecting]))
        self._collecting_end = None
        self._collected(limit, None)
        self._mark(urgent=True)

    def _is_over(self) -> None:
        self._bucket.forget(self)

    def _make_room(self) -> None:
        if self._adrift:
            self._drop()
        else:
            super()._make_room()

    # -- adrift ----------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        """Hold less, but what the fastest reader has yet to read: for that the source is paused."""
        fastest = self._fastest()
        if fastest is None or self._goes_on(self._unstored_bytes, ADRIFT_BYTES):
            fastest = self.appended
        count = 0
        while self._unstored_bytes > ADRIFT_BYTES * 7 // 8 and self._stored_records + count < fastest:
            self._stored_offset += len(self._unstored[count])
            count += 1
        if count:
            self._last_stored = self._unstored[count - 1]
            del self._unstored[:count]
        self.earliest = self._stored_records = self._stored_records + count
        self._backlog.held = self._unstored_bytes
        if self._unstored_bytes > ADRIFT_BYTES:
            self._hold_back(self._unstored_bytes)
        else:
            self._resume(Pause.READERS)

    def _go_adrift(self) -> None:
        self._adrift = self._lost = True
        self._dirty = True  # as it is never flushed, so it is never marked
        self._backlog = Backlog(ADRIFT_BYTES)
        self._backlog.held = self._unstored_bytes
        self._elsewhere_by.clear()
        self._elsewhere = 0, -1
        self._trimmed_offset = self._stored_offset
        self.earliest = self._stored_records
        for stored in self._storing:
            if not stored.done():
                stored.set_result(None)  # to look again, and raise
        self._resume(Pause.BACKLOG | Pause.READERS)
        tell(self._on_lost)
        self._tell_readers()

    # -- ending ----------------------------------------------------------------------------------------------------

    def _lose(self) -> None:
        if self._outlives and not self.durable and self._end is None and not self._bucket.log._closed:
            self._backlog.held -= self._unstored_bytes
            self._go_adrift()
        else:
            super()._lose()
