"""Fields that a route adds to a message, and those that it takes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from penstock.relay.upstream.headers import Raw
from penstock.wire import headers as fields

FRAMED: frozenset[str] = frozenset(name.decode() for name in fields.HOP_BY_HOP) | {"content-length", "expect", "via"}
"""Fields that a route neither adds nor drops: the relay frames its messages itself."""


@dataclass(frozen=True, slots=True, init=False)
class HeaderRules:
    """Fields that a route adds to a message, and those that it takes out.

    Args:
        add: Fields to set, in the place of any of the same name.
        drop: Names of fields to take out.
    Raises:
        ValueError: A field that no message can carry, or one that is the relay's own to write.

    Attributes:
        added: As raw pairs. They may be secrets, so a repr has their names only.
        dropped: Names, in small letters.
    """

    added: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    dropped: frozenset[bytes]

    def __init__(self, add: Mapping[str, str] | None = None, drop: Iterable[str] = ()) -> None:
        added: dict[bytes, bytes] = {}
        for name, value in (add or {}).items():
            check_field(name, value)
            added[name.lower().encode()] = value.encode()
        dropped = set()
        for name in drop:
            check_field(name)
            if name.lower() == "host":
                raise ValueError("Host cannot be dropped: no request is without it")
            dropped.add(name.lower().encode())
        object.__setattr__(self, "added", tuple(added.items()))
        object.__setattr__(self, "dropped", frozenset(dropped))

    def apply(self, headers: Raw) -> Raw:
        """The fields as the route has them: names in small letters, what is added at the end."""
        if not self.added and not self.dropped:
            return headers
        gone = self.dropped.union(name for name, _ in self.added)
        return [pair for pair in headers if pair[0] not in gone] + list(self.added)

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped)

    def __repr__(self) -> str:
        added = [name.decode() for name, _ in self.added]
        return f"HeaderRules(add={added}, drop={sorted(name.decode() for name in self.dropped)})"


def check_field(name: str, value: str = "") -> None:
    """Refuse a field that a route cannot set.

    Raises:
        ValueError: It could not arrive as the field it is, or it is the relay's own. The value is not told.
    """
    fields.check_header(name, value)
    if name.lower() in FRAMED:
        raise ValueError(f"{name} is not set by hand: the relay frames its messages itself")
    if name.lower().startswith("penstock-"):
        raise ValueError(f"{name} is not set by hand: fields of that name are the relay's own words")
