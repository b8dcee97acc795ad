"""One request and its response, as ASGI has them.

The application sees `receive` and `send`; the connection tells of body bytes, of the body's end, of the reader's
leaving and of a full socket. Framing is decided here: chunks for HTTP/1.1 where the length is not known, the
connection's end for HTTP/1.0, and nothing at all for HEAD, 204 and 304, which have no body whatever the application
sends.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Protocol

from penstock.engine.flag import Flag
from penstock.server.log import request_failed, request_unfinished
from penstock.server.request import RequestHead

HIGH_WATER = 64 * 1024
COPIED_BYTES = 4096  # a larger piece goes out beside its framing, not in one with it

_FORBIDDEN_IN_NAME = frozenset(range(33)) | frozenset(b'()<>@,;:\\"/[]?={}') | frozenset(range(127, 256))
_FORBIDDEN_IN_VALUE = (frozenset(range(32)) - {9}) | {127}


class Owner(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport

    def date(self) -> list[tuple[bytes, bytes]]: ...
    def body_wanted(self) -> None: ...
    def body_taken(self) -> None: ...
    def response_complete(self, *, keep_alive: bool) -> None: ...


class Cycle:
    """One request and its response.

    Attributes:
        head: The request's.
        disconnected: Whether the reader has left, or the connection was lost.
        body_complete: Whether the request's body has come to its end.
        started: Whether the response's head has been sent.
        complete: Whether the response has been sent to its end.
        chunked: Whether the response's body goes out in chunks.
        bodiless: Whether the response has no body whatever the application sends.
    """

    __slots__ = (
        "_body",
        "_left",
        "_news",
        "_owner",
        "_room",
        "_transport",
        "bodiless",
        "body_complete",
        "chunked",
        "complete",
        "direct",
        "disconnected",
        "expects_continue",
        "head",
        "keep_alive",
        "started",
    )

    def __init__(self, owner: Owner, head: RequestHead, *, write_paused: bool = False) -> None:
        self.head = head
        self.disconnected = False
        self.body_complete = head.length == 0
        self.started = False
        self.complete = False
        self.chunked = False
        self.bodiless = False
        self.keep_alive = head.keep_alive
        self.expects_continue = head.expects_continue
        self.direct: Any = None
        self._owner = owner
        self._transport = owner.transport
        self._body = bytearray()
        self._news = Flag(up=self.body_complete)
        self._left: int | None = None
        self._room = Flag(up=not write_paused)

    async def run(self, app: Any, scope: dict[str, Any]) -> None:
        """Run the application; whatever it does, the connection ends up in order."""
        method, path = self.head.method, self.head.raw_path
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            request_failed(method, path, error)
            await self._give_up()
        else:
            if self.complete or self.disconnected:
                return
            if self.started:
                request_unfinished(
                    method, path, "the application left the response unfinished; the connection is closed"
                )
            else:
                request_unfinished(method, path, "the application returned without a response")
            await self._give_up()

    async def _give_up(self) -> None:
        """End a response that the application did not: 500 if nothing was sent, else the connection's end."""
        if self.complete or self.disconnected:
            return
        if self.started:
            self._transport.close()
            return
        reason = b"Internal Server Error"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(reason))]
        self.keep_alive = False
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": reason})

    # -- from the connection -------------------------------------------------------------------------------------

    def body_piece(self, data: bytes) -> bool:
        """Take a piece of the request's body; whether that is enough for now."""
        self._body += data
        self.expects_continue = False  # it does not wait
        self._news.set()
        return len(self._body) > HIGH_WATER

    def body_end(self) -> None:
        """The request's body is whole."""
        self.body_complete = True
        self._news.set()

    def reader_left(self) -> None:
        """The connection is gone, or will hear nothing more."""
        self.disconnected = True
        self._news.set()
        self._room.set()  # but a direct writer is not told to bring more

    @property
    def write_paused(self) -> bool:
        """Whether the socket takes no more."""
        return not self._room.is_set()

    def pause(self) -> None:
        """The socket takes no more."""
        if self.disconnected:
            return
        self._room.clear()
        if self.direct is not None:
            self.direct.paused_by_socket()

    def resume(self) -> None:
        """The socket takes more."""
        self._room.set()
        if self.direct is not None:
            self.direct.resumed_by_socket()

    # -- for the application -------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive: the body in pieces, then, whenever it happens, the reader's leaving."""
        if not (self._news.is_set() or self.disconnected or self.complete):
            if self.expects_continue and not self.started:
                self.expects_continue = False
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._owner.body_wanted()
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                self._waits_no_longer()
                raise
        self._news.clear()
        if self.disconnected or self.complete:
            self._news.set()
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body.clear()
        self._owner.body_taken()
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    def _waits_no_longer(self) -> None:
        if not (self.disconnected or self.complete):  # or the clock may be another's by now
            self._owner.body_taken()

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's send. After the reader has left it does nothing.

        Raises:
            RuntimeError: A message out of its turn, a field that no response can carry, or a body that is not as long
                as its Content-Length.
        """
        while self.write_paused:
            await self._room.wait()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.started:
            if kind != "http.response.start":
                raise RuntimeError(f"a response begins with http.response.start, not {kind}")
            self._start(message["status"], list(message.get("headers", [])))
        elif self.complete:
            raise RuntimeError(f"{kind} after the response was complete")
        elif kind != "http.response.body":
            raise RuntimeError(f"a response that has begun goes on with http.response.body, not {kind}")
        else:
            self.write(message.get("body", b""))
            if not message.get("more_body", False):
                self._finish()

    def write(self, body: bytes) -> None:
        """Send a piece of the body in the response's framing; never waits. To a reader that has left, nothing."""
        if not body or self.bodiless or self.disconnected:
            return
        if self.chunked:
            if len(body) < COPIED_BYTES:
                self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
            else:
                self._transport.writelines((b"%x\r\n" % len(body), body, b"\r\n"))
            return
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0:
                raise RuntimeError("the response's body is longer than its Content-Length")
        self._transport.write(body)

    def write_chunk(self, chunk: bytes) -> None:
        """Send a piece of the body that is one chunk already, framing and all; for a response in chunks."""
        if not self.disconnected:
            self._transport.write(chunk)

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        head = self.head
        if not 200 <= status <= 999:
            raise RuntimeError(f"{status} is no status of a response")
        self.bodiless = head.method == "HEAD" or status in (204, 304)
        self._left = None
        lines = [_status_line(status)]
        names = set()
        for name, value in headers:
            lowered = name.lower()
            if not lowered or not _FORBIDDEN_IN_NAME.isdisjoint(lowered):
                raise RuntimeError(f"no response can carry the field {name!r}")
            if not _FORBIDDEN_IN_VALUE.isdisjoint(value):
                raise RuntimeError(f"the field {name!r} holds a character that no field may")
            if lowered == b"transfer-encoding" or (lowered == b"content-length" and status in (204, 304)):
                continue  # framing is ours; 204 and 304 have none
            if lowered == b"connection":
                if b"close" in [option.strip().lower() for option in value.split(b",")]:
                    self.keep_alive = False
                continue
            if lowered == b"content-length":
                if not value.isdigit() or lowered in names:
                    raise RuntimeError(f"a response has one Content-Length, a number, and not {value!r}")
                if not self.bodiless:
                    self._left = int(value)
            names.add(lowered)
            lines.append(b"%b: %b\r\n" % (lowered, value))
        if b"date" not in names:
            lines += [b"%b: %b\r\n" % pair for pair in self._owner.date()]
        if self._left is None and not self.bodiless:
            if head.version == "1.1":
                self.chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if self.expects_continue and not self.body_complete:
            self.keep_alive = False  # the body was not asked for, and may or may not come
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.started = True
        self._transport.write(b"".join(lines))

    def _finish(self) -> None:
        if self._left:
            raise RuntimeError(f"the response's body ends {self._left:,} bytes before its Content-Length")
        self.complete = True
        if self.chunked:
            self._transport.write(b"0\r\n\r\n")
        self._news.set()
        self._owner.response_complete(keep_alive=self.keep_alive)


def _status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    return line if line is not None else b"HTTP/1.1 %d \r\n" % status


_STATUS_LINES = {int(each): f"HTTP/1.1 {int(each)} {each.phrase}\r\n".encode() for each in HTTPStatus}
