"""A logged stream as an answer: its head, its records from a place on, and its end.

==================================  =========================================================================
the stream                          the answer
==================================  =========================================================================
runs, or has more than the cursor   its head, what follows the cursor, and what comes
has ended *done*, all is known      204: there is nothing more, and an EventSource stops asking
has ended otherwise                 its head, the terminal event if the reader lacks it, and a broken end
was evicted up to the cursor        to who takes events a gap is told, then what is left; to others 410
is not as long as the offset        416; where it is produced elsewhere, what comes there: if it ends before it is
                                    as long, the answer is broken off
==================================  =========================================================================
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from penstock.errors import PenstockError, ReplayGap, StreamGone
from penstock.eventlog.base import End, Page, Producer, Stream
from penstock.eventlog.reader import Reader
from penstock.relay.downstream.handover import Handover, send_away
from penstock.relay.downstream.reader import Downstream
from penstock.relay.downstream.subscriber import StreamBroken, Subscriber
from penstock.relay.streams.ends import TOLD, said, spoken_in
from penstock.relay.streams.head import Head
from penstock.relay.streams.marks import LOST, Place, id_line
from penstock.relay.streams.session import Session
from penstock.relay.upstream.headers import Raw

STREAM_FIELD = b"penstock-stream"
OFFSET_FIELD = b"penstock-offset"
END_FIELD = b"penstock-end"
PATH = "/_penstock/streams/"


@asynccontextmanager
async def attended(downstream: Downstream, session: Session | None = None) -> AsyncIterator[None]:
    """A reader is here: the session is told, and when the reader leaves, the block is left too.

    Cancellation: the reader is let go of; what becomes of the stream is its session's to say.
    """
    with anyio.CancelScope() as scope:
        downstream.on_departure(scope.cancel)
        if session is not None:
            session.came()
        try:
            yield
        finally:
            if session is not None:
                session.left()
    if scope.cancel_called:
        await downstream.dismiss()


def fields_of(stream: Stream, head: Head, root: str = "", *, kept: bool = True) -> Raw:
    """The fields of a logged stream's answer: the upstream's, and how to come back to one that is kept."""
    names = {name for name, _ in head.headers}
    ours: Raw = [(STREAM_FIELD, stream.id.encode())] if kept else []
    ours.append((b"cache-control", b"no-store, no-transform"))
    if kept and b"location" not in names:
        ours.append((b"location", f"{root}{PATH}{stream.id}".encode()))
    if head.kind != "bytes":
        ours.append((b"x-content-type-options", b"nosniff"))
    replaced = {name for name, _ in ours} | {b"content-length"}
    return [pair for pair in head.headers if pair[0] not in replaced] + ours


async def give(
    reader: Reader,
    head: Head,
    downstream: Downstream,
    *,
    offset: int | None = None,
    more_headers: Raw,
    root: str = "",
    keep_alive: float = 15.0,
    handover: Handover | None = None,
    kept: bool = True,
    first_reader: bool = False,
    addressed: bool = False,
) -> None:
    """Answer a reader with a stream, from its place on, to the stream's end.

    Args:
        reader: Its place.
        head: The stream's.
        downstream: The reader.
        offset: The place, where it is one in bytes.
        more_headers: Fields to set on the answer, in the place of the stream's own of the same name.
        root: The path that the reader finds us at.
        keep_alive: Seconds of silence after which an event stream's reader is sent a comment; 0 never.
        handover: What sends it to another relay when this one drains.
        kept: Whether it can come back to the stream, and so is told how.
        first_reader: Whether the stream is its request's: it is answered as the upstream did, though nothing came.
        addressed: Whether it asked for this stream and none else: an EventSource, which asks again whatever the end, is
            told an id of ours there, by which it learns that it has it all.
    Raises:
        PenstockError: The stream did not end well, or cannot be read to its end. It is for the server to see, so that
            the answer cannot look whole.
    """
    stream, after = reader.stream, reader.cursor
    downstream.stream = stream
    first: Page | ReplayGap
    try:
        first = await reader.read()
    except StreamGone:
        await downstream.refuse(404, "the stream is not kept any more")
        return
    except ReplayGap as missed:
        if head.kind != "sse" or not downstream.takes_events:
            downstream.gaps += 1
            await downstream.refuse(410, "what was asked for is no longer kept", more={"earliest": missed.earliest})
            return
        first = missed
    else:
        # Of what is produced elsewhere, its reader may have been sent more than is stored yet: it comes.
        is_known = isinstance(stream, Producer) if first.end is None else first.end.reason == "done"
        if offset is not None and offset > first.offset and is_known:
            what = "has not come so far" if first.end is None else "is not so long"
            await downstream.refuse(416, f"the stream {what}", more={"offset": first.offset})
            return
        if not first_reader and _nothing_follows(first, after):
            assert first.end is not None
            ended: Raw = [(STREAM_FIELD, stream.id.encode()), (END_FIELD, first.end.reason.encode())]
            await downstream.start(204, [*ended, *more_headers])
            await downstream.finish()
            return
    ours = {name for name, _ in more_headers}
    fields = [pair for pair in fields_of(stream, head, root, kept=kept) if pair[0] not in ours]
    status, place = (head.status, []) if offset is None else _from_offset(stream, head, offset)
    await downstream.start(status, fields + place + more_headers)
    if downstream.head_only:
        await downstream.finish()
        return
    reading = Subscriber(reader, downstream, head.kind, keep_alive=keep_alive).run(first)
    moves = handover is not None and head.kind == "sse" and downstream.comes_back
    try:
        end = await (handover.offered(reading) if handover is not None and moves else reading)
    except PenstockError as error:
        await downstream.break_off(str(error))
        raise
    if end is None:
        await send_away(reader, downstream)
    elif end.reason == "done" and offset is not None and offset > end.offset:
        reason = f"stream {stream.id} ended at {end.offset}, and was asked for from {offset} on"
        await downstream.break_off(reason)
        raise StreamBroken(reason)
    else:
        by_id = addressed and head.kind == "sse" and downstream.is_event_source
        await _finish(stream, head, downstream, end, place=await _unmarked(stream, end) if by_id else b"")


def _from_offset(stream: Stream, head: Head, offset: int) -> tuple[int, Raw]:
    """The status and the fields that say from where on the bytes are."""
    place: Raw = [(OFFSET_FIELD, b"%d" % offset)]
    if stream.ended is None or stream.ended.reason != "done":
        return head.status, place
    length = stream.ended.offset
    return 206, [*place, (b"content-range", b"bytes %d-%d/%d" % (offset, length - 1, length))]


async def _unmarked(stream: Stream, end: End) -> bytes:
    """The id line of a stream's end, where its last record has no id of ours; else none."""
    line = id_line(stream.id, stream.epoch)
    try:
        records = (await stream.read(max(end.sequence - 2, 0))).records
    except PenstockError:  # what is not kept any more tells nothing, and an id does no harm
        records = ()
    return b"" if any(line in each for each in records) else b"%b%d\n" % (line, end.sequence)


