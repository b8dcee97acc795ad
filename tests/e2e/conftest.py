"""Servers and commands for the end-to-end tests; whatever was started is ended, also when a test fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Browser, chromium
from tests.e2e.canned import Canned, canned
from tests.e2e.process import PENSTOCK, Running, Server

Serve = Callable[..., Server]
Start = Callable[..., Running]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a `penstock` command that serves, and wait until it listens."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(command: str, *arguments: str | Path) -> Server:
            server = Server(command, *arguments, folder=tmp_path / f"server-{next(numbers)}")
            stack.callback(server.end)
            server.started()
            return server

        yield start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start any command, `penstock` with these arguments by default."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | Path, program: tuple[str, ...] = PENSTOCK, **options: Any) -> Running:
            running = Running([*program, *map(str, arguments)], tmp_path / f"command-{next(numbers)}", **options)
            stack.callback(running.end)
            return running

        yield start


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """An empty directory for an origin's uploads."""
    directory = tmp_path / "uploads"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One origin for all tests that neither end it nor look into its directory."""
    folder = tmp_path_factory.mktemp("origin")
    server = Server("origin", "--directory", folder, folder=folder)
    try:
        server.started()
        yield server
    finally:
        server.end()


@pytest.fixture(scope="session")
def prepared() -> Iterator[Canned]:
    """One server with prepared answers."""
    with canned() as server:
        yield server


@pytest.fixture
def closed_port() -> Iterator[str]:
    """The URL of a port that nobody listens on; it is held, so that nobody else does."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; its screenshots are kept where PENSTOCK_SCREENSHOTS says."""
    kept = os.environ.get("PENSTOCK_SCREENSHOTS")
    screenshots = Path(kept).absolute() if kept else tmp_path_factory.mktemp("screenshots")
    with chromium(tmp_path_factory.mktemp("chromium"), screenshots) as running:
        yield running


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """The browser; what it says against the page afterwards, its security policy included, fails the test.

    That a stopped stream's connection is broken off is as it should be.
    """
    yield shared
    assert [each for each in shared.complaints() if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in each] == []
