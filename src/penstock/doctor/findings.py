"""What a finding is, and what it is found in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from penstock.doctor.hops import Software, hops, named, proxies
from penstock.doctor.probe import Probe
from penstock.doctor.remedies import Kind, Remedy, mend

Severity = Literal["problem", "warning", "note"]
Figures: TypeAlias = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found.

    Attributes:
        kind: What.
        severity: "problem", "warning" or "note".
        says: What happens, in a sentence.
        because: The figures and fields that say so.
        mend: The settings that mend it.
    """

    kind: Kind
    severity: Severity
    says: str
    because: Figures
    mend: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that was heard.

    Attributes:
        through: The URL in question, asked for identity where that could be asked for apart.
        offered: The same, offered gzip as browsers do; None where one request had to be enough.
        resumed: The same, with the first event's id as Last-Event-ID; None where that was not asked.
        upstream: The server behind it; None where it was not given.
        upstream_resumed: The same for the server behind it.
    """

    through: Probe
    offered: Probe | None = None
    resumed: Probe | None = None
    upstream: Probe | None = None
    upstream_resumed: Probe | None = None

    @property
    def seen(self) -> tuple[Software, ...]:
        """Who was seen between here and there; with an upstream, only those that it does not name itself."""
        found = hops(self.through.headers)
        behind = hops(self.upstream.headers) if self.upstream is not None else ()
        return tuple(software for software in found if software not in behind)

    @property
    def hop(self) -> str:
        """Whoever stands between, for the beginning of a sentence."""
        return named(proxies(self.seen), "a hop on the way" if self.upstream is None else "the gateway")

    @property
    def same_stream(self) -> bool:
        """Whether the upstream and the gateway gave the same items: a live feed goes on between two requests."""
        direct, through = self.upstream, self.through
        if direct is None or direct.unit != through.unit:
            return True  # one of them is no more what it was
        pairs = list(zip(direct.items, through.items, strict=False))
        told = [(early.id, late.id) for early, late in pairs if early.id and late.id]
        if all(early == late for early, late in told):
            return True
        # A relay may write ids of its own: then the texts are what they were.
        return any(early.text == late.text for early, late in pairs)

    def finding(self, kind: Kind, severity: Severity, says: str, **because: float | str) -> Finding:
        """A finding of this examination, with the remedies for those who were seen on the way."""
        figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in because.items()}
        return Finding(kind, severity, says, figures, mend(kind, self.seen))
