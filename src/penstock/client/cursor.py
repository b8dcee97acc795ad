"""Where an event stream stands, so that a server which plays it again is noticed.

A server that knows nothing of Last-Event-ID answers a resume with the stream from its beginning, or from wherever its
buffer begins, and whoever believed it would deliver everything twice. So the first events after a resume are looked at,
as many as come together with the first one that has an id of its own:

=======================================  ==================================================================
among them there is                      means
=======================================  ==================================================================
an event that was seen before            a replay: all up to the event that was delivered last is left out
an id that was seen before, but for the  another stream under the same ids: an answer that is generated
last one's, with other data              anew, a counter that begins anew; there is no way to go on
neither                                  the stream goes on
=======================================  ==================================================================

Ids are inherited: events without one carry that of the event before. Of those with the last id, as many are left out
of a replay as had been delivered. What has no id of its own and comes before the first that has is believed to be new:
a replay cannot be told from the continuation there, and what comes twice does less harm than what never comes.
"""

from __future__ import annotations

from array import array
from operator import itemgetter

from penstock.wire.sse import Event

REMEMBERED = 256
"""How many of the last ids are remembered at least; the first of the stream is besides."""

INHERITED = "\0"
"""The id that a decoder is told to begin a resumed stream with, to be seen on events that have none of their own.

No id of a server's can hold a NUL.
"""

_ID = itemgetter(Event._fields.index("id"))


class Cursor:
    """The place in one event stream, over all its connections.

    Attributes:
        resuming: Whether events must go through `fresh` still.
        replaying: Whether a replay was noticed that has not yet come to the place where the stream broke.
        changed: The id that came with other data than before; None while there is none.
        skipped: Events left out since the last resume.
    """

    __slots__ = (
        "_at_last",
        "_before",
        "_first",
        "_first_hash",
        "_last",
        "_left",
        "_place",
        "_reached",
        "_seen",
        "_seen_ids",
        "changed",
        "replaying",
        "resuming",
        "skipped",
    )

    def __init__(self) -> None:
        self._first = ""
        self._first_hash = 0
        self._last = ""
        self._at_last = 0  # events with the last id that this connection brought, …
        self._before = 0  # … and that those before it did
        self._left = 0
        self._place = ""  # where the connection began: a block with an id and no data may have moved it past the last
        self._seen = array("q")  # hashes: what is kept for each of many streams should be small
        self._seen_ids = array("q")
        self.changed: str | None = None
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
            return
        if not self._first:
            first = next(event for event in events if event.id)
            self._first, self._first_hash = first.id, hash(first)
        self._last = id_
        self._before = 0
        seen = self._seen
        if len(events) == 1:
            self._at_last = 1
            seen.append(hash(events[0]))
            self._seen_ids.append(hash(id_))
        else:
            self._at_last = _trailing(events, id_)
            seen.extend(map(hash, events[-REMEMBERED:]))
            self._seen_ids.extend(map(hash, map(_ID, events[-REMEMBERED:])))
        if len(seen) > 2 * REMEMBERED:
            del seen[:-REMEMBERED]
            del self._seen_ids[:-REMEMBERED]

    def resume(self, id_: str) -> None:
        """Another connection goes on after that id; with "" from the beginning, and then nothing is left out."""
        self.resuming = bool(id_ and self._first)
        self.replaying = self._reached = False
        self.changed = None
        self.skipped = 0
        self._place = id_
        self._left = self._before = max(self._before, self._at_last)
        # The server goes on behind the one that bears the id, so those that inherit it are counted anew: some may come
        # a second time, and who counted them twice would leave out too many of a replay.
        self._at_last = min(1, self._before)

    def fresh(self, events: list[Event]) -> list[Event]:
        """The events less those that were delivered before; to be asked while `resuming`."""
        if not self.replaying:
            if events[-1].id == INHERITED:
                return events
            known = [event for event in events if self._was_seen(event.id)]
            self.replaying = any(hash(event) in self._seen or hash(event) == self._first_hash for event in known)
            if not self.replaying:
                other = next((event.id for event in known if event.id != self._last), None)
                if other is None:
                    self.resuming = False
                    return events
                self.changed = other
                return []
            self._at_last = self._before
        for index, event in enumerate(events):
            if event.id == self._last:
                self._reached = True
                if self._left > 1:
                    self._left -= 1
                    self.skipped += 1
                    continue
                index += self._left  # the last that was delivered, if any was: all after it is new
                self.skipped += self._left
            elif not self._reached:
                self.skipped += 1
                continue
            self.resuming = self.replaying = False
            return events[index:]
        return []

    def place(self, id_: str) -> str:
        """Where a resume would go on, once the decoder has come to that id: a replay does not take us back."""
        went_back = self.replaying or (self.resuming and self._was_seen(id_))
        return self._place if went_back or id_ == INHERITED else id_

    def own(self, events: list[Event]) -> list[Event]:
        """The events with the id that they inherit from before the resume put in."""
        return [event._replace(id=self._place) if event.id == INHERITED else event for event in events]

    def _was_seen(self, id_: str) -> bool:
        return id_ != "" and (id_ in (self._last, self._first) or hash(id_) in self._seen_ids)


def _trailing(events: list[Event], id_: str) -> int:
    """How many events at the end carry that id."""
    count = 0
    for event in reversed(events):
        if event.id != id_:
            break
        count += 1
    return count
