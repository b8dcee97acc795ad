"""The demo's servers: one that dies is told of."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from penstock.cli.demo_servers import Failed, origin, watch

pytestmark = pytest.mark.anyio


async def test_a_server_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    async with origin(str(tmp_path)) as first, origin(str(tmp_path)) as second:
        second.process.send_signal(signal.SIGKILL)
        with pytest.raises(Failed, match="`penstock origin` has ended with exit code -9"):
            await watch(first, second)
        assert first.process.returncode is None
    assert first.process.returncode == 143
