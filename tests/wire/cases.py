"""Cases as data, and the three ways of splitting that each of them runs in."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, Protocol

import pytest

from penstock.errors import PenstockError

CORPUS = Path(__file__).parent.parent / "corpus"
RANDOM_SPLITS = 20
TOO_MANY = 20_000  # bytes; a longer case is not fed byte by byte


class Decoder(Protocol):
    def feed(self, data: bytes) -> list[Any]: ...
    def close(self) -> list[Any]: ...


class Outcome(NamedTuple):
    """What a decoder made of a body: its items and the error that ended them, if one did."""

    items: list[Any]
    error: PenstockError | None
    decoder: Any

    @property
    def told(self) -> tuple[list[Any], str]:
        return self.items, f"{type(self.error).__name__}: {self.error}"


def run(decoder: Decoder, pieces: Iterable[bytes]) -> Outcome:
    """Feed the pieces and close; the error may come in any call."""
    items: list[Any] = []
    try:
        for piece in pieces:
            items += decoder.feed(piece)
        items += decoder.close()
    except PenstockError as error:
        return Outcome(items, error, decoder)
    return Outcome(items, None, decoder)


def every_split(new: Callable[[], Decoder], data: bytes) -> Iterator[Outcome]:
    """Run whole, byte by byte, at every single cut where there are few, and in random pieces, empty ones among them."""
    yield run(new(), [data])
    if len(data) <= TOO_MANY:
        yield run(new(), [data[i : i + 1] for i in range(len(data))])
    if len(data) <= 100:
        for cut in range(len(data) + 1):
            yield run(new(), [data[:cut], data[cut:]])
    chance = random.Random(len(data))
    for _ in range(RANDOM_SPLITS):
        cuts = sorted(chance.choices(range(len(data) + 1), k=chance.randint(1, 12)))
        yield run(new(), [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)])


def raw(value: Any) -> bytes:
    """The bytes that a corpus writes as a string, {hex}, {repeat, times}, or a list of them."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return b"".join(map(raw, value))
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    return raw(value["repeat"]) * int(value["times"])


def text(value: Any) -> str:
    """The same as a string; a plain string may then hold what has no UTF-8."""
    return value if isinstance(value, str) else raw(value).decode()


def corpus(name: str, section: str = "cases") -> list[Any]:
    """The cases of one of our own files, as parameters."""
    cases = json.loads((CORPUS / f"{name}.json").read_text(encoding="utf-8"))[section]
    return [pytest.param(case, id=case["name"]) for case in cases]


def reference(name: str, title: str) -> list[Any]:
    """The cases of a file in the folder that PENSTOCK_CORPUS names, as parameters; one that is skipped if it is not."""
    folder = os.environ.get("PENSTOCK_CORPUS")
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason="PENSTOCK_CORPUS names no folder"))]
    file = Path(folder) / name
    if not file.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {name} in PENSTOCK_CORPUS"))]
    return [pytest.param(case, id=case[title]) for case in json.loads(file.read_text(encoding="utf-8"))]


def faults(*calls: Callable[[], object]) -> list[PenstockError]:
    """What the calls raise, each of which has to raise something."""
    raised = []
    for call in calls:
        with pytest.raises(PenstockError) as caught:
            call()
        raised.append(caught.value)
    return raised


def ratio(work: Callable[[int], object], small: int, factor: int) -> float:
    """How many times longer `work` takes for `factor` times as much: about `factor` if linear, its square if quadratic.

    Compare with a bound well between the two. Each is run several times and the fastest counts.
    """

    def fastest(amount: int) -> float:
        times = []
        for _ in range(4):
            start = process_time()
            work(amount)
            times.append(process_time() - start)
        return min(times)

    return fastest(small * factor) / fastest(small)
