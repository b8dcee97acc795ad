"""`--save FILE`: what a server sends, recorded while it is read.

A recording is of one response, so that what is played again is what some server sent. A stream that is connected to
again has several, and each gets a file: ``FILE.jsonl``, then ``FILE.2.jsonl``, and so on. An attempt that was refused,
or that no stream came of, leaves none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.client.recording import Reason, Recorder
from penstock.client.response import End, Response


@dataclass(frozen=True, slots=True)
class Saved:
    """A recording that was made.

    Attributes:
        path: The file.
        bytes: How many bytes of the body it holds.
        end: How the body ended.
    """

    path: Path
    bytes: int
    end: Reason


class Saving:
    """Records one stream; use as ``with``.

    Args:
        path: Where the first recording is to be.
        on_saved: Called for each recording that was made.
    Raises:
        OSError: Here, no file can be made there: nothing has been asked for yet. Later, it cannot be written to. Either
            names the file, and of a recording that could not be finished no part stays.
    """

    def __init__(self, path: Path, on_saved: Callable[[Saved], None]) -> None:
        self._path = path
        self._on_saved = on_saved
        self._count = 0
        self._began = 0.0
        self._bytes = 0
        self._failure: OSError | None = None
        self._recorder: Recorder | None = self._new(path)

    def connected(self, response: Response) -> None:
        """Begin a recording; it ends as the response does."""
        self._count += 1
        if self._recorder is None:
            self._recorder = self._new(self._path.with_name(f"{self._path.stem}.{self._count}{self._path.suffix}"))
        self._began, self._bytes = time.monotonic(), 0
        with _named(self._recorder.path):
            self._recorder.head(url=response.url, status=response.status, headers=response.headers.multi_items())
        response.on_end(self._ended)

    def piece(self, data: bytes) -> None:
        """Record what one read of the body gave."""
        recorder = self._recorder
        if recorder is None:
            return
        try:
            with _named(recorder.path):
                recorder.piece(time.monotonic() - self._began, data)
        except OSError:
            self._recorder = None  # it has taken itself away
            raise
        self._bytes += len(data)

    def _ended(self, end: End) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        try:
            with _named(recorder.path):
                recorder.end(end.reason, time.monotonic() - self._began, str(end.error or ""))
        except OSError as error:  # the response's end has others to tell: what became of the file is told after
            self._failure = error
        else:
            self._on_saved(Saved(recorder.path, self._bytes, end.reason))

    def _new(self, path: Path) -> Recorder:
        with _named(path):
            return Recorder(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._recorder.close()
        if error is None and self._failure is not None:
            raise self._failure


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever fails within is told of the file that the user named, and not of the part that grows beside it."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
