"""One HTTP/1.1 connection, and one exchange at a time on it.

Theory of operation. The socket's transport calls `Connection.data_received`, which hands the bytes to whatever the
running `Exchange` has set for its phase: the head's, a counted body's, a chunked body's, or all there is. Of a counted
body no byte is looked at. A body goes one of two ways:

pull   the reader awaits `Exchange.read`; what comes in between is held, and above a bound the socket is not read.
push   a sink is called with each piece, in the callback that brought it; the sink's owner pauses and resumes.

An exchange ends once. *Complete*: the body's end was seen; the connection goes back to its pool if both sides left it
in order. *Failed*: the connection is aborted, what had come can still be read, then the error is raised. *Abandoned*:
the reader closed it first; the connection is aborted. A response that is whole before its request is sent is complete
only when both are, unless it says that the rest is not wanted: whoever reads its end may trust that all was sent.

A timer runs only while we wait for the peer: for its head once the request is sent, for more of the body while a reader
waits or a sink is open. Whoever stops reading stops the clock.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import cast

from penstock.engine import splice
from penstock.engine.framing import MAX_INFORMATIONAL, MAX_WHOLE_BYTES, WHOLE_CHUNKS, Framing, Head, ResponseParser
from penstock.engine.splice import Splice
from penstock.errors import (
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    StreamStalled,
    StreamTruncated,
    WriteError,
    WriteTimeout,
)

HIGH_WATER = 256 * 1024
COPIED_BYTES = 4096
"""From here on a copy costs more than it saves: a large piece goes out beside its framing, and is read by itself."""
CONTINUE_SECONDS = 1.0
LOOKS = 8
"""How often in the time of patience it is looked whether a sink was given anything: by so much it may be exceeded."""
FREE_OVERHEAD_BYTES = 256
"""What a read of a chunked body may hold beside the body before it is worth counting."""


class BodyLengthError(ProtocolError):
    """The request's body is not as long as its Content-Length says."""

    category = "application"


