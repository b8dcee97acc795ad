"""The example of this room runs, and shows what it is meant to show."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.origin import app, streams
from penstock.testing import serve
from tests.client.peers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

EXAMPLE = Path(__file__).parents[2] / "examples" / "observed_client.py"


async def run(url: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLE, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


async def test_each_attempt_is_a_span_and_the_metrics_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_MS", 0)
    async with serve(app(tmp_path)) as url:
        code, out, err = await run(url)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    shown = [re.sub(r"bytes=\d+", "bytes=N", line) for line in lines if line.startswith(("event ", "span "))]
    asked = f"GET {url}/events?count=5&interval=0.01&cut_after=2"
    broken = "status=200 end=failed bytes=N error=penstock.errors.StreamTruncated"
    assert shown == [
        "event 1",
        "event 2",
        f"span {asked} resent=0 {broken}",
        "event 3",
        "event 4",
        f"span {asked} resent=1 {broken}",
        "event 5",
        f"span {asked} resent=2 status=200 end=complete bytes=N error=None",
    ]
    families = text_string_to_metric_families("\n".join(lines[len(shown) :]) + "\n")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value for each in families for sample in each.samples
    }
    assert values["penstock_client_events_total", "successful", "watched"] == 5
    assert values["penstock_client_reconnects_total", "watched"] == 2
    assert values["penstock_client_attempt_seconds_count", "2xx", "GET", "failed", "watched"] == 2
    assert values["penstock_client_attempt_seconds_count", "2xx", "GET", "complete", "watched"] == 1


async def test_a_stream_that_cannot_be_had_is_told_in_one_line() -> None:
    with free_port() as port:
        code, out, err = await run(f"http://127.0.0.1:{port}")
    assert code == 1
    assert out.count("span GET ") == 4
    assert err.startswith("Stream failed (network): gave up after 4 attempts: ")
    assert err.count("\n") == 1
