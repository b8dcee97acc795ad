"""Sessions on a log of their own: who may leave when, and the one end."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import InBandError, ReadError
from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.relay.streams.ends import StreamEnd
from penstock.relay.streams.head import Head
from penstock.relay.streams.session import Session, StoppedEarly, draw
from penstock.relay.streams.streams import Streams
from penstock.wire.terminator import PROFILES
from tests.relay.peers import PATIENCE, until

pytestmark = pytest.mark.anyio

EVENT = b"data: x\n\n"
Source = Callable[[Session], Awaitable[None]]


class Run:
    """A session of a source, and what became of it."""

    def __init__(self, kind: Any = "detach", grace: float = 0.05, **options: Any) -> None:
        self.ends: list[StreamEnd] = []
        self.streams = Streams(MemoryLog(retention=Retention(max_stream_bytes=20_000)))
        self.session = Session(on_disconnect=OnDisconnect(kind, grace), on_end=self._ended, **options)
        self.was_awaited = False

    async def _ended(self, end: StreamEnd) -> None:
        self.ends.append(end)
        await asyncio.sleep(0)
        self.was_awaited = True

    async def start(self, source: Source) -> None:
        await self.streams.claim(self.session, "key", "owner")
        self.streams.start(self.session, source)

    async def end(self) -> StreamEnd:
        await until(lambda: self.streams.running == 0)
        assert self.was_awaited
        (end,) = self.ends
        assert self.session.stream.ended is not None
        assert self.session.stream.ended.reason == end.reason
        assert self.session.end is end
        return end


def head() -> Head:
    return Head(200, [(b"content-type", b"text/event-stream")], "sse")


async def in_turn(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def saying(*pieces: bytes, then: Callable[[], Awaitable[None]] | None = None) -> Source:
    async def source(session: Session) -> None:
        session.begin(head())
        await draw(session, in_turn(*pieces))
        if then is not None:
            await then()

    return source


async def for_ever() -> None:
    await asyncio.Event().wait()


async def failing() -> None:
    raise ReadError("http://upstream: reset")


async def test_comments_are_no_events() -> None:
    run = Run()
    await run.start(saying(b": hello\n\n", EVENT, b": ping\n\n" + EVENT, b": bye\n\n", b"data: rest\n"))
    end = await run.end()
    assert (end.reason, end.event_count) == ("done", 2)
    assert len(await end.events()) == 2
    stopped = Run()

    async def stop_and_go_on() -> None:
        stopped.session.producer.end("cancelled")
        stopped.session.take(b": too late\n\n")

    await stopped.start(saying(then=stop_and_go_on))
    assert (await stopped.end()).event_count == 0


async def test_a_whole_stream_is_done() -> None:
    run = Run()
    usage = b'data: {"usage":{"total_tokens":3}}\n\n'
    await run.start(saying(EVENT, usage))
    end = await run.end()
    assert (end.reason, end.detail, end.event_count, end.byte_count) == ("done", "", 2, len(EVENT + usage))
    assert (end.key, end.owner, end.usage) == ("key", "owner", {"total_tokens": 3})
    assert end.first_event is not None
    assert 0 <= end.first_event <= end.duration
    records = await end.records()
    assert [record.partition(b"\n")[2] for record in records] == [EVENT, usage]


async def test_a_source_that_breaks_is_an_error_and_a_reader_learns_no_addresses() -> None:
    run = Run()
    await run.start(saying(EVENT, then=failing))
    end = await run.end()
    assert (end.reason, end.detail, end.event_count) == ("error", "http://upstream: reset", 1)
    assert run.session.stream.ended is not None
    assert b"upstream:" not in run.session.stream.ended.detail


async def test_a_source_with_a_bug_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def bug() -> None:
        raise ZeroDivisionError("secret")

    run = Run()
    await run.start(saying(then=bug))
    end = await run.end()
    assert (end.reason, end.detail, end.status) == ("error", "the source failed: ZeroDivisionError", 200)
    assert "secret" in caplog.text
    assert f"stream {end.id}: its source failed" in caplog.messages


async def test_a_source_that_raises_a_generators_exit_is_an_error_and_hangs_nobody() -> None:
    async def leaving_early() -> None:
        raise GeneratorExit

    run = Run()
    await run.start(saying(EVENT, then=leaving_early))
    end = await run.end()
    assert (end.reason, end.detail) == ("error", "the source failed: GeneratorExit")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_is_for_the_process_reaches_it_once_the_stream_has_settled(kind: type[BaseException]) -> None:
    ends: list[StreamEnd] = []

    async def exiting() -> None:
        raise kind

    async def main() -> None:
        run = Run()
        run.ends = ends
        await run.start(saying(EVENT, then=exiting))
        async with asyncio.timeout(PATIENCE):
            await for_ever()

    with pytest.raises(kind), asyncio.Runner() as runner:
        runner.run(main())
    assert [(end.reason, end.event_count) for end in ends] == [("error", 1)]


async def test_a_failure_before_the_head_is_told_to_who_waits() -> None:
    async def source(session: Session) -> None:
        await failing()

    run = Run()
    await run.start(source)
    with pytest.raises(ReadError):
        await run.session.opened
    assert (await run.end()).event_count == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_a_stop_ends_it_before_its_head_and_after(begun: bool) -> None:
    async def source(session: Session) -> None:
        if begun:
            session.begin(head())
        await for_ever()

    run = Run()
    await run.start(source)
    await asyncio.sleep(0)
    assert await run.session.stream.request_stop()
    end = await run.end()
    assert (end.reason, end.detail) == ("cancelled", "it was stopped")
    if not begun:
        with pytest.raises(StoppedEarly):
            await run.session.opened


async def test_a_session_that_is_stopped_before_it_runs_settles_too() -> None:
    run = Run()
    await run.start(saying(EVENT))
    run.session.stop("early")
    assert (await run.end()).detail == "early"


async def test_a_source_that_is_stopped_may_take_its_time_to_clean_up() -> None:
    cleaned: list[int] = []

    async def careful() -> None:
        try:
            await for_ever()
        finally:
            for number in range(3):
                await asyncio.sleep(0)
                cleaned.append(number)

    run = Run()
    await run.start(saying(EVENT, then=careful))
    await until(lambda: run.session.first_at is not None)
    run.session.stop()
    run.session.stop()
    await run.end()
    assert cleaned == [0, 1, 2]


async def test_cancel_ends_it_when_the_last_reader_leaves_and_not_before() -> None:
    run = Run("cancel")
    await run.start(saying(EVENT, then=for_ever))
    run.session.came()
    run.session.came()
    run.session.left()
    await asyncio.sleep(0.01)
    assert run.streams.running == 1
    run.session.left()
    assert (await run.end()).detail == "the reader left"


async def test_a_grace_ends_when_somebody_comes_and_begins_anew_when_they_leave() -> None:
    run = Run("grace", 0.05)
    await run.start(saying(EVENT, then=for_ever))
    run.session.came()
    run.session.left()
    run.session.came()
    await asyncio.sleep(0.15)
    assert run.streams.running == 1
    run.session.left()
    assert (await run.end()).detail == "nobody came back within 0.05 s"


async def test_who_reads_the_log_without_a_word_counts_as_a_reader() -> None:
    run = Run("grace", 0.05)
    await run.start(saying(EVENT, then=for_ever))
    run.session.came()
    reader = run.session.stream.reader()  # as one in another process, of which only the log knows
    run.session.left()
    await asyncio.sleep(0.15)
    assert run.streams.running == 1
    reader.close()
    assert (await run.end()).reason == "cancelled"


async def test_detach_runs_to_its_end() -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    run = Run("detach")
    await run.start(saying(EVENT, then=wait))
    run.session.came()
    run.session.left()
    await asyncio.sleep(0.01)
    gate.set()
    assert (await run.end()).reason == "done"


async def test_a_relay_that_stops_cancels_what_runs_and_waits_for_it() -> None:
    run = Run()
    await run.start(saying(EVENT, then=for_ever))
    await until(lambda: run.session.first_at is not None)
    await run.streams.aclose()
    assert run.streams.running == 0
    (end,) = run.ends
    assert (end.reason, end.detail) == ("cancelled", "the relay is stopping")


async def test_an_on_end_that_fails_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def on_end(end: StreamEnd) -> None:
        raise ZeroDivisionError

    streams = Streams(MemoryLog())
    session = Session(on_disconnect=OnDisconnect("detach"), on_end=on_end)
    await streams.claim(session, None, "")
    streams.start(session, saying(EVENT))
    await until(lambda: streams.running == 0)
    assert "on_end failed" in caplog.text
    assert session.stream.ended is not None
    assert session.stream.ended.reason == "done"


@pytest.mark.parametrize(
    ("last", "reason", "detail"),
    [
        (b"data: [DONE]\n\n", "done", ""),
        (b"data: x\n\n", "error", "the stream ended without its '[DONE]'"),
        (b'data: {"error":{"message":"overloaded"}}\n\n', "error", "the stream itself said that it failed: overloaded"),
    ],
)
async def test_a_profile_says_whether_it_is_whole(last: bytes, reason: str, detail: str) -> None:
    run = Run(terminator=PROFILES["openai"])
    await run.start(saying(EVENT, last))
    end = await run.end()
    assert (end.reason, end.detail) == (reason, detail)


async def leaving(session: Session) -> None:
    session.stop("the reader left")
    await for_ever()


async def not_waiting(session: Session) -> None:
    session.stop("the reader left")


async def reset(session: Session) -> None:
    await failing()


@pytest.mark.parametrize("then", [leaving, not_waiting, reset])
@pytest.mark.parametrize("whole", [True, False])
async def test_what_becomes_of_a_connection_behind_the_streams_own_end_is_no_news(then: Source, whole: bool) -> None:
    async def source(session: Session) -> None:
        await saying(EVENT, b"data: [DONE]\n\n" if whole else EVENT)(session)
        await then(session)

    run = Run(terminator=PROFILES["openai"])
    await run.start(source)
    assert (await run.end()).reason == ("done" if whole else "error" if then is reset else "cancelled")
    ended = run.session.stream.ended
    assert ended is not None
    assert (b"penstock.error" in ended.detail or b"upstream_error" in ended.detail) is not whole


async def test_an_on_end_that_waits_is_let_finish_when_the_source_was_stopped_at_its_last_step() -> None:
    run = Run()
    await run.start(not_waiting)
    assert (await run.end()).reason == "cancelled"  # which asserts that it was awaited
    run = Run()
    await run.streams.claim(run.session, None, "")
    task = run.streams.start(run.session, for_ever_in)
    await asyncio.sleep(0)
    run.session.stop()
    task.cancel()  # by somebody else, who is to see it
    await asyncio.wait({task})
    assert task.cancelled()
    assert run.was_awaited


async def for_ever_in(session: Session) -> None:
    session.begin(head())
    await for_ever()


class Durable:
    """A stream that is stored before it is sent, and what its end was when that was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[tuple[str, str, int]] = []
        self.streams = Streams(SqliteLog(path, timeout=0.01))
        self.session = Session(on_disconnect=OnDisconnect("detach"), on_end=self._ended)
        self.session.policy = Policy(upstream="http://up.test", promise="durable")

    async def _ended(self, end: StreamEnd) -> None:
        self.told.append((end.reason, end.detail, len(await end.events())))

    async def start(self, source: Source) -> asyncio.Task[None]:
        await self.streams.claim(self.session, None, "", promise="durable")
        return self.streams.start(self.session, source)


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_durable_end_is_told_when_it_is_stored_and_not_before(tmp_path: Path, stopped: bool) -> None:
    durable = Durable(tmp_path / "log.db")
    gate = asyncio.Event()
    task = await durable.start(saying(EVENT * 4, then=lambda: wait_for(gate)))
    await until(lambda: durable.session.stream.sequence == 4)
    other = sqlite3.connect(durable.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # from now on nothing can be stored
    durable.session.take(EVENT * 3)
    gate.set()
    await until(lambda: durable.streams.log.trouble is not None)
    assert durable.told == []
    if stopped:
        task.cancel()
        await asyncio.wait({task})
        assert durable.told == [("producer_lost", "the relay stopped before the store had the end", 4)]
    other.execute("ROLLBACK")
    other.close()
    if not stopped:
        await asyncio.wait_for(task, 20)
        assert durable.told == [("done", "", 7)]
    await durable.streams.aclose()


async def wait_for(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_a_place_that_is_lost_is_a_warning_and_told_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.relay")
    durable = Durable(tmp_path / "log.db")
    task = await durable.start(for_ever_in)
    await durable.session.opened
    durable.streams.log.abort()
    await asyncio.wait({task}, timeout=20)
    ((reason, _, _),) = durable.told
    (record,) = [each for each in caplog.records if "producer_lost after" in each.getMessage()]
    assert (reason, record.levelname) == ("producer_lost", "WARNING")


async def test_an_event_that_is_too_long_is_an_error() -> None:
    run = Run(max_event_bytes=100)
    await run.start(saying(EVENT, b"data: " + b"x" * 200, then=for_ever))
    end = await run.end()
    assert (end.reason, end.event_count) == ("error", 1)
    assert "100 bytes; raise limits.max_event_bytes" in end.detail


async def test_a_source_is_paused_while_the_log_is_full_of_what_its_reader_lacks() -> None:
    made = 0

    async def items() -> Any:
        nonlocal made
        for _ in range(100):
            made += 1
            yield b"data: " + b"x" * 1000 + b"\n\n"

    async def source(session: Session) -> None:
        session.begin(head())
        await draw(session, items())

    run = Run()
    run.session.came()
    await run.start(source)
    reader = run.session.seat() if run.session.opened.done() else None
    await run.session.opened
    await until(lambda: run.session.producer.paused)
    stood = made
    await asyncio.sleep(0.02)
    assert made == stood < 100
    reader = reader or run.session.seat()
    while (page := await reader.read()).end is None:
        if not page.records:
            await reader.wait()
    assert page.after == made == 100
    reader.close()
    run.session.left()
    await run.end()


async def test_an_error_that_the_stream_told_itself_is_not_told_twice() -> None:
    async def told() -> None:
        raise InBandError("it said so")

    run = Run()
    await run.start(saying(EVENT, then=told))
    await run.end()
    assert run.session.stream.ended is not None
    assert b"data:" not in run.session.stream.ended.detail
