"""What the log in a file asks of SQLite, statement by statement. Blocking: it is called on threads of its own.

Every write is one IMMEDIATE transaction, which begins by asking whether the lease it is made under still holds. A lease
that ran out is never renewed, and the streams of its epoch are ended by others only after that: so whoever may write
knows that nobody else has ended its streams, and one question fences all of them.

===========================================  ==================================================================
a lease                                      holds
===========================================  ==================================================================
not yet run out, by no more than its length  yes
"run out" further ahead than its length      no: it is of a clock that has started anew since, with the machine
whose process is known to be gone            no
any other                                    no
===========================================  ==================================================================

All of a flush's batches go in by a few statements of many rows rather than by many of one: each statement gives up the
interpreter's lock, and to get that back from a busy event loop can take longer than all the rest.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import LimitExceeded, ProducerLost, StoreError, Trouble
from penstock.eventlog.base import Retention
from penstock.eventlog.batch import split
from penstock.eventlog.sqlite.presence import Presence

VERSION = 1
APPLICATION_ID = 0x50656E73  # "Pens"
SCHEMA = Path(__file__).with_name("schema.sql")

SEQUENCE_BITS = 32
CHECKPOINT_PAGES = 4000  # 16 MB: a page that a stream fills slowly is copied from the WAL once, and not at each flush
WIDTHS = (240, 30, 5, 1)  # rows in a statement; four values each stay below the 999 of an old SQLite

_REASONS: dict[int, Trouble] = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "not-a-log",
}
_ADVICE: dict[Trouble, str] = {
    "full": "there is no room left: free some, or raise max_file_bytes; nothing is acknowledged meanwhile",
    "locked": "another process keeps it locked: leave it to Penstock, or raise the timeout",
    "read-only": "it cannot be written: check its permissions, and those of its directory",
    "corrupt": "it is damaged: move it away with its -wal and -shm files, and start again",
    "not-a-log": "this is not an event log of Penstock: name another file",
    "unavailable": "it cannot be used",
}

Row = sqlite3.Row


class Opened(NamedTuple):
    """What became of an `open`."""

    row: Row
    created: bool
    replaced: str | None


class Batches(NamedTuple):
    """Records that were read, and where they end; `row` is None for a stream that is gone."""

    row: Row | None
    records: list[bytes]
    after: int
    offset: int


class Report(NamedTuple):
    """How many readers a stream has in one process, and the cursor of the furthest."""

    number: int
    readers: int
    cursor: int


class Changes(NamedTuple):
    """What others have done.

    Attributes:
        stops: The streams of ours that they ask to stop.
        moved: Those that were waited for and went on.
        readers: Who reads ours; None if that has not changed.
    """

    stops: list[str]
    moved: list[int]
    readers: list[Report] | None


@dataclass(slots=True)
class Flush:
    """What is stored in one transaction.

    Attributes:
        batches: Position, end offset, sizes and data of each, one after the other.
        starts: Final head (None: as it is) and number.
        ends: Reason, detail, sequence of the last record, its offset, and number.
        trims: Number, the offset up to which records go, the cursor beyond which none may.
        awaited: Whether somebody cannot see the records before they are stored.
        full: Whether it must be on the disk, not only in the kernel's hands.
    """

    batches: list[Any] = field(default_factory=list)
    starts: list[tuple[bytes | None, int]] = field(default_factory=list)
    ends: list[tuple[str, bytes, int, int, int]] = field(default_factory=list)
    trims: list[tuple[int, int, int]] = field(default_factory=list)
    awaited: bool = False
    full: bool = False


class Store:
    """One connection to the file, on one thread.

    Args:
        path: The file.
        timeout: Seconds to wait for another process's transaction.
        max_file_bytes: Size that the file must not outgrow; None for no bound but the disk.
        synchronous: "NORMAL" or "FULL".
        clock: The machine's monotonic seconds.
        wall: Seconds since the epoch of Unix.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout: float,
        max_file_bytes: int | None,
        synchronous: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._max_file_bytes = max_file_bytes
        self._synchronous = self._now_synchronous = synchronous
        self._clock = clock
        self._wall = wall
        self._presence = Presence(path)
        self._version = -1
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._connection: sqlite3.Connection | None = None
        self._abandoned = False

    # -- opening and closing ---------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the file, and make it what it must be.

        Raises:
            StoreError: It is not a log, or cannot be used.
        """
        with self._told():
            self._connection = sqlite3.connect(
                self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._db.row_factory = sqlite3.Row
                self._write_ahead()
                self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
                self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
                self._db.execute("PRAGMA journal_size_limit = 67108864")
                self._db.execute("PRAGMA cache_size = -16384")
                if self._version_of_schema() != VERSION:
                    with self._transaction():
                        self._make_schema()
                if self._max_file_bytes is not None:
                    pages = self._max_file_bytes // self._pragma("page_size")
                    self._db.execute(f"PRAGMA max_page_count = {max(pages, 1)}")
            except BaseException:
                self._connection.close()
                self._connection = None
                raise

    def close(self, *, tidy: bool = True, after: Future[None] | None = None) -> None:
        """Close the file.

        Args:
            tidy: Whether this process has nothing left to mend.
            after: What is to be done before.
        """
        if after is not None:
            wait([after])
        if self._connection is not None:
            self._connection.close()
        self._presence.leave(tidy=tidy)

    def abandon(self) -> None:
        """Have all that is asked from now on fail, but for `close`, and be gone for others; from any thread."""
        self._abandoned = True
        self._presence.leave(tidy=False)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None or self._abandoned:
            raise StoreError(f"{self._path}: the log is closed", reason="unavailable")
        return self._connection

    def register(self, lease: float) -> tuple[int, float]:
        """Take a lease: its epoch, and when it runs out."""
        with self._told(), self._transaction():
            until = self._clock() + lease
            epoch = self._db.execute(
                "INSERT INTO producers (lease, lease_until) VALUES (?, ?)", (lease, until)
            ).lastrowid
            assert epoch is not None
            try:
                self._presence.show(epoch)
            except OSError as error:
                raise StoreError(f"{self._path}: no lock file beside it: {error}", reason="unavailable") from error
        return epoch, until

    def retire(self, epoch: int) -> None:
        """Give a lease back, and with it what still runs under it."""
        with self._told(), self._transaction():
            self._db.execute("DELETE FROM producers WHERE epoch = ?", (epoch,))
            self._end_orphans()

    # -- writing ---------------------------------------------------------------------------------------------------

    def open(
        self,
        epoch: int,
        id: str,
        owner: str,
        key: str | None,
        head: bytes,
        *,
        replacing: str | None,
        max_streams: int,
        is_full: bool,
    ) -> Opened:
        """Create a stream, or find the one that runs under its key.

        Raises:
            ProducerLost: The lease ran out.
            LimitExceeded: So many run already, or the log is full of them.
            ValueError: The id is taken.
        """
        with self._told(), self._transaction():
            self._check_lease(epoch)
            held = None
            if key is not None:
                held = self._db.execute(
                    f"{_STREAM} JOIN keys USING (number) WHERE keys.owner = ? AND keys.key = ?", (owner, key)
                ).fetchone()
            if held is not None and held["reason"] is None:
                if not self._holds(held):
                    self._end_orphans()
                    held = None
                elif held["id"] != replacing:
                    return Opened(held, False, None)
            if is_full:
                raise LimitExceeded("the log is full of streams that run, and keeps no more", limit="max_bytes")
            self._admit(max_streams)
            try:
                number = self._db.execute(
                    "INSERT INTO streams (id, owner, key, epoch, head, opened_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (id, owner, key, epoch, head, self._wall()),
                ).lastrowid
            except sqlite3.IntegrityError:
                raise ValueError(f"there is a stream {id!r} already") from None
            if key is not None:
                self._db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", (owner, key, number))
            replaced = held["id"] if held is not None and held["reason"] is None else None
            if replaced is not None:
                self._db.execute("UPDATE streams SET stop = 1 WHERE id = ?", (replaced,))
            row = self._db.execute(f"{_STREAM} WHERE number = ?", (number,)).fetchone()
        return Opened(row, True, replaced)

    def write(self, epoch: int, flush: Flush) -> dict[int, tuple[int, int]]:
        """Store all of a flush, or nothing.

        Returns:
            Of the streams that were trimmed: up to which sequence and offset records are gone.
        Raises:
            ProducerLost: The lease ran out, or another one wrote in its place.
            StoreError: It is not stored.
        """
        with self._told():
            self._synchronize(full=flush.full)
            with self._transaction():
                self._check_lease(epoch)
                try:
                    self._insert(flush.batches)
                except sqlite3.IntegrityError as error:
                    raise ProducerLost(f"epoch {epoch}: somebody else has appended to its streams") from error
                self._db.executemany(
                    "UPDATE streams SET started = 1, head = coalesce(?, head) WHERE number = ?", flush.starts
                )
                self._db.executemany(
                    "UPDATE streams SET reason = ?, detail = ?, sequence = ?, offset = ?, ended_at = ? "
                    "WHERE number = ? AND reason IS NULL",
                    [(*end, self._wall(), number) for *end, number in flush.ends],
                )
                return {trim[0]: self._trim(*trim) for trim in flush.trims}

    def stop(self, number: int) -> bool:
        """Have a stream's producer asked to stop; whether it had not ended."""
        with self._told(), self._transaction():
            self._end_orphans()  # they would not hear it
            asked = self._db.execute("UPDATE streams SET stop = 1 WHERE number = ? AND reason IS NULL", (number,))
            return asked.rowcount > 0

    def renew(self, epoch: int, lease: float) -> float:
        """Renew a lease; when it runs out now.

        Raises:
            ProducerLost: It has run out already.
        """
        with self._told(), self._transaction():
            self._check_lease(epoch)
            until = self._clock() + lease
            self._db.execute("UPDATE producers SET lease_until = ? WHERE epoch = ?", (until, epoch))
            return until

    def end_orphans(self, *, look_for_processes: bool = False) -> None:
        """End the streams whose lease does not hold, with ``producer_lost``.

        Args:
            look_for_processes: Whether to ask which processes are gone, beside which leases.
        """
        with self._told():
            gone: list[int] = []
            if look_for_processes:
                epochs = [row["epoch"] for row in self._db.execute("SELECT epoch FROM producers")]
                gone = [epoch for epoch in epochs if self._presence.is_gone(epoch)]
            now = self._clock()
            if gone or self._db.execute(f"SELECT 1 FROM producers WHERE NOT {_HOLDS} LIMIT 1", (now, now)).fetchone():
                with self._transaction():
                    self._db.executemany("DELETE FROM producers WHERE epoch = ?", [(epoch,) for epoch in gone])
                    self._end_orphans()
                for epoch in gone:
                    self._presence.tidy(epoch)

    def sweep(self, retention: Retention, busy: Collection[int]) -> int:
        """Forget what ended too long ago, and shed records beyond the bound of all, those that ended first before.

        Args:
            retention: How much to keep.
            busy: Streams that somebody reads here, which are not forgotten; nor are those that others read, by reports.
        Returns:
            By how many bytes the streams that run are beyond the bound.
        """
        with self._told():
            now = self._wall()
            with self._transaction():
                # A clock that went back would keep these for long.
                self._db.execute("UPDATE streams SET ended_at = ? WHERE ended_at > ?", (now, now + 60))
                old = self._db.execute(
                    "SELECT number FROM streams WHERE reason IS NOT NULL AND ended_at <= ? AND number NOT IN "
                    "(SELECT number FROM readers JOIN producers USING (epoch))",
                    (now - retention.age,),
                ).fetchall()
                for row in old:
                    if row["number"] not in busy:
                        self._forget(row["number"])
                held = self._db.execute(f"SELECT coalesce(sum({_HELD}), 0) FROM streams").fetchone()[0]
                excess = int(held) - retention.max_bytes
                while excess > 0:
                    oldest = self._db.execute(
                        "SELECT number, sequence, offset, offset - dropped_offset AS held FROM streams "
                        "WHERE reason IS NOT NULL AND dropped < sequence ORDER BY ended_at, number LIMIT 1"
                    ).fetchone()
                    if oldest is None:
                        break
                    self._evict(oldest["number"], oldest["sequence"], oldest["offset"])
                    excess -= oldest["held"]
            return max(excess, 0)

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, id: str, age: float) -> Row | None:
        """The stream of an id."""
        with self._told():
            found: Row | None = self._db.execute(
                f"{_STREAM} WHERE id = ? AND (ended_at IS NULL OR ended_at > ?)", (id, self._wall() - age)
            ).fetchone()
            return found

    def find(self, key: str, owner: str, age: float) -> Row | None:
        """The latest stream of a key."""
        with self._told():
            found: Row | None = self._db.execute(
                f"{_STREAM} JOIN keys USING (number) WHERE keys.owner = ? AND keys.key = ? "
                "AND (ended_at IS NULL OR ended_at > ?)",
                (owner, key, self._wall() - age),
            ).fetchone()
            return found

    def streams(self, owner: str | None, age: float) -> list[Row]:
        """All streams, or those of one owner, the latest first."""
        with self._told():
            return self._db.execute(
                f"{_STREAM} WHERE (ended_at IS NULL OR ended_at > ?) AND (? IS NULL OR streams.owner = ?) "
                "ORDER BY number DESC",
                (self._wall() - age, owner, owner),
            ).fetchall()

    def read(self, number: int, after: int, offset: int | None, max_records: int, max_bytes: int) -> Batches:
        """Read records behind a cursor, or from an offset on; none if they begin with evicted ones.

        All of it sees one state of the file.
        """
        with self._told():
            self._db.execute("BEGIN")
            try:
                row = self._db.execute(f"{_STREAM} WHERE number = ?", (number,)).fetchone()
                if row is None:
                    return Batches(None, [], after, 0)
                if offset is None:
                    if after < row["dropped"] or after >= row["last"]:
                        return Batches(row, [], after, row["last_offset"])
                    return self._records(row, after, 0, max_records, max_bytes)
                if offset < row["dropped_offset"] or offset >= row["last_offset"]:
                    return Batches(row, [], row["last"], row["last_offset"])
                return self._records(row, row["dropped"], offset, max_records, max_bytes)
            finally:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.execute("COMMIT")

    def changes(self, epoch: int, waiting: Sequence[int], reports: Sequence[Report]) -> Changes:
        """What others have done since the last call; and tell them who reads what here.

        A stream that was not waited for at the last call has gone on in any case.
        """
        with self._told():
            self.end_orphans()
            if reports:
                self._report(epoch, reports)
            version = self._pragma("data_version")
            if version == self._version and self._seen.keys() >= set(waiting):
                return Changes([], [], None)
            self._version = version
            stops = self._db.execute(
                "SELECT id FROM streams WHERE epoch = ? AND stop = 1 AND reason IS NULL", (epoch,)
            ).fetchall()
            before, self._seen = self._seen, {number: self._progress(number) for number in waiting}
            moved = [number for number, progress in self._seen.items() if before.get(number) != progress]
            readers = self._db.execute(
                "SELECT number, sum(readers), max(cursor) FROM readers JOIN streams USING (number) "
                "WHERE streams.epoch = ? AND readers.epoch != streams.epoch AND reason IS NULL GROUP BY number",
                (epoch,),
            ).fetchall()
            return Changes([row["id"] for row in stops], moved, [Report(*row) for row in readers])

    def readers_elsewhere(self, epoch: int) -> dict[int, int]:
        """Readers in other processes, by stream."""
        with self._told():
            rows = self._db.execute(
                "SELECT number, sum(readers) FROM readers WHERE epoch != ? AND epoch IN (SELECT epoch FROM producers) "
                "GROUP BY number",
                (epoch,),
            )
            return dict(map(tuple, rows))

    def _report(self, epoch: int, reports: Sequence[Report]) -> None:
        with self._transaction():
            for report in reports:
                self._db.execute("DELETE FROM readers WHERE number = ? AND epoch = ?", (report.number, epoch))
                if report.readers:
                    self._db.execute(
                        "INSERT INTO readers SELECT number, ?, ?, ? FROM streams WHERE number = ?",
                        (epoch, report.readers, report.cursor, report.number),
                    )

    def _progress(self, number: int) -> tuple[Any, ...]:
        row = self._db.execute(f"SELECT started, reason, {_LAST} FROM streams WHERE number = ?", (number,)).fetchone()
        return () if row is None else tuple(row)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _records(self, row: Row, after: int, offset: int, max_records: int, max_bytes: int) -> Batches:
        first = row["number"] << SEQUENCE_BITS
        records: list[bytes] = []
        end = row["dropped_offset"]
        room = max_bytes
        for position, end_offset, sizes, data in self._db.execute(
            "SELECT position, end_offset, sizes, data FROM batches WHERE position > ? AND position <= ? "
            "AND end_offset > ? ORDER BY position",
            (first + after, first + (1 << SEQUENCE_BITS) - 1, offset or -1),
        ):
            pieces = split(sizes, data)
            sequence = position - first - len(pieces)
            end = end_offset - len(data)
            for piece in pieces:
                sequence += 1
                end += len(piece)
                if sequence <= after or (offset and end <= offset):
                    continue
                if records and (len(records) >= max_records or len(piece) > room):
                    return Batches(row, records, after, end - len(piece))
                if offset and end - len(piece) < offset:
                    piece = piece[offset - end :]
                records.append(piece)
                room -= len(piece)
                after = sequence
            if len(records) >= max_records or room <= 0:
                break
        return Batches(row, records, after, end)

    def _insert(self, values: list[Any]) -> None:
        begin, left = 0, len(values) // 4
        for width in WIDTHS:
            while left >= width:
                self._db.execute(_INSERT[width], values[begin : begin + 4 * width])
                begin += 4 * width
                left -= width

    def _check_lease(self, epoch: int) -> None:
        now = self._clock()
        held = self._db.execute(f"SELECT 1 FROM producers WHERE epoch = ? AND {_HOLDS}", (epoch, now, now)).fetchone()
        if held is None:
            raise ProducerLost(f"the lease of epoch {epoch} ran out")

    def _holds(self, row: Row) -> bool:
        now = self._clock()
        return row["lease_until"] is not None and row["lease_until"] - row["lease"] <= now < row["lease_until"]

    def is_orphan(self, row: Row) -> bool:
        """Whether a stream that has not ended has nobody who could end it."""
        return row["reason"] is None and not self._holds(row)

    def _end_orphans(self) -> None:
        self._version = -1  # `changes` learns of others' commits only, and this is ours
        now = self._clock()
        self._db.execute(f"DELETE FROM producers WHERE NOT {_HOLDS}", (now, now))
        self._db.execute("DELETE FROM readers WHERE epoch NOT IN (SELECT epoch FROM producers)")
        self._db.execute(
            f"UPDATE streams SET reason = 'producer_lost', detail = x'', ended_at = ?, sequence = {_LAST}, "
            f"offset = {_LAST_OFFSET} WHERE reason IS NULL AND epoch NOT IN (SELECT epoch FROM producers)",
            (self._wall(),),
        )

    def _admit(self, max_streams: int) -> None:
        excess = self._db.execute("SELECT count(*) FROM streams").fetchone()[0] + 1 - max_streams
        if excess <= 0:
            return
        oldest = self._db.execute(
            "SELECT number FROM streams WHERE reason IS NOT NULL ORDER BY ended_at, number LIMIT ?", (excess,)
        ).fetchall()
        if len(oldest) < excess:
            raise LimitExceeded(f"{max_streams} streams run, and the log keeps no more", limit="max_streams")
        for row in oldest:
            self._forget(row["number"])

    def _trim(self, number: int, offset: int, fastest: int) -> tuple[int, int]:
        """Drop the batches that end within an offset and a cursor, but never the last one."""
        first, last = _span(number)
        kept = self._db.execute(
            "SELECT position FROM batches WHERE position > ? AND position <= ? AND end_offset > ? "
            "ORDER BY position LIMIT 1",
            (first, last, offset),
        ).fetchone()
        if kept is None:
            kept = self._db.execute(
                "SELECT max(position) FROM batches WHERE position > ? AND position <= ?", (first, last)
            ).fetchone()
        dropped = self._db.execute(
            "SELECT position, end_offset FROM batches WHERE position > ? AND position <= ? AND position < ? "
            "ORDER BY position DESC LIMIT 1",
            (first, first + fastest, kept[0] or 0),
        ).fetchone()
        if dropped is not None:
            self._evict(number, dropped["position"] - first, dropped["end_offset"])
        row = self._db.execute("SELECT dropped, dropped_offset FROM streams WHERE number = ?", (number,)).fetchone()
        return row["dropped"], row["dropped_offset"]

    def _evict(self, number: int, sequence: int, offset: int) -> None:
        first = number << SEQUENCE_BITS
        self._db.execute("DELETE FROM batches WHERE position > ? AND position <= ?", (first, first + sequence))
        self._db.execute(
            "UPDATE streams SET dropped = ?, dropped_offset = ? WHERE number = ?", (sequence, offset, number)
        )

    def _forget(self, number: int) -> None:
        self._db.execute("DELETE FROM batches WHERE position > ? AND position <= ?", _span(number))
        self._db.execute(
            "DELETE FROM keys WHERE number = ? AND (owner, key) IN (SELECT owner, key FROM streams WHERE number = ?)",
            (number, number),
        )
        self._db.execute("DELETE FROM readers WHERE number = ?", (number,))
        self._db.execute("DELETE FROM streams WHERE number = ?", (number,))

    def _synchronize(self, *, full: bool) -> None:
        wanted = "FULL" if full else self._synchronous
        if wanted != self._now_synchronous:
            self._db.execute(f"PRAGMA synchronous = {wanted}")
            self._now_synchronous = wanted

    def _write_ahead(self) -> None:
        """Have a write-ahead log; two that start at once can be in each other's way, whatever the timeout."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise StoreError(f"{self._path}: no write-ahead log is possible there", reason="unavailable")
            return

    def _version_of_schema(self) -> int:
        version = self._pragma("user_version")
        if version > VERSION and self._pragma("application_id") == APPLICATION_ID:
            raise StoreError(
                f"{self._path}: written by a later Penstock (version {version}, this one knows {VERSION}): "
                "update Penstock, or name another file",
                reason="newer",
            )
        return version if self._pragma("application_id") == APPLICATION_ID else 0

    def _make_schema(self) -> None:
        if self._version_of_schema() == VERSION:
            return  # another process was quicker
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self._path}: {_ADVICE['not-a-log']}", reason="not-a-log")
        script = "\n".join(line.partition("--")[0] for line in SCHEMA.read_text().splitlines())
        for statement in script.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in our words what SQLite says."""
        try:
            yield
        except sqlite3.Error as error:
            raise told(error, self._path) from error


