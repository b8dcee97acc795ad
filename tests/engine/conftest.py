from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The engine stands on protocols and transports, and both loops have their own: every test runs on both."""
    return "asyncio", {"use_uvloop": request.param}
