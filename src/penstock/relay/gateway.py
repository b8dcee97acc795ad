"""What a request asks of the relay's streams: a new one, one that runs, or a place in one.

==============================================  ==================================================================
the request                                     is answered with
==============================================  ==================================================================
has a Last-Event-ID of ours                     that stream, from there on, if it is the same request (409 if not)
has an Idempotency-Key, and an owner            the stream that the same key began, if that runs or was a success
                                                that is still kept; 422 with another body
``GET``, ``HEAD /_penstock/streams/<id>``       that stream, from Last-Event-ID, ``?after=`` or ``?offset=`` on
``DELETE /_penstock/streams/<id>``              its end: 204, whether or not it had one already
anything else                                   the upstream's answer; logged, and so a stream, if its kind is
==============================================  ==================================================================

A stream of another owner is as good as none: 404.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from penstock.client.response import Response
from penstock.errors import StoreError
from penstock.eventlog.base import Stream
from penstock.relay.downstream.answer import attended, give
from penstock.relay.downstream.reader import Downstream
from penstock.relay.resume import NO_ANSWER, Resumption, digest_of, root_of, store_trouble_told, told_why
from penstock.relay.route import Route
from penstock.relay.settings.policy import Policy
from penstock.relay.streams.head import Digest, Head
from penstock.relay.streams.session import OnEnd, Session
from penstock.relay.streams.source import UpstreamSource
from penstock.relay.streams.streams import IfRunning, NoRoom, Running
from penstock.relay.upstream.exchange import pass_on
from penstock.relay.upstream.headers import Raw, body_length
from penstock.relay.upstream.outgoing import Outgoing

logger = logging.getLogger("penstock.relay")

Source = Callable[[Session], Awaitable[None]]


def can_return(request: Request, downstream: Downstream, key: str | None) -> bool:
    """Whether a request shows that its reader can come back for the rest."""
    if key is not None or "idempotency-key" in request.headers or "last-event-id" in request.headers:
        return True
    return downstream.is_event_source


class Gate(Resumption):
    """A relay's streams, for one request at a time: those that are there, and new ones."""

    async def forward(
        self,
        request: Request,
        route: Route,
        outgoing: Outgoing,
        downstream: Downstream,
        *,
        owner: str | None,
        key: str | None = None,
        repeated: bool = False,
        if_running: IfRunning = "join",
        on_end: OnEnd | None = None,
        more_headers: Raw,
    ) -> None:
        """Ask the upstream, in a session, and answer with what it says.

        Args:
            request: The reader's.
            route: What is asked through.
            outgoing: What is asked.
            downstream: The reader.
            owner: Whose the stream is.
            key: What the owner calls it.
            repeated: Whether whoever joins by the key must have made the very same request.
            if_running: What to do when one of that key runs.
            on_end: Called once, at whatever end of a stream that is kept.
            more_headers: Fields to set on the answer.
        """
        digest = Digest(request, body_length(outgoing.headers))

        async def claim(session: Session) -> None:
            policy = route.policy
            await self.streams.claim(
                session, None, owner or "", promise=policy.promise, without_store=policy.without_store
            )

        source = UpstreamSource(route, outgoing, downstream, digest, claim)
        await self.begin(
            request,
            source,
            downstream,
            route=route,
            outgoing=source.outgoing,
            owner=owner,
            key=key,
            repeated=digest if repeated else None,
            if_running=if_running,
            on_end=on_end,
            more_headers=more_headers,
            root=root_of(request),
        )

    async def begin(
        self,
        request: Request,
        source: Source,
        downstream: Downstream,
        *,
        route: Route | None = None,
        outgoing: Outgoing | None = None,
        owner: str | None,
        key: str | None = None,
        claimed: bool = False,
        repeated: Digest | None = None,
        if_running: IfRunning = "join",
        on_end: OnEnd | None = None,
        more_headers: Raw,
        root: str = "",
    ) -> None:
        """Begin a stream from any source, or join the one that runs under its key, and answer with it.

        Args:
            request: The reader's.
            source: Runs as the session's.
            downstream: The reader.
            route: Whose stream it is.
            outgoing: The request to the upstream, where there is one.
            owner: Whose the stream is.
            key: What the owner calls it.
            claimed: Whether it has a place in the log from the start, without a key too.
            repeated: The request's digest, where whoever joins must have made the very same.
            if_running: What to do when one of that key runs.
            on_end: Called once, at whatever end.
            more_headers: Fields to set on the answer.
            root: The path that the reader finds us at.
        """
        route = route or self._route
        policy = route.policy
        session = Session(
            on_disconnect=policy.on_disconnect.resolved(can_resume=can_return(request, downstream, key)),
            ids=policy.ids,
            max_event_bytes=policy.limits.max_event_bytes,
            terminator=policy.terminator,
            on_end=on_end,
        )
        session.policy = policy
        try:
            running = None if repeated is None or key is None else await self._begun_before(key, owner)
            if running is None:
                running = await self._running(
                    session, route, owner or "", key, if_running, claimed=claimed, events=downstream.takes_events
                )
        except Running as already:
            await downstream.refuse(409, "a stream of this key is running", more={"stream": already.stream.id})
            return
        except NoRoom as full:
            await downstream.put_off(503, str(full))
            return
        except StoreError:
            await downstream.put_off(503, NO_ANSWER)
            return
        if running is None:
            route.runs(self.streams.start(session, source))
            await self._answered(session, policy, outgoing, downstream, more_headers, root)
            return
        digest: str | None = None
        if repeated is not None:
            digest = await digest_of(repeated, downstream)
            if downstream.started:
                return  # the reader has left, or sent too much
        downstream.body_is_over()
        async with store_trouble_told(downstream):
            await self.join(running, downstream, digest=digest, route=route, more_headers=more_headers, root=root)

    async def _begun_before(self, key: str, owner: str | None) -> Stream | None:
        """What an Idempotency-Key has begun and is not to be done again: one that runs here, or has ended well."""
        try:
            stream = await self.streams.find(key, owner)
        except StoreError:
            return None  # what that means for a new one is for the claim to say
        if stream is None or stream.ended is None:
            return stream if stream is not None and self.streams.session(stream) is not None else None
        whole = stream.ended.reason == "done" and stream.head != b""
        return stream if whole and Head.decoded(stream.head).status < 400 else None

    async def _running(
        self,
        session: Session,
        route: Route,
        owner: str,
        key: str | None,
        if_running: IfRunning,
        *,
        claimed: bool,
        events: bool,
    ) -> Stream | None:
        """The stream to join; None if the session is to be started."""
        full = "the relay is stopping" if self.streams.draining else None
        if route.running >= route.policy.limits.max_streams:
            full = "as many streams run here as may"
        if full is not None:
            running = await self.streams.find(key, owner) if key is not None and if_running == "join" else None
            if running is None or running.ended is not None:
                raise NoRoom(full)
            return running
        policy = route.policy
        if key is None and not claimed:
            if policy.log == "all" or events:
                await self.streams.check(policy.without_store)  # so that the upstream is not asked in vain
            return None  # it is claimed once the upstream's answer turns out to be one that is kept
        route.running += 1  # while the store is asked, lest all who ask at a time find the last place free
        try:
            return await self.streams.claim(
                session, key, owner, if_running=if_running, promise=policy.promise, without_store=policy.without_store
            )
        finally:
            route.running -= 1

    async def _answered(
        self,
        session: Session,
        policy: Policy,
        outgoing: Outgoing | None,
        downstream: Downstream,
        more_headers: Raw,
        root: str,
    ) -> None:
        """Wait for what the upstream says, and pass it on; the session learns when its reader leaves."""
        try:
            async with attended(downstream, session), store_trouble_told(downstream, session):
                await asyncio.wait({session.opened})
                failure = session.opened.exception()
                if failure is not None:
                    await told_why(downstream, failure, outgoing, session)
                    return
                opened = session.opened.result()
                if isinstance(opened, Response):
                    assert outgoing is not None
                    rules = policy.response_headers
                    await pass_on(opened, outgoing, downstream, rules=rules, more_headers=more_headers)
                    return
                with session.seat() as reader, self.streams.reading(reader.stream):
                    await give(
                        reader,
                        opened,
                        downstream,
                        more_headers=session.cookies + more_headers,
                        root=policy.root_path + root,
                        keep_alive=policy.keep_alive,
                        handover=self.streams.handover if session.kept else None,
                        kept=session.kept,
                        first_reader=True,
                    )
            if outgoing is not None and session.cancelled and not session.has_begun:
                logger.info(
                    "%s %s: the reader left after 0 bytes; the upstream is cancelled",
                    outgoing.method,
                    outgoing.target.decode("latin-1"),
                )
        finally:
            session.passed_on()
            if downstream.left_early:
                session.stop("the reader left before its request was whole")
