"""`penstock demo` where it cannot show what it promises; the demo itself is in tests/e2e."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def program(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "python"
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o755)
    return str(path)


def test_a_server_that_does_not_start(run: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", program(folder, "exit 1"))
    done = run("demo")
    assert (done.code, done.out, done.err) == (
        1,
        "",
        "penstock demo: `penstock origin` did not start: without a word\n",
    )
    told = """echo '{"error":{"message":"no port left"}}'; exit 1"""
    monkeypatch.setattr(sys, "executable", program(folder, told))
    done = run("demo", "--json")
    assert (done.code, done.err) == (1, "")
    assert done.error["message"] == "`penstock origin` did not start: no port left"
    assert list(nowhere.iterdir()) == [folder]


def test_a_pipe_that_fails(run: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "bin"
    folder.mkdir()
    lines = (
        """if test "$3" = pipe; then echo '{"error":{"message":"the disk is full"}}'; exit 1; fi""",
        """echo '{"listening":{"url":"http://127.0.0.1:1"}}'""",
        "exec sleep 60",
    )
    monkeypatch.setattr(sys, "executable", program(folder, *lines))
    done = run("demo")
    assert done.code == 1
    assert done.err.endswith("penstock demo: the pipe failed: the disk is full\n")
    assert list(nowhere.iterdir()) == [folder]
