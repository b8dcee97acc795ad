"""The processes of `penstock demo`: started on free ports with the commands that a person would type, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 20.0
STOP_SECONDS = 5.0

# The relay's grace is shorter than what it has before it is killed.
_RELAY = """
admin_listen = "127.0.0.1:0"
grace = "1s"

[defaults]
upstream = "{upstream}"
owner = "none"
breaker = {{ failure_threshold = 3, recovery_timeout = "10s" }}
"""


class Failed(Exception):
    """The demo did not show what it promises; the message says what."""


@dataclass(frozen=True, slots=True)
class Started:
    """A command that serves.

    Attributes:
        command: Its name.
        url: Where it listens.
        page: The relay's page for its operator; "" of other commands.
        process: It.
    """

    command: str
    url: str
    page: str
    process: asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def origin(folder: str) -> AsyncIterator[Started]:
    """A `penstock origin` until the block ends; what is uploaded goes into the folder.

    Raises:
        Failed: It did not start.
    """
    async with _started("origin", "--directory", folder) as started:
        yield started


@contextlib.asynccontextmanager
async def relay(upstream: str, folder: str) -> AsyncIterator[Started]:
    """A `penstock relay` with its page until the block ends; its configuration is written into the folder.

    Raises:
        Failed: It did not start.
    """
    config = Path(folder) / "relay.toml"
    config.write_text(_RELAY.format(upstream=upstream), encoding="utf-8")
    async with _started("relay", "--config", str(config)) as started:
        yield started


async def run(*arguments: str, quietly: bool) -> tuple[int | None, dict[str, Any]]:
    """Run a `penstock` command to its end.

    Args:
        arguments: The command and its own; ``--json`` goes without saying.
        quietly: Whether what it has to say to people is thrown away.
    Returns:
        The exit code, and the last object that it wrote.
    Cancellation: the command is ended.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock", *arguments, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL if quietly else None,
    )
    try:
        out, _ = await process.communicate()
    finally:
        await _end(process)
    return process.returncode, _last_record(out)


async def watch(*servers: Started) -> None:
    """Wait, for as long as all of them run.

    Raises:
        Failed: One has ended.
    """
    waiting = {asyncio.create_task(each.process.wait()): each for each in servers}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    first = done.pop()
    raise Failed(f"`penstock {waiting[first].command}` has ended with exit code {first.result()}")


@contextlib.asynccontextmanager
async def _started(command: str, *arguments: str) -> AsyncIterator[Started]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "penstock", command, *arguments, "--listen", "127.0.0.1:0", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            raise Failed(f"`penstock {command}` did not start within {START_SECONDS:g} s") from None
        said = _last_record(line)
        if "listening" not in said:
            raise Failed(
                f"`penstock {command}` did not start: {said.get('error', {}).get('message', 'without a word')}"
            )
        listening = said["listening"]
        page = f"{listening['admin']}/_penstock/" if "admin" in listening else ""
        yield Started(command, listening["url"], page, process)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end; make it, if it takes too long."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _last_record(out: bytes) -> dict[str, Any]:
    lines = out.decode("utf-8", "replace").strip().splitlines()
    try:
        value = jsonlib.loads(lines[-1])
    except (ValueError, IndexError):
        return {}
    return value if isinstance(value, dict) else {}
