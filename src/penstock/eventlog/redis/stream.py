"""A stream of the log in Redis that is produced here.

It is numbered and told at once, and waits in `_unstored` until a flush has stored it; a reader behind that reads Redis.

One that outlives its place there is *adrift*: what is not stored, and what comes, is held for those who read it here,
up to a limit, and Redis has nothing to do with it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from penstock.errors import StreamGone
from penstock.eventlog.base import End, Page, Promise, Reason, State
from penstock.eventlog.batch import gap_in_bytes, page_of
from penstock.eventlog.followed import tell
from penstock.eventlog.live import LiveStream, Pause
from penstock.eventlog.reader import Reader
from penstock.eventlog.redis.read import Found
from penstock.eventlog.redis.scripts import pack

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket

MAX_BATCH_BYTES = 64 * 1024
CUTS = 16

ADRIFT_BYTES = 1024 * 1024
"""Bytes that are held of a stream that is adrift."""


class RedisStream(LiveStream):
    """A stream that is produced here. `RedisLog.open` makes it."""

    __slots__ = (
        "_adrift",
        "_bucket",
        "_collecting",
        "_collecting_bytes",
        "_collecting_cut",
        "_collecting_end",
        "_collecting_start",
        "_cuts",
        "_dirty",
        "_elsewhere_by",
        "_end",
        "_new_head",
        "_start_is_due",
        "_stored_offset",
        "_stored_records",
        "_trimmed_offset",
        "_unstored",
        "_unstored_bytes",
        "appended",
        "appended_offset",
        "last",
        "offset",
        "stored_sequence",
    )

    appended: int
    appended_offset: int
    last: bytes
    offset: int
    stored_sequence: int

    def __init__(
        self, bucket: Bucket, id: str, owner: str, key: str | None, epoch: int, head: bytes, promise: Promise
    ) -> None:
        super().__init__(id, owner, key, epoch, head, promise)
        self._bucket = bucket
        self.appended = 0
        self.appended_offset = 0
        self.last = b""
        self.offset = 0
        self.stored_sequence = 0
        self._stored_records = 0
        self._stored_offset = 0
        self._trimmed_offset = 0
        # Places between batches, a sixteenth of a full log apart: where it can be cut off.
        self._cuts: deque[tuple[int, int]] = deque()
        # Behind those that are stored; the first `_collecting` of them are on their way.
        self._unstored: list[bytes] = []
        self._unstored_bytes = 0
        self._collecting = 0
        self._collecting_bytes = 0
        self._collecting_cut: tuple[int, int] | None = None
        self._collecting_end: End | None = None
        self._collecting_start = False
        self._dirty = False
        self._adrift = False
        self._start_is_due = False
        self._new_head: bytes | None = None
        self._end: End | None = None
        self._elsewhere_by: dict[str, tuple[int, int]] = {}  # by their leases: how many read it, and the furthest

    # -- producing -------------------------------------------------------------------------------------------------

    def start(self, head: bytes | None = None) -> bool:
        """Go from STARTING to RUNNING; see `Producer.start`."""
        if self.state is not State.STARTING:
            return False
        if head is not None:
            self.head = self._new_head = head
        self.state = State.RUNNING
        self._start_is_due = True
        self._mark(urgent=True)
        self._wake()
        return True

    def append(self, records: Sequence[bytes]) -> int:
        """Append records; see `Producer.append`."""
        if self.state is not State.RUNNING:
            self._refuse()
        if self._adrift:
            return self._append_adrift(records)
        if records:
            self.last = records[-1]
        size = sum(map(len, records))
        self._unstored += records
        self._unstored_bytes += size
        self.appended = last = self.appended + len(records)
        self.appended_offset = offset = self.appended_offset + size
        log = self._bucket.log
        log._backlog += size
        if not self._dirty:
            self._mark(urgent=not self.stored_sequence)
        if log._backlog > log._max_backlog:
            log._is_full = True
            if self._outlives and log.trouble is not None:
                self._bucket.lose_one(self)
            else:
                self._pause(Pause.BACKLOG)
        if not self.durable:
            self.sequence = last
            self.offset = offset
            self._tell_records(records, last)
            if self._waiters:
                self._wake()
        return last

    def end(self, reason: Reason, detail: bytes = b"") -> bool:
        """End the stream; see `Producer.end`."""
        if self.state in (State.ENDING, State.ENDED):
            return False
        self.state = State.ENDING
        self._end = self._end_record(reason, detail)
        if self._adrift:
            self.state = State.ENDED
        else:
            self._mark(urgent=True)
        if self._adrift or not self.durable:
            self._tell_end(self._end)
        return True

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return self._tell_stop()

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
        if offset >= self.offset:
            return Page((), self.sequence, self.offset, self.ended)
        if offset >= self._stored_offset:
            begin, after = self._stored_offset, self._stored_records
            for record in self._unstored:
                if begin + len(record) > offset:
                    break
                begin += len(record)
                after += 1
            return self._unstored_page(after, offset - begin, max_records, max_bytes)
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

    def _unstored_page(self, after: int, skip: int, max_records: int, max_bytes: int) -> Page:
        """A page of what is not stored yet; of a durable stream, none of it can be seen."""
        if after >= self.sequence:
            return Page((), after, self.offset, self.ended)
        start = after - self._stored_records
        offset = self._stored_offset + sum(map(len, self._unstored[:start]))
        records = page_of(islice(self._unstored, start, None), skip, max_records, max_bytes)
        after += len(records)
        offset += sum(map(len, records)) + (skip if records else 0)
        return Page(records, after, offset, self.ended if after == self.sequence else None)

    # -- storing ---------------------------------------------------------------------------------------------------

    def _mark(self, *, urgent: bool) -> None:
        if self._dirty:
            self._bucket.flush_later(urgent=urgent)
        else:
            self._dirty = True
            self._bucket.mark(self, urgent=urgent)

    def _collect(self, flush: list[Any], limit: int) -> None:
        """Add what is to be stored to a flush, as `lua/append.lua` wants it."""
        self._dirty = False
        self._collecting = len(self._unstored)
        self._collecting_bytes = self._unstored_bytes
        self._collecting_end = end = self._end
        self._collecting_start = self._start_is_due
        self._collecting_cut = cut = self._cut(limit)
        start: str | bytes = ""
        if self._start_is_due:
            start = "=" if self._new_head is None else b"+" + self._new_head
        flush += (self.id, self._stored_records, start)
        if not self._unstored:
            flush.append(0)
        elif self._unstored_bytes <= MAX_BATCH_BYTES:
            offset = self._stored_offset + self._unstored_bytes
            flush += (1, self._stored_records + self._collecting, offset, pack(self._unstored, offset))
        else:
            self._collect_in_parts(flush)
        flush += ("", "") if end is None else (end.reason, end.detail)
        flush += ("", "") if cut is None else cut

    def _collect_in_parts(self, flush: list[Any]) -> None:
        offset = self._stored_offset
        part: list[bytes] = []
        size = parts = 0
        count = len(flush)
        flush.append(0)
        for index, record in enumerate(self._unstored, 1):
            part.append(record)
            size += len(record)
            if size >= MAX_BATCH_BYTES or index == len(self._unstored):
                offset += size
                flush += (self._stored_records + index, offset, pack(part, offset))
                part, size = [], 0
                parts += 1
        flush[count] = parts

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

    def _collected(self, limit: int) -> None:
        """What was collected is stored."""
        count, size, end = self._collecting, self._collecting_bytes, self._collecting_end
        records = self._unstored[:count] if self.durable else ()
        del self._unstored[:count]
        self._unstored_bytes -= size
        self._stored_records += count
        self._stored_offset += size
        self._bucket.log._backlog -= size
        self._bucket.log._sweep.stored += size
        self._collecting = self._collecting_bytes = 0
        if self._collecting_start:
            self._start_is_due, self._new_head = False, None
        if self._collecting_cut is not None:
            self.earliest, self._trimmed_offset = self._collecting_cut
            while self._cuts and self._cuts[0][0] <= self.earliest:
                self._cuts.popleft()
        last_cut = self._cuts[-1][1] if self._cuts else self._trimmed_offset
        if count and self._stored_offset - last_cut >= limit // CUTS:
            self._cuts.append((self._stored_records, self._stored_offset))
        fastest = self._fastest()
        behind = fastest is not None and fastest < self._stored_records
        if behind and self._stored_bytes() > limit:
            self._hold_back(self.appended_offset - self._trimmed_offset)
        else:
            self._resume(Pause.READERS)
        if records:
            self.sequence, self.offset = self._stored_records, self._stored_offset
            self._tell_records(records, self.sequence)
            self._wake()
        if end is not None:
            self.state = State.ENDED
            self._bucket.forget(self)
            if self.ended is None:
                self._tell_end(end)
        self.stored_sequence = self._stored_records if end is None else end.sequence
        self._tell_stored(self.stored_sequence)

    def _collected_partly(self, last: int, limit: int) -> None:
        """Of what was collected only so much is stored, by an earlier call: its answer was lost."""
        self._collecting = last - self._stored_records
        self._collecting_bytes = sum(map(len, self._unstored[: self._collecting]))
        self._collecting_cut = self._collecting_end = None
        self._collected(limit)
        self._mark(urgent=True)

    def _not_collected(self) -> None:
        self._dirty = True
        self._collecting = self._collecting_bytes = 0

    def _make_room(self) -> None:
        if self._adrift:
            self._drop()
        elif self.state is State.RUNNING:
            self._mark(urgent=True)  # the next flush trims what it may

    def _stored_bytes(self) -> int:
        return self._stored_offset - self._trimmed_offset

    # -- adrift ----------------------------------------------------------------------------------------------------

    def _append_adrift(self, records: Sequence[bytes]) -> int:
        if records:
            self.last = records[-1]
        size = sum(map(len, records))
        self._unstored += records
        self._unstored_bytes += size
        self.appended = self.sequence = last = self.appended + len(records)
        self.appended_offset = self.offset = self.appended_offset + size
        self._tell_records(records, last)
        self._wake()
        if self._unstored_bytes > ADRIFT_BYTES:
            self._drop()
        return last

    def _drop(self) -> None:
        """Hold less, but what the fastest reader has yet to read: for that the source is paused."""
        fastest = self._fastest()
        if fastest is None or self._goes_on(self._unstored_bytes, ADRIFT_BYTES):
            fastest = self.appended
        count = 0
        while self._unstored_bytes > ADRIFT_BYTES * 7 // 8 and self._stored_records + count < fastest:
            self._unstored_bytes -= len(self._unstored[count])
            self._stored_offset += len(self._unstored[count])
            count += 1
        del self._unstored[:count]
        self.earliest = self._stored_records = self._stored_records + count
        if self._unstored_bytes > ADRIFT_BYTES:
            self._hold_back(self._unstored_bytes)
        else:
            self._resume(Pause.READERS)

    def _go_adrift(self) -> None:
        self._adrift = self._lost = True
        self._dirty = True  # as it is never flushed, so it is never marked
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
        self._bucket.log._backlog -= self._unstored_bytes
        if self._outlives and not self.durable and self._end is None and not self._bucket.log._closed:
            self._go_adrift()
            return
        self._unstored.clear()
        self._unstored_bytes = 0
        self._end = None
        # What was not stored is nobody's any more: who is behind reads up to there, and is told of the loss.
        self.sequence, self.offset = self._stored_records, self._stored_offset
        if self.ended is not None:
            self.ended = End("producer_lost", b"", self.sequence + 1, self.offset)
        super()._lose()
