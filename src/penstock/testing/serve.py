"""A real server for a test: in the running loop, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from penstock.server.listen import bind, bound_to
from penstock.server.serve import Server


@contextlib.asynccontextmanager
async def serve(app: Any, *, grace: float = 0.0) -> AsyncIterator[str]:
    """Serve an ASGI application, and yield its base URL (``http://127.0.0.1:PORT``).

    The server is the one that the command line runs, without its signals and with ``penstock.connection`` offered, so
    that :func:`penstock.origin.app` can fail on purpose under it.

    Args:
        app: Any ASGI application; its lifespan runs too.
        grace: Seconds that requests which still run at the end of the block may take.
    Raises:
        Exception: What the application raised at its start.
    Cancellation: running requests are cut off; no task and no socket stays.
    """
    sock = bind("127.0.0.1", 0)
    url = f"http://{bound_to(sock)}"
    server = Server(app, sock, grace=grace, raw_connection=True)
    listening = asyncio.Event()
    task = asyncio.create_task(server.run_until_stopped(listening.set), name=f"penstock.testing.serve {url}")
    waiting = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if listening.is_set():
            yield url
    finally:
        waiting.cancel()
        server.stop()
        await task
