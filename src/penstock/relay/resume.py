"""Readers that come to a stream that is there already: by its id, by a place in it, by its key.

A reader that comes to a stream is one of its readers from then on, also while its head is still waited for. What it has
not got, in whatever process the stream is produced, it is given from the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from starlette.requests import Request

from penstock.errors import LimitExceeded, StoreError
from penstock.eventlog.base import Stream
from penstock.eventlog.reader import Reader
from penstock.relay.downstream.answer import PATH, attended, give
from penstock.relay.downstream.reader import Downstream
from penstock.relay.route import Route
from penstock.relay.streams.head import Digest, Head
from penstock.relay.streams.marks import Place, is_stream_id
from penstock.relay.streams.session import LOST, STOPPING, Session, StoppedEarly
from penstock.relay.streams.streams import NoRoom, Streams
from penstock.relay.streams.theirs import Sought, is_found
from penstock.relay.upstream.exchange import refuse_with
from penstock.relay.upstream.headers import Raw, Refused, body_length
from penstock.relay.upstream.outgoing import Outgoing

NOTHING_KEPT = "the stream ended before it began: nothing of it is kept"
NO_ANSWER = "the store does not answer"
PASSED_ON = "the request was passed on, and its answer is lost: ask again only if doing it twice does no harm"


class Resumption:
    """A relay's streams, for readers of those that are there.

    Args:
        streams: The relay's.
        route: For what no other is known of: one's own generators, and streams that another process produces.
    """

    def __init__(self, streams: Streams, route: Route) -> None:
        self.streams = streams
        self._route = route

    async def controlled(self, request: Request, downstream: Downstream, owners: Collection[str]) -> bool:
        """Answer what is asked of ``/_penstock/streams/<id>``; False if that is not what is asked for.

        Args:
            request: The reader's.
            downstream: The reader.
            owners: Whose streams it may read: whom it is to each of the routes, for which of them a stream is of is
                not known here.
        """
        path = _path(request)
        if not path.startswith(PATH):
            return False
        downstream.route = f"{PATH}{{id}}"
        await self._control(request, downstream, path.removeprefix(PATH), owners)
        return True

    async def _control(self, request: Request, downstream: Downstream, id_: str, owners: Collection[str]) -> None:
        async with store_trouble_told(downstream):
            stream = await self.streams.get(id_, *owners) if is_stream_id(id_) else None
            if stream is None:
                await downstream.refuse(404, "there is no such stream, or no longer")
            elif request.method == "DELETE":
                await self.streams.stop(stream)
                await downstream.start(204, [])
                await downstream.finish()
            elif request.method in ("GET", "HEAD"):
                await self._from_place(request, downstream, stream)
            else:
                allowed: Raw = [(b"allow", b"GET, HEAD, DELETE")]
                await downstream.refuse(405, "a stream is read with GET and stopped with DELETE", fields=allowed)

    async def resume(
        self, request: Request, downstream: Downstream, key: str, owner: str | None, finished: int | None, more: Raw
    ) -> None:
        """Answer with the stream of a key, from the reader's place on, or from the beginning."""
        async with store_trouble_told(downstream):
            stream = await self.streams.find(key, owner)
            if stream is not None and (finished is None or stream.ended is None):
                await self._from_place(request, downstream, stream, more, by_key=True)
            elif finished is not None:
                await downstream.start(finished, more)
                await downstream.finish()
            else:
                await downstream.refuse(404, "there is no such stream, or no longer")

    async def _from_place(
        self,
        request: Request,
        downstream: Downstream,
        stream: Stream,
        more_headers: Raw | None = None,
        *,
        by_key: bool = False,
    ) -> None:
        asked = request.query_params
        # What an EventSource hands back is where it is by now; its address stays what it was.
        last = request.headers.get("last-event-id", "")
        after = last or asked.get("after", "")
        place = Place.parse(after)
        sought: Sought | None = None
        try:
            if "after" in asked and "offset" in asked:
                raise ValueError("a place is told by ?after= or by ?offset=: write one of them")
            offset = _number(asked["offset"]) if "offset" in asked else None
            told = asked.get("after", "0")
            sequence = _number(told) if told.isdecimal() or not told else 0
            if last and place is None:
                unknown = None if by_key else (409, "this Last-Event-ID is not of this stream")
                sought = Sought(last.encode("latin-1"), unknown, after=sequence)
            elif after and place is None and not after.isdecimal():
                sought = Sought(after.encode(errors="replace"), (400, _no_place(after)), after=None)
        except ValueError as error:
            await downstream.refuse(400, str(error))
            return
        if place is not None and place.stream != stream.id and not by_key:
            await downstream.refuse(409, "this Last-Event-ID is of another stream")
            return
        reader: Reader | None = None  # attached only now: whoever is refused would stay attached
        if offset is None and place is None:
            reader = stream.reader(sequence)
        elif offset is None and place is not None and place.stream == stream.id:
            reader = stream.reader(place.sequence, epoch=place.epoch)
        # A key names another stream than it did: of this one nothing is known.
        await self.join(
            stream,
            downstream,
            reader,
            offset=offset,
            sought=sought,
            addressed=True,
            more_headers=more_headers,
            root=root_of(request),
        )

    async def join(
        self,
        stream: Stream,
        downstream: Downstream,
        reader: Reader | None = None,
        *,
        offset: int | None = None,
        sought: Sought | None = None,
        addressed: bool = False,
        digest: str | None = None,
        route: Route | None = None,
        more_headers: Raw | None = None,
        root: str = "",
    ) -> None:
        """Answer with a stream that is there already, from a place on.

        Args:
            stream: The stream.
            downstream: The reader.
            reader: Its place; the beginning by default.
            offset: The place in bytes.
            sought: The place as the upstream's own id.
            addressed: Whether it asked for this stream, as `give` takes it.
            digest: What the request that began the stream must have been.
            route: What the reader asked through, which counts where the stream is produced in another process.
            more_headers: Fields to set on the answer.
            root: The path that the reader finds us at.
        """
        session = self.streams.session(stream)
        policy = (session and session.policy) or (route or self._route).policy
        with reader or stream.reader(offset=offset) as place:
            if self.streams.readers(stream) >= policy.limits.max_readers:
                await downstream.put_off(429, "as many read this stream as may")
                return
            async with attended(downstream, session):
                with self.streams.reading(stream):
                    if not await self._has_begun(stream, session, downstream, asks=digest is not None):
                        return
                    head = Head.decoded(stream.head)
                    if digest is not None and digest != head.digest:
                        await downstream.refuse(422, "this Idempotency-Key came with another request")
                    elif offset is not None and head.kind == "sse":
                        await downstream.refuse(400, "an event stream is read from an event on: write ?after=")
                    elif offset is None and head.kind == "bytes" and place.cursor > 0:
                        await downstream.refuse(400, "this is no event stream, and read from a byte on: write ?offset=")
                    elif sought is None or offset is not None or await is_found(place, head, sought, downstream):
                        await give(
                            place,
                            head,
                            downstream,
                            offset=offset,
                            first_reader=digest is not None,
                            addressed=addressed,
                            more_headers=more_headers or [],
                            root=policy.root_path + root,
                            keep_alive=policy.keep_alive,
                            handover=self.streams.handover,
                        )

    async def _has_begun(self, stream: Stream, session: Session | None, downstream: Downstream, *, asks: bool) -> bool:
        """Wait for a stream's head; False, and the reader is told why, if there will be none.

        Args:
            asks: Whether the reader's request is one that begins such a stream, and not one for what is kept of it.
        """
        if stream.ended is not None and not stream.head:
            await downstream.refuse(410, NOTHING_KEPT)
            return False
        if session is not None:
            await asyncio.wait({session.opened})
            failure = session.opened.exception()
            if failure is not None:
                await told_why(downstream, failure, None, session)
                return False
        while not stream.head:
            if stream.ended is not None:
                await downstream.refuse(*((502, "the stream ended before it began") if asks else (410, NOTHING_KEPT)))
                return False
            await stream.wait(-1)
        return True

    async def resumed(
        self,
        request: Request,
        downstream: Downstream,
        owner: str | None,
        *,
        route: Route | None = None,
        key: str | None = None,
        repeated: bool = True,
    ) -> bool:
        """Answer a request that carries an id of ours; False for one that does not.

        Args:
            request: The reader's.
            downstream: The reader.
            owner: Whose streams it may read.
            route: What it asks through, where that is known.
            key: What its stream must be called, where the route has named it.
            repeated: Whether it must be the very request that the stream began with.
        """
        place = Place.parse(request.headers.get("last-event-id", ""))
        if place is None:
            return False
        async with store_trouble_told(downstream):
            await self._resumed(request, downstream, place, owner, route=route, key=key, repeated=repeated)
        return True

    async def _resumed(
        self,
        request: Request,
        downstream: Downstream,
        place: Place,
        owner: str | None,
        *,
        route: Route | None,
        key: str | None,
        repeated: bool,
    ) -> None:
        stream = await self.streams.get(place.stream, owner)
        if stream is None:
            await downstream.refuse(404, "the stream that this Last-Event-ID is of is not kept any more, or never was")
            return
        same = key is None or key == stream.key
        if same and repeated and stream.head:
            try:
                digest = Digest(request, body_length(request.scope["headers"]))
            except Refused as refused:
                await downstream.refuse(refused.status, refused.reason)
                return
            same = await digest_of(digest, downstream) == Head.decoded(stream.head).digest
        if not same:
            if not downstream.started:
                await downstream.refuse(409, "this Last-Event-ID is of another request's stream")
            return
        reader = stream.reader(place.sequence, epoch=place.epoch)
        await self.join(stream, downstream, reader, route=route, root=root_of(request))

    async def find(self, key: str, owner: str | None) -> Stream | None:
        """The latest stream that its owner calls so."""
        return await self.streams.find(key, owner)

    async def stop(self, key: str, owner: str | None) -> bool:
        """Stop the stream that its owner calls so; whether one ran."""
        stream = await self.streams.find(key, owner)
        return stream is not None and await self.streams.stop(stream)


