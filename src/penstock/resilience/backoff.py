"""How long to wait before a retry: a curve, a ceiling and a jitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pause before each retry.

    Exponential with full jitter by default: ``draw × min(maximum, initial × factor^(retry - 1))`` with *draw* uniform
    in [0, 1), so the first pause lies in [0 s, 1 s), the second in [0 s, 2 s), and none is over 30 s. Full jitter
    spreads a herd of clients best for the same load.

    Attributes:
        initial: The first ceiling.
        maximum: The ceiling of ceilings.
        factor: What each retry multiplies the ceiling by.
        jitter: "full" draws from zero to the ceiling, "none" waits for the ceiling itself.
        curve: "exponential", or "quadratic" (see `quadratic`).

    Source:
        M. Brooker, "Exponential Backoff And Jitter"
    """

    initial: float = 1.0
    maximum: float = 30.0
    factor: float = 2.0
    jitter: Literal["full", "none"] = "full"
    curve: Literal["exponential", "quadratic"] = "exponential"

    def __post_init__(self) -> None:
        if not (self.initial >= 0 and self.maximum >= 0 and self.factor >= 1):
            raise ValueError(
                f"a backoff needs initial >= 0, maximum >= 0 and factor >= 1; "
                f"got {self.initial}, {self.maximum}, {self.factor}"
            )
        if self.jitter not in ("full", "none") or self.curve not in ("exponential", "quadratic"):
            raise ValueError(
                f'a backoff needs jitter "full" or "none" and curve "exponential" or "quadratic"; '
                f"got {self.jitter!r}, {self.curve!r}"
            )

    @classmethod
    def quadratic(cls, *, maximum: float = 30.0) -> Self:
        """``retry² + retry × 0.5`` seconds: 1.5 s, 5 s, 10.5 s, 18 s, 27.5 s, then the maximum. Not random."""
        return cls(maximum=maximum, jitter="none", curve="quadratic")

    def delay(self, retry: int, draw: float) -> float:
        """Seconds to wait before a retry.

        Args:
            retry: Which retry this is, from 1.
            draw: A number in [0, 1) from the caller's source of randomness.
        """
        if self.curve == "quadratic":
            return min(self.maximum, retry * retry + retry * 0.5)
        try:
            ceiling = min(self.maximum, self.initial * float(self.factor) ** (retry - 1))
        except OverflowError:
            ceiling = self.maximum if self.initial else 0.0
        return ceiling * draw if self.jitter == "full" else ceiling
