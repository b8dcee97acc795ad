"""`penstock pipe` in this process; what needs a process of its own is in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.e2e.canned import Canned


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "name.txt"
    path.write_bytes(b"content")
    return path


def test_a_digest_is_data(run: Run, prepared: Canned, file: Path) -> None:
    url = prepared.answer("/upload", "text/plain", b"ok")
    done = run("pipe", file, url, "--digest", "md5")
    assert (done.code, done.out) == (0, "md5  9a0364b9e99bb480dd25e1f0284c8555\n")
    assert 'Upload successful "server2Resp response"="ok"' in done.err
    assert run("pipe", file, url).out == ""


def test_the_report_is_one_object(run: Run, prepared: Canned, file: Path) -> None:
    url = prepared.answer("/upload", "text/plain", b"ok")
    done = run("pipe", file, url, "--json")
    assert (done.code, done.err) == (0, "")
    (report,) = done.records
    assert list(report) == [
        *("bytes", "seconds", "bytes_per_second", "attempts", "path", "digest", "memory_growth_kib"),
        *("source", "destination"),
    ]
    assert report["source"] == {"url": str(file), "status": None}
    assert (report["bytes"], report["attempts"], report["digest"]) == (7, 1, {})


def test_a_failure_with_json_says_nothing_on_stderr(run: Run, prepared: Canned, file: Path) -> None:
    url = prepared.answer("/refused", "text/plain", b"no", 507)
    done = run("pipe", file, url, "--json")
    assert (done.code, done.err) == (1, "")
    assert done.error["type"] == "StatusError"
    assert " 507 " in done.error["message"]


@pytest.mark.parametrize("option", [("--form", "a=b"), ("--filename", "x"), ("--field", "x")])
def test_a_raw_body_has_no_form(run: Run, prepared: Canned, file: Path, option: tuple[str, str]) -> None:
    asked = len(prepared.asked)
    done = run("pipe", file, f"{prepared.url}/upload", "--put", *option)
    assert done.code == 2
    assert "--put sends a raw body" in done.err
    assert len(prepared.asked) == asked
