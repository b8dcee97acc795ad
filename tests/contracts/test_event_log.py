"""One suite for every event log: what `check_event_log` says, and bytes that nobody would think of."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.eventlog.base import DEFAULT_RETENTION, EventLog, Promise, Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite import SqliteLog
from penstock.testing import EVENT_LOG_CHECKS, FakeClock, LogBench, check_event_log
from penstock.testing.event_log import Benches, Check, check_replay

NOON = 1_700_000_000.0


@contextlib.asynccontextmanager
async def memory() -> AsyncIterator[LogBench]:
    clock = FakeClock()

    def make(*, retention: Retention = DEFAULT_RETENTION) -> EventLog:
        return MemoryLog(retention=retention, clock=clock, wall=lambda: NOON + clock())

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    yield LogBench(make, advance)


@contextlib.asynccontextmanager
async def sqlite() -> AsyncIterator[LogBench]:
    clock = FakeClock(1000.0)

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")

        def make(*, retention: Retention = DEFAULT_RETENTION) -> EventLog:
            return SqliteLog(path, retention=retention, lease=15.0, clock=clock, wall=lambda: NOON + clock())

        yield LogBench(make, advance, lease=15.0)


BACKENDS: list[Benches] = [memory, sqlite]


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__)
@pytest.mark.parametrize("check", EVENT_LOG_CHECKS, ids=lambda check: check.__name__)
async def test_keeps_the_contract(check: Check, backend: Benches) -> None:
    await check(backend)


@pytest.mark.anyio
async def test_the_suite_runs_as_one() -> None:
    await check_event_log(memory)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__)
@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.lists(st.binary(max_size=6), max_size=4), max_size=6),
    promise=st.sampled_from(["fast", "durable"]),
)
def test_replays_byte_for_byte(backend: Benches, batches: list[list[bytes]], promise: Promise) -> None:
    asyncio.run(check_replay(backend, batches, promise=promise))
