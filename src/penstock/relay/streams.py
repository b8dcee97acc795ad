"""The logged streams of one relay: those that are produced here, and the log that all of them are in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from penstock.errors import LimitExceeded, PenstockError, StoreError
from penstock.eventlog.base import EventLog, Promise, Retention, Stream
from penstock.eventlog.memory import MemoryLog
from penstock.relay.downstream import OnAsked
from penstock.relay.ends import StreamEnd
from penstock.relay.handover import Handover
from penstock.relay.policy import WithoutStore
from penstock.relay.session import STOPPING, Session
from penstock.relay.store_breaker import StoreBreaker

logger = logging.getLogger("penstock.relay")

AFTER_STOP = 10.0
"""Seconds that streams which were stopped have for what their sources and `on_end` still do."""

LAST_WORDS = 1.0
"""Seconds that readers have to be told that their stream was stopped; one that does not read has not."""

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


UNKEPT = Retention(age=0.0)
"""Of what is relayed while the store is away: nothing is left of it once it has ended."""

PROBE = "0" * 22
"""A stream that there is not."""


class Streams:
    """What of a relay outlives a request.

    Args:
        log: Where the streams are kept.

    Attributes:
        breaker: Knows whether the store answers.
        draining: Whether no new stream begins any more.
        handover: What sends readers to other relays when this one drains; None where there are no others.
        on_asked: All are called with each request of a reader's, whatever it asks for.
        on_settled: All are called with each stream's end, in the context of the request that began it.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[asyncio.Task[None], Session] = {}
        self._starting: asyncio.Task[None] | None = None
        self._unkept: MemoryLog | None = None
        self.breaker = StoreBreaker()
        self.draining = False
        self.handover = Handover() if log.distributed else None
        self.on_asked: list[OnAsked] = []
        self.on_settled: list[OnSettled] = []

    async def ready(self) -> None:
        """Open the log, once, at the first use.

        Raises:
            StoreError: It cannot be opened, and will not be.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self.log.start())
        await asyncio.shield(self._starting)

    def session(self, stream: Stream) -> Session | None:
        """The session that produces a stream, where that is here."""
        return self._sessions.get(stream.id)

    @property
    def sessions(self) -> list[Session]:
        """Those that run here and have a place in the log."""
        return list(self._sessions.values())

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
        """Give a session its place in the log; or one that ends with it, where the store is away and the policy says so.

        Returns:
            None; or the stream that runs under that key already, to be joined instead.
        Raises:
            Running: One runs, and `if_running` is "conflict".
            NoRoom: The log does not take it.
        """
        replacing: str | None = None
        while True:
            try:
                await self.ready()
                opening = partial(self.log.open, key, owner, b"", promise=promise, replacing=replacing)
                stream, producer = await self.breaker.ask(opening)
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
            if if_running == "join":
                return stream
            if if_running == "conflict":
                raise Running(stream)
            replacing = stream.id

    async def _let_live(self, session: Session) -> None:
        if self._unkept is None:
            self._unkept = MemoryLog(retention=UNKEPT)
            await self._unkept.start()
        stream, producer = await self._unkept.open(None, "", b"")
        assert producer is not None
        session.bind(stream, producer, kept=False)

    async def check(self) -> None:
        """See that the store answers, if it did not before.

        Raises:
            NoRoom: It does not.
        """
        if self.breaker.away:
            try:
                await self.breaker.ask(lambda: self.log.get(PROBE))
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
        """The stream of that id, if one of these owns it; None for a stranger, as if there were none."""
        await self.ready()
        stream = await self.breaker.ask(lambda: self.log.get(id))
        return stream if stream is not None and (not stream.owner or stream.owner in owners) else None

    async def find(self, key: str, owner: str | None) -> Stream | None:
        """The latest stream of that key and owner."""
        await self.ready()
        return await self.breaker.ask(lambda: self.log.find(key, owner or ""))

    async def stop(self, stream: Stream) -> bool:
        """Ask for a stream's end; whether it had not ended yet."""
        return await self.breaker.ask(stream.request_stop)

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
