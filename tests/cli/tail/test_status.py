"""What the line at the bottom says; how it is drawn on a real terminal is in tests/e2e."""

from __future__ import annotations

import pytest

from penstock.cli.tail.status import StatusLine
from penstock.client.client import AsyncClient
from penstock.client.metrics import Metrics
from penstock.client.notices import Comment, Connected, Reconnecting
from penstock.testing import FakeClock, close, script, wait_request


@pytest.mark.anyio
async def test_what_it_says() -> None:
    clock = FakeClock()
    seen = [Metrics()]
    line = StatusLine(lambda: seen[-1], clock)
    assert line.line() == "0 events · waiting for an answer"
    clock.advance(2)
    await connect(line)
    seen.append(Metrics(total=1, retries=1))
    assert line.line() == "1 event · 0.5/s · the last 0.0 s ago · 1 retry"
    clock.advance(0.5)
    line.notice(Comment("nothing to it"))
    assert line.line() == "1 event · 0.4/s · the last 0.5 s ago · 1 retry"
    line.notice(Reconnecting(attempt=3, pause=1.5, failure=None))
    assert line.line() == "1 event · attempt 3 in 1.5 s · the last 0.5 s ago · 1 retry"
    clock.advance(2)
    seen.append(Metrics(total=11, retries=2))
    assert line.line() == "11 events · waiting for an answer · the last 0.0 s ago · 2 retries"
    await connect(line)
    assert line.line().startswith("11 events · 2.4/s")


@pytest.mark.anyio
async def test_the_rate_is_of_late() -> None:
    clock = FakeClock()
    line = StatusLine(lambda: Metrics(total=1000), clock)
    await connect(line)
    line.line()
    for _ in range(50):
        clock.advance(0.1)
        line.line()
    assert line.line().startswith("1000 events · 0.0/s · the last 5.0 s ago")


async def connect(line: StatusLine) -> None:
    """Tell the line of a real response."""
    async with (
        script(wait_request(), b"HTTP/1.1 204 No\r\n\r\n", close()) as server,
        AsyncClient(retry=0) as client,
        client.get(server.url).send() as response,
    ):
        line.notice(Connected(response, 1))
