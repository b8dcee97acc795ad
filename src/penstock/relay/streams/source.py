"""An upstream's answer as the source of a stream: asked for in a session, and kept if it is of a kind that is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from penstock.client.response import Response
from penstock.relay.downstream.early import Ahead, answered, asked_in, early_head, under_way
from penstock.relay.downstream.reader import Downstream
from penstock.relay.route import Route
from penstock.relay.settings.policy import Policy
from penstock.relay.streams.ends import Kind
from penstock.relay.streams.head import Digest, Head
from penstock.relay.streams.session import Session, pour
from penstock.relay.upstream.headers import Raw, to_reader, with_set
from penstock.relay.upstream.outgoing import Outgoing
from penstock.wire import headers as fields

IDENTITY: Raw = [(b"accept-encoding", b"identity")]
"""What a logged route asks of its upstream: in a body that is coded there are no events to be seen."""


def logged_kind(policy: Policy, method: str, response: Response) -> Kind | None:
    """What kind of stream a response is, for the log; None for what only passes through."""
    content_type = response.content_type
    if method == "HEAD" or response.status != 200 or not policy.logs(content_type):
        return None
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        return "bytes"
    if fields.is_event_stream(content_type):
        return "sse"
    return "ndjson" if fields.is_ndjson(content_type) else "bytes"


class UpstreamSource:
    """Asks the upstream, once, for a session.

    Args:
        route: What is asked through.
        outgoing: What is asked.
        downstream: The reader, whose request's body goes on.
        digest: What the request will be recognised by.
        claim: Gives the session its place in the log.
    """

    def __init__(
        self,
        route: Route,
        outgoing: Outgoing,
        downstream: Downstream,
        digest: Digest,
        claim: Callable[[Session], Awaitable[object]],
    ) -> None:
        self._route = route
        self._policy = route.policy
        self.outgoing = replace(outgoing, headers=with_set(outgoing.headers, IDENTITY))
        self._downstream = downstream
        self._digest = digest
        self._claim = claim

    async def __call__(self, session: Session) -> None:
        """Run to the end of the upstream's body.

        Cancellation: the upstream's request is abandoned, in whatever phase.

        Raises:
            NoRoom: The answer is one that is kept, and the log does not take it.
            PenstockError: There was no answer, or it broke off.
        """
        body = self._digest.over(self._downstream.body)
        if self._policy.early_headers is not None and self.outgoing.method != "HEAD":
            ahead = Ahead(body, self._policy.limits.max_replay_bytes)
            body = ahead.open
            whole = await ahead.read()
            if whole is not None:
                session.asked_in = asked_in(whole, self.outgoing.headers, self._downstream)
                if session.asked_in is not None:
                    await self._early(session, ahead, self._policy.early_headers)
                    return
        session.may_repeat = self._may_repeat
        async with await self._route.open(self.outgoing, body) as response:
            await self._take(session, response)

    @property
    def _may_repeat(self) -> bool:
        has_key = any(name == b"idempotency-key" for name, _ in self.outgoing.headers)
        return self._policy.retry.may_repeat(self.outgoing.method, has_key=has_key)

    async def _early(self, session: Session, ahead: Ahead, seconds: float) -> None:
        """The same, but the stream begins before the upstream has answered, if that takes longer."""
        session.may_repeat = self._may_repeat
        async with under_way(self._route.open(self.outgoing, ahead.open)) as opening:
            await asyncio.wait({opening}, timeout=seconds)
            if opening.done():
                await self._take(session, opening.result())
                return
            await self._begin(session, early_head(self._policy, self._digest.value))
            response = await answered(
                opening, lambda response: logged_kind(self._policy, self.outgoing.method, response) == "sse"
            )
            await pour(session, response)

    async def _take(self, session: Session, response: Response) -> None:
        kind = logged_kind(self._policy, self.outgoing.method, response)
        if kind is None and not session.bound:
            await session.hand_over(response)
            return
        headers = to_reader(
            [(name.lower(), value) for name, value in response.headers.raw],
            status=response.status,
            upstream=self.outgoing.url,
            root=self.outgoing.root,
        )
        kept = self._policy.response_headers.apply(headers)
        session.cookies = [pair for pair in kept if pair[0] == b"set-cookie"]
        kept = [pair for pair in kept if pair[0] != b"set-cookie"]
        head = Head(response.status, kept, kind or "bytes", self._digest.value, self._policy.dialect)
        await self._begin(session, head)
        await pour(session, response)

    async def _begin(self, session: Session, head: Head) -> None:
        if not session.bound:
            await self._claim(session)
        session.begin(head)
