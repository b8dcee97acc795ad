"""The event log in a SQLite file, for one process or for the workers of one machine.

Appends are held here and stored by a thread, all streams' in one transaction, a *flush*:

========================================  =======================================================================
what is to be stored                      is flushed
========================================  =======================================================================
a start, an end, the first records of a   at once, or as soon as the flush before is done
stream
anything else                             after a tick: 10 ms, and longer the more streams took part in the flush
                                          before (0.4 ms each, 200 ms at the most; half of that, if one of them is
                                          durable or read by another process, so that somebody waits for it)
what a flush that failed had              again after 0.2 s, until it is stored or the lease runs out
========================================  =======================================================================

So few streams are stored at once, and many share pages and transactions: what is stored costs least in batches.

What is not stored yet is read from memory, the rest by a thread of its own. The workers look every 25 ms whether the
file has changed, if they wait for a stream of another one or could be asked to stop one of theirs; that costs one read
of shared memory. Leases are on the machine's monotonic clock, which its processes share, so a wall clock that jumps
ends nothing. The age of what has ended is on the wall clock of the process's start, carried on by the monotonic one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from penstock.errors import ProducerLost, StoreError
from penstock.eventlog.base import (
    DEFAULT_RETENTION,
    EventLog,
    Producer,
    Promise,
    Retention,
    State,
    Stream,
    StreamInfo,
    new_stream_id,
)
from penstock.eventlog.buffered import Backlog
from penstock.eventlog.live import Pause
from penstock.eventlog.sqlite.store import Batches, Changes, Flush, Opened, Report, Row, Store
from penstock.eventlog.sqlite.stream import SqliteStream, StoredStream, end_of, state_of

TICK = 0.01
TICK_PER_STREAM = 0.0004
MAX_TICK = 0.2
RETRY = 0.2
POLL = 0.025

T = TypeVar("T")


class SqliteLog(EventLog):
    """Streams in a file. Its directory must be on a local disk, and be Penstock's to write to.

    Args:
        path: The file; it is made where there is none.
        retention: How much is kept.
        lease: Seconds after which a process that does not renew its lease has lost its streams.
        synchronous: "NORMAL": what is stored survives the process; "FULL": the machine's power too. What is promised
            as durable is always stored as by "FULL".
        max_backlog: Bytes that wait to be stored, beyond which sources are paused.
        max_file_bytes: Size that the file must not outgrow; None for no bound but the disk.
        timeout: Seconds to wait for another process's transaction.
        clock: Monotonic seconds that all processes of the machine share.
        wall: Seconds since the epoch of Unix.
        new_id: Makes the names of streams that come without.
    """

    persistent = True
    shared = True
    trouble: StoreError | None = None

    def __init__(
        self,
        path: str | Path,
        *,
        retention: Retention = DEFAULT_RETENTION,
        lease: float = 15.0,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        max_backlog: int = 16 * 1024 * 1024,
        max_file_bytes: int | None = None,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_stream_id,
    ) -> None:
        if not (lease > 0 and max_backlog > 0 and timeout >= 0):
            raise ValueError(f"lease and max_backlog must be positive, timeout not negative; got {lease}, {timeout}")
        if synchronous not in ("NORMAL", "FULL"):
            raise ValueError(f'synchronous is "NORMAL" or "FULL", not {synchronous!r}')
        self.retention = retention
        self._lease = lease
        self._clock = clock
        self._new_id = new_id
        self._wall_offset = wall() - clock()
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "max_file_bytes": max_file_bytes,
            "synchronous": synchronous,
            "clock": clock,
            "wall": self._wall,
        }
        self._path = Path(path)
        self._writes: Store
        self._reads: Store
        self._writer: ThreadPoolExecutor
        self._reader: ThreadPoolExecutor
        self._loop: asyncio.AbstractEventLoop
        self._closed = True
        self._epoch: int | None = None
        self._lease_until = 0.0
        self._live: dict[str, SqliteStream] = {}
        self._ending: set[SqliteStream] = set()  # of those with a key: their ends are not stored yet
        self._dirty: list[SqliteStream] = []
        self._backlog = Backlog(max_backlog)
        self._excess = 0
        self._unswept = 0
        self._flushing: asyncio.Future[dict[int, tuple[int, int]]] | None = None
        self._flush_timer: asyncio.Handle | None = None
        self._flush_is_soon = False  # and no later call can bring it forward
        self._urgent = False
        self._tick = TICK
        self._beat_timer: asyncio.TimerHandle | None = None
        self._retaking: asyncio.Task[None] | None = None
        self._poll_timer: asyncio.TimerHandle | None = None
        self._polling = False
        self._waiting: dict[int, StoredStream] = {}
        self._stored: WeakValueDictionary[str, StoredStream] = WeakValueDictionary()
        self._attached: Counter[int] = Counter()
        self._read_here: set[SqliteStream | StoredStream] = set()
        self._to_report: set[SqliteStream | StoredStream] = set()
        self._reported: dict[int, Report] = {}  # of the streams that somebody reads

    # -- opening and closing ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file, take a lease, and end what producers that are gone have left; see `EventLog.start`.

        After a failure it can be tried again.
        """
        self._writes, self._reads = Store(self._path, **self._options), Store(self._path, **self._options)
        self._writer = ThreadPoolExecutor(1, "penstock-log-writer")
        self._reader = ThreadPoolExecutor(1, "penstock-log-reader")
        self._loop = asyncio.get_running_loop()
        self._registering = asyncio.Lock()
        self._closed = False
        try:
            await self._write(self._writes.connect)
            await self._read(self._reads.connect)
            await self._register()
        except BaseException:
            self.abort()
            raise

    async def aclose(self) -> None:
        """Store what is left, end what still runs here as ``producer_lost``, and close."""
        if self._closed:
            return
        tidy = False
        try:
            for stream in list(self._live.values()):
                stream.end("producer_lost")
            while self._flushing is not None or (self._dirty and self._epoch is not None):
                self._flush()
                if self._flushing is not None:
                    await asyncio.wait([self._flushing])
                if self.trouble is not None:
                    break
            if self._epoch is not None:
                await self._write(self._writes.retire, self._epoch)
            tidy = not self._dirty
        except (StoreError, ProducerLost):
            pass  # the next one to look ends what is left
        finally:
            await asyncio.wait([asyncio.wrap_future(self._close(tidy=tidy))])

    def abort(self) -> None:
        """Close at once and store nothing more: what a crash would leave."""
        if not self._closed:
            self._writes.abandon()
            self._reads.abandon()
            self._close(tidy=False)

    def _close(self, *, tidy: bool) -> Future[None]:
        """Let go of everything; done when the file is closed."""
        self._closed = True
        for timer in (self._flush_timer, self._beat_timer, self._poll_timer):
            if timer is not None:
                timer.cancel()
        if self._retaking is not None:
            self._retaking.cancel()
        reading = self._reader.submit(self._reads.close)
        # Last of all the one that writes: SQLite then leaves one file, and not its write-ahead log too.
        closing = self._writer.submit(lambda: self._writes.close(tidy=tidy, after=reading))
        self._reader.shutdown(wait=False)
        self._writer.shutdown(wait=False)
        self._lose_all(self._epoch)
        for stream in list(self._waiting.values()):
            stream._wake()
        return closing

    # -- streams ---------------------------------------------------------------------------------------------------

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
        name = id or self._new_id()
        while True:
            await self._register()
            epoch = self._epoch
            assert epoch is not None
            try:
                await self._settled(key, owner)
            except ProducerLost:
                continue
            opening = self._submit(
                self._writer,
                self._writes.open,
                epoch,
                name,
                owner,
                key,
                head,
                replacing=replacing,
                max_streams=self.retention.max_streams,
                is_full=self._excess > 0,
            )
            try:
                opened = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(lambda done: self._unwanted(done, promise))
                raise
            except ProducerLost:
                self._lose_all(epoch)  # the machine slept for long, it may be: another lease, then
            else:
                return self._handle_opened(opened, promise)

    async def _settled(self, key: str | None, owner: str) -> None:
        """Wait until a stream of that key which has ended here is stored as such."""
        if key is not None:
            for stream in self._ending:
                if (stream.owner, stream.key) == (owner, key):
                    await stream.stored(stream.appended + 1)
                    return

    async def get(self, id: str) -> Stream | None:
        """The stream of that id; None if there is none, or no longer."""
        return self._live.get(id) or self._handle(await self._look(self._reads.get, id, self.retention.age))

    async def find(self, key: str, owner: str) -> Stream | None:
        """The latest stream of that key; None if there is none, or no longer."""
        return self._handle(await self._look(self._reads.find, key, owner, self.retention.age))

    async def streams(self, owner: str | None = None) -> list[StreamInfo]:
        """The streams there are, the latest opened first; those of one owner, or all."""
        await self._write(self._writes.end_orphans)
        elsewhere = await self._read(self._reads.readers_elsewhere, self._epoch or 0)
        rows = await self._read(self._reads.streams, owner, self.retention.age)
        return [self._info(row, elsewhere.get(row["number"], 0)) for row in rows]

    def _handle_opened(self, opened: Opened, promise: Promise) -> tuple[Stream, Producer | None]:
        if opened.replaced is not None and (replaced := self._live.get(opened.replaced)) is not None:
            replaced._tell_stop()
        if not opened.created:
            stream = self._handle(opened.row)
            assert stream is not None
            return stream, None
        row = opened.row
        created = SqliteStream(self, row, promise)
        if row["epoch"] == self._epoch:
            self._live[created.id] = created
            self._poll_later()
        else:
            created._lose()  # the lease ran out meanwhile
        return created, created

    def _unwanted(self, opening: asyncio.Future[Opened], promise: Promise) -> None:
        if not opening.cancelled() and opening.exception() is None and not self._closed:
            _, producer = self._handle_opened(opening.result(), promise)
            if producer is not None:
                producer.end("cancelled")

    async def _look(self, look: Callable[..., Row | None], *arguments: Any) -> Row | None:
        row = await self._read(look, *arguments)
        if row is not None and self._reads.is_orphan(row):
            await self._write(self._writes.end_orphans)
            row = await self._read(look, *arguments)
        return row

    def _handle(self, row: Row | None) -> Stream | None:
        if row is None:
            return None
        if (live := self._live.get(row["id"])) is not None:
            return live
        stored = self._stored.get(row["id"])
        if stored is None:
            stored = self._stored[row["id"]] = StoredStream(self, row)
        else:
            stored._look_at(row)
        return stored

    def _info(self, row: Row, readers_elsewhere: int) -> StreamInfo:
        live = self._live.get(row["id"])
        end = live.ended if live is not None else end_of(row)
        return StreamInfo(
            id=row["id"],
            owner=row["owner"],
            key=row["key"],
            epoch=row["epoch"],
            state=live.state if live is not None else state_of(row),
            sequence=live.sequence if live is not None else row["last"],
            offset=live.offset if live is not None else row["last_offset"],
            earliest=row["dropped"],
            readers=self._attached[row["number"]] + readers_elsewhere,
            opened_at=row["opened_at"],
            ended=end,
            ended_at=row["ended_at"],
        )

    # -- flushing --------------------------------------------------------------------------------------------------

    def _mark(self, stream: SqliteStream, *, urgent: bool) -> None:
        """A stream has something to store."""
        self._dirty.append(stream)
        self._flush_later(urgent=urgent)

    def _flush_later(self, *, urgent: bool) -> None:
        self._urgent = self._urgent or urgent
        if self._closed or self._flushing is not None:
            return
        if self._flush_timer is not None:
            if self._flush_is_soon or not urgent:
                return
            self._flush_timer.cancel()
        self._flush_is_soon = self._urgent
        if self._urgent:
            self._flush_timer = self._loop.call_soon(self._flush)
        else:
            self._flush_timer = self._loop.call_later(self._tick, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._flushing is not None or self._epoch is None or not self._dirty:
            return
        self._urgent = self._flush_is_soon = False
        flush = Flush()
        streams, self._dirty = self._dirty, []
        limit = self._stream_limit()
        for stream in streams:
            stream._collect(flush, limit)
        tick = min(TICK_PER_STREAM * len(streams), MAX_TICK)
        self._tick = max(TICK, tick / 2 if flush.awaited else tick)
        epoch = self._epoch
        self._flushing = self._submit(self._writer, self._writes.write, epoch, flush)
        self._flushing.add_done_callback(lambda done: self._flushed(done, epoch, streams))

    def _flushed(
        self, done: asyncio.Future[dict[int, tuple[int, int]]], epoch: int, streams: list[SqliteStream]
    ) -> None:
        self._flushing = None
        error = done.exception()
        if self._closed:
            return
        if self._epoch != epoch:  # those streams are lost already
            if self._dirty:
                self._flush_later(urgent=True)
            return
        if error is None:
            self.trouble = None
            trimmed, limit = done.result(), self._stream_limit()
            for stream in streams:
                stream._collected(limit, trimmed.get(stream._number))
            if self._backlog.has_eased():
                for stream in list(self._live.values()):
                    stream._resume(Pause.BACKLOG)
            if self._unswept > self.retention.max_bytes // 16:
                self._unswept = 0
                self._later(self._sweep(), self._swept)
            if self._dirty:
                self._flush_later(urgent=self._urgent)
        elif isinstance(error, StoreError):
            self.trouble = error
            for stream in streams:
                stream._not_collected()
            self._dirty = list(dict.fromkeys([*streams, *self._dirty]))
            self._flush_is_soon = True
            self._flush_timer = self._loop.call_later(RETRY, self._flush)
            for stream in streams:
                stream._tell_trouble(error)
        else:
            self._lose_all(epoch)
            if not isinstance(error, ProducerLost):
                raise error

    def _stream_limit(self) -> int:
        """Bytes that one stream may keep: less, where all together are beyond the bound."""
        if not self._excess:
            return self.retention.max_stream_bytes
        return min(self.retention.max_stream_bytes, self.retention.max_bytes // max(len(self._live), 1))

    # -- lease -----------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        async with self._registering:
            if self._epoch is not None:
                return
            await self._write(self._writes.end_orphans, look_for_processes=True)
            self._epoch, self._lease_until = await self._write(self._writes.register, self._lease)
            self._beat_later()
            self._later(self._sweep(), self._swept)
            self._report_again()

    async def _retake(self) -> None:
        """Take another lease as soon as there is one to be had: whoever has none does not count as a reader."""
        while self._epoch is None:
            try:
                await self._register()
            except StoreError as error:
                self.trouble = error
                await asyncio.sleep(RETRY)

    def _beat_later(self) -> None:
        left = self._lease_until - self._clock()
        self._beat_timer = self._loop.call_later(max(min(left, self._lease / 3), 0.0), self._beat)

    def _beat(self) -> None:
        self._beat_timer = None
        if self._epoch is None:
            return
        if self._clock() >= self._lease_until:
            self._lose_all(self._epoch)
            return
        busy = set(self._attached)
        self._later(self._submit(self._writer, self._renew_and_sweep, self._epoch, busy), self._beaten, self._epoch)
        self._beat_later()

    def _renew_and_sweep(self, epoch: int, busy: set[int]) -> tuple[float, int]:
        """On the writer's thread."""
        until = self._writes.renew(epoch, self._lease)
        self._writes.end_orphans(look_for_processes=True)
        return until, self._writes.sweep(self.retention, busy)

    def _beaten(self, result: tuple[float, int]) -> None:
        self.trouble = None
        self._lease_until, excess = result
        self._swept(excess)

    def _sweep(self) -> asyncio.Future[int]:
        return self._submit(self._writer, self._writes.sweep, self.retention, set(self._attached))

    def _swept(self, excess: int) -> None:
        self._excess = excess
        if excess:
            limit = self._stream_limit()
            for stream in list(self._live.values()):
                if stream._stored_bytes() > limit:
                    stream._make_room()

    def _lose_all(self, epoch: int | None) -> None:
        """The lease of an epoch ran out, and with it all that is produced here."""
        if self._epoch != epoch:
            return  # that is known already, and there may be another one
        self._epoch = None
        if self._beat_timer is not None:
            self._beat_timer.cancel()
            self._beat_timer = None
        if not self._closed:
            self._retaking = self._loop.create_task(self._retake())
        self._dirty = []
        self._ending.clear()
        lost, self._live = self._live, {}
        for stream in lost.values():
            if stream.state is not State.ENDED:
                stream._lose()

    # -- other processes -------------------------------------------------------------------------------------------

    def _wait_for(self, number: int, stream: StoredStream) -> None:
        """Have a stream woken when it may have gone on."""
        self._waiting[number] = stream
        self._poll_later()

    def _report(self, stream: SqliteStream | StoredStream) -> None:
        """Have others told who reads a stream here."""
        if stream._readers:
            self._read_here.add(stream)
        else:
            self._read_here.discard(stream)
        self._to_report.add(stream)
        self._poll_later()

    def _poll_later(self) -> None:
        needed = self._live or self._waiting or self._to_report
        if needed and self._poll_timer is None and not self._polling and not self._closed:
            self._poll_timer = self._loop.call_later(POLL, self._poll)

    def _poll(self) -> None:
        self._poll_timer = None
        self._polling = True
        told = self._reports() if self._epoch is not None else {}
        reports = list(told.values())
        asked = self._submit(self._writer, self._writes.changes, self._epoch or 0, list(self._waiting), reports)
        asked.add_done_callback(lambda done: self._polled(done, told))

    def _reports(self) -> dict[SqliteStream | StoredStream, Report]:
        """What has changed of who reads here."""
        changed = {}
        for stream in self._to_report:
            report = stream._report()
            if report != self._reported.get(report.number, Report(report.number, 0, -1)):
                changed[stream] = report
                if report.readers:
                    self._reported[report.number] = report
                else:
                    del self._reported[report.number]
        self._to_report.clear()
        return changed

    def _polled(self, done: asyncio.Future[Changes], told: dict[SqliteStream | StoredStream, Report]) -> None:
        self._polling = False
        error = done.exception()
        if self._closed:
            return
        if error is None:
            changes = done.result()
            for stopped in changes.stops:
                if (stream := self._live.get(stopped)) is not None:
                    stream._tell_stop()
            for number in changes.moved:
                if (waiting := self._waiting.pop(number, None)) is not None:
                    waiting._wake()
            if changes.readers is not None:
                readers = {report.number: report for report in changes.readers}
                for stream in list(self._live.values()):
                    report = readers.get(stream._number)
                    stream._attached_elsewhere(*(report[1:] if report is not None else (0, -1)))
        elif isinstance(error, StoreError):
            for report in told.values():  # told again, and that nobody reads it any more too
                self._reported[report.number] = report._replace(readers=-1)
            self._to_report.update(told)
        else:
            raise error
        self._poll_later()

    def _report_again(self) -> None:
        """What was reported was under a lease that is gone."""
        self._reported.clear()
        self._to_report = set(self._read_here)
        self._poll_later()

    # -- clocks and threads ----------------------------------------------------------------------------------------

    def _wall(self) -> float:
        return self._wall_offset + self._clock()

    def _submit(
        self, executor: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any, **options: Any
    ) -> asyncio.Future[T]:
        if self._closed:
            raise StoreError(f"{self._path}: the log is closed", reason="unavailable")
        return self._loop.run_in_executor(executor, lambda: call(*arguments, **options))

    async def _write(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await self._submit(self._writer, call, *arguments, **options)

    def _read_file(
        self, number: int, after: int, offset: int | None, max_records: int, max_bytes: int
    ) -> asyncio.Future[Batches]:
        reading = self._submit(self._reader, self._reads.read, number, after, offset, max_records, max_bytes)
        reading.add_done_callback(_had)
        return reading

    async def _read(self, call: Callable[..., T], *arguments: Any) -> T:
        return await self._submit(self._reader, call, *arguments)

    def _later(self, work: asyncio.Future[T], then: Callable[[T], None], epoch: int | None = None) -> None:
        """Have a result looked at that nobody awaits."""

        def look(done: asyncio.Future[T]) -> None:
            error = done.exception()
            if self._closed:
                return
            if error is None:
                then(done.result())
            elif isinstance(error, ProducerLost):
                self._lose_all(epoch)
            elif isinstance(error, StoreError):
                self.trouble = error
                for stream in list(self._live.values()):
                    stream._tell_trouble(error)
            else:
                raise error

        work.add_done_callback(look)


def _had(done: asyncio.Future[Any]) -> None:
    """Whoever asked may have left: nobody needs to hear of a failure then."""
    if not done.cancelled():
        done.exception()
