"""How much of everything: the full measurement, and a first look."""

from __future__ import annotations

from dataclasses import dataclass

GB = 1000**3


@dataclass(frozen=True, slots=True)
class Plan:
    """One run's size.

    Attributes:
        repeats: Rounds over all peers; what is shown are medians over them.
        warmup: Seconds that streams run before anything is counted.
        seconds: Seconds that are counted.
        rate: Events per second on a paced stream.
        relayed: Streams through a relay, and into a log.
        consumed: Paced streams in a reading process.
        flat_out: Streams there that send as fast as they are read.
        first_alone: Streams opened one after another.
        first_together: Rounds of 50 streams opened at once.
        size: Bytes of a large body.
        idle: Idle streams, and idle connections, held for their memory.
        readers: Readers of one stream.
        appended: Events appended to each stream of a log, flat out.
        across: Events per second from one process to another.
        replayed: Events of a stream that is read again through a relay.
        replays: Times that it is.
        decoded: Events decoded in one go.
    """

    repeats: int = 3
    warmup: float = 1.0
    seconds: float = 3.0
    rate: int = 50
    relayed: int = 500
    consumed: int = 200
    flat_out: int = 20
    first_alone: int = 500
    first_together: int = 20
    size: int = 2 * GB
    idle: int = 8000
    readers: int = 1000
    appended: int = 400
    across: int = 1000
    replayed: int = 20_000
    replays: int = 10
    decoded: int = 50_000


FULL = Plan()
QUICK = Plan(
    repeats=1,
    warmup=0.5,
    seconds=1.0,
    first_alone=100,
    first_together=4,
    size=GB // 4,
    idle=1000,
    appended=100,
    replays=3,
    decoded=10_000,
)
