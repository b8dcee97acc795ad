"""Probes as values, for the rules that judge them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.doctor.probe import Item, Piece, Probe

SSE = {"content-type": "text/event-stream", "transfer-encoding": "chunked", "cache-control": "no-store"}


def events(instants: Sequence[float], **options: Any) -> Probe:
    """An event stream, an event per piece, with ids, as good as can be; options take the place of what it has."""
    headers = {**SSE, **options.pop("headers", {})}
    ids = options.pop("ids", True)
    texts = options.pop("texts", [f"text {number}" for number in range(len(instants))])
    known: dict[str, Any] = {
        "url": "http://host/",
        "status": 200,
        "http_version": "HTTP/1.1",
        "headers": tuple((name, value) for name, value in headers.items() if value is not None),
        "unit": "event",
        "pieces": tuple(Piece(at, 20, 1) for at in instants),
        "items": tuple(
            Item(at, text, str(number) if ids else "")
            for number, (at, text) in enumerate(zip(instants, texts, strict=True), 1)
        ),
        "ended": "complete",
        "ended_at": instants[-1] if instants else 0.0,
    }
    return Probe(**{**known, **options})


STEADY = [0.1 * number for number in range(1, 21)]
"""Twenty events over 1.9 s."""

AT_ONCE = [2.0 + 0.0001 * number for number in range(20)]
"""The same, held back."""
