"""The upstream's own ids as places in a stream: where a reader stands that hands one back.

Where an upstream numbers its events itself, those ids go on as they are, and the log does not know them. A reader that
comes to the stream's address with one is given what follows the last record that has it: the log is read for it, from
the earliest record that is kept.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from penstock.errors import ReplayGap
from penstock.eventlog.base import Producer, Stream
from penstock.eventlog.reader import Reader
from penstock.relay.downstream.reader import Downstream
from penstock.relay.streams.head import Head

LATE = 5.0
"""Seconds that an id of a stream of another process is waited for: it may have been sent, and not be stored yet."""

_IDS = re.compile(rb"(?:^|[\r\n])id(?::[ ]?([^\r\n]*))?(?=[\r\n])")


class Sought(NamedTuple):
    """An id that is none of ours, as the place of a reader.

    Attributes:
        id: As it stands in the stream.
        refusal: The status and the reason for a stream that has no such id; None begins that at its beginning.
        after: The cursor in a stream whose records have no ids; None refuses there, too.
    """

    id: bytes
    refusal: tuple[int, str] | None
    after: int | None


def id_of(block: bytes) -> bytes | None:
    """The id that a block sets, the last one if it has several; None if it sets none."""
    ids = [value for value in _IDS.findall(block) if b"\0" not in value]
    return ids[-1] if ids else None


async def sequence_of(stream: Stream, id: bytes) -> int | None:
    """The sequence of the last record with that id; None if none that is kept has it.

    Cancellation: Nothing is held.

    Raises:
        StreamGone: Retention has taken the stream.
        StoreError: The store cannot be read.
    """
    found: int | None = None
    cursor = stream.earliest
    patience = asyncio.get_running_loop().time() + (0.0 if isinstance(stream, Producer) else LATE)
    while True:
        try:
            page = await stream.read(cursor)
        except ReplayGap as missed:  # it was evicted meanwhile
            cursor = missed.earliest
            continue
        for sequence, record in enumerate(page.records, page.after - len(page.records) + 1):
            if id in record and id_of(record) == id:
                found = sequence
        cursor = page.after
        if page.end is not None:
            return found
        if page.records:
            await asyncio.sleep(0)  # a log that is in memory waits for nothing
            continue
        if found is not None:
            return found
        try:
            async with asyncio.timeout_at(patience):
                await stream.wait(cursor)
        except TimeoutError:
            return None


async def is_found(reader: Reader, head: Head, sought: Sought, downstream: Downstream) -> bool:
    """Take a reader to behind the upstream's own id; False, and it is refused, where the stream never had that."""
    stream = reader.stream
    after = await sequence_of(stream, sought.id) if head.kind == "sse" else sought.after
    if after is None and head.kind == "sse":
        end = stream.ended
        if end is not None and end.reason == "producer_lost":
            after = end.sequence - 1  # it was sent, and not stored: what follows it is that
        elif stream.earliest or sought.refusal is None:
            after = 0  # what is no longer kept may have had it: that is told as a gap
    if after is not None:
        reader.seek(after)
    elif sought.refusal is not None:
        await downstream.refuse(*sought.refusal)
    return after is not None
