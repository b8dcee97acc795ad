"""Relay: a transparent gateway as an ASGI app, and `forward` for routes of one's own."""

from __future__ import annotations

import json as jsonlib
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.client.client import AsyncClient
from penstock.client.settings import Limits, Timeout
from penstock.relay.downstream import Downstream, problem
from penstock.relay.exchange import carry
from penstock.relay.headers import Raw, Refused, body_length, framing, settable, to_upstream, with_set
from penstock.relay.upstream import Outgoing, target_of
from penstock.wire import headers as fields

PATIENCE = Timeout(connect=5.0, first_event=300.0, between_events=300.0)
NO_WEBSOCKET = "WebSocket is not relayed"


class Relay:
    """Passes requests on to one upstream and streams the answers back, each chunk as it comes.

    As an ASGI app it is a transparent gateway: method, path, query, fields and body go on as they came. In a route of
    one's own, `forward` sends what the route says.

    Args:
        upstream: The upstream's URL; a path in it goes before every request's own.
        headers: Set on every request to the upstream, in the place of the reader's own of the same name.
        timeout: How long to wait for the upstream.
        limits: Of the connections to the upstream.
        via: The relay's name in Via, by which it knows a request that comes back to it: the same in all processes of
            one relay. Made up where none is given.
    Raises:
        InvalidURL: The upstream is no http or https URL.
        ValueError: A header that no request can carry.
    """

    def __init__(
        self,
        upstream: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout | float | None = PATIENCE,
        limits: Limits | None = None,
        via: str = "",
    ) -> None:
        self._headers = settable(headers or {})
        # Nothing of one reader may reach another: no cookie that an upstream sets is kept here.
        self._new_client = partial(AsyncClient, upstream, timeout=timeout, limits=limits, retry=0, keep_cookies=False)
        self._client = self._new_client()
        self.upstream = self._client.absolute_url("").partition("?")[0].rstrip("/")
        self._host = urlsplit(self.upstream).netloc.rpartition("@")[2]
        self._via = via or new_via()

    @asynccontextmanager
    async def lifespan(self, app: ASGIApp | None = None) -> AsyncIterator[None]:
        """For a host application's ``lifespan=``: closes the connections to the upstream at the end.

        An application that is started again, as tests do, finds the relay ready.
        """
        try:
            yield
        finally:
            client, self._client = self._client, self._new_client()
            await client.aclose()

    # -- a gateway -----------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._gateway(Request(scope, receive), receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await send({"type": "websocket.http.response.start", "status": 501, "headers": []})
            await send({"type": "websocket.http.response.body", "body": problem(501, NO_WEBSOCKET)})
        else:
            await send({"type": "websocket.close", "code": 1003, "reason": NO_WEBSOCKET})

    async def _gateway(self, request: Request, receive: Receive, send: Send) -> None:
        async with Downstream(request, receive, send) as downstream:
            try:
                outgoing = self._passed_on(request)
            except Refused as refused:
                await downstream.refuse(refused.status, refused.reason)
                return
            await carry(self._client, outgoing, downstream, more_headers=[])

    def _passed_on(self, request: Request) -> Outgoing:
        raw: Raw = request.scope["headers"]
        if request.headers.get("upgrade", "").lower() == "websocket":
            raise Refused(501, NO_WEBSOCKET)
        length = body_length(raw)
        headers = to_upstream(
            raw,
            host=self._host,
            length=length,
            peer=request.client.host if request.client else None,
            scheme=request.scope["scheme"],
            via=self._via,
            more=self._headers,
        )
        return Outgoing(
            request.method,
            self.upstream,
            target_of(request.scope, self.upstream),
            headers,
            has_body=length != 0,
            root=request.scope.get("root_path", ""),
        )

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        async with self.lifespan():
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    # -- a route of one's own ------------------------------------------------------------------------------------

    async def forward(
        self,
        request: Request,
        method: str | None = None,
        path: str | None = None,
        *,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        pass_headers: Iterable[str] = ("accept", "content-type", "last-event-id"),
    ) -> StarletteResponse:
        """Answer a route's request with the upstream's stream.

        What is returned opens the upstream when the server sends it, and owns it from then on: a reader that leaves
        cancels the upstream, before its first byte as well as after.

        Args:
            request: The route's own request.
            method: The upstream's method; the request's own by default.
            path: Path and query at the upstream; the request's own by default.
            json: A body as JSON.
            content: A body as bytes. Without either the request's own body goes on as it comes.
            headers: Set on the request to the upstream, beside the relay's own.
            pass_headers: Which of the caller's fields go on; no others do.
        """
        more = with_set(self._headers, settable(headers or {}))
        own: bytes | None = content
        if json is not None:
            own = jsonlib.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            more = with_set([(b"content-type", b"application/json")], more)
        try:
            length = body_length(request.scope["headers"]) if own is None else len(own)
        except Refused as refused:
            body = problem(refused.status, refused.reason)
            return StarletteResponse(body, refused.status, media_type="application/problem+json")
        wanted = {name.lower().encode() for name in pass_headers} - {b"host", b"content-length", b"expect"}
        passed = [pair for pair in fields.end_to_end(request.scope["headers"]) if pair[0] in wanted]
        outgoing = Outgoing(
            (method or request.method).upper(),
            self.upstream,
            self._route_target(request, path),
            [
                *with_set([(b"host", self._host.encode()), *passed], more),
                *framing(length, always=own is not None),
            ],
            has_body=length != 0,
            root=request.scope.get("root_path", ""),
        )
        return _Forwarded(self._client, outgoing, request, own)

    def _route_target(self, request: Request, path: str | None) -> bytes:
        if path is None:
            return target_of(request.scope, self.upstream)
        if not path.startswith("/"):
            raise ValueError(f"a path at the upstream begins with /, got {path!r}")
        if not path.isascii() or any(character <= " " for character in path):
            raise ValueError(f"a path at the upstream is percent-encoded, got {path!r}")
        return (urlsplit(self.upstream).path.rstrip("/") + path).encode()


def new_via() -> str:
    """A name for Via that no other relay has."""
    return f"penstock-{secrets.token_hex(6)}"


class _Forwarded(StarletteResponse):
    """The upstream's answer, to be: whoever sends it opens the upstream, streams it and closes it."""

    def __init__(self, client: AsyncClient, outgoing: Outgoing, request: Request, own_body: bytes | None) -> None:
        super().__init__()
        self.raw_headers = []
        self._client = client
        self._outgoing = outgoing
        self._request = request
        self._own_body = own_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: Request = self._request if self._own_body is None else _Replaced(scope, receive, self._own_body)
        async with Downstream(request, receive, send) as downstream:
            await carry(self._client, self._outgoing, downstream, more_headers=list(self.raw_headers))
        if self.background is not None:
            await self.background()


class _Replaced(Request):
    """A request whose body is another."""

    def __init__(self, scope: Scope, receive: Receive, body: bytes) -> None:
        super().__init__(scope, receive)
        self._body = body
