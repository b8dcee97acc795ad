"""The streams of the log in a file: those that are produced here, and those that are not.

What is produced here waits for a flush, as `BufferedStream` has it. What is produced elsewhere is the file alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from penstock.errors import StoreError, StreamGone
from penstock.eventlog.base import End, Page, Promise, State, Stream
from penstock.eventlog.batch import gap_in_bytes, sizes_of
from penstock.eventlog.buffered import BufferedStream
from penstock.eventlog.reader import Reader
from penstock.eventlog.sqlite.store import SEQUENCE_BITS, Batches, Flush, Report, Row

if TYPE_CHECKING:
    from penstock.eventlog.sqlite.log import SqliteLog


class SqliteStream(BufferedStream):
    """A stream that is produced here. `SqliteLog.open` makes it."""

    __slots__ = ("_log", "_number")

    def __init__(self, log: SqliteLog, row: Row, promise: Promise) -> None:
        super().__init__(log._backlog, row["id"], row["owner"], row["key"], row["epoch"], row["head"], promise)
        self._log = log
        self._number: int = row["number"]

    def _end_with(self, end: End) -> None:
        super()._end_with(end)
        if self.key is not None:
            self._log._ending.add(self)

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
        page = self._unstored_bytes_page(offset, max_records, max_bytes)
        if page is not None:
            return page
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

    # -- storing ---------------------------------------------------------------------------------------------------

    def _due(self, *, urgent: bool) -> None:
        self._log._mark(self, urgent=urgent)

    def _hurry(self) -> None:
        self._log._flush_later(urgent=True)

    def _collect(self, flush: Flush, limit: int) -> None:
        """Add what is to be stored to a flush."""
        if self.appended >> SEQUENCE_BITS:
            self._run_out()
        self._begin_collecting()
        number = self._number
        for cursor, offset, records in self._batches():
            data = records[0] if len(records) == 1 else b"".join(records)
            flush.batches += ((number << SEQUENCE_BITS) + cursor, offset, sizes_of(records), data)
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
        flush.awaited = flush.awaited or self.durable or bool(self._storing) or self._elsewhere[0] > 0

    def _run_out(self) -> None:
        """There are no more positions for its records: what is stored is all that there is going to be."""
        self._backlog.held -= self._unstored_bytes
        self._unstored.clear()
        self._end_with(End("producer_lost", b"", self._stored_records + 1, self._stored_offset))
        self.appended, self.appended_offset = self._stored_records, self._stored_offset
        self.sequence = min(self.sequence, self._stored_records)

    def _collected(self, limit: int, cut: tuple[int, int] | None) -> None:
        self._log._unswept += self._collecting_bytes
        super()._collected(limit, cut)

    def _is_over(self) -> None:
        self._log._live.pop(self.id, None)
        self._log._ending.discard(self)


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
