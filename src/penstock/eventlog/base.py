"""The contract of every event log: opaque records under a cursor, one producer, one end.

A **stream** is a row of records that one producer appends and any number of readers follow. Record 0 is the head: what
is known before the first event, so that whoever answers for the stream can answer. The records after it are numbered
from 1, the *sequence*; each ends at an *offset*, the bytes of all records so far without the head. A **cursor** is the
sequence of the last record that a reader has: 0 is before the first one, -1 before the head.

==============  ===========================  ================================================================
state           comes by                     what can be done
==============  ===========================  ================================================================
STARTING        `EventLog.open`              join it, ask it to stop; the head may still change
RUNNING         `Producer.start`             append, read, follow
ENDING          `Producer.end`               read; the end is decided, and not stored yet
ENDED           the store                    read, until retention takes it
==============  ===========================  ================================================================

Each step is a compare-and-set, so a stream ends once, with exactly one `End`:

==================  =====================================================================================
reason              is written by
==================  =====================================================================================
``done``            the producer, when its source came to its proper end
``error``           the producer, when it did not
``cancelled``       the producer, when it was asked to stop
``producer_lost``   whoever looks at a stream whose producer's lease has run out, or whose process is gone
==================  =====================================================================================

**Leases.** A process that produces holds a lease, which it renews at a third of its length. Each lease has a number of
its own, the *epoch* of the streams that are opened under it. The store takes nothing under a lease that has run out,
and such a lease is never renewed: a producer that was stopped for too long can append nothing, whatever it believes.

**Promises.** What is appended ``fast`` is readable in this process at once and stored behind it: a crash may lose the
last of it, which ``producer_lost`` says. What is appended ``durable`` is readable nowhere before it is stored.

**No misses.** `Stream.read` by cursor and then `Stream.wait` with the same one is without a gap by construction: `wait`
is only a hint, and the cursor is the truth. `Reader.follow` goes over from reading to being told in one synchronous
step, in which nothing can be appended.

The log knows nothing of HTTP or SSE, and a record is never looked into.
"""

from __future__ import annotations

import enum
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, final

from penstock.errors import ReplayGap, StoreError

if TYPE_CHECKING:
    from penstock.eventlog.reader import Reader

Reason = Literal["done", "error", "cancelled", "producer_lost"]
Promise = Literal["fast", "durable"]

PAGE_RECORDS = 1024
PAGE_BYTES = 256 * 1024


class State(enum.Enum):
    """How far a stream is; the module's docstring has the table."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class End:
    """The one end of a stream.

    Attributes:
        reason: Why; the module's docstring has the table.
        detail: What the producer has to say of it, opaque.
        sequence: The end's own, one more than the last record's.
        offset: Where the last record ends [bytes].
    """

    reason: Reason
    detail: bytes
    sequence: int
    offset: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some consecutive records.

    Attributes:
        records: The records, oldest first. Read by offset, the first one lacks what lies before the offset.
        after: The cursor behind them, to read or wait on from. Where there are none, the one that was asked for; and
            for an offset at or beyond the end, the end's, of which the rest is to be read by offset again.
        offset: Where the last of them ends [bytes]; where there are none, where the stream ends so far.
        end: The stream's end, if nothing comes between the last of them and it.
    """

    records: Sequence[bytes]
    after: int
    offset: int
    end: End | None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream, as it is listed.

    Attributes:
        sequence: Of its last record, so the number of records it has had.
        offset: Where that ends, so the bytes it has had.
        earliest: The earliest cursor that can still be read from.
        readers: Readers that are attached, in whatever process, as far as is known.
        opened_at: When it was opened [s since the epoch of Unix].
        ended_at: When it ended; None while it has not.
    """

    id: str
    owner: str
    key: str | None
    epoch: int
    state: State
    sequence: int
    offset: int
    earliest: int
    readers: int
    opened_at: float
    ended: End | None
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a log keeps.

    Attributes:
        age: Seconds that a stream is kept after its end. One that runs is never too old.
        max_stream_bytes: Bytes kept of one stream; beyond them the oldest go. Where a reader is attached, not what the
            fastest has yet to read: the producer is paused instead.
        max_bytes: Bytes kept in all; beyond them the records of the stream that ended first go, and its end stays.
        max_streams: Streams kept; beyond them those that ended first are forgotten, and where all run, none is opened.
    """

    age: float = 300.0
    max_stream_bytes: int = 8 * 1024 * 1024
    max_bytes: int = 256 * 1024 * 1024
    max_streams: int = 10_000

    def __post_init__(self) -> None:
        if not (self.age >= 0 and 0 < self.max_stream_bytes <= self.max_bytes and self.max_streams >= 1):
            raise ValueError(
                f"retention needs age >= 0, 0 < max_stream_bytes <= max_bytes and max_streams >= 1; got {self}"
            )


