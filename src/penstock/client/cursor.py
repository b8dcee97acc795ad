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

from array import array

from penstock.wire.sse import Event

REMEMBERED = 256
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
        "_left",
        "_reached",
        "_reads",
        "_seen",
        "replaying",
        "resuming",
        "skipped",
    )

    def __init__(self) -> None:
        self._first = ""
        self._last = ""
        self._at_last = 0
        self._left = 0
        self._seen = array("q")  # hashes: what is kept for each of many streams should be small
        self._reads = 0
        self._reached = False
        self.resuming = False
        self.replaying = False
        self.skipped = 0

    def passed(self, events: list[Event]) -> None:
        """These are to be delivered; never none."""
        id_ = events[-1].id
        if not id_:
            return
        if id_ == self._last:
            self._at_last += len(events)
        else:
            if not self._first:
                self._first = next(event.id for event in events if event.id)
            self._last = id_
            self._at_last = 1 if len(events) == 1 else _trailing(events, id_)
        seen = self._seen
        if len(seen) < REMEMBERED:
            seen.append(hash(id_))
        else:
            seen[self._reads % REMEMBERED] = hash(id_)
        self._reads += 1

    def resume(self, id_: str) -> None:
        """Another connection goes on after that id; with "" from the beginning, and then nothing is left out."""
        self.resuming = bool(id_ and self._first)
        self.replaying = self._reached = False
        self.skipped = 0
        if id_ != self._last:  # a block with an id and no data moved it on
            self._last, self._at_last = id_, 0
        self._left = self._at_last

    def fresh(self, events: list[Event]) -> list[Event]:
        """The events less those that were delivered before; to be asked while `resuming`."""
        fresh: list[Event] = []
        for index, event in enumerate(events):
            id_ = event.id
            if not self.replaying:
                if id_ == INHERITED:
                    fresh.append(event)
                    continue
                self.replaying = id_ in (self._last, self._first) or hash(id_) in self._seen
            at_last = id_ == self._last
            if not self.replaying or (self._reached and not (at_last and self._left)):
                self.resuming = self.replaying = False
                return fresh + events[index:]
            self.skipped += 1
            if at_last:
                self._reached = True
                self._left -= self._left > 0
        return fresh

    def own(self, events: list[Event]) -> list[Event]:
        """The events with the id that they inherit from before the resume put in."""
        return [event._replace(id=self._last) if event.id == INHERITED else event for event in events]


def _trailing(events: list[Event], id_: str) -> int:
    """How many events at the end carry that id."""
    count = 0
    for event in reversed(events):
        if event.id != id_:
            break
        count += 1
    return count
