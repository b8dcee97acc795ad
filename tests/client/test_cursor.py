"""The cursor against a model: servers that resume in every way, cut in every place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import Event
from penstock.client.cursor import INHERITED, REMEMBERED, Cursor


@dataclass(frozen=True)
class Sent:
    """An event as a server holds it: what tells it from all others, and its id, None where it has none of its own."""

    number: int
    id: str | None

    def __repr__(self) -> str:
        return f"{self.number}:{self.id}"


class Reader:
    """What `_ServerSent` does around a cursor: decode, leave out, deliver, connect again at the place."""

    def __init__(self) -> None:
        self.cursor = Cursor()
        self.delivered: list[int] = []
        self.ids: list[str] = []
        self.decoded = ""
        self.inherits = False

    @property
    def place(self) -> str:
        return self.cursor.place(self.decoded)

    def connect(self) -> None:
        place = self.place
        self.cursor.resume(place)
        self.inherits = bool(place)
        self.decoded = INHERITED if place else ""

    def read(self, batch: list[Sent]) -> None:
        events = []
        for sent in batch:
            self.decoded = self.decoded if sent.id is None else sent.id
            events.append(Event("message", str(sent.number), self.decoded))
        if self.cursor.resuming:
            events = self.cursor.fresh(events)
        if self.inherits and events:
            events = self.cursor.own(events)
        if events:
            self.cursor.passed(events)
        self.delivered += [int(event.data) for event in events]
        self.ids += [event.id for event in events]

    def play(self, sent: list[Sent], sizes: Iterator[int]) -> None:
        while sent:
            size = next(sizes)
            batch, sent = sent[:size], sent[size:]
            self.read(batch)


@st.composite
def streams(draw: st.DrawFn, *, sparse: bool) -> list[Sent]:
    count = draw(st.integers(2, 40))
    own = draw(st.lists(st.booleans(), min_size=count, max_size=count)) if sparse else [True] * count
    own[0] = True
    return [Sent(number, f"#{number}" if has else None) for number, has in enumerate(own)]


def after(stream: list[Sent], id: str) -> int:
    """The index behind the event with that id: where a server that knows Last-Event-ID goes on."""
    return next(index for index, sent in enumerate(stream) if sent.id == id) + 1


WAYS = ("right after", "inclusive", "from the start", "from a window")


@settings(max_examples=200)
@given(st.data())
@pytest.mark.parametrize("sparse", [False, True], ids=["an id each", "sparse ids"])
def test_whatever_the_server_does_nothing_is_lost_and_what_is_promised_comes_once(
    sparse: bool, data: st.DataObject
) -> None:
    stream = data.draw(streams(sparse=sparse))
    reader = Reader()
    sizes = iter(lambda: data.draw(st.integers(1, 6)), None)
    at, reach = 0, 0
    doubled_by_right: set[int] = set()
    for _ in range(data.draw(st.integers(1, 5))):
        # What a connection brings before it breaks; the last one brings the rest.
        reader.play(stream[at : (cut := data.draw(st.integers(at, len(stream))))], sizes)
        reach = max(reach, cut)
        assert set(reader.delivered) == set(range(reach))
        assert reader.place == ("" if reach == 0 else next(s.id for s in reversed(stream[:reach]) if s.id is not None))
        reader.connect()
        way = data.draw(st.sampled_from(WAYS))
        note(way)
        place = reach and after(stream, reader.cursor.place(INHERITED))
        match way:
            case "right after":
                at = place
                # What follows the id without one of its own may or may not have come: nobody can say.
                doubled_by_right |= set(range(place, reach))
            case "inclusive":
                at = max(0, place - 1)
            case "from the start":
                at = 0
            case _:
                # A window begins with an event that has an id of its own and came as the last of a read, or not before.
                at = data.draw(st.sampled_from([0, *(s.number for s in stream[:place] if s.id is not None)]))
                window = data.draw(st.integers(1, 40))
                # The whole window at once, so that the replay shows even if its first id is not remembered.
                reader.play(stream[at : (cut := max(reach, min(len(stream), at + window)))], iter([10**6]))
                reach = at = cut
    reader.play(stream[at:], sizes)
    assert set(reader.delivered) == set(range(len(stream))), "lost"
    twice = {number for number in reader.delivered if reader.delivered.count(number) > 1}
    assert twice <= doubled_by_right, "doubled"
    if not sparse:
        assert reader.delivered == list(range(len(stream)))
        assert reader.ids == [f"#{number}" for number in range(len(stream))]


def events(*ids: str) -> list[Event]:
    return [Event("message", "", each) for each in ids]


def passed(*ids: str) -> Cursor:
    """A cursor that these were delivered to, one read each, and that was resumed."""
    cursor = Cursor()
    for each in ids:
        cursor.passed(events(each))
    cursor.resume(ids[-1])
    return cursor


def test_a_stream_that_goes_on_costs_one_look() -> None:
    cursor = passed("1", "2")
    assert cursor.resuming
    assert cursor.fresh(events("3", "4")) == events("3", "4")
    assert (cursor.resuming, cursor.replaying, cursor.skipped) == (False, False, 0)


def test_a_replay_is_left_out_up_to_the_event_delivered_last() -> None:
    cursor = passed("1", "2", "3")
    assert cursor.fresh(events("1")) == []
    assert (cursor.replaying, cursor.place("1")) == (True, "3")
    assert cursor.fresh(events("2", "3", "4")) == events("4")
    assert (cursor.resuming, cursor.replaying, cursor.skipped) == (False, False, 3)
    assert cursor.place("4") == "4"


def test_a_replay_that_ends_with_the_event_delivered_last_is_complete() -> None:
    cursor = passed("1", "2")
    assert cursor.fresh(events("1", "2")) == []
    assert (cursor.resuming, cursor.replaying) == (False, False)


def test_a_replay_that_breaks_on_its_way_does_not_take_the_place_back() -> None:
    cursor = passed("1", "2", "3")
    assert cursor.fresh(events("1", "2")) == []
    cursor.resume(cursor.place("2"))
    assert cursor.fresh(events("3", "4")) == events("4")
    assert cursor.place("1") == "1", "nothing is being replayed any more"


def test_as_many_of_the_last_id_are_left_out_as_were_delivered() -> None:
    cursor = passed("1", "2", "2")
    assert cursor.fresh(events("2")) == []
    assert cursor.replaying
    assert cursor.fresh(events("2", "2")) == events("2")
    fewer = passed("1", "2", "2")
    assert fewer.fresh(events("1", "2", "3")) == events("3")


def test_an_id_without_data_moves_the_place_and_what_then_inherits_it_is_new() -> None:
    cursor = Cursor()
    cursor.passed(events("1"))
    cursor.resume("5")  # a block with an id and nothing else
    assert cursor.fresh(events("1", "5")) == events("5"), "the first with that id was never delivered"
    cursor.passed(events("5"))
    cursor.resume("5")
    assert cursor.fresh(events("5", "6")) == events("6")


def test_what_comes_before_an_id_that_was_seen_is_of_the_replay_too() -> None:
    cursor = passed("1", "2")
    assert cursor.fresh(events(INHERITED, "1", "2", "3")) == events("3")
    alone = passed("1", "2")
    assert alone.fresh(events(INHERITED)) == events(INHERITED), "and what comes alone is believed to be new"
    assert alone.own(events(INHERITED)) == events("2")
    assert alone.resuming


def test_the_first_id_is_remembered_whatever_came_since_and_many_of_the_others() -> None:
    ids = [str(number) for number in range(10 * REMEMBERED)]
    for start in ("0", ids[-REMEMBERED], ids[-2]):
        cursor = passed(*ids)
        assert cursor.fresh(events(start)) == []
        assert cursor.replaying
    forgotten = passed(*ids)
    assert forgotten.fresh(events("1")) == events("1"), "older than what is remembered: not noticed"


def test_from_the_beginning_nothing_is_left_out() -> None:
    cursor = passed("1", "2")
    cursor.resume("")
    assert (cursor.resuming, cursor.place("")) == (False, "")
    nothing = Cursor()
    nothing.resume("given")
    assert (nothing.resuming, nothing.place(INHERITED)) == (False, "given"), "nothing was delivered yet"
