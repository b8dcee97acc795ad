"""Whether to try again, and after how long.

An *attempt* counts from 1; a *retry* is an attempt after the first. A decision needs the error, the attempt that it
ended, and whether the request may be sent twice; it is a number of seconds, or None: stop.

What is retried by default is the table of `penstock.resilience.classify`. `Retry.budget` and `Retry.after_first_event`
are settings only: one concerns all requests of a client, the other what came of the body, and neither is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from penstock.errors import PenstockError, StatusError
from penstock.resilience.backoff import Backoff
from penstock.resilience.budget import RetryBudget
from penstock.resilience.classify import IDEMPOTENT, RULES, Cause, cause, not_handled, retry_after

# No other attempt could go otherwise, so a number of retries for them would be a promise that nobody keeps.
FINAL: frozenset[Cause] = frozenset({"circuit_open", "replay_gap", "url"})


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a failed request is tried again.

    A request whose method is not idempotent is sent again only if the server surely did nothing with it (no connection,
    408, 425, 429, 503), if it carries an Idempotency-Key, or if ``idempotent=True`` says that it is safe.

    Attributes:
        retries: Retries at the most; 0 tries once, whatever else is said here.
        backoff: The pauses between attempts.
        retry_after_maximum: The longest Retry-After that is obeyed; a longer one is cut to this.
        idempotent: True says that sending the request twice does no harm, False that it does; None goes by the method.
        per_cause: For a failure of that cause the number of retries in place of *retries*: 0 for never, and any other
            number also allows one that is not retried by default. All retries of the request count, whatever they were
            for: with ``{"throttled": 10}`` the fifth attempt to the eleventh are made after a 429 only.
        after_first_event: What may go on when a stream breaks after its first event: "resume" only where it can be
            resumed after the last event, "restart" also from its beginning, so that events come twice.
        budget: What all retries and resumes of a client together may be; None is no bound.
    """

    retries: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    retry_after_maximum: float = 60.0
    idempotent: bool | None = None
    per_cause: Mapping[Cause, int] = field(default_factory=dict, hash=False)
    after_first_event: Literal["resume", "restart"] = "resume"
    budget: RetryBudget | None = field(default_factory=RetryBudget)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
        if self.after_first_event not in ("resume", "restart"):
            raise ValueError(f'after_first_event is "resume" or "restart", not {self.after_first_event!r}')
        for name, retries in self.per_cause.items():
            if name not in RULES:
                raise ValueError(f"per_cause knows no cause {name!r}; there are {', '.join(RULES)}")
            if retries < 0:
                raise ValueError(f"per_cause: retries must be 0 or more, got {retries} for {name!r}")
            if retries and name in FINAL:
                raise ValueError(f"per_cause: another attempt cannot mend {name!r}; leave it out")
        object.__setattr__(self, "per_cause", dict(self.per_cause))  # the caller's may change

    def may_repeat(self, method: str, *, has_key: bool = False) -> bool:
        """Whether a request that the server may have worked on can be sent a second time."""
        if self.idempotent is not None:
            return self.idempotent
        return has_key or method.upper() in IDEMPOTENT

    def retries_for(self, cause: Cause) -> int:
        """How many retries a request may have, all counted, while failures of this cause are to be followed by one."""
        if self.retries == 0:
            return 0
        return self.per_cause.get(cause, self.retries if RULES[cause].retried else 0)

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
        if attempt > self.retries_for(cause(error)) or not (may_repeat or not_handled(error)):
            return None
        pause = self.backoff.delay(attempt, draw)
        if isinstance(error, StatusError) and (asked := retry_after(error.retry_after, now)) is not None:
            pause = max(pause, asked) if asked <= self.retry_after_maximum else self.retry_after_maximum
        return pause