Sink = Callable[[bytes], None]
OnEnd = Callable[[PenstockError | None], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request, ready for the wire.

    Attributes:
        method: In capitals.
        head: Request line and fields, with the empty line.
        body: Bytes that go out with the head, or what yields them.
        length: The body's length; None for a chunked one.
        expects_continue: Whether the body waits for a 100.
    """

    method: bytes
    head: bytes
    body: bytes | AsyncIterator[bytes | Splice] = b""
    length: int | None = 0
    expects_continue: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait for each thing; None waits for ever."""

    write: float | None = None
    first: float | None = None
    between: float | None = None


class Connection(asyncio.Protocol):
    """A connection; made by `penstock.engine.dial`, kept by `penstock.engine.pool`.

    Attributes:
        closed: Whether it is of no more use.
        reused: Whether an exchange has been completed on it.
        idle_since: The instant of its return to the pool.
    """

    __slots__ = (
        "_exchange",
        "_gone",
        "_writable",
        "_write_paused",
        "closed",
        "data_received",
        "idle_since",
        "loop",
        "on_closed",
        "on_idle",
        "reused",
        "transport",
    )

    data_received: Sink  # type: ignore[assignment]  # asyncio calls it by position
    """Takes what comes in the connection's phase: asyncio's callback itself, so that nothing stands in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.closed = False
        self.reused = False
        self.idle_since = 0.0
        self.on_idle: Callable[[Connection], None] = Connection.abort
        self.on_closed: Callable[[Connection], None] | None = None
        self._exchange: Exchange | None = None
        self.data_received = self._unasked
        self._writable: asyncio.Future[None] | None = None
        self._write_paused = False
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def usable(self) -> bool:
        """Whether a request may go out on it: asks the kernel too, for the loop may not have had the time to."""
        if self.closed or self.transport.is_closing():
            return False
        return not _readable(self.transport.get_extra_info("socket").fileno())

    # -- asyncio's callbacks -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def eof_received(self) -> bool:
        if self._exchange is None:
            self.closed = True
        elif not self._cut_off():
            self._exchange.ended(None)
        return False

    def _cut_off(self) -> bool:
        """Whether this is TLS and its end came without the server's word: asyncio calls both `eof_received`."""
        tls = self.transport.get_extra_info("ssl_object")
        if tls is None:
            return False
        try:
            tls.read(1)
        except ssl.SSLZeroReturnError:
            return False
        except ssl.SSLError:
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if error is not None:
            self._rescue()
        self.feed_to(_ignore)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            # A proper end has been told by `eof_received`. Without one, be it our own abort or a TLS connection cut off
            # by whoever sits between, a body that ends by close must not look whole.
            exchange.ended(error or ConnectionAbortedError("the connection was cut off"))
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._gone.set_result(None)
        if self.on_closed is not None:
            self.on_closed(self)

    def _rescue(self) -> None:
        """Read what the kernel holds: a write that fails takes the answer with it that the server gave as it closed."""
        if self.transport.get_extra_info("sslcontext") is not None:
            return
        descriptor = self.transport.get_extra_info("socket").fileno()
        try:
            while self._exchange is not None and (data := os.read(descriptor, HIGH_WATER)):
                self.data_received(data)
        except OSError:
            pass

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # -- for the exchange ----------------------------------------------------------------------------------------

    def begin(self, exchange: Exchange, feed: Sink) -> None:
        """Give the connection to an exchange."""
        self._exchange = exchange
        self.feed_to(feed)

    def feed_to(self, feed: Sink) -> None:
        """Change what takes the bytes."""
        self.data_received = feed
        self.transport.set_protocol(self)  # which may have kept the former one

    def finish(self, *, reusable: bool) -> None:
        """Take the connection back: into the pool, or out of the world."""
        self._exchange = None
        self.feed_to(self._unasked)
        if not reusable or self.closed or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.abort()
            return
        self.reused = True
        self.transport.resume_reading()
        self.on_idle(self)

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""
        self.closed = True
        if self.transport is not None:
            self.feed_to(_ignore)
            self.transport.abort()

    async def gone(self) -> None:
        """Wait until the socket is closed."""
        await asyncio.shield(self._gone)

    def write(self, data: bytes) -> None:
        """Send; never blocks, see `drained`. On a lost connection it does nothing: `Exchange.ended` has told."""
        if not self.closed:
            self.transport.write(data)

    def write_chunk(self, piece: bytes) -> None:
        """Send a piece as one chunk; a large one is not copied for it."""
        if len(piece) < COPIED_BYTES:
            self.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif not self.closed:
            self.transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))

    @property
    def write_paused(self) -> bool:
        """Whether the peer is slower than what is written."""
        return self._write_paused

    async def drained(self, timeout: float | None) -> None:
        """Wait until more may be written, or the connection is lost.

        Raises:
            WriteTimeout: The peer takes nothing for so long.
        """
        while self.write_paused:
            unsent = self.transport.get_write_buffer_size()
            self._writable = self.loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._writable
            except TimeoutError:
                if self.transport.get_write_buffer_size() >= unsent:
                    raise WriteTimeout("the server stopped reading the request") from None
            finally:
                self._writable = None

    def _unasked(self, data: bytes) -> None:
        """Bytes that nobody asked for: what is said on this connection can no longer be told apart."""
        self.abort()


def _readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows, which has no bound on what select() takes
        return bool(select.select([descriptor], [], [], 0)[0])
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def _ignore(data: bytes) -> None:
    """What comes on a connection that is being closed."""


