"""One suite for every event log: what `check_event_log` says, and bytes that nobody would think of."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.eventlog.base import DEFAULT_RETENTION, EventLog, Promise, Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.sqlite.log import SqliteLog
from penstock.testing import EVENT_LOG_CHECKS, FakeClock, LogBench, check_event_log
from penstock.testing.event_log import Benches, Check, check_replay
from tests.eventlog.redis_server import needs_redis, running, running_cluster

NOON = 1_700_000_000.0
FLIGHT = 0.1  # of a second: what passes in Redis, whose clock is not ours to move, for each second of a check
PASSING = {"a_lease_that_runs_out", "a_lease_that_is_renewed", "a_crash", "forgets_by_age"}
STANDING_STILL = {"a_lease_that_runs_out"}


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


def redis_at(url: str, check: str) -> Benches:
    """Logs under a prefix of their own, and Redis's own time; where it is to be too long for them, they stand still."""
    from penstock.eventlog.redis.log import RedisLog

    lease = 300.0 if check not in PASSING else 10.0 if check == "forgets_by_age" else 20.0

    @contextlib.asynccontextmanager
    async def bench() -> AsyncIterator[LogBench]:
        prefix = secrets.token_hex(4)

        def make(*, retention: Retention = DEFAULT_RETENTION) -> EventLog:
            aged = replace(retention, age=retention.age * FLIGHT)
            return RedisLog(url, retention=aged, lease=lease * FLIGHT, prefix=prefix)

        async def advance(seconds: float) -> None:
            if check in STANDING_STILL:
                time.sleep(seconds * FLIGHT)
            else:
                await asyncio.sleep(seconds * FLIGHT)

        yield LogBench(make, advance, lease=lease)

    return bench


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield f"redis+cluster://127.0.0.1:{servers[0].port}"


def marks_of(backend: str, check: Check | None = None) -> list[pytest.MarkDecorator]:
    """What it needs; and where it takes long, and is the same as on one server, it is for the slow tests."""
    marks = [needs_redis] if backend in ("redis", "cluster") else []
    slow = backend == "cluster" and check is not None and check.__name__ in PASSING
    return [*marks, pytest.mark.soak] if slow else marks


BACKENDS = ("memory", "sqlite", "redis", "cluster")
CASES = [
    pytest.param(backend, check, marks=marks_of(backend, check), id=f"{backend}-{check.__name__}")
    for backend in BACKENDS
    for check in EVENT_LOG_CHECKS
]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Benches:
    check: str = getattr(request.node.callspec.params.get("check"), "__name__", "")
    match request.param:
        case "memory":
            return memory
        case "sqlite":
            return sqlite
        case "redis":
            return redis_at(request.getfixturevalue("redis_url"), check)
        case _:
            return redis_at(request.getfixturevalue("cluster_url"), check)


@pytest.mark.anyio
@pytest.mark.parametrize(("backend", "check"), CASES, indirect=["backend"])
async def test_keeps_the_contract(backend: Benches, check: Check) -> None:
    await check(backend)


@pytest.mark.anyio
async def test_the_suite_runs_as_one() -> None:
    await check_event_log(memory)


@pytest.mark.parametrize(
    "backend", [pytest.param(backend, marks=marks_of(backend)) for backend in BACKENDS], indirect=True
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.binary(max_size=6), max_size=4), max_size=6),
    promise=st.sampled_from(["fast", "durable"]),
)
def test_replays_byte_for_byte(backend: Benches, batches: list[list[bytes]], promise: Promise) -> None:
    asyncio.run(check_replay(backend, batches, promise=promise))
