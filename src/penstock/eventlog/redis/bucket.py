"""A bucket of the log in Redis: the lease of this process there, and what it stores under it.

**Lease.** A key that Redis drops when its time is over, by Redis's own clock; every script that opens, appends or
reports under it asks whether it is there. It is renewed by `PEXPIRE`, which makes no new one (what has run out stays
so) and is carried out when Redis is full. This process takes it for lost when it could not be renewed within its
length, counted from when it was asked for, so never later than Redis does, but for a turn of the event loop: what
renews it waits for nothing.

**Flush.** All that the streams of a bucket have to store is one script's, and one flush is under way at a time. What
failed is sent again; the script passes over what it has already.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.errors import StoreError
from penstock.eventlog.base import Reason
from penstock.eventlog.redis.read import Found
from penstock.eventlog.redis.reports import Reports
from penstock.eventlog.redis.scripts import APPEND, KEEP, READ, Script, base_of
from penstock.eventlog.redis.servers import AGAIN, FAILURES, Lane, had
from penstock.eventlog.redis.stored import StoredStream
from penstock.eventlog.redis.stream import RedisStream
from penstock.eventlog.redis.tail import Tail

if TYPE_CHECKING:
    from penstock.eventlog.redis.log import RedisLog

T = TypeVar("T")


class Bucket:
    """One of the log's buckets. `RedisLog` makes them.

    Attributes:
        base: What all its keys begin with.
        token: The lease's name; None while there is none.
        epoch: Its number.
        live: The streams that are produced here.
        trouble: Why nothing can be stored; None while all is well.
        reports: What is told of readers here.
        tail: What is heard of others.
    """

    def __init__(self, log: RedisLog, number: int, prefix: str) -> None:
        self.log = log
        self.number = number
        self.base = base_of(prefix, number)
        self.token: str | None = None
        self.epoch = 0
        self.live: dict[str, RedisStream] = {}
        self.trouble: StoreError | None = None
        self._lease_until = 0.0
        self._beat_at = float("inf")
        self._joining = asyncio.Lock()
        self._dirty: list[RedisStream] = []
        self._undue: list[tuple[str, Reason]] = []
        self._urgent = False
        self._flushing = False
        self._failures = 0
        self._pausing = False
        self._strays: dict[str, float] = {}
        self.reports = Reports(self)
        self.tail = Tail(self)

    def key(self, kind: str, name: str) -> str:
        """The name of a key."""
        return f"{self.base}:{kind}:{name}"

    def close(self) -> None:
        """Do nothing more."""
        self.lose(self.token)
        self.tail.close()

    # -- asking ----------------------------------------------------------------------------------------------------

    @property
    def _writing(self) -> Lane:
        return self.log._servers.writing(self.number)

    @property
    def _reading(self) -> Lane:
        return self.log._servers.reading(self.number)

    async def write(self, script: Script, *arguments: Any) -> Any:
        """Run a script that changes something.

        Raises:
            StoreError: It is not known to have run.
        """
        return await self.answer(self.send(script, *arguments))

    def send(self, script: Script, *arguments: Any) -> asyncio.Future[Any]:
        """Have a script run that changes something."""
        self.log._check_open()
        return self._writing.call(script, self.base, *arguments)

    def run(self, *command: Any) -> asyncio.Future[Any]:
        """Have a plain command run that changes something."""
        self.log._check_open()
        return self._writing.run(*command)

    async def ask(self, script: Script, *arguments: Any) -> Any:
        """Run a script that tells something.

        Raises:
            StoreError: There is no answer.
        """
        return await self.answer(self.put(script, *arguments))

    def put(self, script: Script, *arguments: Any) -> asyncio.Future[Any]:
        """Have a script run that tells something."""
        self.log._check_open()
        return self._reading.call(script, self.base, *arguments)

    async def read(
        self, id: str, epoch: int, after: int, offset: int | None, max_records: int, max_bytes: int
    ) -> Found:
        """Read a page of a stream."""
        wanted = (id, after, "" if offset is None else offset, max_records, max_bytes)
        answer = await self.patiently(partial(self.ask, READ, *wanted))
        found = Found.of(id, answer, after, offset, max_records, max_bytes)
        # A stream of that name under another lease: Redis has lost its data, and somebody has begun anew.
        return found if found.row is None or found.row.epoch == epoch else found._replace(row=None)

    def read_shared(
        self, stream: StoredStream, after: int, offset: int | None, max_records: int, max_bytes: int
    ) -> asyncio.Future[Found]:
        """Read a page for all who want the same."""
        reading: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        asked = self.put(READ, stream.id, after, "" if offset is None else offset, max_records, max_bytes)

        def parse(answer: asyncio.Future[Any]) -> None:
            if reading.done():
                return
            error = answer.exception()
            if error is None:
                reading.set_result(Found.of(stream.id, answer.result(), after, offset, max_records, max_bytes))
            else:
                reading.set_exception(self.told(error))

        asked.add_done_callback(parse)
        reading.add_done_callback(had)
        return reading

    async def answer(self, answer: asyncio.Future[Any]) -> Any:
        """What was answered.

        Raises:
            StoreError: Nothing was, or the command was refused.
        """
        try:
            return await answer
        except FAILURES as error:
            raise self.told(error) from error

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again for as long as an answer may take: a reader need not notice that a server was away so long.

        Raises:
            StoreError: It was not.
        """
        until = time.monotonic() + self.log._timeout
        failures = 0
        while True:
            try:
                return await ask()
            except StoreError:
                failures += 1
                pause = AGAIN.delay(failures, 0.0)
                if self.log._closed or time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)

    def told(self, error: BaseException) -> StoreError:
        """What a failure means to a user of the log."""
        if self.log._closed:
            return self.log._closed_error()
        self.log._look_again()
        return self.log._servers.told(error)

    # -- lease -----------------------------------------------------------------------------------------------------

    async def join(self) -> str:
        """Have a lease; its token.

        Raises:
            StoreError: There is none to be had.
        """
        async with self._joining:
            if self.token is not None:
                return self.token
            self.log._check_open()
            token = secrets.token_hex(8)
            asked_at = time.monotonic()
            numbered = self._writing.run("INCR", f"{self.base}:epoch")
            taken = self._writing.run("SET", self.key("lease", token), "0", "PX", self.log._ms(self.log._lease))
            epoch = await self.answer(numbered)
            await self.answer(taken)
            self.log._check_open()
            self.token, self.epoch = token, int(epoch)
            self._well(asked_at)
            self.reports.again()
            self.tail.begin()
            return token

    def _well(self, asked_at: float) -> None:
        """The lease holds as it was asked for then."""
        self._lease_until = asked_at + self.log._lease
        self._beat_at = asked_at + self.log._lease / 3
        self.log._keeper.beat_soon()

    def due(self) -> float:
        """When to call `beat` again."""
        return min(self._beat_at, self.tail.due())

    def beat(self, now: float) -> None:
        """Renew the lease, and look after those of others, where that is due."""
        if now >= self._beat_at and self.token is not None:
            if now >= self._lease_until:
                self.lose(self.token)
            else:
                self._beat_at = min(now + self.log._lease / 10, self._lease_until)
                self._renew(self.token, now)
        self.tail.look_after(now)

    def _renew(self, token: str, now: float) -> None:
        renewing = self._writing.run("PEXPIRE", self.key("lease", token), self.log._ms(self.log._lease))

        def renewed(done: asyncio.Future[Any]) -> None:
            if self.log._closed or self.token != token:
                return
            error = done.exception()
            if error is not None:
                self.set_trouble(self.told(error))
            elif not done.result():
                self.lose(token)
            else:
                self._well(now)
                self.set_trouble(None)
                self.reports.keep()
                if self._undue:
                    self.flush_later(urgent=False)

        renewing.add_done_callback(renewed)

    def lose(self, token: str | None) -> None:
        """A lease ran out, and with it all that is produced under it."""
        if token is None or self.token != token:
            return  # that is known already, and there may be another one
        if not self.log._closed:
            self._writing.run("DEL", self.key("lease", token))  # if it is there yet: nobody need wait for its end
        self.token = None
        self._beat_at = float("inf")
        self._dirty, self._undue = [], []
        lost, self.live = self.live, {}
        for stream in lost.values():
            stream._lose()
        if not self.log._closed:
            self.log._has_flushed()  # what was lost waits no more: the other buckets' sources may go on
        self.reports.again()

    def lose_one(self, stream: RedisStream) -> None:
        """A stream cannot go on in Redis: it has lost some of it, or has to make do without what waits for it."""
        if self.live.get(stream.id) is stream:
            self.forget(stream)
            stream._lose()
            self.undo(stream.id, "producer_lost")  # unless it has it as ended already

    def retire(self) -> list[asyncio.Future[Any]]:
        """Give the lease back, and with it what still runs under it."""
        if self.token is None:
            return []
        return [self._writing.run("DEL", self.key("lease", self.token), self.key("inbox", self.token))]

    def forget(self, stream: RedisStream) -> None:
        """A stream is not produced any more."""
        self.live.pop(stream.id, None)
        self.reports.has_ended(stream)

    def set_trouble(self, error: StoreError | None) -> None:
        """Whether something can be stored."""
        self.trouble = error
        self.log._see_trouble()

    # -- flushing --------------------------------------------------------------------------------------------------

    def take(self, stream: RedisStream) -> None:
        """A stream is produced here from now on."""
        self.live[stream.id] = stream
        self.tail.need()
        if self.tail.was_stopped(stream.id):
            stream._tell_stop()

    def mark(self, stream: RedisStream, *, urgent: bool) -> None:
        """A stream has something to store."""
        self._dirty.append(stream)
        self.flush_later(urgent=urgent)

    def undo(self, id: str, reason: Reason = "cancelled") -> None:
        """Have a stream ended that nobody produces: it may have been created, or some of it was lost."""
        self._undue.append((id, reason))
        self.flush_later(urgent=False)

    def compare(self, token: str | None, running: Sequence[str], stopped: Sequence[str]) -> None:
        """See whether all that runs under a lease of ours is produced, and those that were asked to stop know it.

        What was sent to a server that stood still may be carried out when we have long given up, and told others so.
        """
        now = time.monotonic()
        if token is None or token != self.token:
            return
        for name in stopped:
            if (live := self.live.get(name)) is not None:
                live._tell_stop()
        self._strays = {name: self._strays.get(name, now) for name in running if name not in self.live}
        for name, since in self._strays.items():
            if now - since > 2 * self.log._timeout:  # and is not being opened
                self.undo(name, "producer_lost")

    def flush_later(self, *, urgent: bool) -> None:
        """Flush with the next tick, or at once."""
        self._urgent = self._urgent or urgent
        if not (self._flushing or self._pausing):
            self.log._flush_later(self, urgent=urgent)

    @property
    def busy(self) -> bool:
        """Whether something is to be stored, or being stored."""
        return self._flushing or bool(self._dirty)

    def flush(self) -> int:
        """Store all that there is; how many streams have a part in it."""
        self.reports.send()
        if self._flushing or self._pausing or self.token is None or not (self._dirty or self._undue):
            return 0
        self._urgent = False
        self._flushing = True
        streams, self._dirty = [stream for stream in self._dirty if not stream._lost], []
        undue, self._undue = self._undue, []
        limit = self.log._stream_limit()
        flush: list[Any] = [self.token, KEEP * 1000]
        for stream in streams:
            stream._collect(flush, limit)
        for name, reason in undue:
            flush += (name, 0, "", 0, reason, "", "", "")
        answer = self._writing.call(APPEND, self.base, *flush)
        answer.add_done_callback(partial(self._flushed, self.token, streams, undue, limit))
        return len(streams)

    def _flushed(
        self,
        token: str,
        streams: list[RedisStream],
        undue: list[tuple[str, Reason]],
        limit: int,
        done: asyncio.Future[Any],
    ) -> None:
        self._flushing = False
        streams = [stream for stream in streams if not stream._lost]
        error = done.exception()
        if self.log._closed:
            return
        if self.token != token:  # those streams are lost already
            if self._dirty:
                self.flush_later(urgent=True)
        elif error is not None:
            self._failures += 1
            self._dirty = list(dict.fromkeys([*streams, *self._dirty]))
            self._undue += undue
            for stream in streams:
                stream._not_collected()
            self._pausing = True
            asyncio.get_running_loop().call_later(AGAIN.delay(self._failures, 0.0), self._flush_again)
            self.set_trouble(told := self.told(error))
            for stream in streams:
                stream._tell_trouble(told)
        elif done.result() == -1:
            self._failures = 0
            self.lose(token)
        else:
            self._failures = 0
            self.set_trouble(None)
            refused, partly = done.result()
            lasts = dict(zip(partly[::2], partly[1::2], strict=True))
            for stream in streams:
                name = stream.id.encode()
                if name in refused:
                    self.lose_one(stream)
                elif name in lasts:
                    stream._collected_partly(int(lasts[name]), limit)
                else:
                    stream._collected(limit, stream._collecting_cut)
            self.log._has_flushed()
            if self._dirty:
                self.flush_later(urgent=self._urgent)

    def _flush_again(self) -> None:
        self._pausing = False
        if not self.log._closed:
            self.log._flush_later(self, urgent=True)
