"""The streams of the log in a file: those that are produced here, and those that are not.

What is produced here is numbered and told at once, and waits in `_unstored` until a flush has stored it; a reader
behind that reads the file. What is produced elsewhere is the file alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from penstock.errors import StoreError, StreamGone
from penstock.eventlog.base import End, Page, Promise, Reason, State, Stream
from penstock.eventlog.batch import gap_in_bytes, page_of, sizes_of
from penstock.eventlog.live import LiveStream, Pause
from penstock.eventlog.reader import Reader
from penstock.eventlog.sqlite.store import SEQUENCE_BITS, Batches, Flush, Report, Row

if TYPE_CHECKING:
    from penstock.eventlog.sqlite.log import SqliteLog

MAX_BATCH_BYTES = 64 * 1024


class SqliteStream(LiveStream):
    """A stream that is produced here. `SqliteLog.open` makes it."""

    __slots__ = (
        "_collecting",
        "_collecting_bytes",
        "_collecting_end",
        "_collecting_start",
        "_dirty",
        "_end",
        "_log",
        "_new_head",
        "_number",
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

    def __init__(self, log: SqliteLog, row: Row, promise: Promise) -> None:
        super().__init__(row["id"], row["owner"], row["key"], row["epoch"], row["head"], promise)
        self._log = log
        self._number: int = row["number"]
        self.appended = 0
        self.appended_offset = 0
        self.last = b""
        self.offset = 0
        self.stored_sequence = 0
        self._stored_records = 0
        self._stored_offset = 0
        self._trimmed_offset = 0
        # Behind those that are stored; the first `_collecting` of them are on their way.
        self._unstored: list[bytes] = []
        self._unstored_bytes = 0
        self._collecting = 0
        self._collecting_bytes = 0
        self._collecting_end: End | None = None
        self._dirty = False
        self._collecting_start = False
        self._start_is_due = False
        self._new_head: bytes | None = None
        self._end: End | None = None

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
        if records:
            self.last = records[-1]
        size = sum(map(len, records))
        self._unstored += records
        self._unstored_bytes += size
        self.appended = last = self.appended + len(records)
        self.appended_offset = offset = self.appended_offset + size
        log = self._log
        log._backlog += size
        if not self._dirty:
            self._mark(urgent=not self.stored_sequence)
        if log._backlog > log._max_backlog:
            log._backlog_is_full = True
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
        end = self._end_record(reason, detail)
        self._end_with(end)
        self._mark(urgent=True)
        if not self.durable:
            self._tell_end(end)
        return True

    def _end_with(self, end: End) -> None:
        self.state = State.ENDING
        self._end = end
        if self.key is not None:
            self._log._ending.add(self)

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return self._tell_stop()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _attach(self, reader: Reader) -> None:
        super()._attach(reader)
        self._log._attached[self._number] += 1
        self._log._report(self)

    def _detach(self, reader: Reader) -> None:
        _leave(self._log._attached, self._number)
        super()._detach(reader)
        self._log._report(self)

    def _report(self) -> Report:
        """How many read it here, for those who list; and that it is read, once it has ended."""
        return Report(self._number, self._log._attached[self._number], -1)

    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        if after >= self._stored_records:
            return self._unstored_page(after, 0, max_records, max_bytes)
        return self._page(await self._log._read_file(self._number, after, None, max_records, max_bytes), after)

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
        found = await self._log._read_file(self._number, 0, offset, max_records, max_bytes)
        if found.row is not None and offset < found.row["dropped_offset"]:
            raise gap_in_bytes(offset, found.row["dropped_offset"])
        return self._page(found, None)

    def _page(self, found: Batches, after: int | None) -> Page:
        if found.row is None:
            raise StreamGone(f"stream {self.id} has been forgotten")
        self.earliest = max(self.earliest, found.row["dropped"])
        if after is not None and after < found.row["dropped"]:
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
            self._log._flush_later(urgent=urgent)
        else:
            self._dirty = True
            self._log._mark(self, urgent=urgent)

    def _collect(self, flush: Flush, limit: int) -> None:
        """Add what is to be stored to a flush."""
        self._dirty = False
        if self.appended >> SEQUENCE_BITS:
            self._run_out()
        number = self._number
        self._collecting = len(self._unstored)
        self._collecting_bytes = self._unstored_bytes
        self._collecting_end = self._end
        if self._collecting:
            if self._unstored_bytes <= MAX_BATCH_BYTES:
                records = self._unstored
                flush.batches += (
                    (number << SEQUENCE_BITS) + self.appended,
                    self.appended_offset,
                    sizes_of(records),
                    records[0] if len(records) == 1 else b"".join(records),
                )
            else:
                self._collect_in_parts(flush)
        self._collecting_start = self._start_is_due
        if self._start_is_due:
            flush.starts.append((self._new_head, number))
        if self._end is not None:
            flush.ends.append((self._end.reason, self._end.detail, self._end.sequence - 1, self._end.offset, number))
        if (held := self.appended_offset - self._trimmed_offset) > limit:
            fastest = self._fastest()
            if fastest is None or self._goes_on(held, limit):
                fastest = self.appended
            flush.trims.append((number, self.appended_offset - (limit - limit // 8), fastest))
        flush.full = flush.full or self.durable

    def _run_out(self) -> None:
        """There are no more positions for its records: what is stored is all that there is going to be."""
        self._log._backlog -= self._unstored_bytes
        self._unstored.clear()
        self._unstored_bytes = 0
        self._end_with(End("producer_lost", b"", self._stored_records + 1, self._stored_offset))
        self.appended, self.appended_offset = self._stored_records, self._stored_offset

    def _collect_in_parts(self, flush: Flush) -> None:
        position = (self._number << SEQUENCE_BITS) + self._stored_records
        offset = self._stored_offset
        part: list[bytes] = []
        size = 0
        for index, record in enumerate(self._unstored, 1):
            part.append(record)
            size += len(record)
            if size >= MAX_BATCH_BYTES or index == len(self._unstored):
                offset += size
                flush.batches += (position + index, offset, sizes_of(part), b"".join(part))
                part, size = [], 0

    def _collected(self, trimmed: dict[int, tuple[int, int]]) -> None:
        """What was collected is stored."""
        count, size, end = self._collecting, self._collecting_bytes, self._collecting_end
        records = self._unstored[:count] if self.durable else ()
        del self._unstored[:count]
        self._unstored_bytes -= size
        self._stored_records += count
        self._stored_offset += size
        self._log._backlog -= size
        self._log._unswept += size
        self._collecting = self._collecting_bytes = 0
        if self._collecting_start:
            self._start_is_due, self._new_head = False, None
        if self._number in trimmed:
            self.earliest, self._trimmed_offset = trimmed[self._number]
        fastest = self._fastest()
        behind = fastest is not None and fastest < self._stored_records
        if behind and self._stored_bytes() > self._log._stream_limit():
            self._hold_back(self.appended_offset - self._trimmed_offset)
        else:
            self._resume(Pause.READERS)
        if records:
            self.sequence, self.offset = self._stored_records, self._stored_offset
            self._tell_records(records, self.sequence)
            self._wake()
        if end is not None:
            self.state = State.ENDED
            self._log._live.pop(self.id, None)
            self._log._ending.discard(self)
            if self.ended is None:
                self._tell_end(end)
        self.stored_sequence = self._stored_records if end is None else end.sequence
        self._tell_stored(self.stored_sequence)

    def _not_collected(self) -> None:
        self._dirty = True
        self._collecting = self._collecting_bytes = 0

    def _make_room(self) -> None:
        if self.state is State.RUNNING:
            self._mark(urgent=True)  # the next flush trims what it may

    def _stored_bytes(self) -> int:
        return self._stored_offset - self._trimmed_offset

    def _lose(self) -> None:
        self._unstored.clear()
        self._unstored_bytes = 0
        self._end = None
        # What was not stored is nobody's any more: who is behind reads up to there, and is told of the loss.
        self.sequence, self.offset = self._stored_records, self._stored_offset
        if self.ended is not None:
            self.ended = End("producer_lost", b"", self.sequence + 1, self.offset)
        super()._lose()


class StoredStream(Stream):
    """A stream that is produced elsewhere, or that has ended: one for all who read it here.

    However many they are, those who want the same page at the same time share one reading of the file, and so do those
    who wait. A look is good for all who begin to wait before the next wake-up: what came after it has not been reported
    by then, and wakes them.
    """

    __slots__ = (
        "__weakref__",
        "_dropped_offset",
        "_log",
        "_looking",
        "_number",
        "_readers",
        "_reading",
        "_stopping",
        "_waiters",
        "offset",
    )

    offset: int

    def __init__(self, log: SqliteLog, row: Row) -> None:
        super().__init__(row["id"], row["owner"], row["key"], row["epoch"], row["head"])
        self.offset = 0
        self._log = log
        self._number: int = row["number"]
        self._waiters: set[asyncio.Future[None]] = set()
        self._looking: asyncio.Future[Batches] | None = None
        self._dropped_offset = 0
        self._readers: set[Reader] = set()
        self._reading: dict[tuple[int | None, ...], asyncio.Future[Batches]] = {}
        self._stopping = False
        self._look_at(row)

    @property
    def stopping(self) -> bool:
        """Whether its producer was asked to stop, when this was last looked at."""
        return self._stopping

    async def wait(self, after: int) -> None:
        """Wait until there may be something to read; see `Stream.wait`."""
        while not self._has_more(after):
            woken = self._log._loop.create_future()
            self._waiters.add(woken)
            self._log._wait_for(self._number, self)
            try:
                # Whatever came before it was waited for is seen now; whatever comes later wakes it.
                await self._look()
                if not self._has_more(after):
                    await woken
            finally:
                self._waiters.discard(woken)
                if not self._waiters:
                    self._log._waiting.pop(self._number, None)

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return await self._log._write(self._log._writes.stop, self._number)

    def _has_more(self, after: int) -> bool:
        if after < 0 and self.state is State.STARTING:
            return self.ended is not None
        return self.sequence > after or self.ended is not None

    def _wake(self) -> None:
        """It may have gone on; or the log was closed."""
        self._looking = None
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _look(self) -> None:
        if self._looking is None:
            self._looking = self._log._read_file(self._number, self.sequence, None, 1, 1)
        looking = self._looking
        try:
            found = await asyncio.shield(looking)
        except StoreError:
            if self._looking is looking:
                self._looking = None
            raise
        if not await self._settle(found):
            await self._look()

    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        found = await self._found(after, None, max_records, max_bytes)
        assert found.row is not None
        if after < found.row["dropped"]:
            self._check_earliest(after)
        return self._page(found)

    async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
        found = await self._found(0, offset, max_records, max_bytes)
        assert found.row is not None
        if offset < found.row["dropped_offset"]:
            raise gap_in_bytes(offset, found.row["dropped_offset"])
        return self._page(found)

    async def _found(self, after: int, offset: int | None, max_records: int, max_bytes: int) -> Batches:
        while True:
            wanted = (after, offset, max_records, max_bytes)
            reading = self._reading.get(wanted)
            if reading is None:
                reading = self._reading[wanted] = self._log._read_file(self._number, *wanted)
                reading.add_done_callback(partial(self._has_read, wanted))
            found = await asyncio.shield(reading)
            if await self._settle(found):
                return found

    def _has_read(self, wanted: tuple[int | None, ...], reading: asyncio.Future[Batches]) -> None:
        """What was read is for those who waited; the next one reads anew."""
        del self._reading[wanted]

    async def _settle(self, found: Batches) -> bool:
        """Take in what the file says of the stream; False if it has nobody who could end it, and was ended."""
        if found.row is None:
            raise StreamGone(f"stream {self.id} has been forgotten")
        if self._log._reads.is_orphan(found.row) and self.ended is None:
            await self._log._write(self._log._writes.end_orphans)
            self._looking = None
            return False
        self._look_at(found.row)
        return True

    def _page(self, found: Batches) -> Page:
        end = self.ended if self.ended is not None and found.after >= self.ended.sequence - 1 else None
        return Page(found.records, found.after, found.offset, end)

    def _look_at(self, row: Row) -> None:
        if self.ended is None and row["last"] >= self.sequence:  # or a reading was overtaken by another
            self.head = row["head"]
            self.state = state_of(row)
            self.sequence = row["last"]
            self.offset = row["last_offset"]
            self.ended = end_of(row)
        self._stopping = bool(row["stop"])
        self.earliest = max(self.earliest, row["dropped"])
        self._dropped_offset = max(self._dropped_offset, row["dropped_offset"])

    def _attach(self, reader: Reader) -> None:
        self._readers.add(reader)
        self._log._attached[self._number] += 1
        self._log._report(self)

    def _detach(self, reader: Reader) -> None:
        self._readers.discard(reader)
        _leave(self._log._attached, self._number)
        self._log._report(self)

    def _moved(self) -> None:
        # Where the stream is far from full, or has ended, nobody need know how far its readers are.
        if self.ended is None and self.offset - self._dropped_offset > self._log.retention.max_stream_bytes // 2:
            self._log._report(self)

    def _report(self) -> Report:
        """Who reads it here, for the process that produces it; and that it is read, once it has ended."""
        furthest = max((reader.cursor for reader in self._readers), default=-1) if self.ended is None else -1
        return Report(self._number, self._log._attached[self._number], furthest)


def state_of(row: Row) -> State:
    """How far a stream is, by the file."""
    if row["reason"] is not None:
        return State.ENDED
    return State.RUNNING if row["started"] else State.STARTING


def end_of(row: Row) -> End | None:
    """The end of a stream, by the file."""
    if row["reason"] is None:
        return None
    return End(row["reason"], row["detail"], row["sequence"] + 1, row["offset"])


def _leave(attached: Counter[int], number: int) -> None:
    attached[number] -= 1
    if attached[number] <= 0:
        del attached[number]
