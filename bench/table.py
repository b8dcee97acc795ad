"""The results as text: Markdown that is also easy to read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.goals import Goal
from bench.results import Row, Table


def shown(table: Table) -> str:
    """A table of medians; its last column, if there are peers, is ours by the peer's, the median over the rounds."""
    case = table.case
    header = [f"{case.work}: {case.title}", *(metric.title for metric in case.metrics)]
    header += [f"ours ÷ it ({metric.title})" for metric in case.metrics if metric.key == case.ratio]
    return _aligned(header, [_cells(table, row) for row in table.rows])


def goals(found: Sequence[Goal]) -> str:
    """What has to be reached, and whether it was."""
    lines = []
    for goal in found:
        measured = "not measured" if goal.measured is None else f"{goal.measured:.2f}"
        verdict = "" if goal.measured is None else ("yes" if goal.met else "no")
        lines.append([goal.title, f"{'≥' if goal.at_least else '≤'} {goal.bound:g}", measured, verdict])
    return _aligned(["goal", "bound", "measured", "met"], lines)


def machine(facts: dict[str, Any]) -> str:
    """One line on where this was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    load = "/".join(f"{value:g}" for value in facts["load_average"])
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, {facts['python']}; {versions}; "
        f"load average at the start {load}"
    )


def _cells(table: Table, row: Row) -> list[str]:
    case = table.case
    cells = [row.peer]
    if row.note:
        return [*cells, row.note, *[""] * (len(case.metrics) - (not case.ratio))]
    for metric in case.metrics:
        value = row.median(metric.key)
        cells.append("" if value is None else f"{value:,.{metric.digits}f}")
    if not case.ratio:
        return cells
    ratio = None if row.peer == case.ours else table.ratio(case.ours, row.peer, case.ratio)
    return [*cells, "" if ratio is None else f"{ratio:.2f}"]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    everything = [header, *rows]
    # A note may be longer than its column; it does not widen it.
    widths = [max(len(row[at]) for row in everything if at != 1 or not _is_note(row)) for at in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (header, rule, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_note(row: Sequence[str]) -> bool:
    return len(row) > 2 and bool(row[1]) and not any(row[2:])
