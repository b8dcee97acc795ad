"""How a stream is shown: to a person, or to a program (``--json``).

==================  =================================  ===========================================
what                `Plain`                            `Records`, on stdout
==================  =================================  ===========================================
an item             its data, on stdout                ``event``, ``record`` or ``line``
a piece of text     as it is, on stdout                ``text``
another attempt     a line on stderr                   ``retry``
a replay            a line on stderr, the first time   ``replayed``
a recording made    a line on stderr                   ``recording``
the end             the table on stderr                ``collected``, ``metrics``
with ``-v``         log lines on stderr                ``connected``, ``interrupted``, ``comment``,
                                                       ``processing``
==================  =================================  ===========================================
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from typing import Any

from penstock.cli import output
from penstock.cli.stdout import Stdout
from penstock.cli.tail.saving import Saved
from penstock.client.metrics import Metrics
from penstock.client.notices import Comment, Connected, Interrupted, Notice, Reconnecting, Replayed
from penstock.errors import PenstockError
from penstock.wire.sse import Event

logger = logging.getLogger("penstock.tail")


class Show(ABC):
    """Where all that is to be told of a stream goes.

    What happens besides the items is told at once, so a reader of stdout that does not read may hold it up.
    """

    def __init__(self, stdout: Stdout, *, verbose: bool) -> None:
        self._stdout = stdout
        self._verbose = verbose

    @abstractmethod
    async def item(self, item: Any, shown: str, *, is_line: bool) -> None:
        """Show an item; `is_line` tells a line of text from a record that is a string."""

    @abstractmethod
    async def text(self, some: str) -> None:
        """Show some of a chat's text."""

    @abstractmethod
    async def text_ended(self) -> None:
        """The chat's text is over, and did not end in a newline."""

    @abstractmethod
    def notice(self, notice: Notice) -> None:
        """Tell what happened to the connection."""

    @abstractmethod
    def processing(self, line: str) -> None:
        """Tell of a line of the body, which is about to be decoded."""

    @abstractmethod
    def saved(self, saved: Saved) -> None:
        """Tell of a recording that was made."""

    @abstractmethod
    async def end(self, metrics: Metrics, collected: list[str] | None, *, completed: bool) -> None:
        """Sum up: what was measured, and what was collected if that was asked for."""


class Plain(Show):
    """To a person."""

    def __init__(self, stdout: Stdout, *, verbose: bool) -> None:
        super().__init__(stdout, verbose=verbose)
        self._replayed = False

    async def item(self, item: Any, shown: str, *, is_line: bool) -> None:
        await self._stdout.line(shown)

    async def text(self, some: str) -> None:
        await self._stdout.text(some)

    async def text_ended(self) -> None:
        await self._stdout.text("\n")

    def notice(self, notice: Notice) -> None:
        match notice:
            case Reconnecting(attempt, pause, failure, place):
                after = f" after event {place!r}" if place else ""
                self._note(f"penstock: {failure or 'the stream ended'}; attempt {attempt}{after} in {pause:.1f} s")
            case Replayed(events):
                if not self._replayed:
                    self._note("penstock: the server plays the stream again; what had come is left out")
                self._replayed = True
                logger.info("Replayed: %d", events)
            case Connected(response, attempt) if self._verbose:
                kind = response.content_type or "no content type"
                logger.info("Connected to %s: %d, %s, attempt %d", response.url, response.status, kind, attempt)
            case Interrupted(failure) if self._verbose:
                logger.warning("Interrupted: %s", failure)
            case Comment(text) if self._verbose:
                logger.info("Comment: %s", text)

    def _note(self, line: str) -> None:
        output.note(output.printable(line))

    def processing(self, line: str) -> None:
        logger.debug("Processing line: %s", line)

    def saved(self, saved: Saved) -> None:
        self._note(f"penstock: recorded {saved.bytes:,} bytes in {saved.path} ({saved.end})")

    async def end(self, metrics: Metrics, collected: list[str] | None, *, completed: bool) -> None:
        output.note("\n".join(self._table(metrics)))
        if completed:
            output.note(_completed(metrics.failed))
        if collected is not None:
            safe = output.harmless if sys.stderr.isatty() else str
            output.note("\n=== Collected Response Data ===")
            for number, line in enumerate(collected, 1):
                output.note(f"{number}: {safe(line)}")
            output.note(f"Total responses collected: {len(collected)}\n==============================")

    def _table(self, metrics: Metrics) -> list[str]:
        return [
            "\n=== Streaming Metrics ===",
            f"Duration: {metrics.duration:.2f}s",
            f"Total Events: {metrics.total}",
            f"Successful: {metrics.successful}",
            f"Failed: {metrics.failed}",
            f"Retries: {metrics.retries}",
            f"Success Rate: {metrics.success_rate:.1f}%",
            *(_more(metrics) if self._verbose else ()),
            "=======================",
        ]


def _completed(failed: int) -> str:
    if not failed:
        return "Stream completed successfully"
    return f"Stream completed, {failed} event{'' if failed == 1 else 's'} could not be used"


def _more(metrics: Metrics) -> list[str]:
    """What the table says besides with ``-v``."""
    gaps = f"p50 {_seconds(metrics.gap_p50)}, p99 {_seconds(metrics.gap_p99)}, max {_seconds(metrics.gap_max)}"
    return [
        f"Bytes: {metrics.bytes}",
        f"First Event: {_seconds(metrics.first_event)}",
        f"Gaps: {gaps if metrics.gap_max is not None else 'none'}",
        f"Reconnects: {metrics.reconnects}",
        f"Replayed: {metrics.replayed}",
        f"Reason: {metrics.reason}" + (f" ({metrics.cause})" if metrics.cause else ""),
        f"Circuit Breaker: {metrics.breaker or 'none'}",
    ]


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}s"


class Records(Show):
    """To a program: everything is an object on a line of stdout."""

    async def item(self, item: Any, shown: str, *, is_line: bool) -> None:
        if isinstance(item, Event):
            await self._stdout.record({"event": {"type": item.type, "data": item.data, "id": item.id}})
        else:
            await self._stdout.record({"line" if is_line else "record": item})

    async def text(self, some: str) -> None:
        await self._stdout.record({"text": some})

    async def text_ended(self) -> None:
        pass  # an object ends its own line

    def notice(self, notice: Notice) -> None:
        match notice:
            case Reconnecting(attempt, pause, failure, place):
                after = None if failure is None else _failure(failure)
                told = {"attempt": attempt, "pause": round(pause, 3), "after": after, "last_event_id": place}
                output.record({"retry": told})
            case Replayed(events):
                output.record({"replayed": {"events": events}})
            case Connected(response, attempt) if self._verbose:
                about = {"url": response.url, "status": response.status, "content_type": response.content_type}
                output.record({"connected": {**about, "attempt": attempt}})
            case Interrupted(failure) if self._verbose:
                output.record({"interrupted": _failure(failure)})
            case Comment(text) if self._verbose:
                output.record({"comment": text})

    def processing(self, line: str) -> None:
        output.record({"processing": line})

    def saved(self, saved: Saved) -> None:
        output.record({"recording": {"path": str(saved.path), "bytes": saved.bytes, "end": saved.end}})

    async def end(self, metrics: Metrics, collected: list[str] | None, *, completed: bool) -> None:
        if collected is not None:
            await self._stdout.record({"collected": collected})
        await self._stdout.record({"metrics": metrics.to_dict()})


def _failure(failure: PenstockError) -> dict[str, Any]:
    described: dict[str, Any] = output.error_record(failure, str(failure))["error"]
    return described
