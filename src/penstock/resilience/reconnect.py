"""How long to wait between two connections of an event stream."""

from __future__ import annotations

from penstock.resilience.backoff import Backoff

RECONNECTION_TIME = 3.0
"""Seconds before the next connection where the server has not said: the browsers' custom is "a few"."""


def reconnect_pause(backoff: Backoff, failures: int, retry_ms: int | None, draw: float, maximum: float) -> float:
    """Seconds to wait before an event stream is connected to again.

    ============  ======================  =========================================
    before it     `retry:` came           it never came
    ============  ======================  =========================================
    a clean end   retry                   3 s
    a failure     retry, or the backoff   the backoff
                  if that is longer
    ============  ======================  =========================================

    and never over *maximum*, so that no server can send a client to sleep for days. A failure is not given the 3 s: who
    was cut off in the middle of an answer should not wait longer than the backoff asks.

    Args:
        backoff: The pauses after failures.
        failures: Connections in a row that failed or broke, up to now; 0 after a clean end.
        retry_ms: The reconnection time that the stream last asked for [ms]; None if it never did.
        draw: A number in [0, 1) from the caller's source of randomness.
        maximum: The longest pause.
    Source:
        WHATWG HTML, "reestablish the connection"
    """
    asked = None if retry_ms is None else retry_ms / 1000
    if failures == 0:
        pause = RECONNECTION_TIME if asked is None else asked
    else:
        pause = max(asked or 0.0, backoff.delay(failures, draw))
    return min(maximum, pause)
