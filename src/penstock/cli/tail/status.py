"""How a stream is doing, in one line at the bottom of a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from penstock.cli import output
from penstock.client.metrics import Metrics
from penstock.client.notices import Connected, Notice, Reconnecting

_TICK = 0.1  # seconds between two drawings
_WINDOW = 30  # drawings that the rate is taken over


def wanted() -> bool:
    """Whether there is a terminal for it, with nobody else at work on it: stdout's reader in a pipe might be."""
    if not (sys.stderr.isatty() and Console(stderr=True).is_terminal) or os.environ.get("TERM") == "dumb":
        return False
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


class StatusLine:
    """The line: drawn anew a few times a second, and gone when the stream has ended.

    Nothing is done per event: it looks at the metrics when it draws.

    Args:
        look: Gives the stream's metrics.
        clock: Tells the time, in seconds from anywhere.
    """

    def __init__(self, look: Callable[[], Metrics], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._console = Console(stderr=True, highlight=False)
        self._drawn = False
        self._open = False
        self._next: tuple[int, float] | None = None
        self._counts: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_WINDOW)
        self._last_at: float | None = None

    def notice(self, notice: Notice) -> None:
        """Take note of what happens to the connection."""
        if isinstance(notice, Connected):
            self._open, self._next = True, None
        elif isinstance(notice, Reconnecting):
            self._open, self._next = False, (notice.attempt, self._clock() + notice.pause)

    def line(self) -> str:
        """What there is to say now."""
        now, metrics = self._clock(), self._look()
        if metrics.total != self._counts[-1][1]:
            self._last_at = now
        before, count = self._counts[0]
        self._counts.append((now, metrics.total))
        rate = (metrics.total - count) / (now - before) if now > before else 0.0
        said = [f"{metrics.total} event{'' if metrics.total == 1 else 's'}"]
        if self._open:
            said.append(f"{rate:.1f}/s")
        elif self._next is not None and (wait := self._next[1] - now) > 0:
            said.append(f"attempt {self._next[0]} in {wait:.1f} s")
        else:
            said.append("waiting for an answer")
        if self._last_at is not None:
            said.append(f"the last {now - self._last_at:.1f} s ago")
        if metrics.retries:
            said.append(f"{metrics.retries} retr{'y' if metrics.retries == 1 else 'ies'}")
        return " · ".join(said)

    def draw(self) -> None:
        """Put the line where the cursor is, and the cursor back to its beginning."""
        self.clear()
        text = Text(self.line(), style="dim", no_wrap=True)
        text.truncate(max(self._console.width - 1, 1), overflow="ellipsis")
        with contextlib.suppress(OSError):
            self._console.print(text, end="\r")
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._drawn = False
            with contextlib.suppress(OSError):
                self._console.control(Control((ControlType.ERASE_IN_LINE, 2), ControlType.CARRIAGE_RETURN))
                self._console.file.flush()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while this is entered."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            self.draw()
            timer = loop.call_later(_TICK, tick)

        timer = loop.call_later(_TICK, tick)
        try:
            with output.above(self):
                yield
        finally:
            timer.cancel()
