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

from typing import Literal, Protocol

from penstock.relay.streams.ends import Dialect, Kind, Usage, spoken
from penstock.relay.streams.marks import BOM, has_data, has_id, has_id_of_ours, id_line, without_blank, without_id
from penstock.wire import sse
from penstock.wire.lines import Decoder as Lines

Ids = Literal["auto", "ours", "upstream"]

CR = 0x0D


class Feed(Protocol):
    """What makes records of bytes.

    Attributes:
        dialect: What the stream was heard to speak; None while it has not told.
        usage: The blocks that a provider's usage is in.
        received: Bytes that came.
        unfinished: Whether `close` found the beginning of a record.
    """

    dialect: Dialect | None
    usage: Usage
    received: int

    @property
    def unfinished(self) -> bool: ...

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        """The records that these bytes complete, the first of them to be numbered with that sequence.

        Raises:
            LimitExceeded: A record outgrew its limit.
        """
        ...

    def close(self, sequence: int) -> list[bytes]:
        """The body came whole: what of the rest is a record."""
        ...


class SseFeed:
    """The blocks of an event stream.

    Attributes:
        last: The last record that had data: what tells whether the stream's protocol has come to its end.
    """

    __slots__ = (
        "_bare",
        "_behind_id",
        "_cutter",
        "_fresh",
        "_id",
        "_ids",
        "_limit",
        "_marked",
        "_marking",
        "_silent",
        "_theirs",
        "dialect",
        "last",
        "received",
        "usage",
    )

    def __init__(self, stream: str, epoch: int, ids: Ids, max_event_bytes: int) -> None:
        self.dialect: Dialect | None = None
        self.usage = Usage()
        self.received = 0
        self._id = id_line(stream, epoch)
        self._ids = ids
        self._cutter = sse.BlockCutter(max_block_bytes=max_event_bytes)
        self._limit = max_event_bytes
        self._marked = ids == "ours"
        self._bare = False
        self._marking = False  # ...and the first blocks have been looked at
        self._behind_id = False  # ...and one has gone out
        self._fresh = True
        self._silent = True  # no block with data has come
        self._theirs = False  # ...but an id of the upstream's own
        self.last = b""

    @property
    def unfinished(self) -> bool:
        """Whether `close` found a block without its blank line."""
        return self._cutter.unfinished

    @property
    def silent(self) -> bool:
        """Whether no block with data has come yet, which tells whose ids there are."""
        return self._silent

    @property
    def marked(self) -> bool:
        """Whether the blocks carry our ids."""
        return self._marked

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        size = len(data)
        self.received += size
        if (
            self._marking
            and data.startswith(b"data:")
            and data.find(b"\n") == size - 2
            and data.endswith(b"\n\n")
            and CR not in data
            and self._cutter.between
            and size <= self._limit
        ):  # one chunk, one block, one line: what a live stream mostly is
            if data.find(b'"usage"') >= 0:  # not `in`, which takes half as long again
                self.usage.saw(data)
            self.last = record = b"%b%d\n%b" % (self._id, sequence, data)  # which the log keeps, too
            return [record]
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
                    self.last = block
                    if b'"usage"' in block:
                        saw(block)
            return blocks
        id_, behind_id = self._id, self._behind_id
        for index, block in enumerate(blocks):
            if block.startswith(b"data:") or has_data(block):
                self.last = block
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
        self._behind_id = behind_id
        return blocks

    def unmark(self) -> None:
        """From now on blocks have no ids: where ours were, nobody could come back by them."""
        if self._ids == "auto" and self._silent:
            self._ids = "upstream"
        elif self._marked:
            self._marked = self._marking = False
            self._bare = True

    def close(self, sequence: int) -> list[bytes]:
        return self._cutter.close()

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


class LineFeed:
    """The lines of an NDJSON body."""

    unfinished = False  # the last line may do without its newline

    def __init__(self, max_event_bytes: int) -> None:
        self.dialect: Dialect | None = "ndjson"
        self.usage = Usage()
        self.received = 0
        self._lines = Lines(max_line_bytes=max_event_bytes, newlines="lf")

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        self.received += len(data)
        records = [line + b"\n" for line in self._lines.feed(data)]
        for record in records:
            if b'"usage"' in record:
                self.usage.saw(record)
        return records

    def close(self, sequence: int) -> list[bytes]:
        return self._lines.close()


class ByteFeed:
    """Bytes as they come."""

    unfinished = False

    def __init__(self) -> None:
        self.dialect: Dialect | None = None
        self.usage = Usage()
        self.received = 0

    def feed(self, data: bytes, sequence: int) -> list[bytes]:
        self.received += len(data)
        return [data]

    def close(self, sequence: int) -> list[bytes]:
        return []


def feed_for(kind: Kind, stream: str, epoch: int, *, ids: Ids, max_event_bytes: int) -> Feed:
    """What makes records of a stream of that kind."""
    match kind:
        case "sse":
            return SseFeed(stream, epoch, ids, max_event_bytes)
        case "ndjson":
            return LineFeed(max_event_bytes)
        case _:
            return ByteFeed()
