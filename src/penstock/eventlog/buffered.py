"""A stream that is stored behind its producer: what the stores have in common.

What is appended is numbered and told at once, and waits here until a flush has stored it; of a durable stream it is
told only then. A flush *collects* what waits, and with it the start and the end where they are due; when the store has
it, it is *collected*, and what came in between waits for the next flush. A reader behind what waits reads the store.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice

from penstock.eventlog.base import End, Page, Promise, Reason, State
from penstock.eventlog.batch import page_of
from penstock.eventlog.live import LiveStream, Pause

MAX_BATCH_BYTES = 64 * 1024
RUNNING = State.RUNNING  # at hand: a look into an enum is a dear one


class Backlog:
    """The bytes that wait to be stored, of all streams of a log together.

    Attributes:
        held: How many.
        limit: How many there may be before sources are paused.
        is_full: Whether they were.
    """

    __slots__ = ("held", "is_full", "limit")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self.limit = limit
        self.is_full = False

    def has_eased(self) -> bool:
        """Whether it was full, and is no more: sources may go on."""
        if not self.is_full or self.held > self.limit // 2:
            return False
        self.is_full = False
        return True


class BufferedStream(LiveStream):
    """A stream that is produced here. A store adds what a flush is, and how it is read."""

    __slots__ = (
        "_backlog",
        "_collecting",
        "_collecting_bytes",
        "_collecting_end",
        "_collecting_start",
        "_dirty",
        "_end",
        "_last_stored",
        "_new_head",
        "_start_is_due",
        "_stored_offset",
        "_stored_records",
        "_tells_at_once",
        "_trimmed_offset",
        "_unstored",
        "appended",
        "appended_offset",
        "stored_sequence",
    )

    appended: int
    appended_offset: int
    stored_sequence: int

    def __init__(
        self, backlog: Backlog, id: str, owner: str, key: str | None, epoch: int, head: bytes, promise: Promise
    ) -> None:
        super().__init__(id, owner, key, epoch, head, promise)
        self.appended = 0
        self.appended_offset = 0
        self.stored_sequence = 0
        self._backlog = backlog
        self._tells_at_once = not self.durable
        self._stored_records = 0
        self._stored_offset = 0
        self._trimmed_offset = 0
        self._last_stored = b""
        # Behind those that are stored; the first `_collecting` of them are on their way.
        self._unstored: list[bytes] = []
        self._collecting = 0
        self._collecting_bytes = 0
        self._collecting_start = False
        self._collecting_end: End | None = None
        self._dirty = False  # a flush will collect it
        self._start_is_due = False
        self._new_head: bytes | None = None
        self._end: End | None = None

    @property
    def offset(self) -> int:
        """Where the last record that can be read ends [bytes]."""
        return self.appended_offset if self._tells_at_once else self._stored_offset

    @property
    def last(self) -> bytes:
        """The last record that was appended."""
        return self._unstored[-1] if self._unstored else self._last_stored

    @property
    def _unstored_bytes(self) -> int:
        return self.appended_offset - self._stored_offset

    # -- producing -------------------------------------------------------------------------------------------------

    def start(self, head: bytes | None = None) -> bool:
        """Go from STARTING to RUNNING; see `Producer.start`."""
        if self.state is not State.STARTING:
            return False
        if head is not None:
            self.head = self._new_head = head
        self.state = RUNNING
        self._start_is_due = True
        self._mark(urgent=True)
        self._wake()
        return True

    def append(self, records: Sequence[bytes]) -> int:
        """Append records; see `Producer.append`."""
        if self.state is not RUNNING:
            self._refuse()
        size = len(records[0]) if len(records) == 1 else sum(map(len, records))
        self._unstored += records
        self.appended = last = self.appended + len(records)
        self.appended_offset += size
        if self._tells_at_once:
            self.sequence = last
            if self._others or self._lone is not None:
                self._tell_records(records, last)
                if self._waiters:
                    self._wake()
        backlog = self._backlog
        backlog.held += size
        if not self._dirty:
            self._mark(urgent=not self.stored_sequence)
        if backlog.held > backlog.limit:
            self._outgrow()
        return last

    def _outgrow(self) -> None:
        """What waits to be stored is too much."""
        self._backlog.is_full = True
        self._pause(Pause.BACKLOG)

    def end(self, reason: Reason, detail: bytes = b"") -> bool:
        """End the stream; see `Producer.end`."""
        if self.state in (State.ENDING, State.ENDED):
            return False
        end = self._end_record(reason, detail)
        self._end_with(end)
        self._mark(urgent=True)
        if self._tells_at_once:
            self._tell_end(end)
        return True

    def _end_with(self, end: End) -> None:
        self.state = State.ENDING
        self._end = end

    async def request_stop(self) -> bool:
        """Ask the producer to stop; see `Stream.request_stop`."""
        return self._tell_stop()

    # -- reading what waits ----------------------------------------------------------------------------------------

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

    def _unstored_bytes_page(self, offset: int, max_records: int, max_bytes: int) -> Page | None:
        """The same from an offset on; None where that is in the store."""
        if offset >= self.offset:
            return Page((), self.sequence, self.offset, self.ended)
        if offset < self._stored_offset:
            return None
        begin, after = self._stored_offset, self._stored_records
        for record in self._unstored:
            if begin + len(record) > offset:
                break
            begin += len(record)
            after += 1
        return self._unstored_page(after, offset - begin, max_records, max_bytes)

    # -- storing ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def _due(self, *, urgent: bool) -> None:
        """Have a flush collect this stream."""

    @abstractmethod
    def _hurry(self) -> None:
        """Have the flush that will collect it come at once."""

    @abstractmethod
    def _is_over(self) -> None:
        """Its end is stored."""

    def _mark(self, *, urgent: bool) -> None:
        if not self._dirty:
            self._dirty = True
            self._due(urgent=urgent)
        elif urgent:
            self._hurry()

    def _begin_collecting(self) -> None:
        self._dirty = False
        self._collecting = len(self._unstored)
        self._collecting_bytes = self._unstored_bytes
        self._collecting_start = self._start_is_due
        self._collecting_end = self._end

    def _batches(self) -> Sequence[tuple[int, int, list[bytes]]]:
        """What is collected, in batches: of each the cursor and the offset behind it, and its records."""
        if not self._collecting:
            return ()
        if self._collecting_bytes <= MAX_BATCH_BYTES:
            return ((self.appended, self.appended_offset, self._unstored),)
        batches = []
        offset = self._stored_offset
        batch: list[bytes] = []
        size = 0
        for cursor, record in enumerate(self._unstored, self._stored_records + 1):
            batch.append(record)
            size += len(record)
            if size >= MAX_BATCH_BYTES or cursor == self.appended:
                offset += size
                batches.append((cursor, offset, batch))
                batch, size = [], 0
        return batches

    def _collected(self, limit: int, cut: tuple[int, int] | None) -> None:
        """What was collected is stored.

        Args:
            limit: Bytes that the stream may keep.
            cut: The cursor and the offset up to which records were dropped by the way; None where none were.
        """
        count, size, end = self._collecting, self._collecting_bytes, self._collecting_end
        told_now = () if self._tells_at_once else self._unstored[:count]
        if count:
            self._last_stored = self._unstored[count - 1]
            del self._unstored[:count]
            self._stored_records += count
            self._stored_offset += size
            self._backlog.held -= size
            self._collecting = self._collecting_bytes = 0
        if self._collecting_start:
            self._start_is_due, self._new_head = False, None
        if cut is not None:
            self.earliest, self._trimmed_offset = cut
        if told_now:
            self.sequence = self._stored_records  # before it is asked who is behind: those who follow are not
        if self._stored_bytes() > limit and self._is_behind():
            self._hold_back(self.appended_offset - self._trimmed_offset)
        else:
            self._resume(Pause.READERS)
        if told_now:
            self._tell_records(told_now, self.sequence)
            self._wake()
        if end is not None:
            self.state = State.ENDED
            self._is_over()
            if self.ended is None:
                self._tell_end(end)
        self.stored_sequence = self._stored_records if end is None else end.sequence
        self._tell_stored(self.stored_sequence)

    def _not_collected(self) -> None:
        self._dirty = True
        self._collecting = self._collecting_bytes = 0

    def _is_behind(self) -> bool:
        """Whether there are readers, and all are behind what is stored."""
        fastest = self._fastest()
        return fastest is not None and fastest < self._stored_records

    def _stored_bytes(self) -> int:
        return self._stored_offset - self._trimmed_offset

    def _make_room(self) -> None:
        if self.state is RUNNING:
            self._mark(urgent=True)  # the next flush trims what it may

    def _lose(self) -> None:
        self._backlog.held -= self._unstored_bytes
        self._unstored.clear()
        self._end = None
        # What was not stored is nobody's any more: who is behind reads up to there, and is told of the loss.
        self._tells_at_once = False
        self.sequence = self._stored_records
        if self.ended is not None:
            self.ended = End("producer_lost", b"", self.sequence + 1, self.offset)
        super()._lose()