class Exchange:
    """One request and its response.

    Attributes:
        received: Body bytes so far.
        answered: Whether any byte of a response has come.
        written: Whether any byte of the request has gone out.
        body_error: What the request's own body raised.
        parser: Of the response; its trailers, when the body is complete.
    """

    __slots__ = (
        "_between",
        "_chunk_sink",
        "_chunks",
        "_complete",
        "_connection",
        "_continue",
        "_deadline",
        "_declined",
        "_error",
        "_head",
        "_head_waiter",
        "_held",
        "_informational",
        "_loop",
        "_on_end",
        "_patience",
        "_paused",
        "_remaining",
        "_request",
        "_seen",
        "_sender",
        "_sent",
        "_sink",
        "_surplus",
        "_timer",
        "_timer_at",
        "_until",
        "_waiter",
        "_whole",
        "answered",
        "body_error",
        "parser",
        "received",
        "written",
    )

    def __init__(self, connection: Connection, request: Outgoing, patience: Patience) -> None:
        self._connection = connection
        self._loop = connection.loop
        self._request = request
        self._patience = patience
        self.parser = ResponseParser(request.method, self._take)
        self._between = True  # the parser's, at hand
        self.received = 0
        self.answered = False
        self.written = False
        self.body_error: Exception | None = None
        self._head: Head | None = None
        self._remaining = 0
        self._surplus = False
        self._whole = False
        self._declined = False
        self._seen = 0
        self._informational = 0
        self._head_waiter: asyncio.Future[None] | None = None
        self._continue: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._sent = False
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._chunk_sink: Sink | None = None
        self._on_end: OnEnd | None = None
        self._complete = False
        self._error: PenstockError | None = None
        self._deadline: float | None = None
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def head(self) -> Head:
        """The response's head, once `start` has returned."""
        assert self._head is not None
        return self._head

    # -- the request ---------------------------------------------------------------------------------------------

    async def start(self) -> Head:
        """Send the request; return the response's head, which may come before the whole request is sent.

        Cancellation: the connection is aborted.

        Raises:
            WriteError, WriteTimeout: The request could not be sent.
            ReadError, ReadTimeout: No answer.
            ProtocolError, LimitExceeded: The answer is not one.
            Exception: Whatever the request's own body raised.
        """
        connection, request = self._connection, self._request
        if connection.closed:
            raise ReadError("the server closed the connection without sending a response")
        connection.begin(self, self._feed_head)
        self.written = True
        try:
            self._head_waiter = self._loop.create_future()
            if isinstance(request.body, bytes):
                connection.write(request.head + request.body if request.body else request.head)
                if connection.write_paused:
                    self._sender = self._loop.create_task(self._send_rest())
                else:
                    self._request_sent()
            else:
                connection.write(request.head)
                if request.expects_continue:
                    self._continue = self._loop.create_future()
                self._sender = self._loop.create_task(self._send_body(request.body))
            await self._head_waiter
        except BaseException:
            await self.close()
            raise
        finally:
            self._head_waiter = None
        assert self._head is not None
        return self._head

    async def _send_rest(self) -> None:
        """The body is written, and more than the socket takes."""
        if await self._drained():
            self._request_sent()

    async def _drained(self) -> bool:
        try:
            await self._connection.drained(self._patience.write)
        except WriteTimeout as error:
            self._fail(error)
        return not self._connection.closed

    async def _send_body(self, body: AsyncIterator[bytes | Splice]) -> None:
        try:
            try:
                await self._send_pieces(body)
            finally:
                close = getattr(body, "aclose", None)
                if close is not None:
                    await close()
        except asyncio.CancelledError:
            self._fail(WriteError("the request's body was cancelled"))  # unless it was by us: then all has been said
            raise
        except Exception as error:
            self._body_failed(error)

    async def _send_pieces(self, body: AsyncIterator[bytes | Splice]) -> None:
        connection = self._connection
        left = self._request.length
        unbroken = 0
        if not await self._continued():
            return
        async for piece in body:
            if isinstance(piece, Splice):
                assert left is not None, "a spliced body has a length"
                if not await self._splice(piece):
                    return
                left -= piece.moved
                continue
            if not piece:
                continue
            if connection.closed or connection.transport.is_closing():
                return  # what that means for the answer is said by `ended`
            if left is None:
                connection.write_chunk(piece)
            else:
                left -= len(piece)
                if left < 0:
                    self._fail(BodyLengthError("the request's body is longer than its Content-Length"))
                    return
                connection.write(piece)
            unbroken += len(piece)
            if connection.write_paused:
                unbroken = 0
                if not await self._drained():
                    return
            elif unbroken > HIGH_WATER:  # neither the body nor the socket makes us wait: the loop must have its turn
                unbroken = 0
                await asyncio.sleep(0)
        if left:
            self._fail(BodyLengthError(f"the request's body ended {left:,} bytes before its Content-Length"))
            return
        if left is None:
            connection.write(b"0\r\n\r\n")
        self._request_sent()

    async def _splice(self, piece: Splice) -> bool:
        """Let the kernel move a piece of the body; whether the connection is good for more."""
        connection = self._connection
        transport = connection.transport
        timeout = self._patience.write
        transport.set_write_buffer_limits(0)  # what was written before must have left: paused until nothing is held
        connection.write(b"")
        while transport.get_write_buffer_size() and not connection.closed:
            if not await self._drained():
                return False
            await asyncio.sleep(0)
        try:
            if not connection.closed:
                await piece.to(transport.get_extra_info("socket"), timeout)
        except WriteError as error:
            self._fail(error)
        transport.set_write_buffer_limits()
        return not connection.closed

    async def _continued(self) -> bool:
        """Wait for the 100 that was asked for; False when a final answer came in its place: the body is not wanted."""
        if self._continue is None:
            return True
        try:
            async with asyncio.timeout(CONTINUE_SECONDS):
                await self._continue
        except TimeoutError:
            pass  # a server that does not know the field says nothing
        finally:
            self._continue = None
        return not self._declined

    def _request_sent(self) -> None:
        self._sent = True
        if self._whole:
            self._conclude()
        elif self._head is None and self._error is None:
            self._expect(self._patience.first)

    def _body_failed(self, error: Exception) -> None:
        """The request's own body raised: that is the caller's, and it gets it as it is, if it still waits."""
        failure = WriteError(f"the request's body failed: {error!r}")
        failure.__cause__ = error
        if self._head_waiter is not None and not self._head_waiter.done():
            self.body_error = error
            self._head_waiter.set_exception(error)
        self._fail(failure)

    # -- the head ------------------------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> None:
        self.answered = True
        try:
            rest = self.parser.feed_head(data)
            while rest is not None and 100 <= self.parser.head.status < 200 and self.parser.head.status != 101:
                rest = self._informed(rest)
            if (
                rest is not None
                and self.parser.head.status == 101
                and b"\r\nupgrade:" not in self._request.head.lower()
            ):
                raise ProtocolError("the server switches protocols, which was not asked for")
        except PenstockError as error:
            self._fail(error)
            return
        if rest is None:
            return
        self._head = head = self.parser.head
        self._expect(None)
        if self._head_waiter is not None and not self._head_waiter.done():
            self._head_waiter.set_result(None)
        if self._continue is not None and not self._continue.done():
            self._declined = True
            self._continue.set_result(None)
        self._begin_body(head, rest)

    def _informed(self, rest: bytes) -> bytes | None:
        """A 1xx has come: another head follows."""
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            raise ProtocolError("the server sends one 1xx after another")
        if self._continue is not None and not self._continue.done():
            self._continue.set_result(None)
        if self._sent:
            self._expect(self._patience.first)
        self.parser = ResponseParser(self._request.method, self._take)
        return self.parser.feed_head(rest) if rest else None

    def _begin_body(self, head: Head, rest: bytes) -> None:
        match head.framing:
            case Framing.NONE:
                self._finish(surplus=bool(rest))
                return
            case Framing.LENGTH:
                self._remaining = head.length
                feed = self._feed_counted
                if not head.length:
                    self._finish(surplus=bool(rest))
                    return
            case Framing.CHUNKED:
                feed = self._feed_chunked
            case _:
                feed = self._take
                if head.framing is Framing.TUNNEL:
                    self._patience = Patience(self._patience.write)  # silence is no fault in what follows
        self._connection.feed_to(feed)
        if rest:
            feed(rest)

    def allow(self, patience: Patience, until: float | None) -> None:
        """Set the patience with the body.

        Args:
            patience: `first` counts to its first byte, `between` from then on; `write` stays what it was.
            until: The instant of the loop's clock by which the body must have ended.
        """
        self._patience = replace(patience, write=self._patience.write)
        self._until = until

    # -- the body, as it comes -----------------------------------------------------------------------------------

    def _feed_counted(self, data: bytes) -> None:
        left = self._remaining - len(data)
        if left > 0:
            self._remaining = left
            self._take(data)
            return
        self._take(data[: self._remaining] if left else data)
        self._remaining = 0
        self._finish(surplus=left < 0)

    def _feed_chunked(self, data: bytes) -> None:
        size = len(data)
        if self._between and size <= MAX_WHOLE_BYTES:
            head = WHOLE_CHUNKS[size]
            if head is not None and data.startswith(head) and data.endswith(b"\r\n"):
                sink = self._chunk_sink
                if sink is None:
                    data = data[len(head) : -2]
                    sink = self._sink
                    if sink is None:
                        self._take(data)
                        return
                self.received += size - len(head) - 2
                sink(data)
                return
        before = self.received
        try:
            complete = self.parser.feed_chunked(data)
            self._between = self.parser.between
            body = self.received - before
            overhead = size - body
            if (overhead > FREE_OVERHEAD_BYTES or not body or self.parser.overhead) and not self.parser.surplus:
                self.parser.count_overhead(overhead, body)
        except PenstockError as error:
            self._fail(error)
            return
        if complete:
            self._finish(surplus=self.parser.surplus)

    def _take(self, data: bytes) -> None:
        self.received += len(data)
        if self._sink is not None:
            self._sink(data)
            return
        self._chunks.append(data)
        self._held += len(data)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        elif self._held > HIGH_WATER and not self._paused:
            self.pause()

    def ended(self, error: Exception | None) -> None:
        """The connection has ended: the peer closed it (None) or it was lost."""
        if self._complete or self._error is not None:
            return
        if self._whole:
            self._conclude()
            return
        failure: PenstockError
        if self._head is None:
            how = "the connection was lost" if error else "the server closed the connection"
            failure = ReadError(f"{how} without sending a response")
        elif self._head.framing in (Framing.CLOSE, Framing.TUNNEL) and error is None:
            self._finish(surplus=False)
            return
        else:
            how = "the connection was lost" if error else "the server closed connection"
            missing = f", {self._remaining:,} short of its length" if self._remaining else ""
            failure = StreamTruncated(f"{how} after {self.received:,} bytes of the body{missing}")
        failure.__cause__ = error
        self._fail(failure)

    def _finish(self, *, surplus: bool) -> None:
        """The response is whole."""
        self._whole = True
        self._surplus = surplus
        self._expect(None)
        if self._sent or self._declined or not self.head.keep_alive or self.head.status >= 300:
            self._conclude()  # an answer that does not wait for the rest of the request does not want it
        else:
            self._connection.feed_to(self._late)

    def _late(self, data: bytes) -> None:
        """More than the response, while the request is still being sent."""
        self._surplus = True

    def _conclude(self) -> None:
        self._complete = True
        self._paused = False
        self._stop_sending()
        self._connection.finish(reusable=self._sent and self.head.keep_alive and not self._surplus)
        self._wake()

    def _fail(self, error: PenstockError) -> None:
        if self._complete or self._error is not None:
            return
        self._error = error
        self._paused = False
        self._expect(None)
        self._stop_sending()
        if self._head_waiter is not None and not self._head_waiter.done():
            self._head_waiter.set_exception(error)
        self._connection.abort()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._on_end is not None:
            on_end, self._on_end, self._sink, self._chunk_sink = self._on_end, None, None, None
            on_end(self._error)

    def _stop_sending(self) -> None:
        if not self._sent and self._sender is not None and self._sender is not asyncio.current_task(self._loop):
            self._sender.cancel()

    # -- pull ----------------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end.

        Cancellation: nothing is lost; the next call gets what came.

        Raises:
            StreamTruncated, StreamStalled, ProtocolError: The body broke; after all that had come was read.
        """
        chunks = self._chunks
        if not chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._paused:
                self.resume()
            self._waiter = waiter = self._loop.create_future()
            self._expect(self._patience.between if self.received else self._patience.first)
            try:
                await waiter
            finally:
                self._waiter = None
                self._deadline = None
            if not chunks:
                return await self.read()
        if len(chunks) > 1 and self._held < len(chunks) * COPIED_BYTES:
            data = b"".join(chunks)  # each would cost its reader a round of its own
            chunks.clear()
        else:
            data = chunks.popleft()
        self._held -= len(data)
        if self._paused and not self._held:
            self.resume()
        return data

    # -- splice --------------------------------------------------------------------------------------------------

    def splice(self) -> tuple[bytes, Splice] | None:
        """Give the rest of a counted body to the kernel: what has come of it, and the `Splice` that moves what has not.

        Whoever takes it runs the splice to its end, or closes the exchange. None where it cannot be done: not on Linux,
        with TLS, with another framing, or with nothing left to move.
        """
        transport = self._connection.transport
        plain = transport.get_extra_info("sslcontext") is None
        if not (splice.available and plain and self.head.framing is Framing.LENGTH) or self._whole or self._error:
            return None
        self.pause()
        prefix = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        sock = transport.get_extra_info("socket")
        return prefix, Splice(sock, self._remaining, self._patience.between, self._spliced)

    def _spliced(self, count: int) -> None:
        self.received += count
        self._remaining -= count
        if not self._remaining:
            self._finish(surplus=False)

    # -- push ----------------------------------------------------------------------------------------------------

    def push(
        self,
        sink: Sink,
        on_end: OnEnd,
        *,
        chunk_sink: Sink | None = None,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        """Call the sink with each piece from now on, in the callback that brings it; then on_end, once.

        All are called from the event loop and must not raise or block. The rest of what one callback brought still
        comes after a `pause`. on_end is called when the exchange is closed too.

        Args:
            sink: Takes a piece of the body.
            on_end: Takes what broke the body, or None.
            chunk_sink: Takes, in the sink's place, a piece that came as one chunk, framed as it came: for whoever would
                only frame it the same way again.
            on_first: Called before the first piece is given out.
        """
        if self._paused:
            self.resume()
        if self._chunks and on_first is not None:
            on_first()
            on_first = None
        while self._chunks:
            sink(self._chunks.popleft())
        self._held = 0
        if self._complete or self._error is not None:
            on_end(self._error)
            return
        self._sink, self._on_end, self._chunk_sink = sink, on_end, chunk_sink
        if on_first is not None:
            self._tell_first(on_first, sink, chunk_sink)
        if not self._paused:
            self._watch()

    def _tell_first(self, on_first: Callable[[], None], sink: Sink, chunk_sink: Sink | None) -> None:
        """Stand before the sinks until the first piece comes, and no longer."""

        def first(data: bytes) -> None:
            self._sink, self._chunk_sink = sink, chunk_sink
            on_first()
            sink(data)

        self._sink, self._chunk_sink = first, None

    def pause(self) -> None:
        """Stop reading the socket; the timer stands still."""
        if self._complete or self._error is not None:
            return  # the connection may be another exchange's by now
        self._paused = True
        self._deadline = None
        if not self._connection.closed:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read the socket again."""
        if self._complete or self._error is not None:
            return
        self._paused = False
        if not self._connection.closed:
            self._connection.transport.resume_reading()
        if self._sink is not None:
            self._watch()

    # -- time ----------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float | None) -> None:
        """Start, or with None stop, waiting for the peer. One timer serves them all: it looks when it goes off."""
        if self._whole or self._error is not None or (seconds is None and self._until is None):
            self._deadline = None
            return
        now = self._loop.time()
        deadline = self._until if seconds is None else now + seconds
        assert deadline is not None
        self._deadline = deadline if self._until is None else min(deadline, self._until)
        self._look_by(now)

    def _watch(self) -> None:
        """Wait for what is pushed: for the first byte so long, and between two so long."""
        self._seen = self.received
        first, between = self._patience.first, self._patience.between
        if self.received:
            self._expect(between)
        else:
            self._expect(math.inf if first is None and between is not None else first)

    def _look_by(self, now: float) -> None:
        assert self._deadline is not None
        when = self._deadline
        if self._sink is not None and self._patience.between is not None:
            when = min(when, now + self._patience.between / LOOKS)
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self._complete or self._error is not None:
            return
        now = self._loop.time()
        if self._sink is not None and self.received != self._seen and (self._until is None or now < self._until):
            # Pushed bytes do not move the deadline, for that would cost a look at the clock per piece: here it moves.
            self._seen = self.received
            self._expect(self._patience.between)
        elif self._deadline > now:
            self._look_by(now)
        elif self._head is not None:
            self._fail(StreamStalled(f"the stream went silent after {self.received:,} bytes"))
        else:
            self._fail(ReadTimeout("no response in time"))

    # -- the end -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let go: of a complete exchange nothing is left to do, any other aborts its connection.

        Cancellation: the connection is aborted all the same, and the request's body told to stop.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail(StreamTruncated("the exchange was closed before its end"))
        sender = self._sender
        if sender is not None and not sender.done() and sender is not asyncio.current_task(self._loop):
            await asyncio.wait({sender})
