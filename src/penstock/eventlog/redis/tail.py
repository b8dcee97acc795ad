"""What a process hears of a bucket: what others store there, what they ask of it, and who of them is gone.

One read blocks, over all streams of the bucket that somebody here waits for, and over the inbox, through which others
ask for stops and tell who reads. Who wants to follow one more writes to the inbox, which ends the read.

The leases of those whose streams are followed, or who read ours, are looked at when they will have run out if nobody
has renewed them; then their streams are ended, and their readers not counted any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.errors import StoreError
from penstock.eventlog.redis.address import Place
from penstock.eventlog.redis.scripts import SETTLE, Entry, Row
from penstock.eventlog.redis.servers import AGAIN, FAILURES, Wire, answered, converse
from penstock.eventlog.redis.stored import StoredStream

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket

logger = logging.getLogger("penstock.eventlog")

BLOCK = 5.0
BATCHES = 16
GRACE = 0.02


class Tail:
    """The tail of one bucket, a task for as long as the log is open.

    Args:
        bucket: The bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._followed: dict[str, StoredStream] = {}
        self._watched: dict[str, float] = {}  # leases of others, and when to look at them
        self._inbox_at = "0-0"
        self._early: deque[str] = deque(maxlen=256)  # asked to stop before they were known to be ours
        self._needed = asyncio.Event()
        self._blocking_on: str | None = None
        self._waking = False
        self._task = asyncio.get_running_loop().create_task(self._listen())

    def close(self) -> None:
        """Hear nothing more; who waits is told that the log is closed."""
        self._task.cancel()
        error = self._bucket.log._closed_error()
        for stream in list(self._followed.values()):
            stream.wake(error)

    def need(self) -> None:
        """There is something to hear, or to have a lease for."""
        self._needed.set()

    def begin(self) -> None:
        """There is another lease, with another inbox."""
        self._inbox_at = "0-0"
        self.wake()

    def due(self) -> float:
        """When to call `look_after` again."""
        return min(self._watched.values(), default=float("inf"))

    def was_stopped(self, id: str) -> bool:
        """Whether a stream was asked to stop before it was known to be ours."""
        return id in self._early

    def watch(self, token: str) -> None:
        """Look when somebody's lease runs out."""
        if token not in self._watched:
            self._watched[token] = 0.0
            self._bucket.log._keeper.beat_soon()

    def look_after(self, now: float) -> None:
        """Look at the leases for which it is time."""
        for token in [token for token, due in self._watched.items() if due <= now]:
            if not self._is_watched(token):
                del self._watched[token]
                continue
            self._watched[token] = now + self._bucket.log._timeout + 1.0
            asked = self._bucket._reading.run("PTTL", self._bucket.key("lease", token))
            asked.add_done_callback(partial(self._has_looked, token))

    def _is_watched(self, token: str) -> bool:
        return any(stream.lease == token for stream in self._followed.values()) or any(
            token in stream._elsewhere_by for stream in self._bucket.live.values()
        )

    def _has_looked(self, token: str, done: asyncio.Future[int]) -> None:
        if self._bucket.log._closed:
            return
        if (error := done.exception()) is not None:
            self._watched[token] = time.monotonic() + AGAIN.initial
            self._bucket.set_trouble(self._bucket.told(error))
        elif done.result() >= 0:
            self._watched[token] = time.monotonic() + done.result() / 1000 + GRACE
        else:
            del self._watched[token]
            for live in self._bucket.live.values():
                if token in live._elsewhere_by:
                    live._heard_of_readers(token, 0, -1)
            self._settle([stream for stream in self._followed.values() if stream.lease == token])
        self._bucket.log._keeper.beat_soon()

    def _settle(self, streams: Sequence[StoredStream]) -> asyncio.Future[Any]:
        """Look at streams again: their producers may be gone, or Redis may have lost some of them."""
        known = [stream.sequence for stream in streams]
        looked = self._bucket._writing.call(SETTLE, self._bucket.base, *(stream.id for stream in streams))
        looked.add_done_callback(partial(self._have_settled, streams, known))
        return looked

    def _have_settled(self, streams: Sequence[StoredStream], known: list[int], done: asyncio.Future[Any]) -> None:
        if self._bucket.log._closed:
            return
        if done.exception() is not None:
            for stream in streams:
                self.watch(stream.lease)
            return
        for stream, sequence, answer in zip(streams, known, done.result(), strict=True):
            stream.look_at(Row.of(stream.id, answer), sequence)

    # -- the tail --------------------------------------------------------------------------------------------------

    def follow(self, stream: StoredStream) -> None:
        """Have a stream told of what is stored of it."""
        self._bucket.log._check_open()
        if stream.id in self._followed:
            return
        self._followed[stream.id] = stream
        self.watch(stream.lease)
        self._needed.set()
        self.wake()

    def wake(self) -> None:
        """Have it ask anew: for other streams, or at another inbox."""
        if self._blocking_on is not None and not self._waking:
            self._waking = True
            self._bucket._writing.run("XADD", self._blocking_on, "MAXLEN", "~", "4096", "*", "wake", "")
            self._bucket._writing.run("PEXPIRE", self._blocking_on, "3600000")

    async def _listen(self) -> None:
        wire: Wire | None = None
        place: Place | None = None
        failing_since: float | None = None
        failures = 0
        logged = ""
        try:
            while True:
                await self._needed.wait()
                try:
                    await self._bucket.join()
                    if wire is None or place != self._bucket.log._servers.place(self._bucket.number):
                        if wire is not None:
                            await wire.disconnect(nowait=True)
                        place = self._bucket.log._servers.place(self._bucket.number)
                        wire = self._bucket.log._servers.wire(place)
                        await self._settle(list(self._followed.values()))
                    self._bucket.reports.send()
                    await self._listen_once(wire)
                    failing_since, failures = None, 0
                except Exception as error:
                    if not isinstance(error, (*FAILURES, StoreError)) and logged != repr(error):
                        logged = repr(error)
                        logger.exception("%s: nobody foresaw this; it goes on", self._bucket.log.address.shown)
                    now = time.monotonic()
                    failing_since = failing_since or now
                    failures += 1
                    told = self._bucket.told(error)
                    self._bucket.set_trouble(told)
                    if now - failing_since >= self._bucket.log._timeout:
                        for stream in list(self._followed.values()):
                            stream.wake(told)
                    for token in self._watched:
                        self._watched[token] = 0.0
                    self._bucket.log._keeper.beat_soon()
                    if wire is not None:
                        await wire.disconnect(nowait=True)
                        wire = None
                    await asyncio.sleep(AGAIN.delay(failures, 0.0))
        finally:
            if wire is not None:
                await wire.disconnect(nowait=True)

    async def _listen_once(self, wire: Wire) -> None:
        self._followed = {name: stream for name, stream in self._followed.items() if stream.wanted}
        if not (self._followed or self._bucket.live):
            if not self._bucket.reports.waiting:
                self._needed.clear()
            return
        if (token := self._bucket.token) is None:
            return  # it ran out meanwhile: there is another to be had first
        inbox = self._bucket.key("inbox", token)
        keys, positions = [inbox], [self._inbox_at]
        streams: dict[bytes, StoredStream] = {}
        for stream in self._followed.values():
            key = self._bucket.key("log", stream.id)
            streams[key.encode()] = stream
            keys.append(key)
            positions.append(stream.position)
        what = ("COUNT", BATCHES, "BLOCK", int(BLOCK * 1000))
        self._blocking_on, self._waking = inbox, False
        try:
            async with asyncio.timeout(BLOCK + self._bucket.log._timeout):
                answer = answered(await converse(wire, [("XREAD", *what, "STREAMS", *keys, *positions)]))
        finally:
            self._blocking_on = None
        for key, entries in answer or ():
            told = streams.get(key)
            if told is not None:
                told.heard([Entry.of(entry) for entry in entries])
            elif self._bucket.token == token:
                self._heard(entries)

    def _heard(self, entries: Sequence[Any]) -> None:
        """Others have written to the inbox."""
        for position, fields in entries:
            self._inbox_at = position.decode()
            about = self._bucket.live.get(fields[1].decode())
            if about is None:
                if fields[0] == b"stop":
                    self._early.append(fields[1].decode())
            elif fields[0] == b"stop":
                about._tell_stop()
            elif fields[0] == b"readers":
                about._heard_of_readers(fields[3].decode(), int(fields[5]), int(fields[7]))
