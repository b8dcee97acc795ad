"""Rounds over three relays and a Redis that all die now and then: nothing lost but what is told, nothing doubled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.replica_rounds import Origin, play_rounds
from tests.e2e.replicas import LEASE, replicas
from tests.eventlog.redis_server import needs_redis
from tests.relay.peers import upstream

pytestmark = [pytest.mark.anyio, needs_redis]

SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))


async def play(folder: Path, promise: str, rounds: int, chaos: int) -> None:
    origin = Origin()
    async with upstream(origin.play) as up, replicas(folder, up.url, promise=promise) as cluster:
        summary = await play_rounds(
            cluster, origin, rounds=rounds, seed=SEED, durable=promise == "durable", chaos=chaos
        )
    print(f"seed {SEED}, {promise}: {summary}")
    assert summary.worst_lost <= LEASE + 1 + summary.lag


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_three_hundred_rounds(tmp_path: Path, promise: str) -> None:
    await play(tmp_path, promise, 300, 4)


@pytest.mark.parametrize("promise", ["durable", "fast"])
async def test_some_rounds(tmp_path: Path, promise: str) -> None:
    await play(tmp_path, promise, 5, 2)
