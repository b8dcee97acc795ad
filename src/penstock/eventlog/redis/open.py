"""To open a stream in Redis: create it, or join the one that runs under its key. One script decides; here it is asked.

A call whose answer is lost may have created a stream. It is known again by a number used once, where it is asked again;
where it is not, the stream is ended.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from penstock.errors import ProducerLost
from penstock.eventlog.base import Promise, State
from penstock.eventlog.redis.bucket import Bucket
from penstock.eventlog.redis.scripts import KEEP, OPEN
from penstock.eventlog.redis.servers import FAILURES
from penstock.eventlog.redis.stream import RedisStream

LEAST_AGE = 1.0
"""Seconds that an end is kept in any case, for those who wait for it."""


@dataclass
class Opening:
    """One call of `RedisLog.open`.

    Attributes:
        bucket: The key's, which is the stream's.
        id: The stream's name, if it is created.
    """

    bucket: Bucket
    id: str
    owner: str
    key: str | None
    head: bytes
    promise: Promise
    replacing: str | None
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    async def ask(self, *, is_full: bool) -> Sequence[bytes] | RedisStream:
        """Ask once.

        Cancellation: A stream that was created is ended as ``cancelled``.

        Args:
            is_full: Whether there is no room for another stream, so that one can only be joined.
        Returns:
            The stream that was created; or what `lua/open.lua` says else.
        Raises:
            StoreError: Redis does not answer. If it created a stream, that is ended.
        """
        await self._settled()
        bucket = self.bucket
        token = await bucket.join()
        epoch = bucket.epoch
        log = bucket.log
        asked = bucket.send(
            OPEN,
            token,
            epoch,
            self.id,
            self._nonce,
            self.owner.encode(),
            "" if self.key is None else f"={self.key}",
            self.head,
            self.replacing or "",
            log._ms(max(log.retention.age, LEAST_AGE)),
            KEEP * 1000,
            "full" if is_full else "",
        )
        try:
            answer: list[bytes] = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(partial(self._unwanted, token, epoch))
            raise
        except FAILURES as error:
            bucket.undo(self.id)
            raise bucket.told(error) from error
        if answer[0] == b"lost":
            bucket.lose(token)
        return self._created(token, epoch, answer[1].decode()) if answer[0] == b"created" else answer

    async def _settled(self) -> None:
        """Wait until a stream of that key which has ended here is stored as such."""
        if self.key is not None:
            for stream in list(self.bucket.live.values()):
                if (stream.owner, stream.key) == (self.owner, self.key) and stream.state is State.ENDING:
                    try:
                        await stream.stored(stream.appended + 1)
                    except ProducerLost:
                        pass
                    return

    def _created(self, token: str, epoch: int, replaced: str) -> RedisStream:
        bucket = self.bucket
        bucket.log._sweep.opened += 1
        stream = RedisStream(bucket, self.id, self.owner, self.key, epoch, self.head, self.promise)
        if bucket.token == token:
            bucket.take(stream)
        else:
            stream._lose()  # the lease ran out meanwhile
        if replaced and (live := bucket.live.get(replaced)) is not None:
            live._tell_stop()
        return stream

    def _unwanted(self, token: str, epoch: int, asked: asyncio.Future[list[bytes]]) -> None:
        """Nobody waits any more for what was opened."""
        if self.bucket.log._closed:
            return
        if asked.exception() is not None:
            self.bucket.undo(self.id)
        elif asked.result()[0] == b"created":
            self._created(token, epoch, asked.result()[1].decode()).end("cancelled")
