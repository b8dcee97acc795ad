"""Relay: a transparent gateway as an ASGI app, and `forward` for routes of one's own."""

from __future__ import annotations

import hashlib
import json as jsonlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.client.settings import Limits, Timeout
from penstock.eventlog.base import EventLog
from penstock.relay.config import Config, load
from penstock.relay.cors import allowed, exposed, preflight
from penstock.relay.downstream import Downstream, problem
from penstock.relay.ends import Dialect
from penstock.relay.exchange import carry
from penstock.relay.gateway import Gate
from penstock.relay.generator import Encoding, Factory, generated
from penstock.relay.headers import Raw, Refused, body_length, framing, settable, with_set
from penstock.relay.policy import PATIENCE, Cors, HeaderRules, OwnerFrom, Policy, segments
from penstock.relay.public import ROOT, serve_own
from penstock.relay.route import NO_WEBSOCKET, Route
from penstock.relay.session import OnEnd, Session
from penstock.relay.store import Store
from penstock.relay.streams import IfRunning, Streams
from penstock.relay.upstream import Outgoing, target_of
from penstock.wire import headers as fields


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
        store: Where streams are kept so that readers can come back: "memory://", "sqlite:///FILE", or None.
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
            config.routes, config.default, via, None, config.secret or b"", lambda: config.store.log(config.retention)
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
        self._gate = self._new_gate()

    def _new_gate(self) -> Gate | None:
        log = self._new_log()
        return None if log is None else Gate(Streams(log), self.routes[-1].policy)

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

        `penstock relay` does it at the first SIGTERM, with the listener still open for resumes and probes. Elsewhere it
        is for the host to call, before it stops its server.

        Args:
            grace: Seconds that they have.
        """
        self._draining = True
        if self._gate is not None:
            await self._gate.streams.drain(grace)

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
            gate = self._gate
            route = self._route_of(request)
            if await self._preflighted(request, route, downstream) or await self._about_us(request, downstream):
                return
            if route is None:
                await downstream.refuse(404, "no route is for this request")
                return
            downstream.max_body_bytes = route.policy.limits.max_body_bytes
            owner = self._owner(request, route.policy.owner)
            if gate is not None and await gate.resumed(request, downstream, owner):
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
        key: str | None = None,
        owner: str | None = None,
        if_running: IfRunning = "join",
        on_end: OnEnd | None = None,
    ) -> StarletteResponse:
        """Answer a route's request with the upstream's stream.

        What is returned opens the upstream when the server sends it. Without a store a reader that leaves cancels the
        upstream, before its first byte as well as after; with one, that is for `on_disconnect` to say.

        Args:
            request: The route's own request.
            method: The upstream's method; the request's own by default.
            path: Path and query at the upstream; the request's own by default.
            json: A body as JSON.
            content: A body as bytes. Without either the request's own body goes on as it comes.
            headers: Set on the request to the upstream, beside the relay's own.
            pass_headers: Which of the caller's fields go on; no others do.
            key: What the owner calls the stream: it can be found, joined and stopped by it. Needs a store.
            owner: Whose the stream is; nobody else can read or stop it.
            if_running: With a stream of that key running: "join" it, answer 409 ("conflict"), or "replace" it.
            on_end: Called once with the `StreamEnd`, at whatever end of a stream that is kept.
        """
        more = with_set(self._own.headers, settable(headers or {}))
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
                *with_set([(b"host", self._own.host.encode()), *passed], more),
                *framing(length, always=own is not None),
            ],
            has_body=length != 0,
            root=request.scope.get("root_path", ""),
        )

        async def answer(request: Request, downstream: Downstream, more_headers: Raw) -> None:
            gate = self._gate
            if gate is None:
                rules = self._own.policy.response_headers
                await carry(self._own.client, outgoing, downstream, rules=rules, more_headers=more_headers)
            elif not await gate.resumed(request, downstream, owner, key=key):
                await gate.forward(
                    request,
                    self._own,
                    outgoing,
                    downstream,
                    owner=owner,
                    key=key,
                    if_running=if_running,
                    on_end=on_end,
                    more_headers=more_headers,
                )

        if key is not None:
            self._kept()
        return _Answer(answer, request, own)

    async def stream(
        self,
        request: Request,
        factory: Factory,
        *,
        key: str | None = None,
        owner: str | None = None,
        if_running: IfRunning = "join",
        on_end: OnEnd | None = None,
        encoding: Encoding = "sse",
        dialect: Dialect | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> StarletteResponse:
        """Answer a route's request with a generator of one's own, made resumable.

        The generator runs once per stream, apart from the request: it is not run again for a reader that joins or comes
        back, and goes on when one leaves, as `on_disconnect` says.

        Args:
            request: The route's own request.
            factory: Called without arguments, once; gives the items, as an iterable or an async iterable. A string, a
                dict, a pydantic model or an `Event` is one event's data; bytes are wire bytes as they stand.
            key: What the owner calls the stream: it can be found, joined and stopped by it.
            owner: Whose the stream is; nobody else can read or stop it.
            if_running: With a stream of that key running: "join" it, answer 409 ("conflict"), or "replace" it.
            on_end: Called once with the `StreamEnd`, at whatever end.
            encoding: "sse" for events, "ndjson" for lines, "raw" for a generator that yields wire bytes.
            dialect: What the stream speaks, for its failures: "openai", "anthropic", "ai-sdk", "ag-ui".
            headers: Set on the answer.
        """
        gate = self._kept()
        fields = settable(headers or {})

        async def source(session: Session) -> None:
            await generated(session, factory, encoding=encoding, dialect=dialect, headers=fields)

        async def answer(request: Request, downstream: Downstream, more_headers: Raw) -> None:
            if await gate.resumed(request, downstream, owner, key=key, repeated=False):
                return
            await gate.begin(
                request,
                source,
                downstream,
                owner=owner,
                key=key,
                claimed=True,
                if_running=if_running,
                on_end=on_end,
                more_headers=more_headers,
                root=request.scope.get("root_path", ""),
            )

        return _Answer(answer, request, b"")

    async def resume(
        self, request: Request, *, key: str, owner: str | None = None, finished: int | None = None
    ) -> StarletteResponse:
        """Answer a route's request with the stream that its owner calls so: from Last-Event-ID or ``?after=`` on.

        Args:
            request: The route's own request.
            key: What the owner calls the stream.
            owner: Whose it is.
            finished: The status for a stream that has ended, or that there is none; by default one that has ended is
                played from its log, and 404 where there is none. 204 is what `useChat({resume: true})` expects.
        """
        gate = self._kept()

        async def answer(request: Request, downstream: Downstream, more_headers: Raw) -> None:
            await gate.resume(request, downstream, key, owner, finished, more_headers)

        return _Answer(answer, request, b"")

    async def stop(self, *, key: str, owner: str | None = None) -> bool:
        """Stop the stream that its owner calls so; whether one ran. In whatever process it runs."""
        return await self._kept().stop(key, owner)

    def _kept(self) -> Gate:
        if self._gate is None:
            raise RuntimeError('streams are not kept: make the Relay with store="memory://", or another store')
        return self._gate

    def _route_target(self, request: Request, path: str | None) -> bytes:
        if path is None:
            return target_of(request.scope, self.upstream)
        if not path.startswith("/"):
            raise ValueError(f"a path at the upstream begins with /, got {path!r}")
        if not path.isascii() or any(character <= " " for character in path):
            raise ValueError(f"a path at the upstream is percent-encoded, got {path!r}")
        return (urlsplit(self.upstream).path.rstrip("/") + path).encode()


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


class _Answer(StarletteResponse):
    """An answer to be: whoever sends it begins the stream, or joins it."""

    def __init__(
        self, answer: Callable[[Request, Downstream, Raw], Awaitable[None]], request: Request, own_body: bytes | None
    ) -> None:
        super().__init__()
        self.raw_headers = []
        self._answer = answer
        self._request = request
        self._own_body = own_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: Request = self._request if self._own_body is None else _Replaced(scope, receive, self._own_body)
        async with Downstream(request, receive, send) as downstream:
            await self._answer(request, downstream, list(self.raw_headers))
        if self.background is not None:
            await self.background()


class _Replaced(Request):
    """A request whose body is another."""

    def __init__(self, scope: Scope, receive: Receive, body: bytes) -> None:
        super().__init__(scope, receive)
        self._body = body
