"""A coroutine run to its end, or to a signal's."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal ended the command, after it had let go of what it held.

    Attributes:
        exit_code: 128 and the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted" if signum == signal.SIGINT else "terminated")
        self.exit_code = 128 + signum


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop of our own; the first SIGINT or SIGTERM cancels, a second one ends at once.

    The signals' handlers are afterwards what they were: uvloop leaves its own behind, which do nothing.

    Args:
        main: What to run.
    Raises:
        Interrupted: A signal came.
    """
    former = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_until_signal(main))
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def run_server(main: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop of our own what handles its signals itself: a server lets its streams end first."""
    # What has been imported lives as long as the process: to look through all of it at each full collection would make
    # a request wait for ten milliseconds now and then.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it exists."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


async def _until_signal(main: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def stop(signum: int) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        task.cancel()

    if sys.platform != "win32":
        for signum in SIGNALS:
            loop.add_signal_handler(signum, stop, signum)
    try:
        return await main
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
