"""Where a relay keeps its streams, as a URL names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from penstock.client.seam import shown
from penstock.eventlog.base import DEFAULT_RETENTION, EventLog, Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.redis.address import Address

StoreKind = Literal["none", "memory", "sqlite", "redis"]

LEASE = 15.0
"""Seconds, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where streams are kept.

    Attributes:
        url: ``none``, ``memory://``, ``sqlite:///FILE``, or ``redis://…`` in one of the forms that
            `penstock.eventlog.redis.address` has. It may hold a password, so a repr and a str are without.
    """

    url: str = field(default="memory://", repr=False)

    def __post_init__(self) -> None:
        scheme, mark, rest = self.url.partition("://")
        if scheme.partition("+")[0] in ("redis", "rediss"):
            Address.parse(self.url)
            return
        if self.url != "none" and not (
            (mark and scheme == "memory" and not rest)
            or (scheme == "sqlite" and rest.startswith("/") and len(rest) > 1 and "?" not in rest)
        ):
            raise ValueError(
                f"{shown(self.url)!r} is not a store: write none, memory://, sqlite:///FILE (sqlite:////FILE for a "
                "path from the root) or redis://HOST"
            )

    @property
    def kind(self) -> StoreKind:
        """What it is."""
        scheme = self.url.partition(":")[0]
        kinds: dict[str, StoreKind] = {"none": "none", "memory": "memory", "sqlite": "sqlite"}
        return kinds.get(scheme, "redis")

    @property
    def persistent(self) -> bool:
        """Whether what it keeps outlives a process, and several processes share it."""
        return self.kind in ("sqlite", "redis")

    def log(self, retention: Retention = DEFAULT_RETENTION, lease: float = LEASE) -> EventLog | None:
        """The event log there, not opened yet; None for none.

        Args:
            retention: How much it keeps.
            lease: Seconds without a sign of life after which a process has lost its streams, where several share it.
        Raises:
            ValueError: It cannot be had.
        """
        match self.kind:
            case "none":
                return None
            case "memory":
                return MemoryLog(retention=retention)
            case "sqlite":
                from penstock.eventlog.sqlite.log import SqliteLog

                return SqliteLog(self.url.removeprefix("sqlite:///"), retention=retention, lease=lease)
            case _:
                try:
                    from penstock.eventlog.redis.log import RedisLog
                except ModuleNotFoundError as error:
                    if (error.name or "").partition(".")[0] != "redis":
                        raise
                    raise ValueError(f"{self} needs redis-py: pip install 'penstock[redis]'") from None
                return RedisLog(self.url, retention=retention, lease=lease)

    def __str__(self) -> str:
        return Address.parse(self.url).shown if self.kind == "redis" else shown(self.url)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"
