"""The event log in memory: bounded, and gone with its process.

The log and its producers live and die together, so no lease can run out and what is appended is stored. An append
touches one list and compares one number: what a stream may hold is granted by the log in slices, and only at the end
of a slice does anybody look at the limits.

===========================  =====================================================================================
at the end of a slice        what happens
===========================  =====================================================================================
the log has room             the next slice
the log is full              finished streams lose their records, those that ended first before the others
…and nothing has finished,   the stream drops its oldest records, an eighth of what it holds at a time
or the stream is full
…and its fastest reader      the source is paused until the reader has moved on, however much came at once; if it goes
has not read them            on for as much again, and more than was on its way, they are dropped all the same
===========================  =====================================================================================
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from penstock.errors import LimitExceeded
from penstock.eventlog.base import (
    DEFAULT_RETENTION,
    EventLog,
    Page,
    Producer,
    Promise,
    Reason,
    Retention,
    State,
    Stream,
    StreamInfo,
    new_stream_id,
)
from penstock.eventlog.batch import gap_in_bytes
from penstock.eventlog.live import LiveStream, Pause

RUNNING = State.RUNNING  # at hand: a look into an enum is a dear one
OVERHEAD = 96
"""Bytes that a record takes beside its own: the object, its place in a list, and where it ends once that is counted."""

STREAM_OVERHEAD = 2048
"""Bytes that a stream takes beside its records and its head."""

SLICE = 4096
"""Bytes that a stream is granted at a time, at the least; or an eighth of what it has."""


class MemoryLog(EventLog):
    """Streams in this process's memory, within the bounds of `retention`, overhead of the objects included.

    Args:
        retention: How much is kept.
        clock: Monotonic seconds, for the age of what has ended.
        wall: Seconds since the epoch of Unix, for what is shown.
        new_id: Makes the names of streams that come without.
    """

    persistent = False
    shared = False
    trouble = None

    def __init__(
        self,
        *,
        retention: Retention = DEFAULT_RETENTION,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_stream_id,
    ) -> None:
        self.retention = retention
        self._clock = clock
        self._wall = wall
        self._new_id = new_id
        self.first_slice = min(SLICE, retention.max_stream_bytes)
        self._held = 0
        self._streams: dict[str, MemoryStream] = {}
        self._keys: dict[tuple[str, str], MemoryStream] = {}
        # In the order of their ends; and those of them that still have records.
        self._finished: OrderedDict[str, MemoryStream] = OrderedDict()
        self._replayable: OrderedDict[str, MemoryStream] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """Bytes that are granted to streams, overhead included."""
        return self._held

    async def start(self) -> None:
        """Nothing is to be opened."""

    async def aclose(self) -> None:
        """End what still runs as ``producer_lost``."""
        for stream in list(self._streams.values()):
            stream.end("producer_lost")
        self.abort()

    def abort(self) -> None:
        """Stop looking after what is kept."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

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
        self._sweep()
        running = self._keys.get((owner, key)) if key is not None else None
        if running is not None and running.state is not State.ENDED and running.id != replacing:
            return running, None
        if id is not None and id in self._streams:
            raise ValueError(f"there is a stream {id!r} already")
        self._admit(STREAM_OVERHEAD + len(head) + self.first_slice)
        stream = MemoryStream(self, id or self._new_id(), owner, key, head, promise)
        self._streams[stream.id] = stream
        if key is not None:
            self._keys[owner, key] = stream
        if running is not None:
            running._tell_stop()
        return stream, stream

    @property
    def full(self) -> bool:
        """Whether `open` would find no room."""
        self._sweep()
        bytes_left = self.retention.max_bytes - self._held
        has_room = len(self._streams) < self.retention.max_streams and bytes_left >= STREAM_OVERHEAD + self.first_slice
        return not (has_room or self._finished)

    async def get(self, id: str) -> Stream | None:
        """The stream of that id; None if there is none, or no longer."""
        self._sweep()
        return self._streams.get(id)

    async def find(self, key: str, owner: str) -> Stream | None:
        """The latest stream of that key; None if there is none, or no longer."""
        self._sweep()
        return self._keys.get((owner, key))

    async def streams(self, owner: str | None = None) -> list[StreamInfo]:
        """The streams there are, the latest opened first; those of one owner, or all."""
        self._sweep()
        return [stream.info() for stream in reversed(self._streams.values()) if owner is None or stream.owner == owner]

    # -- keeping within bounds -------------------------------------------------------------------------------------

    def _admit(self, wanted: int) -> None:
        while len(self._streams) >= self.retention.max_streams:
            if not self._finished:
                raise LimitExceeded(
                    f"{self.retention.max_streams} streams run, and the log keeps no more", limit="max_streams"
                )
            self._forget(next(iter(self._finished.values())))
        while not self._reserve(wanted):
            if not self._finished:
                raise LimitExceeded(
                    f"the log holds {self._held} bytes of streams that run, and keeps no more", limit="max_bytes"
                )
            self._forget(next(iter(self._finished.values())))

    def _reserve(self, wanted: int) -> bool:
        """Grant bytes, at the cost of finished streams; False if there are not so many."""
        limit = self.retention.max_bytes
        while self._held + wanted > limit and self._replayable:
            _, oldest = self._replayable.popitem(last=False)
            oldest._drop(oldest.sequence)
            oldest._settle()
        if self._held + wanted > limit:
            return False
        self._held += wanted
        return True

    def _has_ended(self, stream: MemoryStream) -> None:
        stream.ended_at = self._clock()
        self._finished[stream.id] = stream
        if stream.sequence > stream.earliest:
            self._replayable[stream.id] = stream
        if self._sweeper is None:
            self._sweep_later(self.retention.age)

    def _sweep(self) -> None:
        """Forget what ended too long ago, but for what somebody still reads."""
        oldest_kept = self._clock() - self.retention.age
        expired = []
        for stream in self._finished.values():
            if stream.ended_at > oldest_kept:
                break
            if not stream.readers:
                expired.append(stream)
        for stream in expired:
            self._forget(stream)

    def _forget(self, stream: MemoryStream) -> None:
        del self._streams[stream.id], self._finished[stream.id]
        self._replayable.pop(stream.id, None)
        if stream.key is not None and self._keys.get((stream.owner, stream.key)) is stream:
            del self._keys[stream.owner, stream.key]
        stream._drop(stream.sequence)
        stream._settle()
        self._held -= STREAM_OVERHEAD + stream.head_bytes

    def _sweep_later(self, seconds: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(max(seconds, 1.0), self._sweep_and_look_again)

    def _sweep_and_look_again(self) -> None:
        self._sweeper = None
        self._sweep()
        if self._finished:
            oldest = next(iter(self._finished.values()))
            self._sweep_later(oldest.ended_at + self.retention.age - self._clock())


class MemoryStream(LiveStream):
    """A stream in memory. `MemoryLog.open` makes it."""

    __slots__ = (
        "_base_offset",
        "_counted",
        "_granted",
        "_log",
        "_records",
        "_room",
        "ended_at",
        "head_bytes",
        "opened_at",
    )

    def __init__(self, log: MemoryLog, id: str, owner: str, key: str | None, head: bytes, promise: Promise) -> None:
        super().__init__(id, owner, key, 1, head, promise)
        self._log = log
        self.head_bytes = len(head)
        self.opened_at = log._wall()
        self.ended_at = 0.0
        # Those after `earliest`, and where each ends.
        self._records: list[bytes] = []
        self._counted: list[int] = []
        self._base_offset = 0
        self._granted = self._room = log.first_slice  # the bytes it may have, and what of them is left

    @property
    def offset(self) -> int:
        """Where the last record ends [bytes]: counted when somebody asks, as `_room` tells it."""
        return self._base_offset + self._weight() - OVERHEAD * len(self._records)

    @property
    def stored_sequence(self) -> int:
        """The sequence of the last record, or of the end."""
        return self.sequence if self.ended is None else self.ended.sequence

    @property
    def appended(self) -> int:
        """The sequence of the last record."""
        return self.sequence

    @property
    def appended_offset(self) -> int:
        """Where the last record ends [bytes]."""
        return self.offset

    @property
    def last(self) -> bytes:
        """The last record."""
        return self._records[-1] if self._records else b""

    def start(self, head: bytes | None = None) -> bool:
        """Go from STARTING to RUNNING; see `Producer.start`."""
        if self.state is not State.STARTING:
            return False
        if head is not None:
            self._log._held += len(head) - self.head_bytes
            self.head, self.head_bytes = head, len(head)
        self.state = State.RUNNING
        self._wake()
        return True

    def append(self, records: Sequence[bytes]) -> int:
        """Append records; see `Producer.append`."""
        if self.state is not RUNNING:
            self._refuse()
        if len(records) == 1:
            data = records[0]
            self._records.append(data)
            self._room -= OVERHEAD + len(data)
        elif records:
            data = b"".join(records)
            self._records += records
            self._room -= OVERHEAD * len(records) + len(data)
        else:
            return self.sequence
        self.sequence = last = self.sequence + len(records)
        lone = self._lone
        if lone is not None:  # one reader at the tail, and nobody else: what a live stream mostly has
            lone.cursor = last
            on_data = lone._on_data
            try:
                on_data(data)
            except Exception as error:
                self._failed(lone, last - len(records), error)
        elif self._others:
            self._tell_all(records, last)
        if self._room < 0:
            self._make_room()
        return last

    def _tell_all(self, records: Sequence[bytes], last: int) -> None:
        self._tell_records(records, last)
        if self._waiters:
            self._wake()
        if self._storing or self._on_stored is not None:
            self._tell_stored(last)

    def end(self, reason: Reason, detail: bytes = b"") -> bool:
        """End the stream; see `Producer.end`."""
        if self.state is State.ENDED:
            return False
        end = self._end_record(reason, detail)
        self.state = State.ENDED
        self._settle()
        self._log._has_ended(self)
        self._tell_end(end)
        self._tell_stored(end.sequence)
        return True

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return self._tell_stop()

    def info(self) -> StreamInfo:
        """The stream, as it is listed."""
        return StreamInfo(
            id=self.id,
            owner=self.owner,
            key=self.key,
            epoch=self.epoch,
            state=self.state,
            sequence=self.sequence,
            offset=self.offset,
            earliest=self.earliest,
            readers=self.readers,
            opened_at=self.opened_at,
            ended=self.ended,
            ended_at=None if self.ended is None else self._log._wall() - (self._log._clock() - self.ended_at),
        )

    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        self._check_earliest(after)
        return self._page(after - self.earliest, 0, max_records, max_bytes, after)

    async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
        if offset < self._base_offset:
            raise gap_in_bytes(offset, self._base_offset)
        ends = self._ends()
        start = bisect_right(ends, offset)
        begin = ends[start - 1] if start else self._base_offset
        return self._page(start, offset - begin, max_records, max_bytes, self.earliest + start)

    def _page(self, start: int, skip: int, max_records: int, max_bytes: int, after: int) -> Page:
        """The records from an index on, the first without its first bytes."""
        ends = self._ends()
        if start >= len(ends):
            return Page((), after, self.offset, self.ended)
        begin = (ends[start - 1] if start else self._base_offset) + skip
        stop = bisect_right(ends, begin + max_bytes, start)
        stop = min(max(stop, start + 1), start + max_records)
        records = self._records[start:stop]
        if skip:
            records[0] = records[0][skip:]
        last = self.earliest + stop
        return Page(records, last, ends[stop - 1], self.ended if last == self.sequence else None)

    def _ends(self) -> list[int]:
        """Where each record ends [bytes]: counted when somebody asks, not as they come."""
        ends = self._counted
        if len(ends) < len(self._records):
            end = ends[-1] if ends else self._base_offset
            for record in islice(self._records, len(ends), None):
                end += len(record)
                ends.append(end)
        return ends

    # -- keeping within bounds -------------------------------------------------------------------------------------

    def _weight(self) -> int:
        return self._granted - self._room

    def _make_room(self) -> None:
        limit = self._log.retention.max_stream_bytes
        wanted = -self._room
        if self._granted + wanted <= limit:
            more = max(wanted, min(max(SLICE, self._granted // 8), limit - self._granted))
            if self._log._reserve(more):
                self._granted += more
                self._room += more
                self._resume(Pause.READERS)
                return
            limit = max(self._granted, self._log.first_slice)  # the log is full: what it has is what it may have
        cut = self._beyond(limit - limit // 8)
        fastest = self._fastest()
        held_back = fastest is not None and fastest < cut and not self._goes_on(self._weight(), limit)
        self._drop(fastest if held_back and fastest is not None else cut)
        self._settle()
        if held_back and self._weight() > limit:
            self._hold_back(self._weight())
        else:
            self._resume(Pause.READERS)

    def _beyond(self, limit: int) -> int:
        """The cursor behind which what is left is within a limit; never the last record."""
        held = self._weight()
        begin = self._base_offset
        ends = self._ends()
        for index, end in enumerate(ends):
            if held <= limit or index == len(ends) - 1:
                return self.earliest + index
            held -= end - begin + OVERHEAD
            begin = end
        return self.earliest

    def _drop(self, cursor: int) -> None:
        """Evict the records up to a cursor."""
        count = cursor - self.earliest
        if count > 0:
            end = self._ends()[count - 1]
            self._room += end - self._base_offset + OVERHEAD * count
            self._base_offset = end
            del self._records[:count], self._counted[:count]
            self.earliest = cursor

    def _settle(self) -> None:
        """Give back what is not needed; where more is held than was granted, have it counted."""
        self._log._held -= self._room
        self._granted -= self._room
        self._room = 0
