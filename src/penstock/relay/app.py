"""Relay: a transparent gateway as an ASGI app, and the verbs for routes of one's own."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.client.request import Middleware
from penstock.client.settings import Limits, Timeout
from penstock.eventlog.base import EventLog
from penstock.relay.downstream.reader import Downstream, OnAsked, problem
from penstock.relay.gateway import Gate
from penstock.relay.public import ROOT, serve_own
from penstock.relay.route import NO_WEBSOCKET, Route
from penstock.relay.settings.config import Config, load
from penstock.relay.settings.cors import Cors, allowed, exposed, preflight
from penstock.relay.settings.match import segments
from penstock.relay.settings.policy import PATIENCE, OwnerFrom, Policy
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.settings.store import Store
from penstock.relay.streams.streams import OnSettled, Streams
from penstock.relay.upstream.exchange import carry
from penstock.relay.upstream.headers import Refused, settable
from penstock.relay.verbs import Verbs


class Relay(Verbs):
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
        store: Where streams are kept so that readers can come back: "memory://", "sqlite:///FILE", "redis://HOST", or
            None.
        policy: What is decided for every request but its upstream; the other arguments take the place of its own.
        routes: Policies that come before it, for the requests that they match.
        secret: Keys the hash of what a gateway's owners are told apart by. Made up where none is given: owners are then
            known until the process ends.
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
        store: str | EventLog | None = None,
        policy: Policy | None = None,
        routes: Sequence[Policy] = (),
        secret: str | bytes = b"",
    ) -> None:
        settable(headers or {})
        base = Policy(upstream=upstream) if policy is None else replace(policy, upstream=upstream)
        if headers:
            base = replace(base, request_headers=HeaderRules(headers))
        if policy is None:
            base = replace(base, timeout=Timeout.of(timeout))
        self._assemble(
            routes,
            base,
            via,
            limits,
            secret.encode() if isinstance(secret, str) else secret,
            lambda: store if isinstance(store, EventLog) else Store(store or "none").log(),
        )

    @classmethod
    def configured(cls, config: Config | str | os.PathLike[str], *, via: str = "") -> Self:
        """A relay that goes by a configuration: its routes, its store and what that keeps.

        Where it listens, its workers and its grace are for whoever serves it.

        Args:
            config: The TOML file; or what has been read of one.
            via: The relay's name in Via.
        Raises:
            ConfigError: The file cannot be served; all its mistakes are told.
            ValueError: The store cannot be had; or owners are kept in it, and no secret is given that is kept too.
        """
        if not isinstance(config, Config):
            config = load(config)
        if config.secret is None and config.store.persistent and any(each.owner for each in config.policies):
            raise ValueError(f"the owners in {config.store} outlive the process: configure a secret to hash them with")
        self = cls.__new__(cls)
        self._assemble(
            config.routes,
            config.default,
            via,
            None,
            config.secret or b"",
            lambda: config.store.log(config.retention, config.lease),
        )
        return self

    def _assemble(
        self,
        routes: Sequence[Policy],
        default: Policy | None,
        via: str,
        limits: Limits | None,
        secret: bytes,
        new_log: Callable[[], EventLog | None],
    ) -> None:
        name = via or new_via()
        self.routes = [Route(each, via=name, limits=limits) for each in routes]
        self._default = None if default is None else Route(default, via=name, limits=limits)
        if self._default is not None:
            self.routes.append(self._default)
        if not self.routes:
            raise ValueError("there is nothing to relay to: a relay has a route or an upstream")
        self._owners = {route.policy.owner for route in self.routes if route.policy.owner is not None}
        self._secret = secret or secrets.token_bytes(32)
        self._operator: Cors | None = None
        self._draining = False
        self._new_log = new_log
        self._on_asked: list[OnAsked] = []
        self._on_settled: list[OnSettled] = []
        self._gate = self._new_gate()

    def _new_gate(self) -> Gate | None:
        log = self._new_log()
        if log is None:
            return None
        streams = Streams(log)
        streams.on_asked, streams.on_settled = self._on_asked, self._on_settled  # whoever is told outlives them
        return Gate(streams, self.routes[-1])

    @property
    def upstream(self) -> str:
        """Where what no route is for goes, and what `forward` asks.

        Raises:
            RuntimeError: The configuration has routes alone.
        """
        return self._own.upstream

    @property
    def _own(self) -> Route:
        if self._default is None:
            raise RuntimeError("the relay has no upstream of its own: write one in [defaults] of its configuration")
        return self._default

    def show_to(self, *origins: str) -> None:
        """Let pages of these origins read whatever they can ask for, as the operator's page does.

        Args:
            origins: As browsers write them, ``http://127.0.0.1:9090``.
        """
        self._operator = Cors(origins, headers=("authorization",))

    def use(self, *middleware: Middleware) -> Self:
        """Add middleware around every attempt at an upstream, as `AsyncClient.use` does."""
        for route in self.routes:
            route.client.use(*middleware)
        return self

    def watch(self, *, asked: OnAsked | None = None, settled: OnSettled | None = None) -> Self:
        """Be told of what begins and ends here; of nothing in between.

        Args:
            asked: Called with each request of a reader's, before anything is done for it. What it returns is called
                with the answer once that is over, and with what broke it off.
            settled: Called with each kept stream's end, in the context of the request that began it.
        """
        if asked is not None:
            self._on_asked.append(asked)
        if settled is not None:
            self._on_settled.append(settled)
        return self

    @property
    def kept(self) -> Streams | None:
        """The streams that are kept; None without a store."""
        return None if self._gate is None else self._gate.streams

    @asynccontextmanager
    async def lifespan(self, app: ASGIApp | None = None) -> AsyncIterator[None]:
        """For a host application's ``lifespan=``: opens the store, and in the end closes it and the connections.

        An application that is started again, as tests do, finds the relay ready.
        """
        try:
            if self._gate is not None:
                await self._gate.streams.ready()
            yield
        finally:
            gate, self._gate = self._gate, self._new_gate()
            if gate is not None:
                await gate.streams.aclose()
            self._draining = False
            for route in self.routes:
                await route.renew()

    async def drain(self, grace: float) -> None:
        """Begin no new stream, answer 503 at ``/_penstock/ready``, and let the streams that run come to their end.

        Those that have not by then are stopped, and their readers told to come back. `penstock relay` does it at the
        first SIGTERM, with the listener still open for resumes and probes. Elsewhere it is for the host to call, before
        it stops its server.

        Args:
            grace: Seconds that they have.
        """
        self._draining = True
        if self._gate is not None:
            await self._gate.streams.drain(grace)
            await self._gate.streams.stop_all()

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
        async with Downstream(request, receive, send, self._on_asked) as downstream:
            gate = self._gate
            route = self._route_of(request)
            if route is not None and route is not self._default:
                downstream.route = route.policy.match.path
            if await self._preflighted(request, route, downstream) or await self._about_us(request, downstream):
                return
            if route is None:
                await downstream.refuse(404, "no route is for this request")
                return
            downstream.max_body_bytes = route.policy.limits.max_body_bytes
            owner = self._owner(request, route.policy.owner)
            if gate is not None and await gate.resumed(request, downstream, owner, route=route):
                return
            try:
                outgoing = route.passed_on(request)
            except Refused as refused:
                await downstream.refuse(refused.status, refused.reason)
                return
            if gate is None or route.policy.log == "none":
                await carry(route.client, outgoing, downstream, rules=route.policy.response_headers, more_headers=[])
            else:
                await gate.forward(
                    request,
                    route,
                    outgoing,
                    downstream,
                    owner=owner,
                    key=_idempotency_key(request) if owner is not None else None,
                    repeated=True,
                    more_headers=[],
                )

    def _route_of(self, request: Request) -> Route | None:
        if len(self.routes) == 1 and self._default is not None:
            return self._default
        parts = segments(_path(request))
        method = _preflighted_method(request) or request.method
        return next((route for route in self.routes if route.policy.match.fits(method, parts)), self._default)

    def _owner(self, request: Request, asked: OwnerFrom | None) -> str | None:
        return None if asked is None else asked.read(request.scope["headers"], self._secret)

    # -- what other origins may read -----------------------------------------------------------------------------

    async def _preflighted(self, request: Request, route: Route | None, downstream: Downstream) -> bool:
        """Answer a preflight; of other requests note what their page is told, and be False."""
        origin = request.headers.get("origin")
        if origin is None:
            return False
        ours = _path(request).startswith(ROOT)
        said, cors = self._cors(origin, route, ours=ours)
        if not said:
            return False
        method = _preflighted_method(request)
        if method is None:
            downstream.cors = [] if cors is None else [*allowed(cors, origin), *exposed(cors)]
            return False
        if cors is None:
            await downstream.refuse(403, "pages of this origin may not read this")
        else:
            await downstream.start(204, preflight(cors, origin, "GET, HEAD, DELETE" if ours else method))
            await downstream.finish()
        return True

    def _cors(self, origin: str, route: Route | None, *, ours: bool) -> tuple[bool, Cors | None]:
        """Whether the relay has a say, and what it says to pages of that origin.

        Of which route a stream is, its address does not tell: whoever may read of one route may ask for any by its id,
        which only a page that could read its answer knows.
        """
        own = (each.policy.cors for each in self.routes) if ours else (route.policy.cors if route else None,)
        rules = [cors for cors in (self._operator, *own) if cors is not None]
        fitting = next((cors for cors in rules if cors.allows(origin)), None)
        said = fitting is not None or ours or any(cors is not self._operator for cors in rules)
        return said, fitting

    async def _about_us(self, request: Request, downstream: Downstream) -> bool:
        """Answer what is asked of the relay itself; False if nothing is."""
        path = _path(request)
        if not path.startswith(ROOT):
            return False
        etag = request.headers.get("if-none-match", "")
        if await serve_own(path, request.method, etag, downstream, draining=self._draining):
            return True
        if self._gate is None:
            return False
        owners = {owner for asked in self._owners if (owner := self._owner(request, asked)) is not None}
        return await self._gate.controlled(request, downstream, owners)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        async with self.lifespan():
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _path(request: Request) -> str:
    """What is asked for, below where the relay is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def _preflighted_method(request: Request) -> str | None:
    """Which method a preflight asks about; None for other requests."""
    if request.method != "OPTIONS" or "origin" not in request.headers:
        return None
    return request.headers.get("access-control-request-method")


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key or request.method == "HEAD":
        return None
    return f"idempotency-key:{hashlib.sha256(key.encode()).hexdigest()}"


def new_via() -> str:
    """A name for Via that no other relay has."""
    return f"penstock-{secrets.token_hex(6)}"
