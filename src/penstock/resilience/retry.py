"""Whether to try again, and after how long.

An *attempt* counts from 1; a *retry* is an attempt after the first. A decision needs the error, the attempt that it
ended, and whether the request may be sent twice; it is a number of seconds, or None: stop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.errors import PenstockError, StatusError
from penstock.resilience.backoff import Backoff
from penstock.resilience.classify import IDEMPOTENT, not_handled, retry_after, retryable


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a failed request is tried again.

    A request whose method is not idempotent is sent again only if the server surely did nothing with it (no connection,
    408, 425, 429, 503), if it carries an Idempotency-Key, or if ``idempotent=True`` says that it is safe.

    Attributes:
        retries: Retries at the most; 0 tries once.
        backoff: The pauses between attempts.
        retry_after_maximum: The longest Retry-After that is obeyed; a longer one is cut to this.
        idempotent: True says that sending the request twice does no harm, False that it does; None goes by the method.
    """

    retries: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    retry_after_maximum: float = 60.0
    idempotent: bool | None = None

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")

    def may_repeat(self, method: str, *, has_key: bool = False) -> bool:
        """Whether a request that the server may have worked on can be sent a second time."""
        if self.idempotent is not None:
            return self.idempotent
        return has_key or method.upper() in IDEMPOTENT

    def delay(
        self, error: PenstockError, *, attempt: int, may_repeat: bool, now: float = 0.0, draw: float = 0.5
    ) -> float | None:
        """Seconds to wait before the next attempt; None to stop.

        Args:
            error: What ended the attempt.
            attempt: Which attempt that was, from 1.
            may_repeat: The answer of `may_repeat` for this request.
            now: The present, in seconds since the epoch, for a Retry-After that is a date.
            draw: A number in [0, 1) for the jitter.
        """
        if attempt > self.retries or not retryable(error) or not (may_repeat or not_handled(error)):
            return None
        pause = self.backoff.delay(attempt, draw)
        if isinstance(error, StatusError) and (asked := retry_after(error.retry_after, now)) is not None:
            pause = max(pause, asked) if asked <= self.retry_after_maximum else self.retry_after_maximum
        return pause
