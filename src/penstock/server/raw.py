"""The connection beneath a request, for an application that is to break it.

The sample servers fail on purpose through ``scope["extensions"]["penstock.connection"]``; nothing else should use it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import cast

if sys.platform != "win32":
    import fcntl
    import termios

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
