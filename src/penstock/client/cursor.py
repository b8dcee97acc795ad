"""Where an event stream stands, so that a server which plays it again is noticed.

A server that knows nothing of Last-Event-ID answers a resume with the stream from its beginning, or from wherever its
buffer begins, and whoever believed it would deliver everything twice. So the first events after a resume are looked at:

=============================================  ============================================================
the first event with an id of its own has      means
=============================================  ============================================================
an id that was seen before, the last one too   a replay: all up to the event delivered last is left out
any other id                                   the stream goes on
=============================================  ============================================================

Ids are inherited: events without one carry that of the event before. Of those with the last id, as many are left out
of a replay as had been delivered.
"""

from __future__ import annotations

from collections import deque

from penstock.wire.sse import Event

REMEMBERED = 1024
"""Ids that are remembered, one per read, the first of the stream besides."""

INHERITED = "\0"
"""The id that a decoder is told to begin a resumed stream with, to be seen on events that have none of their own.

No id of a server's can hold a NUL.
"""


class Cursor:
    """The place in one event stream, over all its connections.

    Attributes:
        resuming: Whether events must go through `fresh` still.
        replaying: Whether a replay was noticed that has not yet come to the place where the stream broke.
        skipped: Events left out since the last resume.
    """

    __slots__ = (
        "_at_last",
        "_first",
        "_last",
        "_reached",
        "_recent",
        "_resumed_at",
        "replaying",
        "resuming",
        "skipped",
    )

    def __init__(self) -> None:
        self._first = ""
        self._recent: deque[str] = deque(maxlen=REMEMBERED)
        self._last: list[Event] = []
        self._resumed_at = ""
        self._at_last = 0
        self._reached = False
        self.resuming = False
        self.replaying = False
        self.skipped = 0

    def passed(self, events: list[Event]) -> None:
        """These are to be delivered; never none."""
        self._last = events
        id_ = events[-1].id
        if id_:
            if not self._first:
                self._first = next(event.id for event in events if event.id)
            self._recent.append(id_)

    def resume(self, id_: str) -> None:
        """Another connection goes on after that id; with "" from the beginning, and then nothing is left out."""
        self.resuming = bool(id_ and self._last)
        self.replaying = self._reached = False
        self.skipped = 0
        self._resumed_at = id_
        self._at_last = 0
        for event in reversed(self._last):
            if event.id != id_:
                break
            self._at_last += 1

    def fresh(self, events: list[Event]) -> list[Event]:
        """The events less those that were delivered before; to be asked while `resuming`."""
        fresh: list[Event] = []
        for index, event in enumerate(events):
            id_ = event.id
            if not self.replaying:
                if id_ == INHERITED:
                    fresh.append(event)
                    continue
                self.replaying = id_ in (self._resumed_at, self._first) or id_ in self._recent
            at_last = id_ == self._resumed_at
            if not self.replaying or (self._reached and not (at_last and self._at_last)):
                self.resuming = self.replaying = False
                return fresh + events[index:]
            self.skipped += 1
            if at_last:
                self._reached = True
                self._at_last -= self._at_last > 0
        return fresh

    def own(self, events: list[Event]) -> list[Event]:
        """The events with the id that they inherit from before the resume put in."""
        return [event._replace(id=self._resumed_at) if event.id == INHERITED else event for event in events]
