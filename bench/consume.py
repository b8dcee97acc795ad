"""In one Python process: CPU per event, at a pace and flat out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench import build
from bench.plan import Plan
from bench.processes import PeerFailed, Process, many_files
from bench.relay import FEWEST_STREAMS, KEEPS_UP, origin
from bench.results import Case, Metric, Peer, Sample, Table, measure

WORK = "consume"
MOST_BUSY = 0.9  # of a core; see bench.relay on who falls behind
STOCK_RAW = "httpx2, raw"
OUR_RAW = "httpx2 with penstock.Transport, raw"
STOCK_SSE = "httpx2 .sse()"
OUR_SSE = "httpx2 .sse() with penstock.Transport"
OURS = "penstock events"
OPENAI = "openai"
OUR_OPENAI = "openai with penstock.Transport"

# A peer's name: the kind in peers/readers.py, and the packages that it needs.
KINDS = {
    OURS: ("penstock-events", "penstock"),
    STOCK_SSE: ("httpx2-sse", "httpx2"),
    OUR_SSE: ("httpx2-sse-penstock", "httpx2"),
    "aiohttp, by lines": ("aiohttp-lines", "aiohttp"),
    OPENAI: ("openai", "openai"),
    OUR_OPENAI: ("openai-penstock", "openai"),
    STOCK_RAW: ("httpx2-raw", "httpx2"),
    OUR_RAW: ("httpx2-raw-penstock", "httpx2"),
    "aiohttp, raw": ("aiohttp-raw", "aiohttp"),
}


def run(plan: Plan) -> Iterator[Table]:
    """Measure all of it, table by table."""
    with many_files(), origin() as where:
        paced = f"{plan.consumed} streams × {plan.rate} events/s"
        yield _table(plan, where, paced, plan.consumed, plan.rate)
        yield _table(plan, where, f"{plan.flat_out} streams flat out", plan.flat_out, None)


def _table(plan: Plan, where: str, title: str, wanted: int, rate: int | None) -> Table:
    metrics = (
        Metric("user_us", "user µs/event", 2),
        Metric("cpu_us", "CPU µs/event", 2),
        Metric("events_s", "events/s", 0),
        Metric("streams", "streams", 0),
    )
    streams = dict.fromkeys(KINDS, wanted)
    query = "" if rate is None else f"?rate={rate}"

    def read(name: str) -> Sample:
        kind, package = KINDS[name]
        build.needs(package)
        path = "/v1/chat/completions" if package == "openai" else "/events"
        arguments = [kind, f"http://{where}{path}{query}"]
        while True:
            count = streams[name]
            size = [str(count), str(plan.warmup), str(plan.seconds)]
            with Process([sys.executable, build.PEERS / "readers.py", *arguments, *size]) as process:
                result = process.say()
            if rate is None or count // 2 < FEWEST_STREAMS:
                break
            if result is not None:
                busy = (result["user"] + result["system"]) / result["seconds"]
                if busy <= MOST_BUSY and result["events"] >= KEEPS_UP * count * rate * result["seconds"]:
                    break
            streams[name] //= 2
        if result is None:
            raise PeerFailed(f"{count} streams did not open in time")
        events = result["events"]
        return {
            "events": events,
            "events_s": events / result["seconds"],
            "user_us": result["user"] / events * 1e6,
            "cpu_us": (result["user"] + result["system"]) / events * 1e6,
            "cores": (result["user"] + result["system"]) / result["seconds"],
            "streams": count,
            "seconds": result["seconds"],
        }

    def peer(name: str) -> Peer:
        return Peer(name, lambda: read(name))

    return measure(Case(WORK, title, metrics, "cpu_us", OURS), [peer(name) for name in KINDS], plan.repeats)
