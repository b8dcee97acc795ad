"""One server, from its first signal to its exit code.

uvicorn's server, with the parts of its life that a command line must own taken over: it never leaves the process or
re-raises a signal, it tells no story on the way, and it waits for what it cancels.

=========  =======================================  ========================================================
state      on the first SIGINT or SIGTERM           on the second
=========  =======================================  ========================================================
starting   the application's start is cancelled     the same
serving    an application that can drain does so,   no more of that
           with the listener still open; then
           there are no new connections, and what   it is cut off now
           runs has the rest of its grace
stopping   (the above)                              the application's shutdown is no longer waited for
=========  =======================================  ========================================================

A stream that is cut off does not look complete: its connection is closed without HTTP's end of the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from penstock.server.lifespan import Lifespan
from penstock.server.listen import BACKLOG, bound_to
from penstock.server.protocol import HttpProtocol, RawHttpProtocol

logger = logging.getLogger("penstock.server")

_AFTER_CANCEL = 1.0  # seconds that a cancelled stream may take to clean up, and its last bytes to leave


class Server(uvicorn.Server):
    """An application on one listening socket.

    Args:
        app: Any ASGI application.
        sock: Bound, as by :func:`penstock.server.listen.bind`; the server closes it.
        grace: Seconds that running requests have to end by themselves once the server stops.
        raw_connection: Whether applications may break their connection (``penstock.connection``).
    """

    def __init__(self, app: Any, sock: socket.socket, *, grace: float = 10.0, raw_connection: bool = False) -> None:
        config = uvicorn.Config(
            app,
            http=RawHttpProtocol if raw_connection else HttpProtocol,
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
        )
        super().__init__(config)
        config.load()
        self.config.lifespan_class = Lifespan
        self._app = app
        self._sock = sock
        self._grace = grace
        self._changed = asyncio.Event()
        self.signal: int | None = None

    def stop(self) -> None:
        """Begin to stop; called again, cut off what still runs."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._changed.set()

    async def run_until_stopped(self, on_listening: Callable[[], None]) -> None:
        """Serve until :meth:`stop`; on return nothing of the server is left: no task, no socket.

        Args:
            on_listening: Called once, when requests are taken.
        Cancellation: as if stopped twice.
        Raises:
            Exception: What the application raised at its start.
        """
        self.lifespan: Any = Lifespan(self.config)
        self.servers: list[Any] = []
        try:
            if await self._unless_stopped(self.lifespan.startup()):
                await self._listen()
                on_listening()
                await self._serve_requests()
                await self._drain()
        except asyncio.CancelledError:
            self.should_exit = self.force_exit = True
            raise
        finally:
            for server in self.servers:
                server.close()
            self._sock.close()  # only now: the loop still had it registered
            await self._stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first begins the end, the second forces it."""
        self.signal = self.signal or sig
        self.stop()

    @contextlib.contextmanager
    def signals_handled(self) -> Iterator[None]:
        """Own SIGINT and SIGTERM meanwhile; the former handlers come back, and nothing is raised again."""
        with signals_told(lambda sig: self.handle_exit(sig, None)):
            yield

    async def _unless_stopped(self, work: Any) -> bool:
        """Run work to its end; cancel it when the server is stopped first."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            return False
        task.result()
        return not self.should_exit

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            make: Any = self.config.http_protocol_class
            made: asyncio.Protocol = make(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        self.servers = [await loop.create_server(protocol, sock=self._sock, backlog=BACKLOG)]
        self.started = True

    async def _serve_requests(self) -> None:
        while not self.should_exit:
            await self._changed.wait()

    async def _drain(self) -> None:
        """Let an application that can (`Relay.drain`) end its streams while the listener is still open."""
        drain = getattr(self._app, "drain", None)
        if drain is None or self.force_exit:
            return
        self._changed.clear()
        began = asyncio.get_running_loop().time()
        await self._unless_stopped(drain(self._grace))
        self._grace = max(0.0, self._grace - (asyncio.get_running_loop().time() - began))

    async def _stop(self) -> None:
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until(lambda: not (self.server_state.connections or self.server_state.tasks), self._grace)
        running = set(self.server_state.tasks)
        if running:
            logger.warning(
                "%d unfinished %s cut off", len(running), "request is" if len(running) == 1 else "requests are"
            )
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_AFTER_CANCEL)
        if not self.force_exit:
            await self._until(lambda: not self.server_state.connections, _AFTER_CANCEL)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for _ in range(10):  # a transport tells its protocol in the loop's next round
            await asyncio.sleep(0)
        await self._stop_application()

    async def _stop_application(self) -> None:
        if self.force_exit:
            self._changed.set()
        else:
            self._changed.clear()
        await self._unless_stopped(self.lifespan.shutdown())

    async def _until(self, done: Callable[[], bool], timeout: float) -> None:
        """Wait until done, or for so long, or until the end is forced."""
        deadline = asyncio.get_running_loop().time() + timeout
        pause = 0.001
        while not (done() or self.force_exit or asyncio.get_running_loop().time() >= deadline):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    grace: float = 10.0,
    raw_connection: bool = False,
    on_listening: Callable[[str], None] | None = None,
) -> int:
    """Serve an application until a signal, and tell the exit code.

    While it serves, SIGINT and SIGTERM are its own (in the main thread), and the lines of the ``penstock`` loggers
    go to stderr unless logging is set up already.

    Args:
        app: Any ASGI application.
        sock: Bound, as by :func:`penstock.server.listen.bind`; it is closed in the end.
        grace: Seconds that running requests have to end by themselves after the first signal.
        raw_connection: Whether the application may break its connections (``penstock.connection``).
        on_listening: Called once requests are taken, with the ``HOST:PORT`` that is listened on.
    Returns:
        130 after SIGINT, 143 after SIGTERM, else 0.
    Raises:
        Exception: What the application raised at its start; a PenstockError where it was foreseen.
    """
    where = bound_to(sock)
    server = Server(app, sock, grace=grace, raw_connection=raw_connection)
    with logged_to_stderr(), server.signals_handled():
        await server.run_until_stopped(lambda: on_listening(where) if on_listening else None)
    return 0 if server.signal is None else 128 + server.signal


