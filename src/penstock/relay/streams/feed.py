"""A stream's bytes made into the records that are logged and sent: what a reader must get whole, and in one piece.

==========  ========================================  =============================================
kind        a record is                               an unfinished one at the end
==========  ========================================  =============================================
sse         a block, up to its blank line; with our   goes on as it came, if the body came whole:
            id in it where it has data                its reader's parser dispatches nothing for it
ndjson      a line                                    is kept if the body came whole, else dropped
bytes       what came in one read                     (there is none)
==========  ========================================  =============================================

Blocks and lines go on byte for byte, but for the id and, where there is one, the blank lines that end nothing. Nothing
is decoded.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from penstock.errors import PenstockError
from penstock.eventlog.base import Producer
from penstock.relay.streams.ends import Dialect, Kind, Usage, spoken
from penstock.relay.streams.marks import BOM, has_data, has_id, has_id_of_ours, id_line, without_blank, without_id
from penstock.wire import sse
from penstock.wire.lines import Decoder as Lines
from penstock.wire.terminator import Judgement, Terminator

Ids = Literal["auto", "ours", "upstream"]

CR = 0x0D
LF = 0x0A


class Feed(ABC):
    """What makes records of bytes, and appends them.

    Attributes:
        appended: The sequence of the last record.
        no_events: How many of the records so far are no events.
        first_at: When the first one came [monotonic seconds]; None before.
        dialect: What the stream was heard to speak; None while it has not told.
        usage: The blocks that a provider's usage is in.
    """

    __slots__ = ("_comments", "_on_refusal", "_producer", "appended", "dialect", "first_at", "no_events", "usage")

    def __init__(self) -> None:
        self.appended = 0
        self.no_events = self._comments = 0
        self.first_at: float | None = None
        self.dialect: Dialect | None = None
        self.usage = Usage()
        self._producer: Producer
        self._on_refusal: Callable[[Exception], None]

    def into(self, producer: Producer, on_refusal: Callable[[Exception], None]) -> None:
        """Append to that stream from now on.

        Args:
            on_refusal: Called with what a record outgrew, or with what the log had against it.
        """
        self.appended = producer.appended
        self._producer = producer
        self._on_refusal = on_refusal

    def take(self, data: bytes) -> None:
        """Make records of these bytes and append them; for a callback, so it does not raise."""
        try:
            records = self.feed(data, self.appended + 1)
            if records:
                if self.first_at is None:
                    self.first_at = time.monotonic()
                self.append(records)
        except (PenstockError, RuntimeError) as error:
            self._on_refusal(error)

    def append(self, records: list[bytes]) -> None:
        """Append what `feed` or `close` gave.

        Raises:
            PenstockError, RuntimeError: The log does not take it.
        """
        self.appended = self._producer.append(records)
        self.no_events = self._comments

    @property
    def unfinished(self) -> bool:
        """Whether `close` found the beginning of a record."""
        return False

    @abstractmethod
    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        """The records that these bytes complete, the first of them to be numbered with that sequence.

        Raises:
            LimitExceeded: A record outgrew its limit.
        """

    def close(self, sequence: int) -> list[bytes]:
        """The body came whole: what of the rest is a record."""
        return []


class SseFeed(Feed):
    """The blocks of an event stream."""

    __slots__ = (
        "_bare",
        "_behind_id",
        "_cutter",
        "_fast",
        "_fresh",
        "_id",
        "_ids",
        "_last",
        "_limit",
        "_marked",
        "_marking",
        "_silent",
        "_theirs",
    )

    def __init__(self, stream: str, epoch: int, ids: Ids, max_event_bytes: int) -> None:
        super().__init__()
        self._id = id_line(stream, epoch)
        self._ids = ids
        self._cutter = sse.BlockCutter(max_block_bytes=max_event_bytes)
        self._limit = max_event_bytes
        self._marked = ids == "ours"
        self._bare = False
        self._marking = False  # ...and the first blocks have been looked at
        self._fast = False  # ...and the next byte begins a block
        self._behind_id = False  # ...and one has gone out
        self._fresh = True
        self._silent = True  # no block with data has come
        self._theirs = False  # ...but an id of the upstream's own
        self._last: bytes | None = b""  # the last record that had data; None where that is the log's last

    @property
    def unfinished(self) -> bool:
        """Whether `close` found a block without its blank line."""
        return self._cutter.unfinished

    @property
    def last(self) -> bytes:
        """The last record that had data."""
        return self._producer.last if self._last is None else self._last

    def last_judged(self, terminator: Terminator) -> Judgement:
        """What the last event is to a protocol."""
        judgement: Judgement = "content"
        for event in sse.Decoder(max_event_bytes=len(self.last) + 1).feed(self.last):
            judgement = terminator.judge(event)
        return judgement

    @property
    def silent(self) -> bool:
        """Whether no block with data has come yet, which tells whose ids there are."""
        return self._silent

    @property
    def marked(self) -> bool:
        """Whether the blocks carry our ids."""
        return self._marked

    def take(self, data: bytes) -> None:
        if (
            self._fast
            and data[:5] == b"data:"
            and data.find(b"\n") == len(data) - 2
            and data[-1] == LF
            and CR not in data
            and len(data) <= self._limit
        ):  # one chunk, one block, one line: what a live stream mostly is
            if data.find(b'"usage"') >= 0:  # not `in`, which takes half as long again
                self.usage.saw(data)
            record = b"%b%d\n%b" % (self._id, self.appended + 1, data)
            try:
                self.appended = self._producer.append([record])
                self._last = None
            except (PenstockError, RuntimeError) as error:
                self._on_refusal(error)
            return
        self._last = self.last  # what comes may be no data, and the log's last record then another
        super().take(data)
        self._fast = self._marking and self._cutter.between

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        blocks = self._cutter.feed(data)
        if not blocks:
            return blocks
        if self._silent:
            self._look(blocks)
        saw = self.usage.saw
        if not self._marked:
            if self._bare:
                blocks = [without_id(block) if has_id(block) else block for block in blocks]
            for block in blocks:
                if has_data(block):
                    self._last = block
                    if b'"usage"' in block:
                        saw(block)
                else:
                    self._comments += 1
            return blocks
        id_, behind_id = self._id, self._behind_id
        for index, block in enumerate(blocks):
            if block.startswith(b"data:") or has_data(block):
                self._last = block
                if b'"usage"' in block:
                    saw(block)
                if has_id(block):
                    block = without_id(block)
                blocks[index] = b"%b%d\n%b" % (id_, sequence + index, block)
                behind_id = True
            else:
                if has_id(block):
                    block = without_id(block)  # it would move the reader's place all the same
                blocks[index] = without_blank(block) if behind_id else block
                self._comments += 1
        self._behind_id = behind_id
        return blocks

    def unmark(self) -> None:
        """From now on blocks have no ids: where ours were, nobody could come back by them."""
        if self._ids == "auto" and self._silent:
            self._ids = "upstream"
        elif self._marked:
            self._marked = self._marking = self._fast = False
            self._bare = True

    def close(self, sequence: int) -> list[bytes]:
        rest = self._cutter.close()
        self._comments += len(rest)  # without its blank line it is no event
        return rest

    def _look(self, blocks: list[bytes]) -> None:
        """At the first blocks: a byte-order mark cannot stay behind an id, and the first with data tells the rest."""
        if self._fresh:
            self._fresh = False
            blocks[0] = blocks[0].removeprefix(BOM)
        for block in blocks:
            self._theirs = self._theirs or (has_id(block) and not has_id_of_ours(block))
            if has_data(block):
                self._silent = False
                self.dialect = spoken(block)
                self._marked = self._marking = self._ids == "ours" or (self._ids == "auto" and not self._theirs)
                return


class LineFeed(Feed):
    """The lines of an NDJSON body."""

    __slots__ = ("_lines",)

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__()
        self.dialect = "ndjson"
        self._lines = Lines(max_line_bytes=max_event_bytes, newlines="lf")

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        records = [line + b"\n" for line in self._lines.feed(data)]
        for record in records:
            if b'"usage"' in record:
                self.usage.saw(record)
        return records

    def close(self, sequence: int) -> list[bytes]:
        return self._lines.close()


class ByteFeed(Feed):
    """Bytes as they come."""

    __slots__ = ()

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        return [data]


def feed_for(kind: Kind, stream: str, epoch: int, *, ids: Ids, max_event_bytes: int) -> Feed:
    """What makes records of a stream of that kind."""
    match kind:
        case "sse":
            return SseFeed(stream, epoch, ids, max_event_bytes)
        case "ndjson":
            return LineFeed(max_event_bytes)
        case _:
            return ByteFeed()
