"""Who reads what here, told to those who produce it, and to those who list.

A report is sent with a flush, and only where something has changed: how many read a stream in this process, and how far
the furthest is. It is written beside the stream, and into its owner's inbox.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.eventlog.redis.scripts import KEEP, REPORT
from penstock.eventlog.redis.stored import StoredStream
from penstock.eventlog.redis.stream import RedisStream

if TYPE_CHECKING:
    from penstock.eventlog.redis.bucket import Bucket


class Reports:
    """What one bucket has to tell of its readers.

    Args:
        bucket: The bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._number = 0
        self._attached: set[RedisStream | StoredStream] = set()
        self._waiting: set[RedisStream | StoredStream] = set()
        self._told: dict[str, tuple[int, int]] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._waiting)

    def of(self, stream: RedisStream | StoredStream) -> None:
        """Have others told who reads a stream here."""
        if stream._readers:
            self._attached.add(stream)
        else:
            self._attached.discard(stream)
        self._waiting.add(stream)
        self._soon()

    def again(self) -> None:
        """What was told is not there, or under a lease that is gone."""
        self._told.clear()
        self._waiting |= self._attached
        if self._waiting:
            self._soon()

    def has_ended(self, stream: RedisStream | StoredStream) -> None:
        """From now on it is kept for its age; or for longer, if it is being read."""
        self._told.pop(stream.id, None)
        if stream._readers:
            self.of(stream)

    def keep(self) -> None:
        """What has ended and is being read is not forgotten."""
        for stream in self._attached:
            if stream.ended is not None:
                self.has_ended(stream)
        if self._waiting:
            self._soon()

    def send(self) -> None:
        """Tell what has changed."""
        if self._bucket.token is None or not self._waiting:
            return
        reports: list[Any] = []
        streams = []
        for stream in self._waiting:
            report = stream._report()
            if report != self._told.get(stream.id, (0, -1) if isinstance(stream, StoredStream) else (0, 0)):
                reports += (stream.id, *report)
                streams.append(stream)
                if report[0]:
                    self._told[stream.id] = report
                else:
                    self._told.pop(stream.id, None)
        self._waiting.clear()
        if reports:
            self._number += 1
            read = self._bucket.log._ms(2 * self._bucket.log._lease)
            sent = self._bucket.send(REPORT, self._bucket.token, self._number, read, KEEP * 1000, *reports)
            sent.add_done_callback(partial(self._sent, streams))

    def _sent(self, streams: list[RedisStream | StoredStream], done: asyncio.Future[Any]) -> None:
        if done.exception() is not None and not self._bucket.log._closed:
            for stream in streams:  # told again with the next flush or beat
                self._told[stream.id] = (-1, -1)
                self._waiting.add(stream)

    def _soon(self) -> None:
        self._bucket.tail.need()
        self._bucket.log._flush_later(self._bucket, urgent=False)
