"""A thousand rounds of readers that are cut off and come back: nothing lost, nothing doubled, nothing asked twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.relay.rounds import play_rounds

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("PENSTOCK_SOAK_SEED", "1"))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'log.db'}"


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_thousand_rounds(store: str) -> None:
    print(f"seed {SEED}")
    await play_rounds(1000, SEED, store)


async def test_some_rounds(store: str) -> None:
    await play_rounds(60, SEED, store)
