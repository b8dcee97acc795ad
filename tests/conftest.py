"""What every test stands on: one event loop, the one that Penstock runs on."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from typing import Any, TypeVar

import pytest
from hypothesis import settings

# A deadline per example measures the machine, not the code.
settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Two more at a time than there are cores: many tests mostly wait, for a timer, a server or a process."""
    return (yield) + 2


def pytest_collection_finish() -> None:
    """Leave what was imported and collected, which stays, out of every look for what a test left behind."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run tests marked ``anyio`` on asyncio with uvloop, where there is one."""
    return "asyncio", {"use_uvloop": sys.platform != "win32"}


# -- PENSTOCK_TEST_ALL: where everything that the tests need is meant to be there, what is not is a failure --------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _not_passed_over((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _not_passed_over((yield))


R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def _not_passed_over(report: R) -> R:
    """Make a failure of a skip whose reason says that something "is not installed"."""
    if report.outcome == "skipped" and os.environ.get("PENSTOCK_TEST_ALL") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "not installed" in reason:
            report.outcome = "failed"
            report.longrepr = (
                f"{reason.removeprefix('Skipped: ')}, and PENSTOCK_TEST_ALL says that nothing is passed over"
            )
    return report
