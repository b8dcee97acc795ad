"""How every command ends: exit codes, one line for a failure, help."""

from __future__ import annotations

import errno
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from penstock.cli import main, output
from penstock.cli.run import Interrupted
from penstock.errors import ConnectError, InvalidURL, RetriesExhausted
from tests.cli.conftest import Run
from tests.e2e.canned import Canned

COMMANDS = ["demo", "origin", "relay", "tail", "pipe", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    for option in ("--help", "-h"):
        done = run(command, option)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: penstock {command} ")
        assert "--json" in done.out


def test_the_whole_explains_itself(run: Run) -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.partition("Commands:\n")[2].splitlines()] == COMMANDS
    bare = run()
    assert (bare.code, bare.out, bare.err) == (2, "", done.out)


def test_version(run: Run) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert run("--version").out == f"penstock {project['version']}\n"


USAGE = {
    "unknown command": (["fly"], "No such command 'fly'", "see `penstock --help`"),
    "unknown option": (["tail", "--fly"], "No such option: --fly", "see `penstock tail --help`"),
    "tail: no URL": (["tail"], "Missing argument 'URL'", "see `penstock tail --help`"),
    "relay: no upstream": (["relay"], "write the UPSTREAM's URL, or --config FILE", "see `penstock relay --help`"),
    "pipe: no destination": (
        ["pipe", "http://localhost/"],
        "Missing argument 'DESTINATION'",
        "see `penstock pipe --help`",
    ),
    "option without its value": (["tail", "http://localhost/", "-H"], "-H", "requires an argument"),
    "no URL at all": (["tail", "localhost/x"], "'localhost/x' is not a full URL", "http://"),
    "URL without a host": (["tail", "http:///x"], "'http:///x' has no host", "http://HOST"),
    "URL of another scheme": (["tail", "ftp://localhost/x"], "'ftp://localhost/x'", "use http or https"),
    "URL with a bad port": (["tail", "http://localhost:99999/"], "'http://localhost:99999/'", "from 1 to 65535"),
    "bad upstream": (["relay", "localhost:80"], "'localhost:80' is not a full URL", "http://"),
    "bad destination": (["pipe", __file__, "localhost/x"], "'localhost/x' is not a full URL", "http://"),
    "bad HOST:PORT": (["origin", "--listen", "8080"], "'8080' is not HOST:PORT", "e.g. 127.0.0.1:8080"),
    "bad port": (["relay", "http://localhost", "--listen", ":http"], "':http' is not HOST:PORT", "0 to 65535"),
    "bad header": (["tail", "http://localhost/", "-H", "no colon"], "'no colon' is not a header", "'Name: value'"),
    "header of two lines": (["tail", "http://localhost/", "-H", "A: b\nC: d"], "LF", "header 'A'"),
    "header without a name": (["pipe", "-", "http://localhost/", "-H", ": b"], "header", "see `penstock pipe"),
    "bad source header": (
        ["pipe", "-", "http://localhost/", "--source-header", "x"],
        "'x' is not a header",
        "'Name: v",
    ),
    "bad relay header": (["relay", "http://localhost", "-H", "x"], "'x' is not a header", "'Name: value'"),
    "bad form pair": (["pipe", "-", "http://localhost/", "--form", "pair"], "'pair' is not a form field", "name=value"),
    "bad digest": (["pipe", "-", "http://localhost/", "--digest", "sha0"], "no digest 'sha0'", "sha256"),
    "bad rate": (["pipe", "-", "http://localhost/", "--limit-rate", "fast"], "'fast' is not a rate", "500K or 5M"),
    "rate of nothing": (["pipe", "-", "http://localhost/", "--limit-rate", "0"], "'0' is not a rate", "500K or 5M"),
    "put with form options": (["pipe", "-", "http://localhost/", "--put", "--form", "a=b"], "--put", "are for a form"),
    "bad format": (["tail", "http://localhost/", "--format", "xml"], "'xml'", "'ndjson'"),
    "bad method": (["tail", "http://localhost/", "-X", "GE T"], "'GE T' is not an HTTP method", "see `penstock tail"),
    "bad retries": (["tail", "http://localhost/", "--retries", "-1"], "--retries", "0"),
    "bad timeout": (["tail", "http://localhost/", "--timeout", "soon"], "--timeout", "number"),
    "timeout of nothing": (["tail", "http://localhost/", "--timeout", "0"], "0 is not a time", "above 0"),
    "timeout that is no number": (["pipe", "-", "http://localhost/", "--timeout", "nan"], "nan is not", "above 0"),
    "endless timeout": (["relay", "http://localhost", "--timeout-first", "inf"], "inf is not", "above 0"),
    "negative grace": (["origin", "--grace", "-1"], "-1 is not a time", "0 or more"),
    "raw items": (["tail", "http://localhost/", "--raw", "--json"], "--raw", "are for items"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_exit_2_and_one_line(run: Run, case: str) -> None:
    arguments, what, hint = USAGE[case]
    done = run(*arguments)
    assert done.code == 2
    if "--json" in arguments:
        told = done.error["message"]
    else:
        (told,) = (line for line in done.err.splitlines() if " INFO " not in line)
        assert told.startswith("penstock: ")
        assert done.out == ""
    assert what in told
    assert hint in told


def failing(error: Exception) -> Callable[..., None]:
    def fail() -> None:
        raise error

    return fail


REFUSED = ConnectError("http://x/: connection refused; is a server running there?", url="http://x/", reason="refused")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (REFUSED, 1, "http://x/: connection refused; is a server running there?"),
        (InvalidURL("'x' is not a full URL"), 2, "'x' is not a full URL"),
        (Interrupted(2), 130, "interrupted"),
        (Interrupted(15), 143, "terminated"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "f"), 1, "f: No such file or directory; check"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 1, "f: Permission denied; its permissions do not"),
        (OSError("something\nelse"), 1, "something else"),
        (ZeroDivisionError("oh"), 1, f"a bug in penstock: ZeroDivisionError: oh ({__file__}:"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_has_its_code_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    app = typer.Typer()
    app.command()(failing(error))
    monkeypatch.setattr(main, "app_with", lambda *_: app)
    done = run("now")
    assert done.code == 2  # it takes no arguments
    monkeypatch.setattr(main, "app_with", lambda *_: lambda *_, **__: failing(error)())
    done = run("now")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(f"penstock: {line}")
    assert done.err.count("\n") == 1
    done = run("now", "--json")
    assert (done.code, done.err) == (code, "")
    assert set(done.error) == {"category", "type", "message", "url", "retryable"}
    assert done.error["type"] == type(error).__name__
    assert done.error["message"].startswith(line)


def test_a_failure_says_what_could_be_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RetriesExhausted("gave up", attempts=3, last=REFUSED, url="http://x/")
    monkeypatch.setattr(main, "app_with", lambda *_: lambda *_, **__: failing(error)())
    assert json.loads(run("now", "--json").out) == {
        "error": {
            "category": "network",
            "type": "RetriesExhausted",
            "message": "gave up",
            "url": "http://x/",
            "retryable": True,
        }
    }


def test_only_where_a_url_could_stand_is_one_advised(run: Run, prepared: Canned, tmp_path: Path) -> None:
    done = run("pipe", tmp_path / "nowhere", prepared.url)
    assert done.code == 1
    assert done.err.endswith(
        "/nowhere: No such file or directory; check the path, or write a URL with http:// or https://\n"
    )


def test_a_reader_that_has_left_is_no_failure_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (output.ReaderLeft(), SystemExit(1)):

        def leave(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(main, "app_with", lambda *_: leave)
        with pytest.raises(output.ReaderLeft):
            main.run(["tail"], as_json=False)
