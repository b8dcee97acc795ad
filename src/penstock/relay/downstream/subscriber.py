"""One reader of a logged stream: a cursor, and a socket that may be slow.

=============  ====================================================  ==============================
where it is    how it gets records                                   until
=============  ====================================================  ==============================
at the tail    in the callback that appends them, written straight   its socket takes no more
               to the socket
behind         in pages from the log, each written when the socket   it has all there is
               has taken the one before
overtaken      it is told what it has missed, and goes on            (as behind)
=============  ====================================================  ==============================

It holds nothing but its place, so nobody waits for it, and it costs what its socket holds. Where the server has no
direct writer, or the stream is produced in another process, it is always behind, and woken by the log.
"""

from __future__ import annotations

import asyncio

from penstock.engine.flag import Flag
from penstock.errors import ReplayGap, StreamError
from penstock.eventlog.base import End, Page
from penstock.eventlog.reader import Reader
from penstock.relay.downstream.reader import Direct, Downstream
from penstock.relay.streams import ends
from penstock.relay.streams.ends import Kind

KEEP_ALIVE = b": keep-alive\n"
"""One line, without a blank line behind it: it dispatches nothing, and stands between blocks only."""


class StreamBroken(StreamError):
    """The stream that was read did not come to a proper end: the answer must not look whole."""


class Subscriber:
    """A reader of a stream, until its end or the reader's.

    Args:
        reader: Its place in the stream; closed by whoever made it.
        downstream: Where to; its head has been sent.
        kind: What the records are.
        keep_alive: Seconds of silence after which an event stream's reader is sent a comment; 0 never.
    """

    def __init__(self, reader: Reader, downstream: Downstream, kind: Kind, *, keep_alive: float = 15.0) -> None:
        self._reader = reader
        self._downstream = downstream
        self._kind = kind
        self._direct: Direct | None = downstream.direct()
        self._keep_alive = keep_alive if kind == "sse" else 0.0
        self._paused = False
        self._woken = Flag()
        self._end: End | None = None
        self._seen: int | None = None  # the cursor when last looked at: whether it moves tells silence
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, first: Page | ReplayGap) -> End:
        """Give the reader everything up to the stream's end, and return that.

        Args:
            first: What its place was found to have.
        Cancellation: the reader is let go of.
        Raises:
            ReplayGap: The log has overtaken the reader of a stream in which that cannot be told.
            PenstockError: The log cannot be read.
        """
        try:
            if self._direct is not None:
                self._direct.open(self._on_pause, self._on_resume)
                if self._keep_alive:
                    self._look()
            await (self._tell_gap(first) if isinstance(first, ReplayGap) else self._give(first))
            while self._end is None:
                if not self._paused and self._follow():
                    await self._until_woken()
                else:
                    await self._catch_up()
            return self._end
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._direct is not None:
                self._direct.close()
            self._reader.unfollow()

    # -- at the tail ---------------------------------------------------------------------------------------------

    def _follow(self) -> bool:
        return self._direct is not None and self._reader.follow(self._direct.write, self._on_end)

    def _on_end(self, end: End | None) -> None:
        self._end = end
        self._woken.set()

    def _on_pause(self) -> None:
        self._paused = True
        self._reader.unfollow()
        self._woken.set()

    def _on_resume(self) -> None:
        self._paused = False
        self._woken.set()

    async def _until_woken(self) -> None:
        await self._woken.wait()
        self._woken.clear()

    # -- behind --------------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        try:
            page = await self._reader.read()
        except ReplayGap as missed:
            await self._tell_gap(missed)
            return
        await self._give(page)
        if page.records or page.end is not None:
            return
        if self._direct is None:
            await self._wait()
        elif self._paused:
            await self._until_woken()
        elif not self._follow():
            await self._reader.wait()

    async def _give(self, page: Page) -> None:
        if page.records:
            await self._downstream.write(b"".join(page.records))
        self._end = page.end

    async def _tell_gap(self, missed: ReplayGap) -> None:
        self._downstream.gaps += 1
        if self._kind != "sse":
            raise missed  # only events have words for it
        await self._downstream.write(ends.gap(missed.requested, missed.earliest))
        self._reader.seek(missed.earliest)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._keep_alive or None):
                await self._reader.wait()
        except TimeoutError:
            await self._downstream.write(KEEP_ALIVE)

    # -- silence -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        direct = self._direct
        assert direct is not None
        if self._reader.cursor == self._seen and not self._paused:
            direct.write(KEEP_ALIVE)
        self._seen = self._reader.cursor
        self._timer = asyncio.get_running_loop().call_later(self._keep_alive, self._look)
