"""The ASGI lifespan of an application: begun before the first request, ended after the last.

uvicorn's own prints a failed start as a traceback and leaves the process; this one raises the application's error to
whoever asked for the server, and gives up a start that a signal interrupts.

====================  ============================================================================
the application       then
====================  ============================================================================
completes its start   requests are served; at the end it is told to shut down, and waited for
says it failed        :meth:`Lifespan.startup` raises what it raised, or a StartupError
raises a named error  the same, also before it said anything
raises another        it knows no lifespan (ASGI's own convention): served without one
====================  ============================================================================
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn import Config

from penstock.errors import PenstockError

logger = logging.getLogger("penstock.server")


class StartupError(PenstockError):
    """The application said that it cannot start."""


class Lifespan:
    """One run of an application's lifespan, with uvicorn's constructor and its ``state``."""

    def __init__(self, config: Config) -> None:
        self._app: Any = config.loaded_app
        self.state: dict[str, Any] = {}
        self._scope = {
            "type": "lifespan",
            "asgi": {"version": config.asgi_version, "spec_version": "2.0"},
            "state": self.state,
        }
        self.should_exit = False
        self._inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Start the application.

        Cancellation: the application's lifespan is cancelled too, and waited for.
        Raises:
            PenstockError: The application could not start; its own error where it is one of ours.
            Exception: The application's error, whatever it is, after it said that its start failed.
        """
        self._task = asyncio.create_task(self._run(), name="penstock lifespan")
        try:
            said = await self._ask("lifespan.startup")
        except asyncio.CancelledError:
            await self._end()
            raise
        if said is None:  # it ended without a word
            error = self._task.exception()
            self._task = None
            if isinstance(error, PenstockError) or (error is not None and not isinstance(error, Exception)):
                raise error
        elif said["type"] == "lifespan.startup.failed":
            await asyncio.wait({self._task}, timeout=1)
            error = self._task.exception() if self._task.done() and not self._task.cancelled() else None
            await self._end()
            raise error or StartupError(f"the application cannot start: {said.get('message') or 'it says no more'}")

    async def shutdown(self) -> None:
        """Stop the application, and wait until it has; an error is logged, for the server stops anyway.

        Cancellation: the application's lifespan is cancelled too, and waited for.
        """
        if self._task is None:
            return
        try:
            said = await self._ask("lifespan.shutdown")
            if said is not None:
                await asyncio.wait({self._task}, timeout=1)
        finally:
            task = self._task
            await self._end()
        error = task.exception() if not task.cancelled() else None
        if isinstance(error, PenstockError):
            logger.error("the application did not stop cleanly: %s", error)
        elif error is not None:
            logger.error("the application did not stop cleanly", exc_info=error)
        elif said is not None and said["type"] == "lifespan.shutdown.failed":
            logger.error("the application did not stop cleanly: %s", said.get("message") or "it says no more")

    async def _run(self) -> None:
        await self._app(self._scope, self._inbox.get, self._outbox.put)

    async def _ask(self, kind: str) -> dict[str, str] | None:
        """Tell the application; its answer, or None when it ended instead."""
        assert self._task is not None
        self._inbox.put_nowait({"type": kind})
        answer = asyncio.create_task(self._outbox.get())
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: asyncio need not report it