async def _finish(stream: Stream, head: Head, downstream: Downstream, end: End, *, place: bytes = b"") -> None:
    if end.reason == "done":
        if place:
            await downstream.write(place + b"\n")
        await downstream.finish()
        return
    told = end.detail
    if not told and head.kind != "bytes":  # whoever found the producer gone did not know how the stream speaks
        dialect = "ndjson" if head.kind == "ndjson" else head.dialect or spoken_in(head.headers) or "penstock"
        told = said(dialect, end.reason, "the stream was lost with the process that produced it")
        if head.kind == "sse":
            told = f"id: {Place(stream.id, stream.epoch, LOST)}\n".encode() + told
    if place and (told == TOLD or id_line(stream.id, stream.epoch) not in told):
        told = place + (b"\n" if told in (b"", TOLD) else told)
    if told:
        await downstream.write(told)
    reason = f"stream {stream.id} ended as {end.reason}"
    await downstream.break_off(reason)
    raise StreamBroken(reason)


def _nothing_follows(page: Page, after: int) -> bool:
    end = page.end
    if end is None or page.records:
        return False
    # Of a stream that was lost a reader may have more than what is left, and has yet to be told.
    last = LOST if end.reason == "producer_lost" else end.sequence
    return end.reason == "done" or after >= last or end.detail == TOLD
