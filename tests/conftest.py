"""What every test stands on: one event loop, the one that Penstock runs on."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import settings

# A deadline per example measures the machine, not the code.
settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run tests marked ``anyio`` on asyncio with uvloop, where there is one."""
    return "asyncio", {"use_uvloop": sys.platform != "win32"}