def told(error: sqlite3.Error, path: Path) -> StoreError:
    """What an error of SQLite means to a user of the log."""
    reason = _REASONS.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF, "unavailable")
    return StoreError(f"{path}: {_ADVICE[reason]} (SQLite: {error})", reason=reason)


def _span(number: int) -> tuple[int, int]:
    """Before the first, and the last position that a stream can have."""
    return number << SEQUENCE_BITS, ((number + 1) << SEQUENCE_BITS) - 1


# Not to be rolled back by itself, so that SQLite need not note what each row of it changes.
_INSERT = {width: f"INSERT OR ROLLBACK INTO batches VALUES {', '.join(['(?, ?, ?, ?)'] * width)}" for width in WIDTHS}

_HOLDS = "(lease_until - lease <= ? AND ? < lease_until)"
_IN_STREAM = "position > streams.number << 32 AND position < (streams.number + 1) << 32"
_LAST = f"coalesce((SELECT max(position) FROM batches WHERE {_IN_STREAM}) - (streams.number << 32), dropped)"
_LAST_OFFSET = (
    f"coalesce((SELECT end_offset FROM batches WHERE {_IN_STREAM} ORDER BY position DESC LIMIT 1), dropped_offset)"
)
_HELD = f"length(head) + coalesce(offset, {_LAST_OFFSET}) - dropped_offset"
_STREAM = (
    "SELECT streams.*, lease, lease_until, "
    f"coalesce(sequence, {_LAST}) AS last, coalesce(offset, {_LAST_OFFSET}) AS last_offset "
    "FROM streams LEFT JOIN producers USING (epoch)"
)
