"""What has to be reached, in the figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import consume, decode, fanout, log, pipe, relay, stores
from bench.results import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """One bound, and the figure that it is about; None where that was not measured."""

    title: str
    bound: float
    measured: float | None
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure was measured and is on the right side."""
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def judged(tables: Sequence[Table]) -> list[Goal]:
    """The goals of the works that were measured."""
    found: list[Goal] = []
    for work, judge in _JUDGES.items():
        mine = [table for table in tables if table.case.work == work]
        if mine:
            found += judge(mine)
    return found


def _relay(tables: list[Table]) -> list[Goal]:
    paced, first, idle = _titled(tables, "events/s"), _titled(tables, "first event, 1 "), _titled(tables, "memory")
    return [
        Goal("relay: CPU per event ÷ nginx", 1.3, _ratio(paced, relay.OURS, relay.NGINX, "cpu_us")),
        Goal("relay: CPU per event ÷ Go ReverseProxy", 1.0, _ratio(paced, relay.OURS, relay.GO, "cpu_us")),
        Goal("relay, keeping: CPU per event ÷ nginx", 1.65, _ratio(paced, relay.KEEPING, relay.NGINX, "cpu_us")),
        Goal("relay, keeping: CPU per event ÷ Go ReverseProxy", 1.2, _ratio(paced, relay.KEEPING, relay.GO, "cpu_us")),
        Goal("relay: added to the first event, p50, ms", 0.5, _median(first, relay.OURS, "added_p50_ms")),
        Goal("relay: added to the first event, p99, ms", 1.5, _median(first, relay.OURS, "added_p99_ms")),
        Goal("relay: KiB per idle connection", 16, _median(idle, relay.OURS, "connection_kib")),
    ]


def _fanout(tables: list[Table]) -> list[Goal]:
    paced, idle = _titled(tables, "events/s"), _titled(tables, "memory")
    return [
        Goal("fanout: delay to the readers, p99, ms", 25, _median(paced, fanout.OURS, "p99_ms")),
        Goal("fanout: KiB per idle reader", 20, _median(idle, fanout.OURS, "reader_kib")),
    ]


def _log(tables: list[Table]) -> list[Goal]:
    paced, flat_out = _titled(tables, "streams × "), _titled(tables, "flat out")
    across = _titled(tables, "to another")
    return [
        Goal("log: CPU per event appended to SQLite, µs", 6, _median(paced, stores.SQLITE, "cpu_us")),
        Goal("log: events/s appended to Redis", 30_000, _median(flat_out, stores.REDIS, "events_s"), at_least=True),
        Goal("log: delay by Redis between processes, p99, ms", 15, _median(across, stores.REDIS, "p99_ms")),
    ]


def _consume(tables: list[Table]) -> list[Goal]:
    found = []
    for table in tables:
        raw = table.ratio(consume.OUR_RAW, consume.STOCK_RAW, "user_us")
        decoded = table.ratio(consume.OURS, consume.STOCK_SSE, "user_us")
        found.append(Goal(f"consume: user CPU, our transport ÷ httpx2's ({table.case.title})", 0.3, raw))
        found.append(Goal(f"consume: user CPU, our events ÷ httpx2 .sse() ({table.case.title})", 0.35, decoded))
    return found


def _pipe(tables: list[Table]) -> list[Goal]:
    known, chunked = _titled(tables, "known"), _titled(tables, "chunked")
    peaks = [row.median("peak_mib") for table in tables for row in table.rows if row.peer in (pipe.OURS, pipe.OUR_COPY)]
    return [
        Goal("pipe: CPU per GB ÷ Go, known length", 0.35, _ratio(known, pipe.OURS, pipe.GO, "cpu_s_gb")),
        Goal("pipe: CPU per GB ÷ Go, copying", 0.6, _ratio(known, pipe.OUR_COPY, pipe.GO, "cpu_s_gb")),
        Goal("pipe: CPU per GB ÷ Go, chunked", 0.6, _ratio(chunked, pipe.OURS, pipe.GO, "cpu_s_gb")),
        Goal("pipe: peak RSS, MiB", 45, max((peak for peak in peaks if peak is not None), default=None)),
    ]


def _decode(tables: list[Table]) -> list[Goal]:
    return [
        Goal(
            f"decode: events/s ÷ httpx-sse ({table.case.title})",
            2,
            table.ratio(decode.OURS, decode.HTTPX_SSE, "events_s"),
            at_least=True,
        )
        for table in tables
    ]


_JUDGES: dict[str, Callable[[list[Table]], list[Goal]]] = {
    relay.WORK: _relay,
    fanout.WORK: _fanout,
    log.WORK: _log,
    consume.WORK: _consume,
    pipe.WORK: _pipe,
    decode.WORK: _decode,
}


def _titled(tables: list[Table], part: str) -> Table | None:
    return next((table for table in tables if part in table.case.title), None)


def _ratio(table: Table | None, ours: str, theirs: str, key: str) -> float | None:
    return None if table is None else table.ratio(ours, theirs, key)


def _median(table: Table | None, peer: str, key: str) -> float | None:
    row = None if table is None else table.row(peer)
    return None if row is None else row.median(key)
