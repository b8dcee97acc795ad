"""The event loop that the blocking clients of a process share, in a thread of its own.

The thread is begun at the first use, and is a daemon: it keeps no process alive. It ends in one of two ways:

exit  at the interpreter's end the loop is stopped, its tasks are cancelled, its sockets closed. Whoever still waits or
      comes to wait (a daemon thread, since others have ended by then) waits on, and is gone with the process.
fork  a child has the memory of the loop and not its thread. There the portal is *gone*: nothing is run through it, and
      nothing that it holds is let go of, since to close one of the parent's sockets properly would take it out of the
      parent's epoll as well. A new portal stands in its place, and begins a thread of its own when it is used. While a
      process forks its loop stands still, so that it holds no lock (of an import, say) that the child would wait for.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 – it has hooks for forks too, which must not be set in the midst of one
import os
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, Protocol, TypeVar

from penstock.client.blocking.call import Call, Caller
from penstock.client.blocking.loop import new_event_loop

R = TypeVar("R")

EXIT_SECONDS = 2.0
FORK_SECONDS = 1.0

FORKED = "this was opened before the process was forked, and is its parent's: open another one here"
STOPPED = "the interpreter is about to exit: nothing more can be waited for"

# What is wrong with the thread itself; all other signals are for the thread that waits, or it would not wake for them.
_FAULTS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}


class Closable(Protocol):
    """What is let go of by closing it."""

    async def aclose(self) -> None: ...


class Portal:
    """The way onto the loop of this process, for threads that have none.

    Attributes:
        gone: Why nothing can be run through it any more; "" while it can.
    """

    def __init__(self) -> None:
        self.gone = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stop = asyncio.Event()
        self._go_on = threading.Event()
        self._may_release = False
        self._known: weakref.WeakValueDictionary[int, Closable] = weakref.WeakValueDictionary()
        self._held: list[Closable] = []
        self._parting: set[object] = set()

    def run(self, work: Callable[[], Awaitable[R]], caller: Caller | None = None) -> R:
        """Run it on the loop, and wait for it.

        Cancellation: an exception that comes while we wait, such as KeyboardInterrupt, is raised at once, and what was
        run is cancelled.

        Args:
            work: Called on the loop, and awaited.
            caller: Who does errands meanwhile.
        Raises:
            RuntimeError: From a thread with a running event loop, which would stand still; or the portal is gone.
        """
        loop = self._loop or self._started()
        running = asyncio._get_running_loop()
        if running is not None or self.gone:
            self._refuse(own=running is loop)
        call = Call(self, work, caller)
        try:
            loop.call_soon_threadsafe(call.start)
            return call.outcome()
        except BaseException:
            with suppress(RuntimeError):  # a loop that is closed has nothing to cancel
                loop.call_soon_threadsafe(call.abandon)
            raise
        finally:
            del call

    def let_go(self, work: Callable[[], Awaitable[object]]) -> None:
        """Have it run on the loop, and do not wait for it. From any thread, and from finalizers; never raises."""
        if self._loop is None:
            return  # nothing of it was ever open
        self._parting.add(work)
        if not self.gone:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._begin, work)

    def add(self, what: Closable) -> None:
        """It is closed when the loop ends, and held in a forked child, if it lives so long."""
        self._known[id(what)] = what

    def _alive(self) -> list[Closable]:
        return [what for reference in self._known.valuerefs() if (what := reference()) is not None]

    def _refuse(self, *, own: bool) -> NoReturn:
        if self.gone == STOPPED and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()  # a daemon: it was in the midst of something, and is about to be no more
        raise RuntimeError(self.gone or _misplaced(own=own))

    # -- its life ------------------------------------------------------------------------------------------------

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self.gone:
                raise RuntimeError(self.gone)
            if self._loop is None:
                loop = new_event_loop()
                self._thread = threading.Thread(target=self._serve, args=(loop,), name="penstock", daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        if hasattr(signal, "pthread_sigmask"):
            faults = {getattr(signal, name) for name in _FAULTS if hasattr(signal, name)}
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        # What fails now fails for nobody.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await asyncio.gather(*(_quietly(each.aclose) for each in self._alive()))

    def _begin(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(_quietly(work))
        self._parting.add(task)
        self._parting.discard(work)
        task.add_done_callback(self._parting.discard)

    def stop(self) -> None:
        """End the thread: what runs is cancelled, sockets are closed, and whoever waits is not woken."""
        with self._starting:
            self.gone = self.gone or STOPPED
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(EXIT_SECONDS)

    # -- a fork --------------------------------------------------------------------------------------------------

    def stand_still(self) -> None:
        """Before a fork: begin nothing, and have the loop wait where it holds no lock; for a moment at the most."""
        self._may_release = self._starting.acquire(timeout=FORK_SECONDS)
        if self._loop is None or self.gone or self._thread is threading.current_thread():
            return
        standing = threading.Event()
        self._go_on.clear()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stand, standing)
            standing.wait(FORK_SECONDS)

    def _stand(self, standing: threading.Event) -> None:
        standing.set()
        self._go_on.wait(FORK_SECONDS)

    def go_on(self) -> None:
        """After it, in the parent."""
        self._go_on.set()
        if self._may_release:
            self._starting.release()

    def leave_to_parent(self) -> None:
        """After it, in the child: run nothing any more, and hold what was held for as long as there is memory.

        That is as long as the process, its end included: the frames of a thread that is not here are never freed, and
        the loop's hold us.
        """
        self.gone = FORKED
        self._held = self._alive()


async def _quietly(work: Callable[[], Awaitable[object]]) -> None:
    with suppress(Exception):
        await work()


def _misplaced(*, own: bool) -> str:
    if own:
        return (
            "a blocking call in the client's own thread (from a middleware, a callback) would wait for itself: "
            "what it needs has an async face there"
        )
    return (
        "penstock.Client blocks, and this thread runs an event loop, which would stand still: "
        "use penstock.AsyncClient, or call it in a thread of its own with asyncio.to_thread"
    )


_portal = Portal()


def current() -> Portal:
    """The portal of this process."""
    return _portal


def _forked() -> None:
    """In the child: the thread is not here."""
    global _portal  # noqa: PLW0603 – it is the process that has changed
    _portal.leave_to_parent()
    _portal = Portal()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: current().stand_still(), after_in_parent=lambda: current().go_on(), after_in_child=_forked
    )

# Registered on import, so that it runs after what a program that imports us registers: that may use a client still.
atexit.register(lambda: current().stop())
