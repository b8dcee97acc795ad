"""One connection of a server: requests read strictly, one response at a time, a reader's leaving never missed.

Theory of operation. What comes from the socket goes to whatever takes it in the connection's phase:

==========  =====================================================  ==============================================
phase       takes the bytes                                        then
==========  =====================================================  ==============================================
head        collects a head, within its limit and its deadline     the application starts; body, or ahead
body        gives them to the request's cycle; above a bound the   ahead, at its end
            socket is not read until the application takes some
ahead       keeps them, the next request's, within a bound,        head, once the response is complete
            while the response is under way
discard     throws away the rest of a body that nobody read,       head; or close, past the bound
            within a bound, so that the answer can be read
closing     throws them away                                       (nothing)
==========  =====================================================  ==============================================

In the phase *ahead* the socket is read on, because a connection that is not read does not tell that its other side has
left. A reader that shuts down its sending side counts as one that left.

One timer serves all deadlines: it looks when it goes off.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

from uvicorn import Config
from uvicorn.server import ServerState

from penstock.server.cycle import Cycle
from penstock.server.direct import EXTENSION as DIRECT
from penstock.server.direct import DirectWriter
from penstock.server.log import logger
from penstock.server.raw import EXTENSION as RAW
from penstock.server.raw import Connection
from penstock.server.request import MAX_HEAD_BYTES, ChunkedBody, Rejected, read_head

HEAD_SECONDS = 30.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75.0
LINGER_SECONDS = 2.0
MAX_AHEAD_BYTES = 64 * 1024
MAX_DISCARDED_BYTES = 16 * 1024 * 1024


class HttpProtocol(asyncio.Protocol):
    """A connection, with the constructor that uvicorn's server calls."""

    raw_connection = False

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._app = config.loaded_app
        self._state = server_state
        self._app_state = app_state
        self._cycle: Cycle | None = None
        self._feed: Callable[[bytes], None] = self._feed_head
        self._held = bytearray()
        self._searched = 0
        self._left = 0
        self._discarded = 0
        self._chunks: ChunkedBody | None = None
        self._reading = True
        self._write_paused = False
        self._stopping = False
        self._deadline: float | None = None
        self._on_deadline: Callable[[], None] = self._close
        self._timer: asyncio.TimerHandle | None = None
        self._addresses: dict[str, Any] = {}

    # -- asyncio's callbacks -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._state.connections.add(cast("Any", self))
        self._addresses = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._expect(HEAD_SECONDS, self._close)

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def eof_received(self) -> bool:
        self._reader_left()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(cast("Any", self))
        self._feed = _ignore
        self._expect(None)
        if self._timer is not None:
            self._timer.cancel()
        self._reader_left()

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._cycle is not None:
            self._cycle.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._cycle is not None:
            self._cycle.resume()

    def _reader_left(self) -> None:
        if self._cycle is not None and not self._cycle.complete:
            self._cycle.reader_left()

    # -- the server's --------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The server is stopping: close once the running response is complete."""
        self._stopping = True
        if self._cycle is None or self._cycle.complete:
            self._close()
        else:
            self._cycle.keep_alive = False

    # -- phase: head ---------------------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> None:
        held = self._held
        if not held:
            data = data.lstrip(b"\r\n")  # RFC 9112 §2.2: empty lines before a request are none
            if not data:
                return
            self._searched = 0
            self._expect(HEAD_SECONDS, self._head_too_late)
        held += data
        start = max(0, self._searched - 3)
        end = held.find(b"\r\n\r\n", start)
        self._searched = len(held)
        if (len(held) if end < 0 else end) > MAX_HEAD_BYTES:
            if held.find(b"\n", 0, MAX_HEAD_BYTES) < 0:
                self._reject(Rejected(414, f"the request line is longer than {MAX_HEAD_BYTES:,} bytes"))
            else:
                self._reject(Rejected(431, f"the request's head is longer than {MAX_HEAD_BYTES:,} bytes"))
            return
        if end < 0:
            if held.find(b"\n\n", start) >= 0 or held.find(b"\n\r\n", start) >= 0:
                self._reject(Rejected(400, "a line of the request ends in a bare LF"))
            return
        raw = bytes(held[: end + 4])
        rest = bytes(held[end + 4 :])
        held.clear()
        try:
            head = read_head(raw)
        except Rejected as rejected:
            self._reject(rejected)
            return
        self._expect(None)
        # The answer before this one, to a reader that pipelines, may still fill the socket.
        cycle = self._cycle = Cycle(self, head, write_paused=self._write_paused)
        self._begin_body(head.length, rest)
        if cycle.disconnected:
            return  # what came of its body was refused
        scope = self._scope(cycle)
        task = self.loop.create_task(cycle.run(self._app, scope))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _scope(self, cycle: Cycle) -> dict[str, Any]:
        head = cycle.head
        extensions: dict[str, Any] = {DIRECT: DirectWriter(cycle)}
        if self.raw_connection:
            extensions[RAW] = Connection(self.transport)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "state": self._app_state.copy(),
            "extensions": extensions,
            **self._addresses,
        }

    def _head_too_late(self) -> None:
        self._reject(Rejected(408, f"the request's head did not come within {HEAD_SECONDS:g} s"))

    def _reject(self, rejected: Rejected) -> None:
        """Answer a request that is not served, and close."""
        client = self._addresses["client"]
        logger.warning("a request from %s is refused: %d, %s", client and client[0], rejected.status, rejected.reason)
        problem = {
            "title": HTTPStatus(rejected.status).phrase,
            "status": rejected.status,
            "detail": rejected.reason,
        }
        body = json.dumps(problem).encode() + b"\n"
        self._feed = _ignore
        self._held.clear()
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (rejected.status, HTTPStatus(rejected.status).phrase.encode(), len(body), body)
            )
        self._linger()

    # -- phase: body ---------------------------------------------------------------------------------------------

    def _begin_body(self, length: int | None, rest: bytes) -> None:
        if length == 0:
            self._feed = self._feed_ahead
        elif length is None:
            self._chunks = ChunkedBody(self._body_piece)
            self._feed = self._feed_chunked
        else:
            self._left = length
            self._feed = self._feed_counted
        if rest:
            self._feed(rest)

    def _feed_counted(self, data: bytes) -> None:
        piece = data[: self._left]
        self._left -= len(piece)
        self._body_piece(piece)
        if not self._left:
            self._body_over(data[len(piece) :])

    def _feed_chunked(self, data: bytes) -> None:
        assert self._chunks is not None
        try:
            rest = self._chunks.feed(data)
        except Rejected as rejected:
            self._body_broken(rejected)
            return
        if rest is not None:
            self._body_over(rest)

    def _body_piece(self, data: bytes) -> None:
        cycle = self._cycle
        assert cycle is not None
        if cycle.complete:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED_BYTES:
                self._close()
            return
        if self._deadline is not None:
            self._expect(BODY_SECONDS, self._body_too_late)
        if cycle.body_piece(data):
            self._pause_reading()

    def _body_over(self, rest: bytes) -> None:
        cycle = self._cycle
        assert cycle is not None
        self._chunks = None
        self._expect(None)
        if cycle.complete:
            self._next(rest)
            return
        cycle.body_end()
        self._feed = self._feed_ahead
        if rest:
            self._feed_ahead(rest)

    def _body_broken(self, rejected: Rejected) -> None:
        cycle = self._cycle
        assert cycle is not None
        started = cycle.started
        cycle.reader_left()
        if started:
            self._close()
        else:
            self._reject(rejected)

    def _body_too_late(self) -> None:
        self._body_broken(Rejected(408, f"nothing of the request's body came for {BODY_SECONDS:g} s"))

    def body_wanted(self) -> None:
        """The cycle's: the application waits for the body."""
        self._read_on()
        if self._cycle is not None and not self._cycle.body_complete:
            self._expect(BODY_SECONDS, self._body_too_late)

    def body_taken(self) -> None:
        """The cycle's: the application took what there was; the clock stands still until it wants more."""
        self._expect(None)
        self._read_on()

    def _read_on(self) -> None:
        """Read, but not more ahead than may be: an application that looks whether its reader is there asks often."""
        if len(self._held) <= MAX_AHEAD_BYTES:
            self._resume_reading()

    # -- phase: ahead --------------------------------------------------------------------------------------------

    def _feed_ahead(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_AHEAD_BYTES:
            self._pause_reading()

    def response_complete(self, *, keep_alive: bool) -> None:
        """The cycle's: the response has been sent to its end."""
        cycle = self._cycle
        assert cycle is not None
        self._resume_reading()
        if self.transport.is_closing():
            return
        if cycle.body_complete:
            if keep_alive and not self._stopping:
                self._next(b"")
            elif self._stopping and not self._held:
                self._close()
            else:
                self._linger()  # a client that pipelines may still be sending
        elif keep_alive and not self._stopping and not cycle.expects_continue:
            self._expect(LINGER_SECONDS, self._close)  # the rest of the body is thrown away, see _body_piece
        else:
            self._linger()

    def _next(self, rest: bytes) -> None:
        """On to the next request, which may have come already."""
        cycle = self._cycle
        if cycle is None or not cycle.keep_alive or self._stopping or self.transport.is_closing():
            self._close()
            return
        self._cycle = None
        self._discarded = 0
        ahead = bytes(self._held) + rest
        self._held.clear()
        self._feed = self._feed_head
        self._expect(KEEP_ALIVE_SECONDS, self._close)
        if ahead:
            self._feed_head(ahead)

    # -- the end -------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Close, but read on for a moment: closing on unread bytes is a reset, which may overtake the answer."""
        self._feed = _ignore
        self._resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self._expect(LINGER_SECONDS, self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._feed = _ignore
        self._expect(None)
        self.transport.close()

    # -- time, flow, date ----------------------------------------------------------------------------------------

    def _expect(self, seconds: float | None, otherwise: Callable[[], None] | None = None) -> None:
        if seconds is None or otherwise is None:
            self._deadline = None
            return
        self._deadline = self.loop.time() + seconds
        self._on_deadline = otherwise
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._look)
        elif self._timer.when() > self._deadline + 0.01:
            self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self.transport.is_closing():
            return
        left = self._deadline - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        else:
            self._deadline = None
            self._on_deadline()

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def date(self) -> list[tuple[bytes, bytes]]:
        """The Date field, for a response that has none."""
        return _date_fields(int(time.time()))


class RawHttpProtocol(HttpProtocol):
    """The same, and the application may break the connection: for servers that fail on purpose."""

    raw_connection = True


def _ignore(data: bytes) -> None:
    """What comes on a connection that is being closed."""


def _address(info: Any) -> tuple[str, int] | None:
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) and len(info) >= 2 else None


_dated: tuple[int, list[tuple[bytes, bytes]]] = (0, [])


def _date_fields(now: int) -> list[tuple[bytes, bytes]]:
    """Made once a second."""
    global _dated  # noqa: PLW0603 – a cache of one entry
    if _dated[0] != now:
        _dated = (now, [(b"date", formatdate(now, usegmt=True).encode())])
    return _dated[1]
