"""The logged streams of one relay: those that are produced here, and the log that all of them are in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from penstock.errors import LimitExceeded, PenstockError, StoreError
from penstock.eventlog.base import EventLog, Promise, Stream
from penstock.relay.ends import StreamEnd
from penstock.relay.session import STOPPING, Session

logger = logging.getLogger("penstock.relay")

AFTER_STOP = 10.0
"""Seconds that streams which were stopped have for what their sources and `on_end` still do."""

IfRunning = Literal["join", "conflict", "replace"]


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


class Streams:
    """What of a relay outlives a request.

    Args:
        log: Where the streams are kept.

    Attributes:
        draining: Whether no new stream begins any more.
        on_settled: Called with each stream's end.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[asyncio.Task[None], Session] = {}
        self._starting: asyncio.Task[None] | None = None
        self.draining = False
        self.on_settled: Callable[[StreamEnd], None] | None = None

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
    ) -> Stream | None:
        """Give a session its place in the log.

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
                stream, producer = await self.log.open(key, owner, b"", promise=promise, replacing=replacing)
            except (LimitExceeded, StoreError) as error:
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

    def start(self, session: Session, source: Callable[[Session], Awaitable[None]]) -> None:
        """Run a session in a task of its own."""
        task = asyncio.create_task(session.run(source))
        self._tasks[task] = session

        def done(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            if session.bound:
                self._sessions.pop(session.stream.id, None)
            if session.end is not None and self.on_settled is not None:
                self.on_settled(session.end)

        task.add_done_callback(done)

    async def get(self, id: str, *owners: str | None) -> Stream | None:
        """The stream of that id, if one of these owns it; None for a stranger, as if there were none."""
        await self.ready()
        stream = await self.log.get(id)
        return stream if stream is not None and (not stream.owner or stream.owner in owners) else None

    async def find(self, key: str, owner: str | None) -> Stream | None:
        """The latest stream of that key and owner."""
        await self.ready()
        return await self.log.find(key, owner or "")

    async def stop(self, stream: Stream) -> bool:
        """Ask for a stream's end; whether it had not ended yet."""
        return await stream.request_stop()

    async def drain(self, grace: float) -> None:
        """Begin no new stream, and let those that run come to their end, at most so long [s].

        Cancellation: as if the grace were over; the streams still run.
        """
        self.draining = True
        if self._tasks and grace > 0:
            await asyncio.wait(self._tasks, timeout=grace)

    async def aclose(self, grace: float = 0.0) -> None:
        """Begin nothing new, let what runs end within the grace, cancel the rest, and close the log."""
        await self.drain(grace)
        for session in self._tasks.values():
            session.stop(STOPPING)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=AFTER_STOP)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=AFTER_STOP)
        if self._starting is not None:
            try:
                await self._starting
            except StoreError:
                return  # it was never open
            await self.log.aclose()