DEFAULT_RETENTION = Retention()


def new_stream_id() -> str:
    """A name that nobody guesses: 128 random bits, in 22 characters that are safe in a URL and a header."""
    return secrets.token_urlsafe(16)


class Stream(ABC):
    """A stream as any reader sees it, in whatever process it is produced.

    Attributes:
        id: Its name, which is also what gives access to it where there are no owners.
        owner: Whose it is; "" is nobody's.
        key: What its owner calls it; None if nothing.
        epoch: The lease it is produced under.
        head: Record 0, opaque; final once the stream has left STARTING.
        state: How far it was when this handle last looked.
        sequence: Of the last record that this handle knows to be readable.
        offset: Where that ends [bytes].
        earliest: The earliest cursor that this handle knows to be readable.
        ended: The end, once this handle knows it.
    """

    __slots__ = ("earliest", "ended", "epoch", "head", "id", "key", "owner", "sequence", "state")

    def __init__(self, id: str, owner: str, key: str | None, epoch: int, head: bytes) -> None:
        self.id = id
        self.owner = owner
        self.key = key
        self.epoch = epoch
        self.head = head
        self.state = State.STARTING
        self.sequence = 0
        self.earliest = 0
        self.ended: End | None = None

    @property
    @abstractmethod
    def offset(self) -> int:
        """Where the last record that this handle knows to be readable ends [bytes]."""

    @property
    def stopping(self) -> bool:
        """Whether its producer was asked to stop, as far as this handle knows."""
        return False

    @final
    async def read(
        self,
        after: int = 0,
        *,
        offset: int | None = None,
        epoch: int | None = None,
        max_records: int = PAGE_RECORDS,
        max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Read what follows a cursor, as much of it as there is.

        A cursor that is ahead of all records gets an empty page: with the end, if the stream has ended. The records
        that its reader has beyond the end were sent and not stored, and nobody else will see them.

        Ordering: Records come in the order they were appended in, without a gap between this page and the next.
        Cancellation: Nothing is held.

        Args:
            after: The cursor; -1 to begin with the head, which a page has only once it is final.
            offset: Read from this offset [bytes] instead, within a record too.
            epoch: The epoch that the cursor was given in, where it comes from outside.
            max_records: Records in a page, at the most.
            max_bytes: Bytes in a page, at the most; but never less than one record.
        Raises:
            ReplayGap: What follows the cursor was evicted, or the cursor is of another epoch. `requested` and
                `earliest` are cursors, or offsets where an offset was asked for; reading goes on from `earliest`.
            StreamGone: Retention has taken the stream.
            StoreError: The store cannot be read.
        """
        if epoch is not None and epoch != self.epoch:
            earliest = self.earliest if offset is None else 0
            raise ReplayGap(
                f"cursor {after} of epoch {epoch}: the stream is of epoch {self.epoch}; read from {earliest} on",
                requested=after if offset is None else offset,
                earliest=earliest,
            )
        if offset is not None:
            return await self._read_bytes(offset, max_records, max_bytes)
        page = await self._read(max(after, 0), max_records, max_bytes)
        if after >= 0:
            return page
        if self.state is State.STARTING:
            return Page((), after, 0, None)
        return Page((self.head, *page.records), page.after, page.offset, page.end)

    @abstractmethod
    async def wait(self, after: int) -> None:
        """Wait until there may be something to read after a cursor: a record, the end, or for -1 the final head.

        A hint and no more: it may return for nothing, but never stays when there is something.

        Cancellation: Nothing is held.

        Raises:
            StreamGone: Retention has taken the stream.
            StoreError: The store cannot be asked.
        """

    @abstractmethod
    async def request_stop(self) -> bool:
        """Ask the producer to stop, in whatever process it is; it hears it by `on_stop`.

        Returns:
            Whether the stream had not ended when it was asked.
        Raises:
            StoreError: The request cannot be passed on.
        """

    def reader(self, after: int = 0, *, offset: int | None = None, epoch: int | None = None) -> Reader:
        """Attach a reader at a cursor, taken as `read` takes it. It must be closed: it is a context manager."""
        from penstock.eventlog.reader import Reader  # it is made of streams, as they are of it

        return Reader(self, after, offset, epoch)

    # -- for the backends; what readers need is optional -----------------------------------------------------------

    @abstractmethod
    async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
        """Read after a cursor that is not negative."""

    @abstractmethod
    async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
        """Read from an offset on."""

    def _attach(self, reader: Reader) -> None:  # noqa: B027
        """A reader has come."""

    def _detach(self, reader: Reader) -> None:  # noqa: B027
        """A reader has left."""

    def _moved(self) -> None:  # noqa: B027
        """The cursor of an attached reader has moved, or the reader has left."""

    def _follow(self, reader: Reader) -> bool:
        """Tell a reader what is appended from now on; False if it is not at the tail, or the tail is elsewhere."""
        return False

    def _unfollow(self, reader: Reader) -> None:  # noqa: B027
        """Tell it no more."""

    def _check_earliest(self, after: int) -> None:
        if after < self.earliest:
            raise ReplayGap(
                f"the records after {after} were evicted; read from {self.earliest} on",
                requested=after,
                earliest=self.earliest,
            )


class Producer(ABC):
    """The writing side of a stream, for the one who opened it.

    All of it is synchronous, and for the thread of the log's event loop only. What is appended is numbered here and
    stored behind: the first of a stream at once, then in one flush for all streams.

    Attributes:
        appended: The sequence of the last record that was appended; readable by others once it is `sequence`.
        appended_offset: Where that ends [bytes].
        last: That record itself.
        stored_sequence: The sequence of the last record that is stored; the end's own once that is.
        paused: Whether the source should be stopped: the log or its backlog is full. What is appended all the same is
            taken, up to as much again (and half a MiB, which may have been on its way); then the oldest go.
        stop_requested: Whether somebody asked for a stop.
    """

    __slots__ = ()

    stop_requested: bool

    @property
    @abstractmethod
    def appended(self) -> int:
        """The sequence of the last record that was appended."""

    @property
    @abstractmethod
    def appended_offset(self) -> int:
        """Where that ends [bytes]."""

    @property
    @abstractmethod
    def stored_sequence(self) -> int:
        """The sequence of the last record that is stored; the end's own once that is."""

    @property
    @abstractmethod
    def last(self) -> bytes:
        """The last record that was appended, as long as the stream runs; b"" before the first."""

    @property
    @abstractmethod
    def paused(self) -> bool:
        """Whether the source should be stopped."""

    @property
    @abstractmethod
    def readers(self) -> int:
        """Readers that are attached, those in other processes as far as is known."""

    @abstractmethod
    def start(self, head: bytes | None = None) -> bool:
        """Go from STARTING to RUNNING, with the final head where it is another one.

        Returns:
            False if the stream has already started, or ended.
        """

    @abstractmethod
    def append(self, records: Sequence[bytes]) -> int:
        """Append records; the cursor behind them.

        Ordering: They are numbered, told to followers and stored in the order of the calls; followers are told within
            the call.
        Atomicity: The records of one call are stored all or none.

        Args:
            records: Opaque and non-empty as a rule; the sequence is kept and must not change.
        Raises:
            ProducerLost: The lease ran out.
            RuntimeError: The stream does not run: not started, or ended.
        """

    @abstractmethod
    def end(self, reason: Reason, detail: bytes = b"") -> bool:
        """End the stream.

        Ordering: The end is stored with or behind all that was appended.
        Atomicity: A stream ends once: the first end stays.

        Returns:
            Whether this is the end; False if it had another, or the lease ran out.
        """

    @abstractmethod
    async def stored(self, cursor: int) -> None:
        """Wait until a record is stored; the end's `sequence` stands for the end.

        Cancellation: Nothing is held; the record is stored all the same.

        Raises:
            ProducerLost: It will not be: the lease ran out.
            StoreError: An attempt to store it failed. The log tries again; so may the caller.
            ValueError: There is no such record.
        """

    @abstractmethod
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
        """Be told what concerns the source, on the event loop; what holds already is told at once.

        Args:
            on_stop: Somebody asked for a stop: abort the source and `end` the stream.
            on_pause: The log or its backlog is full: stop the source.
            on_resume: It may go on.
            on_stored: All up to this cursor is stored.
            on_lost: The lease ran out, and the stream with it: abort the source. One that outlives that has not ended.
            on_trouble: The store failed; the log tries again, and holds what it can in the meantime.
            on_readers: So many are attached now; those in other processes are told of with some delay.
            outlive: Whether the stream goes on for those who read it here, ``fast`` as it is, when its place in the
                store is lost because the store is away for too long: nothing more of it is stored, all others get
                ``producer_lost``, and `on_lost` tells it. A log that has no such store takes no notice.
        """


class EventLog(ABC):
    """Streams by id, and by what their owners call them. A context manager: entering opens the store.

    Attributes:
        persistent: Whether what is stored outlives this process.
        shared: Whether other processes can be on the same store.
        distributed: Whether processes of other machines can: they go on when all of this one's end.
        retention: How much is kept.
        trouble: Why nothing can be stored at the moment; None while all is well.
    """

    trouble: StoreError | None
    persistent: bool
    shared: bool
    distributed: bool = False
    retention: Retention

    @abstractmethod
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
        """Create a stream, or join the one that runs under that key.

        Atomicity: Of all who open the same key of the same owner, in any process, one becomes the producer; the others
            join. A key names the latest stream: one that has ended gives it up to the next.
        Cancellation: A stream that was created is ended as ``cancelled``.

        Args:
            key: What the owner calls it; None never joins.
            owner: Whose it is; "" is nobody's, and a key of nobody's is shared by all.
            head: Record 0, as far as it is known.
            id: The stream's name; by default 128 random bits.
            promise: "fast" or "durable"; the module's docstring says which is what.
            replacing: The id of the stream that the key may be taken from although it runs: compare-and-set. That one
                is asked to stop. If the key names another by now, that one is joined.
        Returns:
            The stream, and its producer if it was created here; None if it was joined.
        Raises:
            LimitExceeded: There is no room for another stream: `max_streams` or `max_bytes`.
            StoreError: The store refused.
            ValueError: The id is taken.
        """

    @property
    def full(self) -> bool:
        """Whether `open` would find no room, as far as that is known without asking the store."""
        return False

    @abstractmethod
    async def get(self, id: str) -> Stream | None:
        """The stream of that id; None if there is none, or no longer."""

    @abstractmethod
    async def find(self, key: str, owner: str) -> Stream | None:
        """The latest stream of that key; None if there is none, or no longer."""

    @abstractmethod
    async def streams(self, owner: str | None = None) -> list[StreamInfo]:
        """The streams there are, the latest opened first; those of one owner, or all."""

    @abstractmethod
    async def start(self) -> None:
        """Open the store, take a lease, and end what producers that are gone have left.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Store what is left, end what still runs here as ``producer_lost``, and close.

        Cancellation: What is not stored by then is not stored; everything is let go of.
        """

    @abstractmethod
    def abort(self) -> None:
        """Close at once and store nothing more: what a crash would leave."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
