"""A reader: a cursor that is attached to a stream.

It reads what it lacks page by page, and at the tail it is told, in the producer's own callback and without a task::

    with stream.reader(after=cursor) as reader:
        while True:
            if reader.follow(write, on_end=finish):
                await left_the_tail()  # until it fell behind and called `unfollow`, or the stream ended
            page = await reader.read()
            for record in page.records:
                await send(record)
            if page.end is not None:
                break
            if not page.records:
                await reader.wait()

It holds no records: whoever is slow turns to the log, and is waited for by nobody but a producer whose log is full.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from penstock.eventlog.base import PAGE_BYTES, PAGE_RECORDS, End, Page, Stream

OnData = Callable[[bytes], None]
OnEnd = Callable[[End | None], None]


class Reader:
    """One reader of a stream, from a cursor on. Made by `Stream.reader`.

    Attributes:
        stream: What it reads.
        cursor: The sequence of the last record it was given, by `read` or as a follower.
        following: Whether it is told what is appended.
        closed: Whether it has left.
    """

    __slots__ = ("_epoch", "_offset", "_on_data", "_on_end", "closed", "cursor", "following", "stream")

    def __init__(self, stream: Stream, after: int, offset: int | None, epoch: int | None) -> None:
        self.stream = stream
        self.cursor = after
        self.following = False
        self.closed = False
        self._offset = offset  # until the first page tells the cursor
        self._epoch = epoch
        self._on_data: OnData
        self._on_end: OnEnd | None
        stream._attach(self)

    async def read(self, *, max_records: int = PAGE_RECORDS, max_bytes: int = PAGE_BYTES) -> Page:
        """Read the next page, as `Stream.read` does, and move on behind it.

        Cancellation: The cursor stays where it was.

        Raises:
            ReplayGap: As `Stream.read`; `seek` the earliest to go on.
        """
        page = await self.stream.read(
            self.cursor, offset=self._offset, epoch=self._epoch, max_records=max_records, max_bytes=max_bytes
        )
        # An offset beyond the end stays what is asked for until its byte has come.
        ahead = not page.records and self._offset is not None and self._offset > page.offset
        self.seek(page.after, offset=self._offset if ahead else None)
        return page

    async def wait(self) -> None:
        """Wait until there may be something to read; see `Stream.wait`."""
        await self.stream.wait(self.cursor)

    def seek(self, after: int, *, offset: int | None = None) -> None:
        """Go to another cursor of this stream, or to an offset."""
        self.cursor = after
        self._offset = offset
        self._epoch = None
        self.stream._moved()

    def follow(self, on_data: OnData, on_end: OnEnd | None = None) -> bool:
        """Be told what is appended from now on, if the cursor is at the tail.

        The callbacks run within `append` and `end`: they must be quick, and may call `unfollow`, but must not append.
        One that raises is told no more, and has to read what it was told: its cursor stays before that, `on_end` is
        called with None, and the error goes to the event loop's handler.

        Args:
            on_data: Called with the records of one `append`: a single one as it is, several joined. `cursor` is behind
                them by then.
            on_end: Called once, with the end, or with None where what comes next has to be read; the reader then
                follows no more.
        Returns:
            False if there is something to read first, or the tail is in another process: `read`, then `wait`.
        """
        self._on_data = on_data
        self._on_end = on_end
        if not (self.following or self.closed) and self._offset is None and self._epoch in (None, self.stream.epoch):
            self.following = self.stream._follow(self)
        return self.following

    def unfollow(self) -> None:
        """Be told no more; `cursor` is where reading goes on."""
        if self.following:
            self.following = False
            self.stream._unfollow(self)

    def close(self) -> None:
        """Leave the stream."""
        if not self.closed:
            self.closed = True
            self.unfollow()
            self.stream._detach(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
