"""Which requests a route is for.

A path is matched by its segments, after what a server behind us may do to it too: percent-encoding is undone (ASGI's
``path`` is), ``.`` and ``..`` are resolved, empty segments dropped. Else ``/public/../admin`` would go out under the
policy of ``/public``, with the credentials that this one adds. A policy is no access control all the same: the upstream
is sent the target as it came.

=================  ===========================================================
a match's path     fits
=================  ===========================================================
``/v1/chat``       ``/v1/chat``, ``/v1/chat/``, ``/v1/chat/completions``; not
                   ``/v1/chats``
``/v1/*/events``   ``/v1/runs/events``; not ``/v1/a/b/events``, nor anything
                   below
``/v1/*/**``       ``/v1/runs`` and all below it; not ``/v1``
=================  ===========================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.wire import headers as fields


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route is for. The module's docstring has the table of paths.

    Attributes:
        path: A prefix, or with ``*`` in it a pattern: ``*`` is one segment, ``**`` at the end whatever follows.
        methods: In capitals; none is all. GET is HEAD too.
    Raises:
        ValueError: A path that could never fit, or a method that is none.
    """

    path: str = "/"
    methods: frozenset[str] = frozenset()
    _segments: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _open: bool = field(init=False, repr=False, compare=False)  # whether more segments may follow

    def __post_init__(self) -> None:
        path = self.path
        if not path.startswith("/") or "?" in path or "#" in path:
            raise ValueError(f"{path!r} is not a path: it begins with / and has no query and no fragment")
        parts = path.split("/")[1:]
        if parts[-1] == "":
            parts.pop()
        is_open = "*" not in path
        if parts and parts[-1] == "**":
            parts.pop()
            is_open = True
        for part in parts:
            if part in ("", ".", "..") or ("*" in part and part != "*"):
                raise ValueError(
                    f"{path!r} fits no request: a segment is text or *, and ** may only be the last; "
                    "no segment is empty, . or .."
                )
        if re.search("%[0-9a-fA-F]{2}", path):
            raise ValueError(f"{path!r} fits no request: write the path as it reads, without percent-encoding")
        for method in self.methods:
            try:
                fields.check_header(method, "")  # a method is a token as a field's name is
            except ValueError:
                raise ValueError(f"{method!r} is not a method: write it as GET or POST") from None
        methods = {method.upper() for method in self.methods}
        object.__setattr__(self, "methods", frozenset(methods | ({"HEAD"} if "GET" in methods else set())))
        object.__setattr__(self, "_segments", tuple(parts))
        object.__setattr__(self, "_open", is_open)

    def fits(self, method: str, path: Sequence[str]) -> bool:
        """Whether a request is meant.

        Args:
            method: In capitals.
            path: As `segments` has it.
        """
        if self.methods and method not in self.methods:
            return False
        own = self._segments
        if len(path) < len(own) or (len(path) > len(own) and not self._open):
            return False
        return all(mine in ("*", part) for mine, part in zip(own, path, strict=False))

    def covers(self, other: Match) -> bool:
        """Whether every request that the other fits, this fits too: behind this one the other is never reached."""
        if self.methods and (not other.methods or not other.methods <= self.methods):
            return False
        mine, others = self._segments, other._segments
        if not self._open and (other._open or len(mine) != len(others)):
            return False
        return len(mine) <= len(others) and all(
            one in ("*", another) for one, another in zip(mine, others, strict=False)
        )

    def __str__(self) -> str:
        methods = sorted(self.methods - ({"HEAD"} if "GET" in self.methods else set()))
        return f"{'|'.join(methods)} {self.path}".strip()


def segments(path: str) -> list[str]:
    """A path's segments: ``.`` and ``..`` resolved, empty ones dropped.

    Args:
        path: With its percent-encoding undone.
    """
    result: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del result[-1:]
        elif part not in ("", "."):
            result.append(part)
    return result
