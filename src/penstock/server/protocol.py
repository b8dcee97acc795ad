"""uvicorn's HTTP/1.1 protocol, with what Penstock's servers add to it.

Two things are added here:

* every line that uvicorn logs about a request says which request, and a failure that has a name is one line, not a
  traceback (:class:`RequestLog`);
* on request (:class:`RawProtocol`), an ASGI extension, ``scope["extensions"]["penstock.connection"]``, through which
  an application can break its own connection. The sample servers fail on purpose with it; nothing else should use it.

The parser, the framing and the flow control are uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.errors import PenstockError

if sys.platform != "win32":
    import fcntl
    import termios

logger = logging.getLogger("penstock.server")
_connections = logging.getLogger("penstock.server.connection")
_connections.addFilter(
    lambda record: "WebSocket" not in record.msg and "upgrade" not in record.msg
)  # ignored, silently

EXTENSION = "penstock.connection"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 seconds: close() sends RST and drops what is unsent
_TCP_ESTABLISHED = 1


class Connection:
    """The connection beneath a request, to be broken on purpose."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket = cast("socket.socket", transport.get_extra_info("socket"))

    def abort(self) -> None:
        """Reset the connection (RST). What was not yet acknowledged by the peer is lost: see :meth:`unsent`."""
        if not self._transport.is_closing():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()

    def close(self) -> None:
        """End the connection cleanly (FIN), after what is buffered; HTTP's own end is not written."""
        self._transport.close()

    def write(self, raw: bytes) -> None:
        """Put bytes on the wire as they stand, outside HTTP's framing."""
        self._transport.write(raw)

    def unsent(self) -> int:
        """Bytes that the peer has not acknowledged yet, ours and the kernel's."""
        if self._transport.is_closing():
            return 0
        ours = self._transport.get_write_buffer_size()
        if sys.platform == "win32":
            return ours
        waiting = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return ours + int(struct.unpack("i", waiting)[0])

    def left(self) -> bool:
        """Whether the peer has closed its side, told even while nothing is read from it (Linux; elsewhere False)."""
        if self._transport.is_closing():
            return True
        if not hasattr(socket, "TCP_INFO"):
            return False
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED


class RequestLog(logging.LoggerAdapter[logging.Logger]):
    """A request's log lines: which request, then what happened; a traceback only for what nobody foresaw."""

    def __init__(self, method: str, target: bytes) -> None:
        super().__init__(logger)
        self._request = f"{method} {target.decode('ascii', 'backslashreplace')}"

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        text = (str(msg) % args if args else str(msg)).rstrip()
        error = kwargs.get("exc_info")
        if isinstance(error, BaseException):
            foreseen = _foreseen(error)
            if foreseen is not None:
                del kwargs["exc_info"]
            text = foreseen or "the application failed"
        elif "without completing response" in text:
            text = "the application left the response unfinished; the connection is closed"
        self.logger.log(level, "%s: %s", self._request, text, **kwargs)


def _foreseen(error: BaseException) -> str | None:
    """One line for an error that has a name; None for one that is a bug."""
    if isinstance(error, BaseExceptionGroup):
        lines = [_foreseen(each) for each in error.exceptions]
        return lines[0] if all(line is not None for line in lines) else None
    if isinstance(error, PenstockError):
        return " ".join(str(error).split())
    if isinstance(error, asyncio.CancelledError):
        return "cut off: the server is stopping and the grace is over"
    return None


class Protocol(HttpToolsProtocol):
    """One connection of a Penstock server."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.logger = _connections
        super().connection_made(transport)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # The cycle was made just now and its task has not begun: a task's first step is never synchronous.
        self.cycle.logger = cast("logging.Logger", RequestLog(self.scope["method"], self.scope["raw_path"]))


class RawProtocol(Protocol):
    """The same, and the application may break the connection: for servers that fail on purpose."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions = cast("dict[str, Any]", self.scope.setdefault("extensions", {}))
        extensions[EXTENSION] = Connection(self.transport)
