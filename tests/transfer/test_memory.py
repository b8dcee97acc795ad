"""The kernel's word on memory, and that a transfer of ten times the size takes no more of it."""

from __future__ import annotations

import asyncio
import json
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.origin.app import app as origin
from penstock.testing import serve
from penstock.transfer import memory

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
def test_the_peak_is_no_less_than_what_is_held_now() -> None:
    assert 0 < memory.resident_kib() <= memory.peak_kib()


@needs_proc
def test_what_is_allocated_and_touched_is_counted() -> None:
    before = memory.resident_kib()
    with mmap.mmap(-1, 32 << 20) as held:  # fresh pages: what earlier tests freed may be resident still
        held.write(bytes(32 << 20))
        grown = memory.resident_kib() - before
    assert 24 * 1024 < grown < 80 * 1024


@needs_proc
def test_the_peak_does_not_fall() -> None:
    held = bytearray(b"x") * (32 << 20)
    peak = memory.peak_kib()
    assert held
    del held
    assert memory.peak_kib() >= peak - 1024  # the kernel counts per thread, and adds up now and then


async def piped(server: str, lines: int, *more: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock", "pipe", f"{server}/file?lines={lines}", f"{server}/upload", "--json"),
        *more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    report: dict[str, Any] = json.loads(out)
    return report


@needs_proc
@pytest.mark.anyio
@pytest.mark.e2e
async def test_growth_does_not_depend_on_the_size(tmp_path: Path) -> None:
    async with serve(origin(tmp_path)) as server:
        growth = {}
        for lines in (100_000, 1_000_000):
            report = await piped(server, lines, "--digest", "sha256")
            assert report["bytes"] == (tmp_path / "large.txt").stat().st_size
            growth[lines] = report["memory_growth_kib"]
        assert max(growth.values()) < 4096, growth
        assert abs(growth[1_000_000] - growth[100_000]) < 1024, growth
