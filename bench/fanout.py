"""One stream to many readers: delay, CPU per event delivered, memory per idle reader.

What hands the stream on has one core to itself, with all that belongs to it; the origin and the readers have the
others. The origin stamps each event with the instant of sending, and every reader takes the difference. Each reader of
a stream that is kept begins with its first event, and must see every one in its turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from bench import build, stores
from bench.plan import Plan
from bench.processes import Cpu, PeerFailed, Process, free_address, many_files
from bench.relay import KEEPING, origin
from bench.results import Case, Metric, Peer, Sample, Table, measure

WORK = "fanout"
OURS = KEEPING
REPLICAS = "3 replicas of it, on Redis"
GO = "Go, a channel per reader"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What hands the stream on.

    Attributes:
        processes: All that it consists of.
        addresses: Where the readers ask; the first one opens the stream.
    """

    processes: list[Process]
    addresses: list[str]

    @property
    def cpu(self) -> Cpu:
        """CPU used so far."""
        return sum((process.cpu for process in self.processes), Cpu())

    @property
    def rss(self) -> int:
        """Memory held now [bytes]."""
        return sum(process.rss for process in self.processes)

    def load(self, command: str, path: str, *arguments: object, interactive: bool = False) -> Process:
        """The load program, on a path of the first address and with the readers at all of them."""
        words = [f"http://{self.addresses[0]}{path}", *map(str, arguments), ",".join(self.addresses)]
        return Process([build.built("load"), command, *words], interactive=interactive, cores=_others())


Start = Callable[[], AbstractContextManager[Gateway]]


def run(plan: Plan) -> Iterator[Table]:
    """Measure both, with the same peers."""
    with many_files(), origin(_others()) as upstream:
        peers: dict[str, Start] = {
            OURS: partial(_relay, upstream),
            REPLICAS: partial(_replicas, upstream),
            GO: partial(_go, upstream),
        }
        yield _paced(plan, peers)
        yield _idle(plan, peers)


# -- what hands it on ------------------------------------------------------------------------------------------------


@contextmanager
def _relay(upstream: str) -> Iterator[Gateway]:
    with _started(_ours("memory://", upstream)) as gateway:
        yield gateway


@contextmanager
def _replicas(upstream: str) -> Iterator[Gateway]:
    with stores.redis(_one()) as kept:
        ours = _ours(kept.url, upstream)
        with _started(ours) as first, _started(ours) as second, _started(ours) as third:
            replicas = (first, second, third)
            processes = [process for each in replicas for process in each.processes]
            if kept.server is not None:
                processes.append(kept.server)
            yield Gateway(processes, [address for each in replicas for address in each.addresses])


@contextmanager
def _go(upstream: str) -> Iterator[Gateway]:
    with _started(lambda listen: [build.built("broadcast"), listen, f"http://{upstream}"]) as gateway:
        yield gateway


def _ours(store: str, upstream: str) -> Callable[[str], list[str]]:
    penstock = [sys.executable, "-m", "penstock", "relay", "--store", store, "--ids", "ours", f"http://{upstream}"]
    return lambda listen: [*penstock, "--listen", listen]


@contextmanager
def _started(command: Callable[[str], list[str]] | Callable[[str], list[object]]) -> Iterator[Gateway]:
    listen = free_address()
    with Process([str(word) for word in command(listen)], cores=_one()) as process:
        process.wait_for_port(listen)
        yield Gateway([process], [listen])


def _one() -> list[int]:
    return sorted(os.sched_getaffinity(0))[:1]


def _others() -> list[int]:
    return sorted(os.sched_getaffinity(0))[1:]


# -- what is measured ------------------------------------------------------------------------------------------------


def _paced(plan: Plan, peers: dict[str, Start]) -> Table:
    case = Case(
        WORK,
        f"1 stream × {plan.rate} events/s to {plan.readers:,} readers, on one core",
        (
            Metric("p50_ms", "delay p50, ms"),
            Metric("p99_ms", "delay p99, ms"),
            Metric("max_ms", "delay max, ms"),
            Metric("cpu_us", "CPU µs/event delivered"),
            Metric("cores", "cores", 2),
        ),
        "cpu_us",
        OURS,
    )

    def through(start: Start) -> Sample:
        with start() as gateway:
            path = f"/events?rate={plan.rate}"
            with gateway.load("fanout", path, plan.readers, plan.warmup, plan.seconds) as load:
                load.say()
                before = gateway.cpu
                load.say(plan.seconds + 20)
                used = gateway.cpu - before
                result = load.say()
        if result["broken"]:
            raise PeerFailed(f"{result['broken']} readers were let go of: {result['failure']}")
        if result["lost"]:
            raise PeerFailed(f"{result['lost']} gaps in the events")
        if not result["events"]:
            raise PeerFailed("no event came in time")
        return {
            "events": result["events"],
            "p50_ms": result["p50_us"] / 1000,
            "p99_ms": result["p99_us"] / 1000,
            "max_ms": result["max_us"] / 1000,
            "cpu_us": used.total / result["events"] * 1e6,
            "cores": used.total / result["seconds"],
            "share": result["events"] / ((plan.readers + 1) * plan.rate * result["seconds"]),
        }

    return measure(case, [Peer(name, partial(through, start)) for name, start in peers.items()], plan.repeats)


def _idle(plan: Plan, peers: dict[str, Start]) -> Table:
    case = Case(
        WORK,
        f"memory of {plan.readers:,} idle readers of 1 stream",
        (Metric("reader_kib", "KiB/idle reader"), Metric("start_mib", "RSS before, MiB", 0)),
        "reader_kib",
        OURS,
    )

    def through(start: Start) -> Sample:
        with start() as gateway:
            with gateway.load("gather", "/events?rate=0", 20) as warmed:
                warmed.say()  # imports and caches are not the readers'
            before = gateway.rss
            with gateway.load("gather", "/events?rate=0", plan.readers, interactive=True) as load:
                held = load.say()["open"]
                return {"reader_kib": (gateway.rss - before) / held / 1024, "start_mib": before / 2**20}

    return measure(case, [Peer(name, partial(through, start)) for name, start in peers.items()], repeats=1)
