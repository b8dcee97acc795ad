"""Through a gateway: CPU per event, added delay, memory per idle stream, one large body.

The origin stamps each event with the instant of sending; the reader at the other end takes the difference. What the
same reader measures without a relay in between is subtracted from that, round by round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from bench import build
from bench.plan import GB, Plan
from bench.processes import HOST, Cpu, PeerFailed, Process, free_address, many_files
from bench.results import Case, Metric, Peer, Sample, Table, measure

WORK = "relay"
OURS = "penstock relay"
KEEPING = "penstock relay, keeping in memory"
NGINX = "nginx, proxy_buffering off"
GO = "Go ReverseProxy, FlushInterval -1"
UVICORN = "uvicorn + httpx2, plain ASGI"
AIOHTTP = "aiohttp server and client"
DIRECT = "(no relay)"

# A relay that falls behind merges events, and is cheaper by that. It is measured with half the streams, and so on,
# until the events pass as fast as they are sent, and without a queue.
KEEPS_UP = 0.97
MOST_DELAY_US = 5000.0
FEWEST_STREAMS = 25

Start = Callable[[str, str], Process]


def run(plan: Plan) -> Iterator[Table]:
    """Measure all of it, table by table."""
    with many_files() as files, origin() as upstream:
        relays = _relays(files)
        yield _paced(plan, relays, upstream)
        yield _first(plan, relays, upstream, together=False)
        yield _first(plan, relays, upstream, together=True)
        yield _large(plan, {name: relays[name] for name in (OURS, NGINX, GO)}, upstream)
        yield _idle(plan, relays, upstream)


@contextmanager
def origin(cores: Collection[int] = ()) -> Iterator[str]:
    """The origin, running; where it listens."""
    with Process([build.built("load"), "origin", f"{HOST}:0"], cores=cores) as process:
        yield process.say()["listening"]


# -- the relays ------------------------------------------------------------------------------------------------------


def _relays(files: int) -> dict[str, Start]:
    penstock = (sys.executable, "-m", "penstock", "relay")

    def ours(listen: str, upstream: str) -> Process:
        return Process([*penstock, "--store", "none", f"http://{upstream}", "--listen", listen])

    def keeping(listen: str, upstream: str) -> Process:
        return Process([*penstock, "--ids", "ours", f"http://{upstream}", "--listen", listen])

    def nginx(listen: str, upstream: str) -> Process:
        prefix = build.BUILD / "nginx"
        prefix.mkdir(parents=True, exist_ok=True)
        text = (build.PEERS / "nginx.conf").read_text()
        values = {"PREFIX": str(prefix), "LISTEN": listen, "UPSTREAM": upstream, "FILES": str(files)}
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        configuration = prefix / "nginx.conf"
        configuration.write_text(text)
        return Process([build.nginx(), "-c", configuration, "-p", prefix, "-e", "stderr"])

    def go(listen: str, upstream: str) -> Process:
        return Process([build.built("proxy"), listen, f"http://{upstream}"])

    def by_hand(kind: str, *packages: str) -> Start:
        def start(listen: str, upstream: str) -> Process:
            build.needs(*packages)
            host, _, port = listen.rpartition(":")
            return Process([sys.executable, build.PEERS / "relays.py", kind, host, port, f"http://{upstream}"])

        return start

    return {
        OURS: ours,
        KEEPING: keeping,
        NGINX: nginx,
        GO: go,
        UVICORN: by_hand("uvicorn-httpx2", "uvicorn", "httpx2"),
        AIOHTTP: by_hand("aiohttp", "aiohttp"),
    }


@contextmanager
def _running(start: Start, upstream: str) -> Iterator[tuple[Process, str]]:
    listen = free_address()
    with start(listen, upstream) as process:
        process.wait_for_port(listen)
        yield process, listen


# -- paced streams ---------------------------------------------------------------------------------------------------


def _paced(plan: Plan, relays: dict[str, Start], upstream: str) -> Table:
    case = Case(
        WORK,
        f"{plan.relayed} streams × {plan.rate} events/s",
        (
            Metric("user_us", "user µs/event"),
            Metric("cpu_us", "CPU µs/event"),
            Metric("added_p50_ms", "added p50, ms", 2),
            Metric("added_p99_ms", "added p99, ms", 2),
            Metric("peak_mib", "peak RSS, MiB", 0),
            Metric("streams", "streams", 0),
        ),
        "cpu_us",
        OURS,
    )
    direct: Sample = {}
    streams = dict.fromkeys(relays, plan.relayed)

    def without() -> Sample:
        sample = _read(plan, upstream, plan.relayed, None)
        if sample is None:
            raise RuntimeError("origin and readers do not keep up with each other: this machine is too busy")
        direct.update(sample)
        return {"streams": plan.relayed, **direct}

    def through(name: str) -> Sample:
        while True:
            with _running(relays[name], upstream) as (process, listen):
                sample = _read(plan, listen, streams[name], process)
            if _keeps_up(sample, direct) or streams[name] // 2 < FEWEST_STREAMS:
                break
            streams[name] //= 2
        if sample is None:
            raise PeerFailed(f"{streams[name]} streams do not open in time")
        sample["streams"] = streams[name]
        for quantile in ("p50", "p99"):
            sample[f"added_{quantile}_ms"] = (sample[f"{quantile}_us"] - direct[f"{quantile}_us"]) / 1000
        return sample

    return _with_direct(measure(case, _peers(without, through, relays), plan.repeats))


def _keeps_up(sample: Sample | None, direct: Sample) -> bool:
    if sample is None:
        return False
    return sample["share"] >= KEEPS_UP and sample["p50_us"] - direct["p50_us"] <= MOST_DELAY_US


def _read(plan: Plan, address: str, streams: int, process: Process | None) -> Sample | None:
    """Read paced streams for a while; what that cost the process in between, or None where not all of them open."""
    url = f"http://{address}/events?rate={plan.rate}"
    with Process([build.built("load"), "read", url, str(streams), str(plan.warmup), str(plan.seconds)]) as load:
        if load.say()["phase"] == "behind":
            return None
        before, load_before = process.cpu if process else Cpu(), load.cpu
        load.say(plan.seconds + 20)
        used, load_used = (process.cpu if process else Cpu()) - before, load.cpu - load_before
        result = load.say()
    if result["broken"]:
        raise PeerFailed(f"{result['broken']} of {streams} streams broke: {result['failure']}")
    if result["lost"]:
        raise PeerFailed(f"{result['lost']} gaps in the events")
    events = result["events"]
    sample = {
        "events": events,
        "share": events / (streams * plan.rate * result["seconds"]),
        "events_per_read": events / max(1, result["reads"]),
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "load_cores": load_used.total / result["seconds"],
    }
    if process is not None:
        sample["user_us"] = used.user / events * 1e6
        sample["cpu_us"] = used.total / events * 1e6
        sample["cores"] = used.total / result["seconds"]
        sample["peak_mib"] = process.peak_rss / 2**20
    return sample


# -- time to the first event -----------------------------------------------------------------------------------------


def _first(plan: Plan, relays: dict[str, Start], upstream: str, *, together: bool) -> Table:
    streams, rounds = (50, plan.first_together) if together else (1, plan.first_alone)
    case = Case(
        WORK,
        f"first event, {streams} {'streams' if together else 'stream'} at a time",
        (
            Metric("added_p50_ms", "added p50, ms", 2),
            Metric("added_p99_ms", "added p99, ms", 2),
            Metric("cpu_us", "CPU µs/request", 0),
        ),
        "cpu_us",
        OURS,
    )
    direct: Sample = {}

    def opened(address: str) -> Sample:
        with Process([build.built("load"), "first", f"http://{address}/one", str(streams), str(rounds)]) as load:
            result: Sample = load.say()
            return result

    def without() -> Sample:
        direct.update(opened(upstream))
        return dict(direct)

    def through(name: str) -> Sample:
        with _running(relays[name], upstream) as (process, listen):
            opened_once = process.cpu
            sample = opened(listen)
            used = process.cpu - opened_once
        for quantile in ("p50", "p99"):
            sample[f"added_{quantile}_ms"] = (sample[f"{quantile}_us"] - direct[f"{quantile}_us"]) / 1000
        sample["cpu_us"] = used.total / sample["requests"] * 1e6
        return sample

    return _with_direct(measure(case, _peers(without, through, relays), plan.repeats))


# -- one large body --------------------------------------------------------------------------------------------------


def _large(plan: Plan, relays: dict[str, Start], upstream: str) -> Table:
    case = Case(
        WORK,
        f"1 stream of {plan.size / GB:g} GB",
        (
            Metric("wall_s", "wall, s", 2),
            Metric("cpu_s_gb", "CPU s/GB", 2),
            Metric("peak_mib", "peak RSS, MiB", 0),
        ),
        "cpu_s_gb",
        OURS,
    )

    def drained(address: str) -> float:
        with Process([build.built("load"), "drain", f"http://{address}/bytes?n={plan.size}"]) as load:
            result = load.say()
            if result["bytes"] != plan.size:
                raise PeerFailed(f"{result['bytes']:,} bytes came of {plan.size:,}")
            seconds: float = result["seconds"]
            return seconds

    def without() -> Sample:
        return {"wall_s": drained(upstream)}

    def through(name: str) -> Sample:
        with _running(relays[name], upstream) as (process, listen):
            before = process.cpu
            seconds = drained(listen)
            used = process.cpu - before
            return {
                "wall_s": seconds,
                "cpu_s_gb": used.total / plan.size * GB,
                "user_s_gb": used.user / plan.size * GB,
                "peak_mib": process.peak_rss / 2**20,
            }

    return measure(case, _peers(without, through, relays), plan.repeats)


# -- memory ----------------------------------------------------------------------------------------------------------


def _idle(plan: Plan, relays: dict[str, Start], upstream: str) -> Table:
    case = Case(
        WORK,
        f"memory of {plan.idle:,} idle streams and connections",
        (
            Metric("stream_kib", "KiB/idle stream"),
            Metric("connection_kib", "KiB/idle connection"),
            Metric("connections", "connections left", 0),
            Metric("start_mib", "RSS before, MiB", 0),
        ),
        "stream_kib",
        OURS,
    )

    def held(name: str, path: str) -> tuple[float, float, int]:
        with _running(relays[name], upstream) as (process, listen):
            with Process([build.built("load"), "first", f"http://{listen}/one", "20", "2"]) as load:
                load.say()  # imports and caches are not the streams'
            before = process.rss
            address = f"http://{listen}{path}"
            with Process([build.built("load"), "hold", address, str(plan.idle)], interactive=True) as load:
                result = load.say()
                if result["failed"]:
                    raise PeerFailed(f"{result['failed']} of {plan.idle} did not open: {result['failure']}")
                # A server may close idle connections while the rest is still being opened.
                left = result["open"] - result["closed"]
                return (process.rss - before) / max(1, left) / 1024, before / 2**20, left

    def through(name: str) -> Sample:
        stream, start, streams = held(name, "/events?rate=0")
        connection, _, connections = held(name, "/one")
        return {
            "stream_kib": stream,
            "connection_kib": connection,
            "start_mib": start,
            "streams": streams,
            "connections": connections,
        }

    return measure(case, [Peer(name, _bound(through, name)) for name in relays], repeats=1)


# -- inside ----------------------------------------------------------------------------------------------------------


def _peers(without: Callable[[], Sample], through: Callable[[str], Sample], relays: dict[str, Start]) -> list[Peer]:
    return [Peer(DIRECT, without), *(Peer(name, _bound(through, name)) for name in relays)]


def _with_direct(table: Table) -> Table:
    """Say what the delays are added to."""
    row = table.row(DIRECT)
    if row is not None and not row.note:
        p50, p99 = row.median("p50_us"), row.median("p99_us")
        if p50 is not None and p99 is not None:
            row.note = f"itself p50 {p50 / 1000:.2f} ms, p99 {p99 / 1000:.2f} ms"
    return table


def _bound(measurement: Callable[[str], Sample], name: str) -> Callable[[], Sample]:
    return lambda: measurement(name)
