"""The reader: its request body, its departure, and the answer to it.

The one channel that a server gives us for what comes from the reader carries first its body and then its departure.
So the departure is watched from the moment that the body has been read to its end, or given up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Send

from penstock.relay.headers import Raw


class Departed(Exception):
    """The reader left while its request body was still being sent."""


class Downstream:
    """One reader and one answer.

    Attributes:
        started: Whether the status line has been sent: from then on a failure can only break the answer off.
        sent: Body bytes handed to the server.
    """

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        self._request = request
        self._receive = receive
        self._send = send
        self._body_over = asyncio.Event()
        self.started = False
        self.sent = 0

    async def body(self) -> AsyncIterator[bytes]:
        """The request body as it comes.

        Raises:
            Departed: The reader left before its end.
        """
        try:
            async for piece in self._request.stream():
                if piece:
                    yield piece
        except ClientDisconnect:
            raise Departed from None
        finally:
            self.body_is_over()

    def body_is_over(self) -> None:
        """Nothing more of the body will be read."""
        self._body_over.set()

    async def departure(self) -> None:
        """Return when the reader has left."""
        await self._body_over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of a body that nobody reads

    async def start(self, status: int, headers: Raw) -> None:
        """Send the status line and the fields."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.started = True

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the reader is slower than we are."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent += len(piece)

    async def finish(self) -> None:
        """Tell that the body is whole. This and nothing else writes the last chunk."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, status: int, reason: str, *, proxy_status: str | None = None) -> None:
        """Answer with a problem instead (RFC 9457)."""
        problem = {"title": HTTPStatus(status).phrase, "status": status, "detail": reason}
        body = json.dumps(problem).encode() + b"\n"
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        if proxy_status is not None:
            headers.append((b"proxy-status", f"penstock; error={proxy_status}".encode()))
        if not self._body_over.is_set():
            headers.append((b"connection", b"close"))  # the rest of the request's body would be taken for a request
        await self.start(status, headers)
        if self._request.method != "HEAD":
            await self.write(body)
        await self.finish()
