"""The event log, by what keeps it: CPU per event appended, events per second, replay, delay between processes.

The records are as long as the events of the other works. Whoever appends does so one by one, and stream after stream,
so that no two of a stream's are together. What the same loop costs without a log is subtracted, round by round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench import build
from bench.plan import Plan
from bench.processes import Cpu, Process, free_address
from bench.relay import origin
from bench.results import Case, Metric, Peer, Sample, Table, measure
from bench.stores import MEMORY, REDIS, SQLITE, STORES, Kept

WORK = "log"
BARE = "(no log)"

Measure = Callable[[Kept], Sample]


def run(plan: Plan) -> Iterator[Table]:
    """Measure all of it, table by table."""
    yield _paced(plan)
    yield _flat_out(plan)
    yield _across(plan)
    yield _replayed(plan)


def _program(command: str, kept: Kept, *arguments: object) -> Process:
    return Process([sys.executable, build.PEERS / "logs.py", command, kept.url, *map(str, arguments)])


def _peers(measurement: Measure, *names: str) -> list[Peer]:
    def through(name: str) -> Sample:
        with STORES[name]() as kept:
            return measurement(kept)

    return [Peer(name, partial(through, name)) for name in names]


def _paced(plan: Plan) -> Table:
    case = Case(
        WORK,
        f"{plan.relayed} streams × {plan.rate} events/s",
        (
            Metric("user_us", "user µs/event"),
            Metric("cpu_us", "CPU µs/event"),
            Metric("server_us", "server's CPU µs/event"),
        ),
    )
    bare: Sample = {}

    def appended(kept: Kept) -> Sample:
        with _program("append", kept, plan.relayed, plan.rate, plan.warmup, plan.seconds) as process:
            before, server_before = _cpu(process.say()), kept.cpu
            result = process.say(plan.seconds + 20)
            used, server = _cpu(result) - before, kept.cpu - server_before
        return {"events": result["events"], **_per_event(used, server, result["events"])}

    def without() -> Sample:
        bare.update(appended(Kept("none")))
        return dict(bare)

    def through(kept: Kept) -> Sample:
        sample = appended(kept)
        for key in ("user_us", "cpu_us"):
            sample[key] -= bare[key]
        return sample

    table = measure(case, [Peer(BARE, without), *_peers(through, MEMORY, SQLITE, REDIS)], plan.repeats)
    row = table.row(BARE)
    if row is not None and not row.note:
        row.note = f"itself {row.median('cpu_us'):.1f} µs"
    return table


def _flat_out(plan: Plan) -> Table:
    case = Case(
        WORK,
        f"{plan.relayed} streams flat out, {plan.appended:,} events each, and read again",
        (
            Metric("events_s", "appended, events/s", 0),
            Metric("cpu_us", "CPU µs/event"),
            Metric("server_us", "server's CPU µs/event"),
            Metric("read_s", "read, events/s", 0),
            Metric("read_cpu_us", "CPU µs/event read"),
        ),
    )

    def through(kept: Kept) -> Sample:
        events = plan.relayed * plan.appended
        with _program("fill", kept, plan.relayed, plan.appended) as process:
            before, server_before = _cpu(process.say()), kept.cpu
            stored = process.say()
            server = kept.cpu - server_before
            read = process.say()
        return {
            "events_s": events / stored["seconds"],
            **_per_event(_cpu(stored) - before, server, events),
            "read_s": events / read["seconds"],
            "read_cpu_us": (_cpu(read) - _cpu(stored)).total / events * 1e6,
        }

    return measure(case, _peers(through, MEMORY, SQLITE, REDIS), plan.repeats)


def _across(plan: Plan) -> Table:
    streams = plan.across // plan.rate
    case = Case(
        WORK,
        f"{streams} streams × {plan.rate} events/s from one process to another",
        (
            Metric("p50_ms", "delay p50, ms"),
            Metric("p99_ms", "delay p99, ms"),
            Metric("max_ms", "delay max, ms"),
        ),
    )

    def through(kept: Kept) -> Sample:
        with _program("produce", kept, streams, plan.rate) as producer:
            ids = producer.say()["streams"]
            with _program("follow", kept, plan.warmup, plan.seconds, *ids) as reader:
                result = reader.say()
        expected = plan.across * plan.seconds
        return {"share": result["events"] / expected, **{key: result[key] for key in ("p50_ms", "p99_ms", "max_ms")}}

    return measure(case, _peers(through, SQLITE, REDIS), plan.repeats)


def _replayed(plan: Plan) -> Table:
    case = Case(
        WORK,
        f"1 stream of {plan.replayed:,} events, read again through the relay",
        (
            Metric("events_s", "events/s", 0),
            Metric("cpu_us", "CPU µs/event"),
            Metric("server_us", "server's CPU µs/event"),
        ),
    )
    with origin() as upstream:

        def through(kept: Kept) -> Sample:
            listen = free_address()
            ours = ("-m", "penstock", "relay", "--store", kept.url, "--ids", "ours", f"http://{upstream}")
            url = f"http://{listen}/events?count={plan.replayed}"
            with Process([sys.executable, *ours, "--listen", listen]) as relay:
                relay.wait_for_port(listen)
                with Process([build.built("load"), "replay", url, str(plan.replays)]) as load:
                    load.say()
                    before, server_before = relay.cpu, kept.cpu
                    load.say()
                    used, server = relay.cpu - before, kept.cpu - server_before
                    result = load.say()
            return {
                "events_s": result["events"] / result["seconds"],
                **_per_event(used, server, result["events"]),
            }

        return measure(case, _peers(through, MEMORY, SQLITE, REDIS), plan.repeats)


def _cpu(said: Any) -> Cpu:
    return Cpu(said["user"], said["system"])


def _per_event(used: Cpu, server: Cpu, events: int) -> Sample:
    sample = {"user_us": used.user / events * 1e6, "cpu_us": used.total / events * 1e6}
    if server.total:
        sample["server_us"] = server.total / events * 1e6
    return sample
