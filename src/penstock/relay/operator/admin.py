"""The operator's side of a relay, on a listener of its own: what runs, what was seen, and a page that shows it.

=======================================  =============================================================
asked for                                answered with
=======================================  =============================================================
``GET /_penstock/``                      the page
``GET /_penstock/info``                  where the relay listens, what it keeps and promises
``GET /_penstock/streams``               every stream, the latest first, and the breakers
``DELETE /_penstock/streams/<id>``       the end of one, whoever owns it
``GET /_penstock/metrics``               all of it for Prometheus
``GET /_penstock/health``, ``/ready``    as on the public listener
=======================================  =============================================================

Whoever reaches it may see and stop everything: it listens on loopback unless the operator says otherwise, and answers
only to addresses and to the host names that it is known by, so that no page of another site can talk to it by way of
DNS.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.routing import Route as At
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import StoreError
from penstock.eventlog.base import StreamInfo
from penstock.relay.operator.metrics import RelayMetrics
from penstock.relay.route import Route
from penstock.relay.streams.ends import StreamEnd
from penstock.relay.streams.session import Session
from penstock.relay.streams.streams import Streams

PAGE = Path(__file__).parent / "page"

# A text never becomes a script or markup: the page has no use for that, and the browser sees to it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src *; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_SECURITY = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

_MOST_REMEMBERED = 10_000
"""Streams that ended here of which it is known when their first event came: as many as a store keeps by default."""


class Admin:
    """The ASGI app.

    Args:
        streams: The relay's.
        routes: The relay's.
        public: The URL that readers reach the relay at.
        store: What the streams are kept in, by its name.
        promise: "fast" or "durable".
        hosts: Host names that it answers to, beside any address.
    """

    def __init__(
        self,
        streams: Streams,
        routes: list[Route],
        *,
        public: str,
        store: str,
        promise: str = "fast",
        hosts: Collection[str] = (),
    ) -> None:
        self._streams = streams
        self._routes = routes
        self._info = {"public": public, "version": version("penstock"), "store": store, "promise": promise}
        self._firsts: dict[str, float] = {}
        streams.on_settled.append(self._remember)
        self._metrics: RelayMetrics | None
        try:
            self._metrics = RelayMetrics(streams, routes)
        except ModuleNotFoundError:
            self._metrics = None
        paths: list[BaseRoute] = [
            At("/", lambda request: RedirectResponse("/_penstock/")),
            At("/_penstock", lambda request: RedirectResponse("/_penstock/")),
            At("/_penstock/info", self._tell_info),
            At("/_penstock/streams", self._list),
            At("/_penstock/streams/{id}", self._stop, methods=["DELETE"]),
            At("/_penstock/metrics", self._expose),
            At("/_penstock/health", lambda request: PlainTextResponse("ok\n")),
            At("/_penstock/ready", self._ready),
            Mount("/_penstock", app=StaticFiles(directory=PAGE, html=True)),
        ]
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._app = Starlette(routes=paths, exception_handlers={StoreError: _store_trouble})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app: ASGIApp = self._app
        if scope["type"] == "http" and not self._is_known(Request(scope).headers.get("host", "")):
            app = PlainTextResponse(
                "this host name is not known here: ask by address, or as --admin-listen has it\n", 400
            )

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *_SECURITY]
                if message["status"] == 405 and not any(name == b"allow" for name, _ in headers):
                    headers.append((b"allow", b"GET, HEAD"))  # files do not say so themselves
                message["headers"] = headers
            await send(message)

        await app(scope, receive, safely)

    def _is_known(self, host: str) -> bool:
        """Whether a request was meant for us: a page that had its own name resolved to our address says its own."""
        name = ""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ip_address(name)
        except ValueError:
            return name in self._hosts
        return True

    async def _tell_info(self, request: Request) -> Response:
        return JSONResponse(self._info)

    async def _ready(self, request: Request) -> Response:
        draining = self._streams.draining
        return PlainTextResponse("draining\n" if draining else "ok\n", 503 if draining else 200)

    async def _list(self, request: Request) -> Response:
        running = {session.stream.id: session for session in self._streams.sessions}
        found = await self._streams.listed()
        breakers = {route.upstream: route.client.circuit_state() for route in self._routes}
        return JSONResponse(
            {
                "streams": [_described(info, self._first(info.id, running.get(info.id))) for info in found],
                "breaker": {url: state.value for url, state in breakers.items() if state is not None},
                "now": time.time(),
            }
        )

    async def _stop(self, request: Request) -> Response:
        stream = await self._streams.look(request.path_params["id"])
        if stream is None:
            return JSONResponse({"detail": "there is no such stream, or no longer"}, 404)
        return Response(status_code=204 if await self._streams.stop(stream) else 409)

    async def _expose(self, request: Request) -> Response:
        if self._metrics is None:
            return PlainTextResponse("metrics need prometheus_client: pip install 'penstock[prometheus]'\n", 501)
        body, content_type = self._metrics.exposition()
        return Response(body, media_type=content_type)

    def _remember(self, end: StreamEnd) -> None:
        if end.first_event is not None:
            self._firsts[end.id] = end.first_event
            if len(self._firsts) > _MOST_REMEMBERED:
                del self._firsts[next(iter(self._firsts))]

    def _first(self, id: str, session: Session | None) -> float | None:
        """Seconds to a stream's first event; None before it, and of a stream that ran in another process."""
        if session is None:
            return self._firsts.get(id)
        return None if session.first_at is None else session.first_at - session.started_at


async def _store_trouble(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 503)


def _described(info: StreamInfo, first: float | None) -> dict[str, Any]:
    duration = (info.ended_at or time.time()) - info.opened_at
    return {
        "id": info.id,
        "key": info.key,
        "owner": info.owner or None,
        "state": info.state.value,
        "reason": None if info.ended is None else info.ended.reason,
        "events": info.sequence,
        "bytes": info.offset,
        "readers": info.readers,
        "started_at": info.opened_at,
        "first_event": first,
        "duration": duration,
        "events_per_second": info.sequence / duration if duration > 0 else 0.0,
    }
