"""The cursors of the event log against a list: nothing is lost, doubled or skipped without a word."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.errors import ReplayGap
from penstock.eventlog.base import End, EventLog, Producer, Reason, Retention, Stream
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.reader import Reader
from penstock.eventlog.sqlite.log import SqliteLog

T = TypeVar("T")

RETENTION = Retention(max_stream_bytes=4_000, max_bytes=1_000_000)


class Subscriber:
    """A reader, and what it should know."""

    def __init__(self, reader: Reader, start: int) -> None:
        self.reader = reader
        self.start = start
        self.got = bytearray()
        self.ends: list[End | None] = []

    def check(self, appended: Sequence[bytes]) -> None:
        assert self.got == b"".join(appended[self.start : self.reader.cursor])


class LogMachine(RuleBasedStateMachine):
    subscribers = Bundle("subscribers")

    def make(self) -> EventLog:
        return MemoryLog(retention=RETENTION)

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.log = self.make()
        self.appended: list[bytes] = []
        self.end: End | None = None
        self.known: list[Subscriber] = []
        self.earliest = 0
        self.run(self._open())

    async def _open(self) -> None:
        await self.log.start()
        stream, producer = await self.log.open("key", "owner", b"head")
        assert producer is not None
        self.stream: Stream = stream
        self.producer: Producer = producer
        producer.start()

    def teardown(self) -> None:
        self.run(self.log.aclose())
        assert self.stream.ended is not None
        self.run(asyncio.sleep(0))
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()

    @precondition(lambda self: self.end is None)
    @rule(batch=st.lists(st.binary(min_size=1, max_size=300), max_size=6))
    def append(self, batch: list[bytes]) -> None:
        self.appended += batch

        async def append() -> int:
            return self.producer.append(batch)

        assert self.run(append()) == len(self.appended) == self.stream.sequence
        assert self.producer.last == (self.appended[-1] if self.appended else b"")
        assert self.stream.offset == sum(map(len, self.appended))

    @rule()
    def store(self) -> None:
        self.run(self.producer.stored(self.producer.appended))
        assert self.producer.stored_sequence >= len(self.appended)

    @precondition(lambda self: self.end is None)
    @rule(reason=st.sampled_from(["done", "error", "cancelled"]), detail=st.binary(max_size=5))
    def finish(self, reason: Reason, detail: bytes) -> None:
        async def end() -> bool:
            return self.producer.end(reason, detail)

        assert self.run(end())
        assert not self.run(end())
        self.end = End(reason, detail, len(self.appended) + 1, sum(map(len, self.appended)))
        assert self.stream.ended == self.end

    def check_gap(self, gap: ReplayGap, requested: int, end: int) -> None:
        assert gap.requested == requested < gap.earliest < end

    @rule(target=subscribers, data=st.data())
    def attach(self, data: st.DataObject) -> Subscriber:
        after = data.draw(st.integers(0, len(self.appended)))
        subscriber = Subscriber(self.stream.reader(after), after)
        self.known.append(subscriber)
        return subscriber

    @rule(subscriber=subscribers, max_records=st.integers(1, 5), max_bytes=st.integers(1, 900))
    def read(self, subscriber: Subscriber, max_records: int, max_bytes: int) -> None:
        reader = subscriber.reader
        reader.unfollow()
        try:
            page = self.run(reader.read(max_records=max_records, max_bytes=max_bytes))
        except ReplayGap as error:
            self.check_gap(error, reader.cursor, len(self.appended))
            reader.seek(error.earliest)
            subscriber.start, subscriber.got = error.earliest, bytearray()
            return
        assert reader.cursor >= self.stream.earliest, "records that were evicted were read"
        subscriber.got += b"".join(page.records)
        assert len(page.records) <= max_records
        assert page.records or reader.cursor == len(self.appended)
        assert page.offset == sum(map(len, self.appended[: page.after]))
        assert page.end == (self.end if page.after == len(self.appended) else None)

    @rule(offset=st.integers(0, 5_000), max_bytes=st.integers(1, 900))
    def read_bytes(self, offset: int, max_bytes: int) -> None:
        body = b"".join(self.appended)
        try:
            page = self.run(self.stream.read(offset=offset, max_bytes=max_bytes))
        except ReplayGap as error:
            self.check_gap(error, offset, len(body))
            return
        got = b"".join(page.records)
        assert got == body[offset : offset + len(got)]
        assert got or offset >= len(body)

    @rule(subscriber=subscribers)
    def follow(self, subscriber: Subscriber) -> None:
        at_the_tail = subscriber.reader.cursor == len(self.appended) and self.end is None
        assert subscriber.reader.follow(subscriber.got.extend, subscriber.ends.append) == at_the_tail

    @rule(subscriber=subscribers)
    def unfollow(self, subscriber: Subscriber) -> None:
        subscriber.reader.unfollow()

    @rule(subscriber=subscribers)
    def wait(self, subscriber: Subscriber) -> None:
        """There is no waiting for what is there, and nothing else to wait for."""
        has_more = subscriber.reader.cursor < len(self.appended) or self.end is not None
        waiting = self.loop.create_task(subscriber.reader.wait())
        self.run(asyncio.sleep(0))
        assert waiting.done() == has_more
        waiting.cancel()
        self.run(asyncio.sleep(0))

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "known"):
            for subscriber in self.known:
                subscriber.check(self.appended)
                assert subscriber.ends in ([], [self.end])
            assert self.stream.earliest >= self.earliest, "what was evicted came back"
            self.earliest = self.stream.earliest


class SqliteMachine(LogMachine):
    def make(self) -> EventLog:
        self.folder = tempfile.TemporaryDirectory()
        return SqliteLog(Path(self.folder.name, "log"), retention=RETENTION)

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


LogMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestMemoryLog = LogMachine.TestCase
SqliteMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestSqliteLog = SqliteMachine.TestCase
