"""The logged streams of one relay: those that are produced here, and the log that all of them are in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, TypeVar

import anyio

from penstock.errors import LimitExceeded, PenstockError, StoreError
from penstock.eventlog.base import EventLog, Promise, Retention, Stream, StreamInfo
from penstock.eventlog.memory import MemoryLog
from penstock.relay.downstream.handover import Handover
from penstock.relay.downstream.reader import OnAsked
from penstock.relay.settings.policy import WithoutStore
from penstock.relay.streams.ends import StreamEnd
from penstock.relay.streams.session import STOPPING, Session
from penstock.relay.streams.store_breaker import StoreBreaker

logger = logging.getLogger("penstock.relay")

AFTER_STOP = 10.0
"""Seconds that streams which were stopped have for what their sources and `on_end` still do."""

LAST_WORDS = 1.0
"""Seconds that readers have to be told that their stream was stopped; one that does not read has not."""

THREADS = 256
"""Threads of a relay's own, for generators that are not async: each has one while it makes its next item."""

T = TypeVar("T")
IfRunning = Literal["join", "conflict", "replace"]
OnSettled = Callable[[StreamEnd], None]


class Running(Exception):
    """A stream of that key runs already, and is not to be joined.

    Attributes:
        stream: The one that runs.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.id)
        self.stream = stream


class NoRoom(PenstockError):
    """The log takes no other stream now: it is full, or the store does not do its work."""


UNKEPT = Retention(age=0.0, max_stream_bytes=1024 * 1024)
"""Of what is relayed while the store is away: nothing is left of it once it has ended, and nobody comes back to it."""

PROBE = "0" * 22
"""A stream that there is not."""


class Streams:
    """What of a relay outlives a request.

    Args:
        log: Where the streams are kept.

    Attributes:
        breaker: Knows whether the store answers.
        threads: What generators that are not async run in.
        draining: Whether no new stream begins any more.
        handover: What sends readers to other relays when this one drains; None where there are no others.
        on_asked: All are called with each request of a reader's, whatever it asks for.
        on_settled: All are called with each stream's end, in the context of the request that began it.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[asyncio.Task[None], Session] = {}
        self._readers: dict[str, int] = {}
        self._starting: asyncio.Task[None] | None = None
        self._unkept: MemoryLog | None = None
        self.breaker = StoreBreaker()
        self.threads = anyio.CapacityLimiter(THREADS)
        self.draining = False
        self.handover = Handover() if log.distributed else None
        self.on_asked: list[OnAsked] = []
        self.on_settled: list[OnSettled] = []

    async def ready(self) -> None:
        """Open the log, once, at the first use; after a failure, at the next.

        Raises:
            StoreError: It cannot be opened.
        """
        if self._starting is None or _failed(self._starting):
            self._starting = asyncio.create_task(self.log.start())
        await asyncio.shield(self._starting)

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, under its breaker; it is opened first."""

        async def opened() -> T:
            await self.ready()
            return await ask()

        return await self.breaker.ask(opened)

    def session(self, stream: Stream) -> Session | None:
        """The session that produces a stream, where that is here."""
        return self._sessions.get(stream.id)

    @property
    def sessions(self) -> list[Session]:
        """Those that run here and have a place in the log."""
        return list(self._sessions.values())

    @property
    def store_away(self) -> bool:
        """Whether the store does not answer, or takes nothing."""
        return self.breaker.away or self.log.trouble is not None

    @property
    def running(self) -> int:
        """Sessions that run here."""
        return len(self._tasks)

    async def claim(
        self,
        session: Session,
        key: str | None,
        owner: str,
        *,
        if_running: IfRunning = "join",
        promise: Promise = "fast",
        without_store: WithoutStore = "refuse",
    ) -> Stream | None:
        """Give a session its place in the log.

        Args:
            session: What has no place yet.
            key: What its owner calls it.
            owner: Whose it is.
            if_running: What to do when one of that key runs.
            promise: Whether it is stored before it is sent.
            without_store: "live" gives it a place that ends with it, where the store does not do its work.
        Returns:
            None; or the stream that runs under that key already, to be joined instead.
        Raises:
            Running: One runs, and `if_running` is "conflict".
            NoRoom: The log does not take it.
        """
        replacing: str | None = None
        while True:
            try:
                opening = partial(self.log.open, key, owner, b"", promise=promise, replacing=replacing)
                stream, producer = await self._ask(opening)
            except (LimitExceeded, StoreError) as error:
                if isinstance(error, StoreError) and without_store == "live":
                    logger.warning("a stream is relayed, and not kept: %s", error)
                    await self._let_live(session)
                    return None
                logger.warning("a stream is not begun: %s", error)
                raise NoRoom("the relay cannot keep another stream now") from error
            if producer is not None:
                session.bind(stream, producer)
                self._sessions[stream.id] = session
                return None
            if not stream.stopping:  # whoever asks behind a stop asks for another
                if if_running == "join":
                    return stream
                if if_running == "conflict":
                    raise Running(stream)
            replacing = stream.id

    async def _let_live(self, session: Session) -> None:
        if self._unkept is None:
            self._unkept = MemoryLog(retention=UNKEPT)
            await self._unkept.start()
        try:
            stream, producer = await self._unkept.open(None, "", b"")
        except LimitExceeded as error:
            raise NoRoom("the store does not answer, and the relay holds no other stream without it") from error
        assert producer is not None
        session.bind(stream, producer, kept=False)

    async def check(self, without_store: WithoutStore) -> None:
        """See that there is room, and that the store answers, if it did not before.

        Args:
            without_store: "live" does without the store.
        Raises:
            NoRoom: There is none, or it does not.
        """
        if self.log.full:
            raise NoRoom("the relay cannot keep another stream now")
        if self.breaker.away and without_store == "refuse":
            try:
                await self._ask(lambda: self.log.get(PROBE))
            except StoreError as error:
                raise NoRoom("the relay cannot keep another stream now") from error

    def start(self, session: Session, source: Callable[[Session], Awaitable[None]]) -> asyncio.Task[None]:
        """Run a session in a task of its own."""
        task = asyncio.create_task(session.run(source))
        self._tasks[task] = session

        def done(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            if session.bound:
                self._sessions.pop(session.stream.id, None)
            if session.end is not None:
                for tell in self.on_settled:
                    tell(session.end)

        task.add_done_callback(done)
        return task

    async def get(self, id: str, *owners: str | None) -> Stream | None:
        """The stream of that id, if one of these owns it; None for a stranger, as if there were none.

        Raises:
            StoreError: It is not produced here, and the store does not tell.
        """
        stream = await self.look(id)
        return stream if stream is not None and (not stream.owner or stream.owner in owners) else None

    async def look(self, id: str) -> Stream | None:
        """The stream of that id, whoever owns it; of one that is produced here the store is not asked.

        Raises:
            StoreError: As `get`.
        """
        session = self._sessions.get(id)
        if session is not None and session.kept:
            return session.stream
        return await self._ask(lambda: self.log.get(id))

    async def find(self, key: str, owner: str | None) -> Stream | None:
        """The latest stream of that key and owner; while the store does not answer, the one that is produced here.

        Raises:
            StoreError: None is, and the store does not tell.
        """
        try:
            return await self._ask(lambda: self.log.find(key, owner or ""))
        except StoreError:
            for session in reversed(self._sessions.values()):
                if session.kept and (session.stream.key, session.stream.owner) == (key, owner or ""):
                    return session.stream
            raise

    async def listed(self) -> list[StreamInfo]:
        """All streams there are, the latest first.

        Raises:
            StoreError: The store does not tell.
        """
        return await self._ask(self.log.streams)

    def readers(self, stream: Stream) -> int:
        """How many read a stream here, wherever it is or was produced."""
        session = self.session(stream)
        return max(self._readers.get(stream.id, 0), 0 if session is None else session.readers)

    @contextmanager
    def reading(self, stream: Stream) -> Iterator[None]:
        """A reader of a stream is here."""
        self._readers[stream.id] = self._readers.get(stream.id, 0) + 1
        try:
            yield
        finally:
            left = self._readers.pop(stream.id) - 1
            if left:
                self._readers[stream.id] = left

    async def stop(self, stream: Stream) -> bool:
        """Ask for a stream's end; whether it had not ended yet."""
        session = self.session(stream)
        if session is not None and not session.kept:
            session.stop()
            return True
        return await (self._ask(stream.request_stop) if session is None else session.stream.request_stop())

    async def drain(self, grace: float) -> None:
        """Begin no new stream, send readers to other relays, and let what runs come to its end, at most so long [s].

        Cancellation: as if the grace were over; the streams still run.
        """
        self.draining = True
        if self.handover is not None:
            self.handover.begin()
        if self._tasks and grace > 0:
            await asyncio.wait(self._tasks, timeout=grace)

    async def stop_all(self) -> None:
        """Stop what runs, and wait until those who read it have been told, in the stream, to come back.

        Cancellation: what was stopped still ends.
        """
        running = dict(self._tasks)
        for session in running.values():
            session.stop(STOPPING)
        if running:
            _, late = await asyncio.wait(running, timeout=AFTER_STOP)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=AFTER_STOP)
        for _ in range(200):  # a reader that leaves tells nobody but its session
            if not any(session.readers for session in running.values()):
                break
            await asyncio.sleep(LAST_WORDS / 200)

    async def aclose(self, grace: float = 0.0) -> None:
        """Begin nothing new, let what runs end within the grace, cancel the rest, and close the log."""
        await self.drain(grace)
        await self.stop_all()
        if self._unkept is not None:
            await self._unkept.aclose()
        if self._starting is not None:
            try:
                await self._starting
            except StoreError:
                return  # it was never open
            await self.log.aclose()


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
