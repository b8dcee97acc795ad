"""The command line, run in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from penstock.cli import main
from tests.e2e.canned import Canned, canned
from tests.e2e.process import Finished

Run = Callable[..., Finished]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command to its end."""

    def run(*arguments: object) -> Finished:
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        code = main.run(words, as_json="--json" in words)
        out, err = capsys.readouterr()
        return Finished(code, out, err)

    return run


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What a command does to the log ends with its test."""
    logger = logging.getLogger("penstock")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def prepared() -> Iterator[Canned]:
    """A server with prepared answers."""
    with canned() as server:
        yield server