@contextlib.asynccontextmanager
async def beside(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    """Serve another application in the same loop, as long as the block runs: an operator's, say.

    It has no signals and no grace: it ends with the block, and what it still answers is cut off.

    Args:
        app: Any ASGI application.
        sock: Bound, as by :func:`penstock.server.listen.bind`; it is closed in the end.
    Raises:
        Exception: What the application raised at its start.
    """
    server = Server(app, sock, grace=0.0)
    listening = asyncio.Event()
    task = asyncio.create_task(server.run_until_stopped(listening.set))
    ready = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()  # why it never served
        yield
    finally:
        ready.cancel()
        server.stop()
        server.stop()
        await asyncio.wait({task, ready})
    task.result()


@contextlib.contextmanager
def signals_told(tell: Callable[[int], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM told in the running loop meanwhile, where it runs in the main thread.

    The former handlers come back, and nothing is raised again.

    Args:
        tell: Called in the loop, with the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def handle(sig: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(tell, sig)

    former = {sig: signal.signal(sig, handle) for sig in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for sig, handler in former.items():
            signal.signal(sig, handler)


@contextlib.contextmanager
def logged_to_stderr(*, pid: bool = False) -> Iterator[None]:
    """Show Penstock's lines, from INFO up, unless somebody has decided where they go.

    Args:
        pid: Whether each line says which process it is of.
    """
    root = logging.getLogger("penstock")
    if root.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    who = "[%(process)d] " if pid else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s.%(msecs)03d {who}%(message)s", "%H:%M:%S"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
