"""`penstock origin`: refused before it listens; how it serves is in tests/e2e."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.cli.conftest import Run


def test_nothing_is_listened_on_when_it_cannot_serve(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        busy = f"127.0.0.1:{held.getsockname()[1]}"
        # The directory is told of first: with it mended, the port is.
        done = run("origin", "--listen", busy, "--directory", tmp_path / "missing", "--json")
        assert (done.code, done.error["type"]) == (1, "OriginError")
        assert str(tmp_path / "missing") in done.error["message"]
        done = run("origin", "--listen", busy, "--directory", tmp_path, "--json")
        assert (done.code, done.error["type"]) == (1, "ListenError")
        assert busy in done.error["message"]


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run("origin", "--listen", ":0", "--directory", tmp_path, "--file", tmp_path / "missing")
    assert (done.code, done.out) == (1, "")
    assert str(tmp_path / "missing") in done.err
    assert done.err.count("\n") == 1
