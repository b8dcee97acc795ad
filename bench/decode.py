"""Bytes to events, without a network: each library's own decoder, fed the same bytes in the same slices.

Where a decoder takes text, the bytes are decoded incrementally as its own client does.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator

from bench import build
from bench.plan import Plan
from bench.processes import PeerFailed
from bench.results import Case, Metric, Peer, Sample, Table, measure

WORK = "decode"
OURS = "penstock"
HTTPX_SSE = "httpx-sse"
LARGE = 64 * 1024

Decode = Callable[[list[bytes]], int]

EVENT = (
    'data: {{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,"model":"bench",'
    '"choices":[{{"index":0,"delta":{{"content":" token {}"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
)


def run(plan: Plan) -> Iterator[Table]:
    """Measure all of it, table by table."""
    events = [EVENT.format(number).encode() for number in range(plan.decoded)]
    yield _table(plan, "one event per chunk", events)
    body = b"".join(events)
    yield _table(plan, "chunks of 64 KiB", [body[at : at + LARGE] for at in range(0, len(body), LARGE)])


def _table(plan: Plan, title: str, chunks: list[bytes]) -> Table:
    case = Case(
        WORK,
        title,
        (Metric("events_s", "events/s", 0), Metric("us", "µs/event", 2)),
        "events_s",
        OURS,
    )

    def timed(make: Callable[[], Decode]) -> Sample:
        decode = make()
        decode(chunks[: max(1, len(chunks) // 10)])
        best = float("inf")
        for _ in range(3):  # the best of each round: what is slower was disturbed
            started = time.process_time()
            count = decode(chunks)
            best = min(best, time.process_time() - started)
            if count != plan.decoded:
                raise PeerFailed(f"{count:,} events decoded of {plan.decoded:,}")
        return {"events_s": plan.decoded / best, "us": best / plan.decoded * 1e6}

    def peer(name: str, make: Callable[[], Decode]) -> Peer:
        return Peer(name, lambda: timed(make))

    return measure(case, [peer(*each) for each in DECODERS.items()], plan.repeats)


def _penstock() -> Decode:
    from penstock.wire.sse import Decoder

    def decode(chunks: list[bytes]) -> int:
        feed = Decoder().feed
        count = 0
        for chunk in chunks:
            for _ in feed(chunk):
                count += 1
        return count

    return decode


def _httpx_sse() -> Decode:
    build.needs("httpx_sse", "httpx")
    from httpx_sse._decoders import SSEDecoder, SSELineDecoder

    def decode(chunks: list[bytes]) -> int:
        text, lines, events = codecs.getincrementaldecoder("utf-8")("replace"), SSELineDecoder(), SSEDecoder()
        count = 0
        for chunk in chunks:
            for line in lines.decode(text.decode(chunk)):
                if events.decode(line) is not None:
                    count += 1
        return count

    return decode


def _httpx2() -> Decode:
    build.needs("httpx2")
    from httpx2._sse import _SSEParser

    def decode(chunks: list[bytes]) -> int:
        text, parser = codecs.getincrementaldecoder("utf-8")("replace"), _SSEParser()
        count = 0
        for chunk in chunks:
            for _ in parser.decode(text.decode(chunk)):
                count += 1
        return count

    return decode


def _openai() -> Decode:
    build.needs("openai")
    from openai._streaming import SSEDecoder

    def decode(chunks: list[bytes]) -> int:
        count = 0
        for _ in SSEDecoder().iter_bytes(iter(chunks)):
            count += 1
        return count

    return decode


DECODERS: dict[str, Callable[[], Decode]] = {
    OURS: _penstock,
    HTTPX_SSE: _httpx_sse,
    "httpx2": _httpx2,
    "openai": _openai,
}
