"""Rounds over three relays and a Redis that all die now and then: nothing lost but what is told, nothing doubled."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.e2e.replica_rounds import DEATHS, Rounds
from tests.e2e.replicas import LEASE, replicas
from tests.e2e.tales import Origin
from tests.eventlog.redis_server import needs_redis
from tests.relay.peers import upstream

pytestmark = [pytest.mark.anyio, needs_redis]

SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))


async def play(
    folder: Path, promise: str, rounds: int, deaths: Iterable[str], *, every: int, lease: float = LEASE
) -> None:
    origin = Origin()
    async with upstream(origin.play) as up, replicas(folder, up.url, promise=promise, lease=lease) as cluster:
        drawn = Rounds(cluster, origin, seed=SEED, durable=promise == "durable", lease=lease)
        summary = await drawn.play(rounds, deaths, every)
    print(f"seed {SEED}, {promise}: {summary}")
    assert summary.worst_lost <= lease + 1 + summary.lag  # what the test itself was late is not the relays'


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_three_hundred_rounds(tmp_path: Path, promise: str) -> None:
    await play(tmp_path, promise, 300, itertools.cycle(DEATHS), every=4)


async def test_some_rounds(tmp_path: Path) -> None:
    await play(tmp_path, "durable", 5, ("relay", "Redis blinks"), every=0, lease=1.0)
