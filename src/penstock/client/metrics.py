"""What a stream has seen, and what a client has.

A stream owns one `Tally` and counts into it, plain attributes, nothing per event but an addition. `Metrics` is a frozen
copy of it, safe to hand out; the client's own is the sum over its streams. Reading one needs no lock: each field is
one attribute, and a snapshot is at worst an event old.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counts and times, of one stream or of a client's whole life.

    Attributes:
        total: Items that arrived, whole or not.
        successful: Items delivered.
        failed: Items that could not be used: cut off in the middle, or refused by the model.
        retries: Attempts after the first.
        reconnects: Retries that continued a stream where it had broken.
        bytes: Body bytes received.
        duration: Seconds from the first attempt to the end, or to now; for a client the sum over its streams.
        first_event: Seconds from the first attempt to the first item; None before it, and for a client.
        reason: "complete", "failed", "cancelled", or "running"; for a client "".
    """

    total: int = 0
    successful: int = 0
    failed: int = 0
    retries: int = 0
    reconnects: int = 0
    bytes: int = 0
    duration: float = 0.0
    first_event: float | None = None
    reason: str = ""

    @property
    def success_rate(self) -> float:
        """Successful items in percent of all; of none at all, 0 for a stream that did not come to its end."""
        if self.total:
            return 100.0 * self.successful / self.total
        return 100.0 if self.reason in ("complete", "") else 0.0

    def to_dict(self) -> dict[str, float | int | str | None]:
        """The same as plain values, durations in seconds and rates in percent."""
        return {
            "duration": round(self.duration, 6),
            "total": self.total,
            "successful": self.successful,
            "failed": self.failed,
            "retries": self.retries,
            "success_rate": round(self.success_rate, 3),
            "reconnects": self.reconnects,
            "bytes": self.bytes,
            "first_event": None if self.first_event is None else round(self.first_event, 6),
            "reason": self.reason,
        }


class Tally:
    """A stream's running counts; `snapshot` gives them out."""

    __slots__ = ("bytes", "failed", "first_at", "reason", "reconnects", "retries", "started_at", "stopped_at", "total")

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.stopped_at: float | None = None
        self.first_at: float | None = None
        self.total = 0
        self.failed = 0
        self.retries = 0
        self.reconnects = 0
        self.bytes = 0
        self.reason = "running"

    def stop(self, now: float, reason: str) -> None:
        """The stream has ended; what comes after changes nothing."""
        if self.stopped_at is None:
            self.stopped_at = now
            self.reason = reason

    def snapshot(self, now: float) -> Metrics:
        """A frozen copy as of an instant of the clock that `__init__` was given."""
        return Metrics(
            total=self.total,
            successful=self.total - self.failed,
            failed=self.failed,
            retries=self.retries,
            reconnects=self.reconnects,
            bytes=self.bytes,
            duration=(now if self.stopped_at is None else self.stopped_at) - self.started_at,
            first_event=None if self.first_at is None else self.first_at - self.started_at,
            reason=self.reason,
        )


def combine(left: Metrics, right: Metrics) -> Metrics:
    """The sum of two, as a client's metrics: no first event, no reason."""
    return Metrics(
        total=left.total + right.total,
        successful=left.successful + right.successful,
        failed=left.failed + right.failed,
        retries=left.retries + right.retries,
        reconnects=left.reconnects + right.reconnects,
        bytes=left.bytes + right.bytes,
        duration=left.duration + right.duration,
    )
