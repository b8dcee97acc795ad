from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from penstock.origin import app, streams
from penstock.testing import serve


@pytest.fixture
async def origin(tmp_path: Path, anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The sample servers, storing in tmp_path; their readers may come back at once."""
    monkeypatch.setattr(streams, "RETRY_MS", 0)
    async with serve(app(tmp_path)) as url:
        yield url


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The lines that a logger was given so far."""
    caplog.set_level(logging.INFO, "penstock")
    return lambda name: [record.getMessage() for record in caplog.records if record.name == name]
