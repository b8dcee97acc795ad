"""A stream in the process that produces it: who follows, who waits, who must pause.

What is here is the same for every backend: followers are told within `append`, waiters are woken by it, and the source
is paused and resumed. A backend adds where the records go.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import NoReturn

from penstock.errors import ProducerLost, StoreError
from penstock.eventlog.base import End, Producer, Promise, Reason, State
from penstock.eventlog.followed import Followed, tell
from penstock.eventlog.reader import Reader

BURST = 512 * 1024
"""Bytes that may still come of a source that has been paused: what had been read of its socket by then, and more."""


class Pause(enum.Flag):
    """Why a source is to stop."""

    NONE = 0
    BACKLOG = enum.auto()
    """The store is slower than the source."""
    READERS = enum.auto()
    """The log is full of what the fastest attached reader has yet to read."""


class LiveStream(Followed, Producer):
    """Both faces of a stream that is produced here."""

    __slots__ = (
        "_elsewhere",
        "_lost",
        "_on_lost",
        "_on_pause",
        "_on_readers",
        "_on_resume",
        "_on_stop",
        "_on_stored",
        "_on_trouble",
        "_outlives",
        "_paused_at",
        "_pauses",
        "_readers",
        "_storing",
        "_waiters",
        "durable",
        "stop_requested",
    )

    def __init__(self, id: str, owner: str, key: str | None, epoch: int, head: bytes, promise: Promise) -> None:
        super().__init__(id, owner, key, epoch, head)
        self.durable = promise == "durable"
        self.stop_requested = False
        self._lost = False
        self._pauses = Pause.NONE
        self._paused_at = 0  # bytes that it held when it was paused for its readers
        self._readers: set[Reader] = set()
        self._elsewhere: tuple[int, int] = (0, -1)  # readers in other processes, and the cursor of the furthest
        # Who waits for a record, and who for its being stored.
        self._waiters: set[asyncio.Future[None]] = set()
        self._storing: dict[asyncio.Future[None], int] = {}
        self._on_stop: Callable[[], None] | None = None
        self._on_pause: Callable[[], None] | None = None
        self._on_resume: Callable[[], None] | None = None
        self._on_stored: Callable[[int], None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self._on_trouble: Callable[[StoreError], None] | None = None
        self._on_readers: Callable[[int], None] | None = None
        self._outlives = False

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self.stop_requested

    @property
    def paused(self) -> bool:
        """Whether the source should be stopped."""
        return self._pauses is not Pause.NONE

    @property
    def readers(self) -> int:
        """Readers that are attached, here and elsewhere."""
        return len(self._readers) + self._elsewhere[0]

    def watch(
        self,
        *,
        on_stop: Callable[[], None] | None = None,
        on_pause: Callable[[], None] | None = None,
        on_resume: Callable[[], None] | None = None,
        on_stored: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_trouble: Callable[[StoreError], None] | None = None,
        on_readers: Callable[[int], None] | None = None,
        outlive: bool = False,
    ) -> None:
        """Be told what concerns the source; see `Producer.watch`."""
        self._on_stop = on_stop
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._on_stored = on_stored
        self._on_lost = on_lost
        self._on_trouble = on_trouble
        self._on_readers = on_readers
        self._outlives = outlive
        self._look_who_is_here()
        if self._lost:
            tell(on_lost)
        elif self.state is not State.ENDED:
            if self.stop_requested:
                tell(on_stop)
            if self.paused:
                tell(on_pause)
            if self.readers:
                tell(on_readers, self.readers)

    async def wait(self, after: int) -> None:
        """Wait until there may be something to read; see `Stream.wait`."""
        while not self._has_more(after):
            woken = asyncio.get_running_loop().create_future()
            self._waiters.add(woken)
            self._look_who_is_here()
            try:
                await woken
            finally:
                self._waiters.discard(woken)
                self._look_who_is_here()

    async def stored(self, cursor: int) -> None:
        """Wait until a record is stored; see `Producer.stored`."""
        if cursor > self.appended + 1:
            raise ValueError(f"stream {self.id} has no record {cursor}: the last one is {self.appended}")
        while self.stored_sequence < cursor:
            if self._lost:
                self._refuse()
            stored = asyncio.get_running_loop().create_future()
            self._storing[stored] = cursor
            self._look_who_is_here()
            try:
                await stored
            finally:
                self._storing.pop(stored, None)
                self._look_who_is_here()

    def _is_awaited(self) -> bool:
        return bool(self._waiters or self._storing or self._on_stored is not None)

    # -- readers ---------------------------------------------------------------------------------------------------

    def _attach(self, reader: Reader) -> None:
        self._readers.add(reader)
        self._tell_readers()

    def _detach(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._moved()
        self._tell_readers()

    def _attached_elsewhere(self, readers: int, cursor: int) -> None:
        """So many read it in other processes, and the furthest is there."""
        before, self._elsewhere = self._elsewhere, (readers, cursor)
        if before != self._elsewhere:
            self._moved()
        if before[0] != readers:
            self._tell_readers()

    def _tell_readers(self) -> None:
        if self.ended is None:
            tell(self._on_readers, self.readers)

    def _moved(self) -> None:
        if Pause.READERS in self._pauses:
            self._make_room()

    def _follow(self, reader: Reader) -> bool:
        if reader.cursor != self.sequence or self.state is not State.RUNNING or self.ended is not None:
            return False
        self._add_follower(reader)
        self._moved()
        return True

    def _fastest(self) -> int | None:
        """The furthest cursor of those who are attached; None if nobody is."""
        if self._followers:
            return self.sequence
        cursors = [reader.cursor for reader in self._readers]
        if self._elsewhere[0]:
            cursors.append(self._elsewhere[1])
        return max(cursors, default=None)

    def _has_more(self, after: int) -> bool:
        if after < 0 and self.state is State.STARTING:
            return self.ended is not None
        return self.sequence > after or self.ended is not None

    # -- telling ---------------------------------------------------------------------------------------------------

    def _tell_end(self, end: End) -> None:
        """Make the end known here."""
        self.ended = end
        self._let_go(end)
        self._wake()
        self._pauses = Pause.NONE  # not told: there is no source any more

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell_stored(self, cursor: int) -> None:
        """All up to a cursor is stored."""
        for stored, wanted in list(self._storing.items()):
            if wanted <= cursor and not stored.done():
                stored.set_result(None)
        tell(self._on_stored, cursor)

    def _tell_trouble(self, error: StoreError) -> None:
        """Nothing more was stored."""
        for stored in self._storing:
            if not stored.done():
                stored.set_exception(error)
        tell(self._on_trouble, error)

    def _tell_stop(self) -> bool:
        """Somebody asks for a stop; whether there is something to stop."""
        if self.ended is not None or self.state is State.ENDING:
            return False
        if not self.stop_requested:
            self.stop_requested = True
            tell(self._on_stop)
        return True

    # -- pausing ---------------------------------------------------------------------------------------------------

    def _pause(self, why: Pause) -> None:
        first = not self.paused
        self._pauses |= why
        if first:
            tell(self._on_pause)

    def _resume(self, why: Pause) -> None:
        if self._pauses is Pause.NONE:
            return
        left = self._pauses & ~why
        if left is not self._pauses:
            self._pauses = left
            if left is Pause.NONE:
                tell(self._on_resume)

    def _hold_back(self, held: int) -> None:
        """Pause the source for the fastest reader, with so many bytes in the log."""
        if Pause.READERS not in self._pauses:
            self._paused_at = held
            self._pause(Pause.READERS)

    def _goes_on(self, held: int, limit: int) -> bool:
        """Whether the source goes on although it was paused for the fastest reader, who then is waited for no more."""
        return Pause.READERS in self._pauses and held > self._paused_at + max(limit, BURST)

    def _make_room(self) -> None:
        """Drop the oldest records of a log that is full, and pause or resume the source by what is left."""
        raise NotImplementedError

    # -- ending ----------------------------------------------------------------------------------------------------

    def _end_record(self, reason: Reason, detail: bytes) -> End:
        return End(reason, detail, self.appended + 1, self.appended_offset)

    def _lose(self) -> None:
        """The lease ran out: what was not stored is not going to be."""
        self._lost = True
        self.state = State.ENDED
        if self.ended is None:
            self._tell_end(End("producer_lost", b"", self.sequence + 1, self.offset))
        for stored in self._storing:
            if not stored.done():
                stored.set_result(None)  # to look again, and raise
        tell(self._on_lost)

    def _refuse(self) -> NoReturn:
        """Say why nothing can be appended."""
        if self._lost:
            raise ProducerLost(f"stream {self.id}: the lease of epoch {self.epoch} ran out, and its streams have ended")
        if self.state is State.STARTING:
            raise RuntimeError("start() the stream before appending to it")
        raise RuntimeError("the stream has ended")
