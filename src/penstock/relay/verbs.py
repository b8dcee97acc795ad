"""What a route of one's own asks of a relay: the upstream's stream, a generator's, one that is there, the end of one.

Each but `stop` returns an answer to be: the stream begins when the server sends it.
"""

from __future__ import annotations

import json as jsonlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, get_args
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.types import Receive, Scope, Send

from penstock.relay.downstream.reader import Downstream, OnAsked, problem
from penstock.relay.gateway import Gate
from penstock.relay.route import Route
from penstock.relay.streams.ends import DIALECTS, Dialect
from penstock.relay.streams.generator import Encoding, Factory, generated
from penstock.relay.streams.session import OnEnd, Session
from penstock.relay.streams.streams import IfRunning
from penstock.relay.upstream.exchange import carry
from penstock.relay.upstream.headers import Raw, Refused, body_length, framing, settable, with_set
from penstock.relay.upstream.outgoing import Outgoing, target_of
from penstock.wire import headers as fields


class Verbs(ABC):
    """The part of a relay that routes call."""

    _gate: Gate | None
    _on_asked: list[OnAsked]

    @property
    @abstractmethod
    def _own(self) -> Route:
        """What `forward` asks through."""

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
        Raises:
            ValueError: A key or an owner that is no Unicode text, a path that is no path, an `if_running` that is none.
        """
        _check_names(key, owner)
        _check_choice("if_running", if_running, get_args(IfRunning))
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
            self._own.upstream,
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
        return _Answer(answer, request, own, self._on_asked)

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
        Raises:
            ValueError: A key or an owner that is no Unicode text, or a word that is none of those above.
        """
        _check_names(key, owner)
        _check_choice("if_running", if_running, get_args(IfRunning))
        _check_choice("encoding", encoding, get_args(Encoding))
        if dialect is not None:
            _check_choice("dialect", dialect, DIALECTS)
        gate = self._kept()
        fields = settable(headers or {})

        async def source(session: Session) -> None:
            await generated(
                session,
                factory,
                encoding=encoding,
                dialect=dialect,
                headers=fields,
                threads=gate.streams.threads,
            )

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

        return _Answer(answer, request, b"", self._on_asked)

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
        Raises:
            ValueError: A key or an owner that is no Unicode text, or a status that is none.
        """
        _check_names(key, owner)
        if finished is not None and finished not in range(200, 600):
            raise ValueError(f"finished is a status from 200 to 599, as 204; got {finished!r}")
        gate = self._kept()

        async def answer(request: Request, downstream: Downstream, more_headers: Raw) -> None:
            await gate.resume(request, downstream, key, owner, finished, more_headers)

        return _Answer(answer, request, b"", self._on_asked)

    async def stop(self, *, key: str, owner: str | None = None) -> bool:
        """Stop the stream that its owner calls so; whether one ran. In whatever process it runs.

        Raises:
            ValueError: A key or an owner that is no Unicode text.
        """
        _check_names(key, owner)
        return await self._kept().stop(key, owner)

    def _kept(self) -> Gate:
        if self._gate is None:
            raise RuntimeError('streams are not kept: make the Relay with store="memory://", or another store')
        return self._gate

    def _route_target(self, request: Request, path: str | None) -> bytes:
        if path is None:
            return target_of(request.scope, self._own.upstream)
        if not path.startswith("/"):
            raise ValueError(f"a path at the upstream begins with /, got {path!r}")
        if not path.isascii() or any(character <= " " for character in path):
            raise ValueError(f"a path at the upstream is percent-encoded, got {path!r}")
        return (urlsplit(self._own.upstream).path.rstrip("/") + path).encode()


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}; got {value!r}")


def _check_names(key: str | None, owner: str | None) -> None:
    """Refuse what no store can keep, such as what JSON makes of half a surrogate pair.

    Raises:
        ValueError: The message says which it is.
    """
    for what, name in (("key", key), ("owner", owner)):
        try:
            (name or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} {name!r} is no Unicode text: character {error.start} is half of a surrogate pair; "
                "encode or hash what comes from outside"
            ) from None


class _Answer(StarletteResponse):
    """An answer to be: whoever sends it begins the stream, or joins it."""

    def __init__(
        self,
        answer: Callable[[Request, Downstream, Raw], Awaitable[None]],
        request: Request,
        own_body: bytes | None,
        on_asked: Sequence[OnAsked],
    ) -> None:
        super().__init__()
        self.raw_headers = []
        self._answer = answer
        self._request = request
        self._own_body = own_body
        self._on_asked = on_asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: Request = self._request if self._own_body is None else _Replaced(scope, receive, self._own_body)
        async with Downstream(request, receive, send, self._on_asked) as downstream:
            await self._answer(request, downstream, list(self.raw_headers))
        if self.background is not None:
            await self.background()


class _Replaced(Request):
    """A request whose body is another."""

    def __init__(self, scope: Scope, receive: Receive, body: bytes) -> None:
        super().__init__(scope, receive)
        self._body = body
