from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.doctor.probe import Item
from penstock.doctor.stamps import Held, held, stamp


@pytest.mark.parametrize(
    ("text", "kind", "resolution"),
    [
        ("Chunk 1 [12:34:56.789]", "time", 0.001),
        ("at 12:34:56", "time", 1.0),
        ('{"at": "2024-05-06T07:08:09.123456Z"}', "date", 1e-6),
        ("2024-05-06 07:08:09,123456789+02:00", "date", 1e-6),
        ("2024-05-06T07:08:09", "date", 1.0),
        ('{"created": 1715000000, "n": 1}', "unix", 1.0),
        ('{"ts":1715000000123}', "unix", 0.001),
        ('{"timestamp": "1715000000.25"}', "unix", 0.01),
    ],
)
def test_times_that_are_recognised(text: str, kind: str, resolution: float) -> None:
    found = stamp(text)
    assert found is not None
    assert found.kind == kind
    assert found.resolution == pytest.approx(resolution)


@pytest.mark.parametrize(
    "text", ["", "hello 12:34", "25:00:00", "2024-13-01T00:00:00", '{"n": 1715000000}', "1:2:3", "a" * 400]
)
def test_what_is_no_time(text: str) -> None:
    assert stamp(text) is None


def test_times_of_one_instant_agree() -> None:
    here, there = stamp("2024-05-06T07:08:09Z"), stamp("2024-05-06T09:08:09+02:00")
    assert here is not None
    assert here == there
    milliseconds, seconds = stamp('{"ts":1715000000500}'), stamp('{"ts":1715000000.5}')
    assert milliseconds is not None
    assert seconds is not None
    assert milliseconds.at == seconds.at


def clock(second: float) -> str:
    return f"[12:00:{second:06.3f}]"


def unix(second: float) -> str:
    return f'{{"created": {1715000000 + int(second)}}}'


def items(sent: list[float], came: list[float], write: Callable[[float], str] = clock) -> list[Item]:
    return [Item(at, write(second)) for at, second in zip(came, sent, strict=True)]


SENT = [0.5 * number for number in range(10)]


def test_events_that_come_late_and_catch_up() -> None:
    found = held(items(SENT, [4.6] * 10))
    assert found is not None
    assert found.by == pytest.approx(4.499)
    assert found[1:] == Held(0, 4.5, 10)[1:]


def test_clocks_need_not_agree_and_events_that_flow_do_not_catch_up() -> None:
    found = held(items(SENT, [at + 0.3 for at in SENT]))
    assert found is not None
    assert found.by == 0


def test_whole_seconds_are_not_taken_for_more() -> None:
    found = held(items(SENT, [at + 0.1 for at in SENT], unix))
    assert found is not None
    assert found.by == 0


@pytest.mark.parametrize(
    "read",
    [
        pytest.param([Item(1.0, clock(0)), Item(2.0, clock(1))], id="too few"),
        pytest.param(items([5.0] * 9, SENT[:9], unix), id="the stream's own time, in every event"),
        pytest.param(items([0.0, 3.0, 2.0, 4.0], [1, 2, 3, 4]), id="not in order"),
        pytest.param(items([0.0, 10.0, 40.0], [0.1, 0.1, 0.1]), id="what happened before the request"),
        pytest.param([Item(1.0, clock(0)), Item(2.0, unix(1)), Item(3.0, clock(2))], id="of several kinds"),
        pytest.param([Item(1.0, "a"), Item(2.0, "b"), Item(3.0, "c")], id="none"),
    ],
)
def test_times_that_say_nothing(read: list[Item]) -> None:
    assert held(read) is None
