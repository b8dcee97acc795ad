"""What goes where."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from penstock.cli import output
from penstock.errors import CircuitOpenError, ContentTypeError, RetriesExhausted, StatusError, StreamTruncated


class Broken(io.TextIOWrapper):
    """A stream whose every write fails as it is told to."""

    def __init__(self, error: OSError) -> None:
        super().__init__(io.BytesIO(), write_through=True)
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def test_data_goes_to_stdout_and_notes_to_stderr(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output.data("one")
    output.record({"é": [1, None]})
    output.raw(b"\xff")
    output.note("two")
    assert capsysbinary.readouterr() == ('one\n{"é":[1,null]}\n'.encode() + b"\xff", b"two\n")


@pytest.mark.parametrize("write", [lambda: output.data("x"), lambda: output.record({})], ids=["data", "record"])
def test_a_reader_that_left_and_a_full_disk(monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(output.ReaderLeft):
        write()
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == "stdout"


def test_stdout_is_made_fit_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output.prepare()
    output.record({"a": "é\ud800"})
    assert written.getvalue() == '{"a":"é\\ud800"}\n'.encode()
    assert json.loads(written.getvalue()) == {"a": "é\ud800"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StreamTruncated("m", url="u"), ("stream", "u", True)),
        (StatusError("m", status=404, url="u"), ("server", "u", False)),
        (StatusError("m", status=503, url="u"), ("server", "u", True)),
        (ContentTypeError("m", content_type="text/html", url="u"), ("server", "u", False)),
        (CircuitOpenError("m", retry_after=3, url="u"), ("network", "u", True)),
        (RetriesExhausted("m", attempts=2, last=StatusError("l", status=404)), ("server", None, False)),
        (RetriesExhausted("m", attempts=2, last=StatusError("l", status=503)), ("server", None, True)),
        (OSError("m"), ("application", None, False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_as_an_object(error: Exception, expected: tuple[Any, ...]) -> None:
    described = output.error_record(error, "said")["error"]
    assert (described["category"], described["url"], described["retryable"]) == expected
    assert (described["type"], described["message"]) == (type(error).__name__, "said")


def test_the_log_goes_to_what_stderr_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    output.show_log()
    first, second = io.StringIO(), io.StringIO()
    logger = logging.getLogger("penstock.anything")
    for stream in (first, second):
        monkeypatch.setattr(sys, "stderr", stream)
        logger.info("a %s", "line")
        logger.debug("not this")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d INFO a line\n", first.getvalue())
    assert first.getvalue()[20:] == second.getvalue()[20:]


def test_a_hidden_log_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    output.hide_log()
    logging.getLogger("penstock.anything").warning("a line")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_told_nothing_by_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a\x1b": "\x07\x9b\u202e\U0001fffe é€\U0001f600\n\t"}
    output.record(value)
    line = capsys.readouterr().out
    assert line.rstrip("\n").isprintable()
    assert "é€\U0001f600" in line
    assert json.loads(line) == value


def test_nor_by_text_that_is_made_harmless() -> None:
    assert output.harmless("a\tb\nc\r\nd\u200de\xa0") == "a\tb\nc\nd\u200de\xa0"
    assert output.harmless("\x00\x1b[2J\r\x7f\x9b\u2066") == "\ufffd\ufffd[2J" + "\ufffd" * 4
    assert output.harmless("plain") == "plain"


def test_what_stands_at_the_bottom_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)

    class Footer:
        def clear(self) -> None:
            screen.write("<")

    with output.above(Footer()):
        output.data("a")
        output.note("b")
    output.data("c")
    assert screen.getvalue() == "<a\n<b\n<c\n"
