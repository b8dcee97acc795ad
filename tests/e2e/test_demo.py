"""`penstock demo`: what a newcomer sees first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from penstock.cli.demo import SHOWN
from tests.e2e.process import penstock

pytestmark = pytest.mark.e2e


def test_demo_shows_the_three_jobs_and_all_figures(tmp_path: Path) -> None:
    started = time.monotonic()
    done = penstock("demo", env={"TMPDIR": str(tmp_path), "COLUMNS": "100"}, timeout=50)
    assert (done.code, done.out) == (0, "")
    assert time.monotonic() - started < 30
    told = done.err.splitlines()
    said = iter(told)
    for expected in (
        "1. pipe: 457 MB from http://127.0.0.1:",
        "2. relay: http://127.0.0.1:",
        "   Chunk 1 [",
        "   Chunk 11 [",
        "   Chunk 21 [",
        "3. consume: events from http://127.0.0.1:",
        "answered 503 Service Unavailable: 503 on purpose; attempt 2 in",
        "answered 503 Service Unavailable: 503 on purpose; attempt 3 in",
        *(f'   event: {{"Count":{count},"Data":"Event {count}"}}' for count in range(1, 5)),
        '   event: {"Data":"Stream completed"}',
        "circuit breaker open for http://127.0.0.1:",
        "the breaker let a probe through, and closed",
        "What was measured",
    ):
        assert any(expected in line for line in said), expected
    table = "\n".join(said)
    samples = {"sha256": "8ea96e42e68f02e2f37330cb5d0161687b47934082a9d72bf1af6d8e0378e17c", "bytes": 478_888_897}
    for name, show in SHOWN.items():
        assert show(samples.get(name, 0))[0] in table
    assert "478,888,897" in table
    assert samples["sha256"][:16] in table  # type: ignore[index]
    assert list(tmp_path.iterdir()) == []
