"""One upstream's stream, from before its head to its one end. Readers come and go; the session stays.

Theory of operation. A session runs in a task of its own, so that it outlives the request that began it. The upstream's
callback makes records of the bytes and appends them to the log, and the log tells its followers within that call: a
reader at the tail is written to in the upstream's own callback.

==============  ===================================================  =========================================
phase           what happens                                         its reader leaves
==============  ===================================================  =========================================
opening         the upstream is asked, and its head is waited for    by the policy; but if the request's body
                                                                     had not come whole, it is cancelled
passing         the body is not logged: the one reader has it        the upstream is cancelled
running         the body is logged, and readers follow               by the policy, with the last of them
ended           its end is in the log                                nothing
==============  ===================================================  =========================================

The policy on the last reader's leaving: *cancel* the upstream at once; a *grace* of so many seconds for somebody to
come back; *detach*, and run to the end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from penstock.client.response import Response
from penstock.errors import (
    InBandError,
    LimitExceeded,
    PenstockError,
    ProducerLost,
    StoreError,
    StreamError,
    StreamTruncated,
)
from penstock.eventlog.base import Producer, Stream
from penstock.eventlog.base import Reason as LogReason
from penstock.eventlog.reader import Reader
from penstock.relay.downstream.early import Unanswered
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.relay.streams.ends import TOLD, Dialect, Kind, StreamEnd, said, spoken_in
from penstock.relay.streams.feed import Feed, Ids, SseFeed, feed_for
from penstock.relay.streams.head import Head
from penstock.relay.streams.marks import id_line
from penstock.relay.upstream.headers import Raw
from penstock.wire.terminator import PROFILES, Failure, Judgement, Terminator

logger = logging.getLogger("penstock.relay")

STOPPING = "the relay is stopping"
LOST = "the lease ran out"
UNSURE = "the relay stopped before the store had the end"

OnEnd = Callable[[StreamEnd], Awaitable[None] | None]


class StoppedEarly(StreamError):
    """The stream was stopped before its head was known."""


class Session:
    """The producing side of one logged stream.

    Args:
        on_disconnect: What becomes of it without readers.
        ids: Whose ids the blocks of an event stream carry.
        max_event_bytes: The longest block or line.
        terminator: How an event stream says that it is whole.
        on_end: Called once, at whatever end of a logged stream.

    Attributes:
        opened: What the upstream answered: the head of a logged stream, or a response for its reader to pass on; fails
            where there is none.
        readers: How many are here.
        received: Bytes of the body, once that is over.
        take: Takes bytes of the source's, once it has begun; for a callback, so it does not raise.
        cookies: What the upstream set on whoever began the stream; neither stored nor replayed.
        end: How it ended; None as long as it runs, and where it was not logged.
        framed: Whether anything but the end of the upstream's connection says where its body ends.
        policy: Its route's, for readers that come to it by its id.
        kept: Whether who has left can come back to it.
        asked_in: The dialect of the request, where nothing that came tells the stream's.
        may_repeat: Whether its request may be made again: no upstream has been asked yet, or asking twice does no harm.
        is_own: Whether its source is a generator of one's own, and no upstream.
    """

    policy: Policy | None = None
    may_repeat = True
    is_own = False
    framed = True
    asked_in: Dialect | None = None

    def __init__(
        self,
        *,
        on_disconnect: OnDisconnect,
        ids: Ids = "auto",
        max_event_bytes: int = 1 << 20,
        terminator: Terminator | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        self.opened: asyncio.Future[Head | Response] = asyncio.get_running_loop().create_future()
        self.readers = 0
        self.take: Callable[[bytes], None]
        self.cookies: Raw = []
        self.kept = True
        self.end: StreamEnd | None = None
        self.received = 0
        self.started_at = time.monotonic()
        self._on_disconnect = on_disconnect
        self._ids = ids
        self._max_event_bytes = max_event_bytes
        self._terminator = None if terminator == PROFILES["none"] else terminator
        self._on_end = on_end
        self._feed: Feed | None = None
        self._dialect: Dialect | None = None
        self._kind: Kind = "bytes"
        self._status: int | None = None
        self._task: asyncio.Task[None] | None = None  # while the source runs
        self._cancelled = False
        self._attached = 0
        self._grace: asyncio.TimerHandle | None = None
        self._why = ""
        self._fault: PenstockError | None = None
        self._pause_source: Callable[[], None] | None = None
        self._resume_source: Callable[[], None] | None = None
        self._unpaused: asyncio.Event | None = None
        self._bound: tuple[Stream, Producer] | None = None
        self._seat: Reader | None = None
        self._passed_on = asyncio.Event()
        self._settled = False

    @property
    def first_at(self) -> float | None:
        """When the first record came [monotonic seconds]; None before."""
        return None if self._feed is None else self._feed.first_at

    @property
    def bound(self) -> bool:
        """Whether it has a place in the log yet."""
        return self._bound is not None

    @property
    def event_count(self) -> int:
        """Events so far; of what is no event stream, lines or pieces."""
        return 0 if self._feed is None else self.producer.appended - self._feed.no_events

    @property
    def has_begun(self) -> bool:
        """Whether the upstream has answered."""
        return self.opened.done() and self.opened.exception() is None

    @property
    def cancelled(self) -> bool:
        """Whether its source was told to end."""
        return self._cancelled

    @property
    def stream(self) -> Stream:
        """What it produces, as readers see it; once it is bound."""
        assert self._bound is not None
        return self._bound[0]

    @property
    def producer(self) -> Producer:
        """The same, to write to."""
        assert self._bound is not None
        return self._bound[1]

    def bind(self, stream: Stream, producer: Producer, *, kept: bool = True) -> None:
        """Give it its place in the log, by which it can be stopped before it has begun.

        Args:
            kept: Whether that is the relay's; from any other nobody reads again.
        """
        self._bound = stream, producer
        if not kept:
            self._unkeep()
        producer.watch(
            on_stop=self.stop,
            on_pause=self._pause,
            on_resume=self._resume,
            on_lost=self._lost,
            on_readers=self._read_by,
            outlive=self.policy is not None and self.policy.without_store == "live",
        )

    def _lost(self) -> None:
        """Its place in the log is lost; whether it goes on without is the log's to say."""
        if self.stream.ended is not None:
            self.stop(LOST)
        else:
            logger.warning("stream %s: %s; it goes on for those who are here, and is not kept", self.stream.id, LOST)
            self._unkeep()

    def _unkeep(self) -> None:
        self.kept = False
        self._ids = "upstream"
        if isinstance(self._feed, SseFeed):
            self._feed.unmark()
        if self._on_disconnect.kind == "grace":
            self._on_disconnect = OnDisconnect("cancel")

    # -- readers -------------------------------------------------------------------------------------------------

    def came(self) -> None:
        """A reader is here."""
        self.readers += 1
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def left(self) -> None:
        """A reader has left."""
        self.readers -= 1
        if self._seat is not None:
            self._seat.close()
            self._seat = None
        self._alone()

    def _read_by(self, attached: int) -> None:
        """So many read the log, in other processes too."""
        self._attached = attached
        if attached and self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._alone()

    def _alone(self) -> None:
        """Do what the policy says, if nobody reads any more."""
        if self.readers > 0 or self._attached > 0 or self._settled or self._grace is not None:
            return
        match self._on_disconnect.kind:
            case "cancel":
                self.stop("the reader left")
            case "grace":
                seconds = self._on_disconnect.grace
                loop = asyncio.get_running_loop()
                self._grace = loop.call_later(seconds, self.stop, f"nobody came back within {seconds:g} s")
            case "detach":
                pass

    def seat(self) -> Reader:
        """A reader at the beginning, for whoever began the stream.

        It is attached since before the first record, so that a log that is full pauses the source for it.
        """
        seat, self._seat = self._seat, None
        return self.stream.reader() if seat is None else seat

    def stop(self, why: str = "it was stopped") -> None:
        """Abort the source; the stream ends as cancelled."""
        self._why = self._why or why
        self._cancel()

    def _cancel(self) -> None:
        # Once, and not by a cancel scope, which would cancel again whatever a source awaits in its `finally`.
        if not self._cancelled:
            self._cancelled = True
            if self._task is not None:
                self._task.cancel()

    # -- the source ----------------------------------------------------------------------------------------------

    def begin(self, head: Head) -> None:
        """The head is known: the stream runs."""
        self._kind, self._dialect = head.kind, head.dialect or spoken_in(head.headers)
        self._status = head.status
        stream, producer = self.stream, self.producer
        self._feed = feed_for(head.kind, stream.id, stream.epoch, ids=self._ids, max_event_bytes=self._max_event_bytes)
        self._feed.into(producer, self._refused)
        self.take = self._feed.take
        producer.start(head.encoded())
        if self.readers:
            self._seat = self.stream.reader()
        if not self.opened.done():
            self.opened.set_result(head)

    async def hand_over(self, response: Response) -> None:
        """The body is not logged: its reader passes it on; wait until it has."""
        self.opened.set_result(response)
        await self._passed_on.wait()

    def passed_on(self) -> None:
        """The reader has passed on what was handed over, or has left."""
        self._passed_on.set()

    def _refused(self, error: Exception) -> None:
        """What came could not be appended."""
        if isinstance(error, LimitExceeded):
            most = f"{self._max_event_bytes:,} bytes; raise limits.max_event_bytes if such are expected"
            self._fail(LimitExceeded(f"an event or line is longer than {most}", limit="max_event_bytes"))
        elif isinstance(error, PenstockError):
            self._fail(error)
        else:
            self._cancel()  # it has ended: what still comes is in vain

    def _fail(self, error: PenstockError) -> None:
        if self._fault is None:
            self._fault = error
        self._cancel()

    def _pause(self) -> None:
        if self._pause_source is not None:
            self._pause_source()
        if self._unpaused is not None:
            self._unpaused.clear()

    def _resume(self) -> None:
        if self._resume_source is not None:
            self._resume_source()
        if self._unpaused is not None:
            self._unpaused.set()

    def _attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause_source, self._resume_source = pause, resume
        if self.producer.paused:
            pause()

    # -- running -------------------------------------------------------------------------------------------------

    async def run(self, source: Callable[[Session], Awaitable[None]]) -> None:
        """Run the source to its end, and settle: whoever reads is told by the log.

        Cancellation: the source is cancelled, and the stream ends as cancelled.

        Raises:
            KeyboardInterrupt, SystemExit: The source raised it; it is for the process, once the stream has settled.
        """
        error: BaseException | None = None
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._work(source, task)
        except BaseException as raised:
            if isinstance(raised, GeneratorExit) and not _runs(task):
                raise  # it is not the source's: a loop that is gone can settle nothing
            error = raised
        if self._cancelled and task.cancelling():
            task.uncancel()  # that one was ours
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # and where the source did not wait any more, it is still to be raised
        reason, detail = self._judged(error)
        await self._settle(reason, detail, error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        if task.cancelling():
            raise asyncio.CancelledError

    async def _work(self, source: Callable[[Session], Awaitable[None]], task: asyncio.Task[None]) -> None:
        if self._cancelled:
            return
        self._task = task
        try:
            await source(self)
            self._finish()
        finally:
            self._task = None

    def _finish(self) -> None:
        """The body is over: see whether it is whole, and log the rest of it.

        Raises:
            InBandError, StreamTruncated: It is not.
        """
        feed = self._feed
        if feed is None:
            return
        rest = feed.close(self.producer.appended + 1)
        if feed.unfinished and not self.framed:
            raise StreamTruncated("the upstream closed the connection in the middle of an event")
        self._check_whole()
        if rest:
            feed.append(rest)

    def _judged(self, error: BaseException | None) -> tuple[LogReason, str]:
        """How the source ended, and why."""
        if self._fault is not None:
            return "error", str(self._fault)
        is_bug = error is not None and not isinstance(error, PenstockError | asyncio.CancelledError)
        if not is_bug and self._last_judged() == "end":
            return "done", ""  # what becomes of its connection after that is nothing to its readers
        if self._cancelled:
            return "cancelled", self._why
        if error is None:
            return "done", ""
        if isinstance(error, asyncio.CancelledError):
            return "cancelled", STOPPING
        if isinstance(error, PenstockError):
            return "error", str(error)
        name = self.stream.id if self._bound is not None else "of no id yet"
        logger.error("stream %s: its source failed", name, exc_info=error)
        return "error", f"the source failed: {type(error).__name__}"

    def _check_whole(self) -> None:
        """See whether the stream's own protocol has come to its end, where it has one.

        Raises:
            InBandError: The last event says that it failed.
            StreamTruncated: The last event is not its end.
        """
        judgement, terminator = self._last_judged(), self._terminator
        if isinstance(judgement, Failure):
            raise InBandError(f"the stream itself said that it failed: {judgement}")
        if judgement not in ("end", None) and terminator is not None and terminator.required:
            raise StreamTruncated(f"the stream ended without its {terminator.ends_with}")

    def _last_judged(self) -> Judgement | None:
        """What the last event is to the stream's own protocol; None where it has none."""
        feed, terminator = self._feed, self._terminator
        return None if terminator is None or not isinstance(feed, SseFeed) else feed.last_judged(terminator)

    async def _settle(self, reason: LogReason, detail: str, error: BaseException | None) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._settled = True
        if not self.opened.done():
            known = isinstance(error, Exception) and reason == "error"
            self.opened.set_exception(error if known and error else StoppedEarly(detail))
            self.opened.exception()  # that nobody waits for it is no fault
        if self._bound is None:
            return
        self.producer.end(reason, b"" if reason == "done" else self._said(reason, error, stopping=detail == STOPPING))
        if self.policy is not None and self.policy.promise == "durable" and (unstored := await self._unstored()):
            reason, detail = "producer_lost", unstored
        ended = self.stream.ended
        if isinstance(error, Unanswered):
            self._status = error.status  # of the head no more is true than that there was one
        end = self.end = self._stream_end(reason if ended is None else ended.reason, detail)
        logger.log(
            logging.INFO if end.reason in ("done", "cancelled") else logging.WARNING,
            "stream %s: %s after %d events, %d bytes, %.3f s%s",
            end.id,
            end.reason,
            end.event_count,
            end.byte_count,
            end.duration,
            f": {detail}" if detail else "",
        )
        if self._on_end is not None:
            try:
                waits = self._on_end(end)
                if waits is not None:
                    await waits
            except Exception:
                logger.exception("stream %s: on_end failed", end.id)

    async def _unstored(self) -> str:
        """Wait until the end is stored, for as long as the log tries; "" once it is, else why it may never be."""
        while True:
            try:
                await self.producer.stored(self.producer.appended + 1)
                return ""
            except StoreError:
                continue  # the next attempt is waited for, too
            except ProducerLost:
                return LOST
            except asyncio.CancelledError:
                return UNSURE  # `run` raises it again

    def _said(self, reason: LogReason, error: BaseException | None, *, stopping: bool) -> bytes:
        """The terminal event, with the id of the end's own place."""
        if self._feed is None or self._kind == "bytes":
            return b""
        if isinstance(error, InBandError):
            return TOLD
        message = "the stream failed before its end" if self.is_own and reason == "error" else _public(reason)
        kind = "error" if self.is_own and reason == "error" else None
        if self._kind == "ndjson":
            return said("ndjson", reason, message, kind=kind)
        dialect = self._dialect or self._feed.dialect or self.asked_in or "penstock"
        early = error if isinstance(error, Unanswered) else None
        if early is None:
            event = said(dialect, reason, message, kind=kind)
            retry_ms = random.randint(1000, 5000) if stopping else None  # all will be back at once, if they may
            is_final = reason == "cancelled" and not stopping
        else:
            event = said(dialect, reason, early.told, early.status)
            retry_ms = early.retry_ms
            is_final = retry_ms is None
        if retry_ms is not None:
            event = b"retry: %d\n%b" % (retry_ms, event)
        if self._is_marked(is_final, anew=early is not None and not is_final):
            place = id_line(self.stream.id, self.stream.epoch)
            return b"%b%d\n%b" % (place, self.producer.appended + 1, event)
        return event

    def _is_marked(self, is_final: bool, *, anew: bool) -> bool:
        """Whether the terminal event has an id, by which an EventSource that comes back is told that it has it all."""
        feed = self._feed
        if not isinstance(feed, SseFeed) or anew or not self.kept:
            return False
        return feed.marked or (is_final and feed.silent and self._ids == "auto")

    def _stream_end(self, reason: LogReason, detail: str) -> StreamEnd:
        feed = self._feed

        async def read() -> list[bytes]:
            records: list[bytes] = []
            cursor = self.stream.earliest
            while (page := await self.stream.read(cursor)).records:
                records += page.records
                cursor = page.after
            return records

        return StreamEnd(
            id=self.stream.id,
            key=self.stream.key,
            owner=self.stream.owner or None,
            reason=reason,
            detail=detail,
            event_count=self.event_count,
            byte_count=self.received,
            first_event=None if self.first_at is None else self.first_at - self.started_at,
            duration=time.monotonic() - self.started_at,
            usage=None if feed is None else feed.usage.total(),
            status=self._status,
            _kind=self._kind,
            _read=read,
        )


async def pour(session: Session, response: Response) -> None:
    """Take a response's body: in the callbacks that bring it, where the engine carries it."""
    session.framed = response.is_framed
    if response.can_push:
        try:
            await response.push(session.take, session._attach)
        finally:
            session.received = response.bytes_received
    else:
        await draw(session, response.raw())


async def draw(session: Session, pieces: AsyncIterator[bytes]) -> None:
    """Take what an iterator yields, as wire bytes; it is asked for more when the log has room."""
    unpaused = session._unpaused = asyncio.Event()
    if not session.producer.paused:
        unpaused.set()
    async for data in pieces:
        if session.cancelled:
            raise asyncio.CancelledError  # a generator may have swallowed its own
        session.received += len(data)
        session.take(data)
        await unpaused.wait()


def _runs(task: asyncio.Task[None]) -> bool:
    """Whether this is called within the task's own step, and not by who throws its coroutine away."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def _public(reason: LogReason) -> str:
    """What a reader is told: not where the upstream lives, nor what went wrong within."""
    return {
        "error": "the stream broke off before its end",
        "cancelled": "the stream was stopped",
    }.get(reason, "the stream was lost")
