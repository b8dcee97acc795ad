"""A lock file tells who is gone, and only that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.eventlog.sqlite.presence import Presence

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

HOLD = """
import sys
from pathlib import Path
from penstock.eventlog.sqlite.presence import Presence
Presence(Path(sys.argv[1])).show(7)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_process_is_present_until_it_is_killed(tmp_path: Path) -> None:
    presence = Presence(tmp_path / "log")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "log"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not presence.is_gone(7)
        process.kill()
        process.wait()
        assert presence.is_gone(7)
        assert presence.is_gone(7), "asking changes nothing"
    presence.tidy(7)
    assert list(tmp_path.iterdir()) == []


def test_of_an_unknown_one_nothing_is_said(tmp_path: Path) -> None:
    assert not Presence(tmp_path / "log").is_gone(3)


def test_one_process_is_present_for_one_epoch_at_a_time(tmp_path: Path) -> None:
    here, other = Presence(tmp_path / "log"), Presence(tmp_path / "log")
    here.show(1)
    assert not other.is_gone(1)
    here.show(2)
    assert [path.name for path in tmp_path.iterdir()] == ["log-producer-2"]
    here.leave(tidy=False)
    assert other.is_gone(2), "what it leaves untidy tells that there is something to mend"
    here.leave()
