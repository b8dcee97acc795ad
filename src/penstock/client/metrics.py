"""What a stream has seen, and what a client has.

A stream owns one `Tally` and counts into it, plain attributes: nothing per event but an addition, and per read a look
at the clock and a bucket of a histogram. `Metrics` is a frozen copy of it, safe to hand out; `Totals` is the sum
over a client's streams. Reading either needs no lock of the reader: a snapshot is at worst one read old.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from math import log2

_STEPS = 16  # buckets per octave: a quantile is at most 3 % off
_SHORTEST = 1e-9
_ZERO = 32 * _STEPS  # makes the number of a bucket positive from a quarter of a nanosecond on


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counts and times, of one stream or of a client's whole life.

    Attributes:
        total: Items that arrived, whole or not.
        successful: Items delivered.
        failed: Items that could not be used: cut off in the middle, or refused by the model.
        replayed: Items that a server played again after a resume, and that were not delivered a second time.
        retries: Attempts after the first, whatever for.
        reconnects: Retries that continued a stream which had begun.
        restarts: Reconnects that began the stream anew, where ``after_first_event="restart"`` allowed it.
        bytes: Body bytes received.
        duration: Seconds from the first attempt to the end, or to now; for a client the sum over its streams.
        first_event: Seconds from the first attempt to the first item; None before it, and for a client.
        gap_p50: Median of the seconds between reads that brought items; None while there were not two.
        gap_p99: Of a hundred gaps all but one are at most this long.
        gap_max: The longest gap.
        streams: For a client, streams that have ended; of a stream 1 once it has.
        reason: "complete", "failed", "cancelled", or "running"; for a client "".
        cause: What a failed stream failed of, as `penstock.resilience.classify` names it, e.g. "truncated"; else "".
        breaker: The state of the circuit of the stream's origin; "" without a breaker, and for a client.
    """

    total: int = 0
    successful: int = 0
    failed: int = 0
    replayed: int = 0
    retries: int = 0
    reconnects: int = 0
    restarts: int = 0
    bytes: int = 0
    duration: float = 0.0
    first_event: float | None = None
    gap_p50: float | None = None
    gap_p99: float | None = None
    gap_max: float | None = None
    streams: int = 0
    reason: str = ""
    cause: str = ""
    breaker: str = ""

    @property
    def success_rate(self) -> float:
        """Successful items in percent of all; of none at all, 0 for a stream that did not come to its end."""
        if self.total:
            return 100.0 * self.successful / self.total
        return 100.0 if self.reason in ("complete", "") else 0.0

    def to_dict(self) -> dict[str, float | int | str | None]:
        """The same as plain values, times in seconds and rates in percent."""
        return {
            "duration": round(self.duration, 6),
            "total": self.total,
            "successful": self.successful,
            "failed": self.failed,
            "retries": self.retries,
            "success_rate": round(self.success_rate, 3),
            "replayed": self.replayed,
            "reconnects": self.reconnects,
            "restarts": self.restarts,
            "bytes": self.bytes,
            "first_event": _rounded(self.first_event),
            "gap_p50": _rounded(self.gap_p50),
            "gap_p99": _rounded(self.gap_p99),
            "gap_max": _rounded(self.gap_max),
            "streams": self.streams,
            "reason": self.reason,
            "cause": self.cause,
            "breaker": self.breaker,
        }


class Gaps:
    """A histogram of seconds, by powers of two cut into sixteen: a few hundred buckets whatever comes."""

    __slots__ = ("_counts", "longest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one gap."""
        bucket = int(log2(seconds) * _STEPS + _ZERO) if seconds > _SHORTEST else 0
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        if seconds > self.longest:  # noqa: PLR1730 – max() is a call
            self.longest = seconds

    def merge(self, other: Gaps) -> None:
        """Add another's."""
        for bucket, count in list(other._counts.items()):
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.longest = max(self.longest, other.longest)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def quantile(self, share: float) -> float | None:
        """The gap that this share of all does not exceed, to 3 %; None where there is none."""
        counts = sorted(self._counts.items())
        left = share * sum(count for _, count in counts)
        for bucket, count in counts:
            left -= count
            if left <= 0:
                return min(_middle(bucket), self.longest)
        return None


def _middle(bucket: int) -> float:
    return 2.0 ** ((bucket + 0.5 - _ZERO) / _STEPS) if bucket else 0.0


class Tally:
    """A stream's running counts; `snapshot` gives them out."""

    __slots__ = (
        "breaker",
        "bytes",
        "cause",
        "failed",
        "first_at",
        "gaps",
        "last_at",
        "reason",
        "reconnects",
        "replayed",
        "restarts",
        "retries",
        "started_at",
        "stopped_at",
        "total",
    )

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.stopped_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.gaps = Gaps()
        self.total = 0
        self.failed = 0
        self.replayed = 0
        self.retries = 0
        self.reconnects = 0
        self.restarts = 0
        self.bytes = 0
        self.reason = "running"
        self.cause = ""
        self.breaker = ""

    def arrived(self, now: float) -> None:
        """A read brought items."""
        if self.last_at is None:
            self.first_at = now
        else:
            self.gaps.add(now - self.last_at)
        self.last_at = now

    def stop(self, now: float, reason: str, cause: str = "") -> None:
        """The stream has ended; what comes after changes nothing."""
        if self.stopped_at is None:
            self.stopped_at = now
            self.reason = reason
            self.cause = cause

    def snapshot(self, now: float) -> Metrics:
        """A frozen copy as of an instant of the clock that `__init__` was given."""
        return Metrics(
            total=self.total,
            successful=self.total - self.failed,
            failed=self.failed,
            replayed=self.replayed,
            retries=self.retries,
            reconnects=self.reconnects,
            restarts=self.restarts,
            bytes=self.bytes,
            duration=(now if self.stopped_at is None else self.stopped_at) - self.started_at,
            first_event=None if self.first_at is None else self.first_at - self.started_at,
            gap_p50=self.gaps.quantile(0.5),
            gap_p99=self.gaps.quantile(0.99),
            gap_max=self.gaps.longest if self.gaps else None,
            streams=int(self.stopped_at is not None),
            reason=self.reason,
            cause=self.cause,
            breaker=self.breaker,
        )


class Totals:
    """The sum over a client's streams that have ended. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = Metrics()
        self._gaps = Gaps()

    def add(self, tally: Tally) -> None:
        """Count a stream that has ended."""
        with self._lock:
            left, right = self._sum, tally.snapshot(0.0)
            self._gaps.merge(tally.gaps)
            self._sum = Metrics(
                total=left.total + right.total,
                successful=left.successful + right.successful,
                failed=left.failed + right.failed,
                replayed=left.replayed + right.replayed,
                retries=left.retries + right.retries,
                reconnects=left.reconnects + right.reconnects,
                restarts=left.restarts + right.restarts,
                bytes=left.bytes + right.bytes,
                duration=left.duration + right.duration,
                streams=left.streams + right.streams,
            )

    def snapshot(self) -> Metrics:
        """A frozen copy: no first event, no reason."""
        with self._lock:
            return replace(
                self._sum,
                gap_p50=self._gaps.quantile(0.5),
                gap_p99=self._gaps.quantile(0.99),
                gap_max=self._gaps.longest if self._gaps else None,
            )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