@asynccontextmanager
async def store_trouble_told(downstream: Downstream, session: Session | None = None) -> AsyncIterator[None]:
    """Whose answer has not begun when the store fails is told to come back later.

    Args:
        downstream: The reader.
        session: What its request began.
    """
    try:
        yield
    except StoreError:
        if downstream.started:
            raise
        await _put_off(downstream, NO_ANSWER, session)


async def digest_of(digest: Digest, downstream: Downstream) -> str | None:
    """What a request is recognised by, read to its end; None, and it is answered, if it is too long or cut short."""
    async with attended(downstream):
        try:
            return await digest.read(downstream.body)
        except LimitExceeded as error:
            await refuse_with(downstream, error, None)
    return None


async def told_why(downstream: Downstream, failure: BaseException, outgoing: Outgoing | None, session: Session) -> None:
    """Answer where there is no head."""
    if isinstance(failure, NoRoom):
        await _put_off(downstream, str(failure), session)
    elif isinstance(failure, StoppedEarly) and str(failure) in (STOPPING, LOST):
        await _put_off(downstream, STOPPING if str(failure) == STOPPING else NO_ANSWER, session)
    elif isinstance(failure, StoppedEarly):  # for good: whoever comes back by itself would begin it anew
        await downstream.refuse(410, "the stream was stopped before it began")
    else:
        await refuse_with(downstream, failure, outgoing)


async def _put_off(downstream: Downstream, reason: str, session: Session | None) -> None:
    """Tell a reader to come back later: but not with a request that may have been passed on, and must not be twice."""
    if session is None or session.may_repeat or downstream.is_event_source:
        await downstream.put_off(503, reason)
    else:
        await downstream.refuse(502, f"{reason}; {PASSED_ON}")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError(_no_place(text))
    return int(text)


def _no_place(text: str) -> str:
    return f"{text[:40]!r} is not a place in this stream: write a number, 0 for the beginning, or an event's id"


def root_of(request: Request) -> str:
    """The path that the reader finds us at."""
    root: str = request.scope.get("root_path", "")
    return root


def _path(request: Request) -> str:
    path: str = request.scope["path"]
    return path.removeprefix(root_of(request))
