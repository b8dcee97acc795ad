"""One thing to be run on the loop, and the thread that waits for it.

The waiting thread is not idle for nothing: whatever else of the same exchange needs that thread, such as the next piece
of a request's body that is a generator, is put to it as an `Errand` while it waits. So a caller's code runs in the
caller's thread alone, where its database connection, its locals and its Ctrl-C are.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from penstock.client.blocking.portal import Portal

R = TypeVar("R")

STEP = 0.05
"""Seconds that the main thread waits at a time. A signal interrupts a wait that it finds begun, but not one that begins
in the same moment; and on Windows none. In between Python looks whether one has come."""


class Errand(Protocol):
    """What the loop wants done in the caller's thread."""

    def run(self) -> Exception | None:
        """Do it; return what became of it, if it failed. What is raised ends the waiting, as Ctrl-C does."""


class Caller:
    """Whoever waits for an exchange at the moment, if anybody does. All but the errands happens on the loop.

    Attributes:
        failure: What an errand failed of: whatever then becomes of the exchange, this is why.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._waiting: list[Call[Any]] = []
        self._errands: deque[Errand] = deque()

    def do(self, errand: Errand) -> None:
        """Have it done by whoever waits, or will wait next."""
        if self._waiting:
            self._waiting[-1].put(errand)
        else:
            self._errands.append(errand)

    def waits(self, call: Call[Any]) -> None:
        """A thread waits in this call."""
        self._waiting.append(call)
        while self._errands:
            call.put(self._errands.popleft())

    def left(self, call: Call[Any]) -> None:
        """It waits no longer."""
        self._waiting.remove(call)


CALLER: ContextVar[Caller] = ContextVar("penstock.caller")
"""Of a task on the loop: for whom it works."""


class Call(Generic[R]):
    """One thing to be run on the loop.

    `start` and `abandon` are the loop's, `outcome` is the waiting thread's. What is run sees the context variables of
    the thread that made the call, since `start` is scheduled there.

    Args:
        portal: Whose loop runs it.
        work: Called there, and awaited.
        caller: For whom; None does no errands.
    """

    def __init__(self, portal: Portal, work: Callable[[], Awaitable[R]], caller: Caller | None) -> None:
        self._portal = portal
        self._work = work
        self._caller = caller
        self._news: SimpleQueue[Errand | None] = SimpleQueue()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = False
        self._result: list[R] = []
        self._error: BaseException | None = None

    # -- on the loop ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, unless nobody waits any more."""
        if self._abandoned:
            return
        if self._caller is not None:
            CALLER.set(self._caller)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def abandon(self) -> None:
        """Nobody waits any more: cancel it. A result that nobody took is let go of, as all that nobody holds."""
        self._abandoned = True
        self._result.clear()
        if self._task is not None:
            self._task.cancel()

    def put(self, errand: Errand) -> None:
        """Have it done by the waiting thread."""
        self._news.put(errand)

    async def _run(self) -> None:
        if self._caller is not None:
            self._caller.waits(self)
        try:
            self._result.append(await self._work())
        except BaseException as error:  # an exit too: it is for the thread that waits, not for the loop's
            self._error = error
        finally:
            if self._caller is not None:
                self._caller.left(self)
            if not self._portal.gone:  # at the interpreter's end nobody is woken, to tell of what is none of its doing
                self._news.put(None)

    # -- in the waiting thread -----------------------------------------------------------------------------------

    def outcome(self) -> R:
        """Wait for it, doing errands meanwhile; return what it returned, or raise what it raised."""
        caller = self._caller
        step = STEP if threading.current_thread() is threading.main_thread() else None
        while (errand := self._next(step)) is not None:
            failure = errand.run()
            if caller is not None and failure is not None:
                caller.failure = failure
        try:
            if self._error is not None:
                raise self._error if caller is None or caller.failure is None else caller.failure
            return self._result.pop()
        finally:
            del self  # an error holds the frames that it came through, and would hold itself

    def _next(self, step: float | None) -> Errand | None:
        while True:
            try:
                return self._news.get(timeout=step)
            except Empty:
                pass
