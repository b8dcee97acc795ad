"""Where a relay keeps its streams, as a URL names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from penstock.client.seam import shown
from penstock.eventlog.base import DEFAULT_RETENTION, EventLog, Retention
from penstock.eventlog.memory import MemoryLog

StoreKind = Literal["none", "memory", "sqlite", "redis"]


@dataclass(frozen=True, slots=True)
class Store:
    """Where streams are kept.

    Attributes:
        url: ``none``, ``memory://``, ``sqlite:///FILE``, ``redis://…`` or ``rediss://…``. It may hold a password, so a
            repr and a str are without.
    """

    url: str = field(default="memory://", repr=False)

    def __post_init__(self) -> None:
        scheme, mark, rest = self.url.partition("://")
        if self.url != "none" and not (
            (mark and scheme == "memory" and not rest)
            or (scheme == "sqlite" and rest.startswith("/") and len(rest) > 1 and "?" not in rest)
            or (scheme in ("redis", "rediss") and rest)
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

    def log(self, retention: Retention = DEFAULT_RETENTION) -> EventLog | None:
        """The event log there, not opened yet; None for none.

        Raises:
            ValueError: It cannot be had.
        """
        match self.kind:
            case "none":
                return None
            case "memory":
                return MemoryLog(retention=retention)
            case "sqlite":
                from penstock.eventlog.sqlite import SqliteLog

                return SqliteLog(self.url.removeprefix("sqlite:///"), retention=retention)
            case _:
                raise ValueError(f"{self} is not built yet: keep the streams in memory:// or sqlite:///FILE")

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"
