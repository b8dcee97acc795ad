"""`penstock demo`: what a newcomer sees first."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from penstock.cli.demo import SHOWN
from tests.e2e.browser import Browser
from tests.e2e.conftest import Start
from tests.e2e.process import PATIENCE, alive, children_of, eventually, needs_proc, penstock

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


@needs_proc
def test_with_stay_the_page_is_there_and_a_signal_ends_all_of_it(start: Start, tmp_path: Path) -> None:
    """In the middle of its first job: whatever runs is ended."""
    demo = start("demo", "--stay", "--json", env={**os.environ, "TMPDIR": str(tmp_path)})
    [line] = demo.wrote(1)
    page = json.loads(line)["listening"]["page"]
    with urllib.request.urlopen(f"{page}info", timeout=PATIENCE) as response:
        assert json.load(response)["store"] == "memory://"
    with urllib.request.urlopen(f"{page}streams", timeout=PATIENCE) as response:
        assert list(json.load(response)["breaker"].values()) == ["closed"]
    children = eventually(
        lambda: found if len(found := children_of(demo.pid)) == 4 else None, "three servers and a job"
    )
    demo.kill(signal.SIGTERM)
    assert demo.ended() == 143
    assert [pid for pid in children if alive(pid)] == []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page, timeout=PATIENCE)
    assert list(tmp_path.glob("penstock-demo-*")) == []


@needs_proc
@pytest.mark.browser
@pytest.mark.timeout(120)
def test_the_page_of_the_demo_stays_for_a_browser(shared: Browser, start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--stay", env={**os.environ, "TMPDIR": str(tmp_path)})
    page = demo.said("the page stays until you press Ctrl-C", within=3 * PATIENCE).split()[-1]
    shared.open(page)
    shared.click("#start button", "Start")
    shared.until(lambda: "You said" in shared.text(".output"), "an answer")
    shared.click(".actions button", "Cut")
    shared.until(lambda: shared.all(".seam"), "a resume")
    shared.screenshot("demo")
    children = children_of(demo.pid)
    demo.kill(signal.SIGINT)
    assert demo.ended() == 130
    assert [pid for pid in children if alive(pid)] == []
    assert list(tmp_path.glob("penstock-demo-*")) == []
