"""What was measured, and the ratios.

Every round goes over all peers, so that whatever disturbs the machine meanwhile disturbs all of them. A ratio is taken
within a round, and the median of the rounds' ratios is what counts; a figure is the median over the rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.build import NotInstalled
from bench.processes import PeerFailed

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column.

    Attributes:
        key: Its name in a sample, and in the JSON.
        title: What the table calls it, unit included.
        digits: Behind the point.
    """

    key: str
    title: str
    digits: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """One table.

    Attributes:
        work: The group that ``--only`` names.
        title: What is measured.
        metrics: The columns.
        ratio: The metric whose ratios to ours are shown; "" where all are ours.
        ours: The peer that is ours.
    """

    work: str
    title: str
    metrics: tuple[Metric, ...]
    ratio: str = ""
    ours: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: a name, and what measures it once.

    The measurement raises NotInstalled where the peer cannot run here, and PeerFailed where it does not do the work;
    neither is tried again.
    """

    name: str
    measure: Callable[[], Sample]


@dataclass(slots=True)
class Row:
    """A peer's samples, one per round; None for a round that failed."""

    peer: str
    samples: list[Sample | None] = field(default_factory=list)
    note: str = ""

    def values(self, key: str) -> list[float]:
        """One metric, of the rounds that have it."""
        return [sample[key] for sample in self.samples if sample is not None and key in sample]

    def median(self, key: str) -> float | None:
        """The median of one metric over the rounds."""
        values = self.values(key)
        return statistics.median(values) if values else None


@dataclass(slots=True)
class Table:
    """A case with its rows."""

    case: Case
    rows: list[Row]

    def row(self, peer: str) -> Row | None:
        """A peer's row."""
        return next((row for row in self.rows if row.peer == peer), None)

    def ratio(self, ours: str, theirs: str, key: str) -> float | None:
        """The median of one metric of one peer by that of another, round by round."""
        mine, other = self.row(ours), self.row(theirs)
        if mine is None or other is None:
            return None
        pairs = zip(mine.samples, other.samples, strict=False)
        ratios = [a[key] / b[key] for a, b in pairs if a and b and key in a and b.get(key, 0) > 0]
        return statistics.median(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values, every sample included."""
        return {
            "work": self.case.work,
            "case": self.case.title,
            "ours": self.case.ours,
            "rows": [
                {
                    "peer": row.peer,
                    "note": row.note,
                    "median": {metric.key: row.median(metric.key) for metric in self.case.metrics},
                    "ours_by_it": self.ratio(self.case.ours, row.peer, self.case.ratio),
                    "samples": row.samples,
                }
                for row in self.rows
            ],
        }


def measure(case: Case, peers: Sequence[Peer], repeats: int) -> Table:
    """Measure every peer in turn, as many times."""
    rows = {peer.name: Row(peer.name) for peer in peers}
    for repeat in range(1, repeats + 1):
        for peer in peers:
            row = rows[peer.name]
            if row.note:
                row.samples.append(None)
                continue
            started = time.perf_counter()
            try:
                row.samples.append(peer.measure())
            except NotInstalled as error:
                row.samples.append(None)
                row.note = f"not installed: {error}" if str(error) != peer.name else "not installed"
            except PeerFailed as error:
                row.samples.append(None)
                row.note = f"failed: {error}"
            took = time.perf_counter() - started
            what = row.note or f"{took:.1f} s"
            print(f"{case.work}: {case.title} · {repeat}/{repeats} · {peer.name} · {what}", file=sys.stderr, flush=True)
    return Table(case, list(rows.values()))
