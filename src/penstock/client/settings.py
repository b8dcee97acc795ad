"""How long to wait and how much to hold open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Timeout:
    """Seconds to wait for each phase of a streamed exchange; None waits for ever.

    Those for events stand still while the caller is not reading: they measure the peer, not us. The total does not.
    Any byte of the peer's is a sign of life to them, a keep-alive too, unless `content_only` says that only items are:
    then a server is found out that keeps its connection alive and does nothing else.

    Attributes:
        connect: To a connection, TLS included.
        first_event: From the request's last byte to the response's headers, and from there to the first byte.
        between_events: From one piece of the body to the next.
        total: From the first attempt to the last byte, retries and pauses included.
        content_only: Whether comments, pings and other bytes that bring no item do not count for the events' timers.
    """

    connect: float | None = 5.0
    first_event: float | None = 30.0
    between_events: float | None = 60.0
    total: float | None = None
    content_only: bool = False

    def __post_init__(self) -> None:
        for name in ("connect", "first_event", "between_events", "total"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValueError(f"a timeout is more than 0 seconds, or None to wait for ever; {name} is {seconds}")

    @classmethod
    def of(cls, value: float | Self | None) -> Timeout:
        """A number is the total; None is no timeout at all."""
        if value is None:
            return cls(None, None, None, None)
        return value if isinstance(value, Timeout) else cls(total=float(value))


@dataclass(frozen=True, slots=True)
class Limits:
    """The connection pool's bounds.

    Attributes:
        max_idle: Idle connections kept, all hosts together.
        max_idle_per_host: Idle connections kept per host.
        idle_timeout: Seconds after which an idle connection is closed.
    """

    max_idle: int = 100
    max_idle_per_host: int = 10
    idle_timeout: float = 90.0
