"""A stream of the log in Redis that is produced elsewhere, or has ended.

It comes by its bucket's tail while somebody waits for it, and the last of it is held for all who read it here; who
wants what lies before reads Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from penstock.errors import StoreError, StreamGone
from penstock.eventlog.base import End, Page, State
from penstock.eventlog.batch import gap_in_bytes, page_of
from penstock.eventlog.followed import Followed
from penstock.eventlog.reader import Reader
from penstock.eventlog.redis.read import Found
from penstock.eventlog.redis.scripts import STOP, Entry, Row, unpack

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket

HELD_BYTES = 64 * 1024
LINGER = 5.0


class StoredStream(Followed):
    """A stream that is produced elsewhere, or that has ended: one for all who read it here.

    While somebody waits, and for a while after that, its bucket's tail brings what is stored of it; the last of that
    is held, so that those who were woken need not ask Redis.
    """

    __slots__ = (
        "__weakref__",
        "_bucket",
        "_dropped_offset",
        "_gone",
        "_held",
        "_held_bytes",
        "_readers",
        "_reading",
        "_stopping",
        "_until",
        "_waiters",
        "lease",
        "offset",
    )

    offset: int

    def __init__(self, bucket: Bucket, row: Row) -> None:
        super().__init__(row.id, row.owner, row.key, row.epoch, row.head)
        self.lease = row.lease
        self.offset = 0
        self._bucket = bucket
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers: set[Reader] = set()
        self._reading: dict[tuple[int | None, ...], tuple[asyncio.Future[Found], int]] = {}
        self._held: deque[bytes] = deque()  # the last of it, up to `sequence`
        self._held_bytes = 0
        self._dropped_offset = 0
        self._gone = False
        self._until = 0.0
        self._stopping = False
        self.look_at(row)

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def wait(self, after: int) -> None:
        """Wait until there may be something to read; see `Stream.wait`."""
        while not self._has_more(after):
            if self._gone:
                raise StreamGone(f"stream {self.id} has been forgotten")
            woken = asyncio.get_running_loop().create_future()
            self._waiters.add(woken)
            self._bucket.tail.follow(self)
            try:
                await woken
            finally:
                self._waiters.discard(woken)
                self._until = time.monotonic() + LINGER

    @property
    def stopping(self) -> bool:
        """Whether its producer was asked to stop, when this was last looked at."""
        return self._stopping

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for more of it, or just has."""
        return (
            self.ended is None
            and not self._gone
            and bool(self._followers or self._waiters or time.monotonic() < self._until)
        )

    def wake(self, error: StoreError | None = None) -> None:
        """It may have gone on; or nobody can say so."""
        if error is not None:
            self._let_go()
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return bool(await self._bucket.write(STOP, self.id))

    def _has_more(self, after: int) -> bool:
        if after < 0 and self.state is State.STARTING:
            return self.ended is not None
        return self.sequence > after or self.ended is not None

    # -- what comes ------------------------------------------------------------------------------------------------

    @property
    def position(self) -> str:
        """The id of the last entry that is known of it."""
        return "0-0" if self.state is State.STARTING else f"{self.epoch}-{self.sequence}"

    def heard(self, entries: Sequence[Entry]) -> None:
        """Take in what was stored of it; what is known already is passed over."""
        for entry in entries:
            if self.ended is not None:
                break
            if entry.kind == b"b":
                self._take(entry)
            elif entry.kind == b"e":
                self._take_end(entry.end)
            elif self.state is State.STARTING:
                self.state = State.RUNNING
                if entry.value != b"=":
                    self.head = entry.value[1:]
        if self._followers:
            self._moved()
        self.wake()

    def _take(self, entry: Entry) -> None:
        if entry.sequence <= self.sequence:
            return
        offset, records = unpack(entry.value)
        if entry.sequence - len(records) != self.sequence:
            self._skip()  # some were evicted meanwhile; who wants them is told by Redis
        self.sequence, self.offset = entry.sequence, offset
        self._held.extend(records)
        self._held_bytes += sum(map(len, records))
        while self._held_bytes > HELD_BYTES and len(self._held) > 1:
            self._held_bytes -= len(self._held.popleft())
        if self._followers:
            self._tell_records(records, self.sequence)

    def _skip(self) -> None:
        """What comes next does not go on from what is held."""
        self._held.clear()
        self._held_bytes = 0
        self._let_go()

    def _take_end(self, end: End) -> None:
        if end.sequence - 1 != self.sequence:
            self._skip()
        self.sequence, self.offset = end.sequence - 1, end.offset
        self._has_ended(end)

    def _has_ended(self, end: End) -> None:
        self.ended = end
        self.state = State.ENDED
        self._let_go(end)
        self._bucket.reports.has_ended(self)

    def look_at(self, row: Row | None, known: int = 0) -> None:
        """Take in what Redis says of it now.

        Args:
            row: Its answer.
            known: Up to where it was known to be stored when Redis was asked. Where there is less now, Redis has lost
                the rest; where there is less than is known by now, others were quicker.
        """
        if row is None or row.lease != self.lease:
            self._is_gone()
            return
        self._stopping = row.stop
        self.earliest = max(self.earliest, row.dropped)
        self._dropped_offset = max(self._dropped_offset, row.dropped_offset)
        if self._followers and row.last > self.sequence:
            return  # the tail is about to tell them
        if self.ended is None and (row.last >= self.sequence or row.last < known or row.end is not None):
            if row.last != self.sequence:
                self._skip()
            self.head = row.head
            self.state = row.state
            self.sequence = row.last
            self.offset = row.offset
            if row.end is not None:
                self._has_ended(row.end)
            self.wake()

    def _is_gone(self) -> None:
        """Redis has nothing of it any more."""
        if self.ended is None:  # it lost its data, and with them the producer
            self.ended = End("producer_lost", b"", self.sequence + 1, self.offset)
            self.state = State.ENDED
            self._let_go(self.ended)
        self._gone = True
        self.wake()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        first = self.sequence - len(self._held)
        if first <= after < self.sequence:
            return self._held_page(after, after - first, max_records, max_bytes)
        if self._gone and self.ended is not None and after >= self.sequence:
            return Page((), after, self.offset, self.ended)
        found = await self._found(after, None, max_records, max_bytes)
        assert found.row is not None
        if after < found.row.dropped:
            self._check_earliest(after)
        return _page(found)

    async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
        found = await self._found(0, offset, max_records, max_bytes)
        assert found.row is not None
        if offset < found.row.dropped_offset:
            raise gap_in_bytes(offset, found.row.dropped_offset)
        return _page(found)

    def _held_page(self, after: int, skip: int, max_records: int, max_bytes: int) -> Page:
        records = page_of(islice(self._held, skip, None), 0, max_records, max_bytes)
        after += len(records)
        # Where the last of them ends: what comes behind it ends where the stream does.
        offset = self.offset - sum(map(len, islice(self._held, skip + len(records), None)))
        return Page(records, after, offset, self.ended if after == self.sequence else None)

    async def _found(self, after: int, offset: int | None, max_records: int, max_bytes: int) -> Found:
        return await self._bucket.patiently(partial(self._shared, (after, offset, max_records, max_bytes)))

    async def _shared(self, wanted: tuple[int, int | None, int, int]) -> Found:
        """Read a page together with all who want the same now."""
        reading = self._reading.get(wanted)
        if reading is None:
            reading = self._reading[wanted] = self._bucket.read_shared(self, *wanted), self.sequence
            reading[0].add_done_callback(partial(self._has_read, wanted))
        found = await asyncio.shield(reading[0])
        self.look_at(found.row, reading[1])
        if self._gone:
            raise StreamGone(f"stream {self.id} has been forgotten")
        return found

    def _has_read(self, wanted: tuple[int | None, ...], reading: asyncio.Future[Found]) -> None:
        """What was read is for those who waited; the next one reads anew."""
        del self._reading[wanted]

    # -- readers ---------------------------------------------------------------------------------------------------

    def _attach(self, reader: Reader) -> None:
        self._readers.add(reader)
        self._bucket.reports.of(self)

    def _detach(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._bucket.reports.of(self)

    def _follow(self, reader: Reader) -> bool:
        if reader.cursor != self.sequence or self.state is not State.RUNNING or self._gone:
            return False
        self._bucket.tail.follow(self)
        self._add_follower(reader)
        return True

    def _unfollow(self, reader: Reader) -> None:
        super()._unfollow(reader)
        self._until = time.monotonic() + LINGER

    def _moved(self) -> None:
        # Where the stream is far from full, nobody need know how far its readers are.
        if self.offset - self._dropped_offset > self._bucket.log.retention.max_stream_bytes // 2:
            self._bucket.reports.of(self)

    def _report(self) -> tuple[int, int]:
        """Who reads it here, for the process that produces it; and that it is read, once it has ended."""
        return len(self._readers), max((reader.cursor for reader in self._readers), default=-1)


def _page(found: Found) -> Page:
    assert found.row is not None
    end = found.row.end
    return Page(
        found.records, found.after, found.offset, end if end is not None and found.after >= end.sequence - 1 else None
    )
