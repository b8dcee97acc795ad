"""One policy at work: the connections to its upstream, and what it makes of requests on their way there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import anyio
from starlette.requests import Request

from penstock.client.client import AsyncClient
from penstock.client.exchange import retry_pause
from penstock.client.response import Response
from penstock.client.settings import Limits
from penstock.errors import PenstockError
from penstock.relay.settings.policy import Policy
from penstock.relay.upstream.headers import Raw, Refused, body_length, to_upstream
from penstock.relay.upstream.outgoing import Outgoing, target_of

NO_WEBSOCKET = "WebSocket is not relayed"


class Route:
    """A policy, and what it takes to follow it.

    Args:
        policy: What to do.
        via: The relay's name in Via.
        limits: Of the connections to the upstream.

    Attributes:
        client: What the upstream is reached through.
        upstream: Its URL, without a slash at the end.
        host: Its host and port.
        headers: Fields that are set on every request to it.
        running: How many of its streams run here.
    """

    def __init__(self, policy: Policy, *, via: str, limits: Limits | None = None) -> None:
        self.policy = policy
        self.client = self._new_client(limits)
        self.upstream = self.client.absolute_url("").partition("?")[0].rstrip("/")
        self.host = urlsplit(self.upstream).netloc.rpartition("@")[2]
        self.headers: Raw = list(policy.request_headers.added)
        self.running = 0
        self._limits = limits
        self._via = via

    def _new_client(self, limits: Limits | None) -> AsyncClient:
        policy = self.policy
        # Nothing of one reader may reach another: no cookie that an upstream sets is kept here.
        return AsyncClient(
            policy.upstream,
            timeout=policy.timeout,
            limits=limits,
            retry=policy.retry,
            breaker=policy.breaker,
            keep_cookies=False,
        )

    async def renew(self) -> None:
        """Close the connections; those for the next request are new ones."""
        client, self.client = self.client, self._new_client(self._limits)
        self.client.use(*client.exchange.middleware)
        await client.aclose()

    def runs(self, stream: asyncio.Task[None]) -> None:
        """One of its streams runs, until that task ends."""

        def done(task: asyncio.Task[None]) -> None:
            self.running -= 1

        self.running += 1
        stream.add_done_callback(done)

    def passed_on(self, request: Request) -> Outgoing:
        """A reader's request as it goes on.

        Raises:
            Refused: It must not.
        """
        raw: Raw = request.scope["headers"]
        if request.headers.get("upgrade", "").lower() == "websocket":
            raise Refused(501, NO_WEBSOCKET)
        policy = self.policy
        if sum(len(name) + len(value) + 4 for name, value in raw) > policy.limits.max_header_bytes:
            raise Refused(431, f"the request's fields are longer than {policy.limits.max_header_bytes:,} bytes")
        length = body_length(raw)
        most = policy.limits.max_body_bytes
        if most is not None and length is not None and length > most:
            raise Refused(413, f"the request's body is longer than {most:,} bytes")
        dropped = policy.request_headers.dropped
        peer = request.client.host if request.client else None
        headers = to_upstream(
            [pair for pair in raw if pair[0] not in dropped] if dropped else raw,
            host=self.host,
            length=length,
            peer=peer,
            scheme=request.scope["scheme"],
            via=self._via,
            more=self.headers,
            trusted=policy.trusts(peer),
        )
        return Outgoing(
            request.method,
            self.upstream,
            target_of(request.scope, self.upstream),
            headers,
            has_body=length != 0,
            root=self.root(request),
        )

    def root(self, request: Request) -> str:
        """The path at which the reader finds what the upstream has at its own."""
        root: str = request.scope.get("root_path", "")
        return self.policy.root_path + root

    async def open(self, outgoing: Outgoing, body: Callable[[], AsyncIterator[bytes]]) -> Response:
        """Ask the upstream, again where the policy has retries and the whole of the body that was read is held.

        Cancellation: the request is abandoned and its connection closed.

        Args:
            outgoing: The request.
            body: Gives its body from where it stands: an attempt that is cancelled while it waits for a piece ends
                what it iterates.
        Raises:
            PenstockError: There was no answer.
        """
        retry = self.policy.retry
        if retry.retries == 0:
            return await outgoing.open(self.client, body())
        held = Held(body, self.policy.limits.max_replay_bytes)
        may_repeat = retry.may_repeat(
            outgoing.method, has_key=any(name == b"idempotency-key" for name, _ in outgoing.headers)
        )
        attempt = 1
        while True:
            refused: Response | None = None
            failure: PenstockError
            try:
                response = await outgoing.open(self.client, held.open())
            except PenstockError as error:
                failure = error
            else:
                if response.status < 400:
                    return response
                refused, failure = response, response.status_error()
            pause = retry_pause(retry, failure, attempt, may_repeat=may_repeat) if held.complete else None
            shared = self.client.exchange
            if pause is None or shared.would_refuse(self.upstream, pause) or not shared.may_retry(retry):
                if refused is not None:
                    return refused
                raise failure
            if refused is not None:
                await refused.aclose()
            await anyio.sleep(pause)
            attempt += 1


class Held:
    """A request's body, of which what has been read is kept for another attempt, up to a limit."""

    def __init__(self, body: Callable[[], AsyncIterator[bytes]], limit: int) -> None:
        self._body = body
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def complete(self) -> bool:
        """Whether all that was read is still here."""
        return self._size <= self._limit

    async def open(self) -> AsyncIterator[bytes]:
        """The body from its beginning: what was read before, and then the rest."""
        for piece in list(self._pieces):
            yield piece
        async for piece in self._body():
            self._size += len(piece)
            if self._size <= self._limit:
                self._pieces.append(piece)
            else:
                self._pieces.clear()
            yield piece
