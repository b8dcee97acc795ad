"""A download into an upload: wall, CPU per GB, peak memory.

Each peer is a process that is started for one transfer. What its start costs is measured by a transfer of one byte in
the same round, the cheaper of two, and subtracted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import build
from bench.plan import GB, Plan
from bench.processes import Ended, PeerFailed, Process
from bench.relay import origin
from bench.results import Case, Metric, Peer, Sample, Table, measure

WORK = "pipe"
OURS = "penstock pipe"
OUR_COPY = "penstock pipe, copying"
GO = "Go io.Pipe + mime/multipart"

Command = Callable[[str, str], list[str | Path]]


def run(plan: Plan) -> Iterator[Table]:
    """Measure all of it, table by table."""
    with origin() as where:
        yield _table(plan, where, chunked=False)
        yield _table(plan, where, chunked=True)


def _table(plan: Plan, where: str, *, chunked: bool) -> Table:
    case = Case(
        WORK,
        f"{plan.size / GB:g} GB, {'chunked' if chunked else 'of known length'}",
        (
            Metric("wall_s", "wall, s", 2),
            Metric("cpu_s_gb", "CPU s/GB", 2),
            Metric("peak_mib", "peak RSS, MiB", 0),
            Metric("start_cpu_s", "(start: CPU s)", 2),
        ),
        "cpu_s_gb",
        OURS,
    )

    def transfer(command: Command, size: int) -> Ended:
        source = f"http://{where}/bytes?n={size}&chunked={int(chunked)}"
        with Process(command(source, f"http://{where}/sink")) as process:
            ended = process.wait()
        taken = _taken(ended.output)
        if not size <= taken <= size + 4096:
            raise PeerFailed(f"{taken:,} bytes arrived of {size:,}")
        return ended

    def measured(command: Command) -> Sample:
        start = min((transfer(command, 1), transfer(command, 1)), key=lambda ended: ended.cpu.total)
        whole = transfer(command, plan.size)
        used = whole.cpu - start.cpu
        sample = {
            "wall_s": whole.seconds - start.seconds,
            "cpu_s_gb": used.total / plan.size * GB,
            "user_s_gb": used.user / plan.size * GB,
            "peak_mib": whole.peak_rss / 2**20,
            "start_cpu_s": start.cpu.total,
        }
        if '"path":"' in whole.output:  # in our own report, where there is more than one way
            sample["spliced"] = float('"path":"splice"' in whole.output)
        return sample

    def peer(name: str, command: Command) -> Peer:
        return Peer(name, lambda: measured(command))

    return measure(case, [peer(*each) for each in _commands().items()], plan.repeats)


def _commands() -> dict[str, Command]:
    def ours(*options: str) -> Command:
        return lambda source, sink: [sys.executable, "-m", "penstock", "pipe", source, sink, "--json", *options]

    def go(source: str, sink: str) -> list[str | Path]:
        return [build.built("pipe"), source, sink]

    def by_hand(kind: str) -> Command:
        def command(source: str, sink: str) -> list[str | Path]:
            build.needs(kind)
            return [sys.executable, build.PEERS / "pipes.py", kind, source, sink]

        return command

    def curl(source: str, sink: str) -> list[str | Path]:
        tool = str(build.curl())
        script = '"$0" -fsS --no-buffer "$1" | "$0" -fsS -T - "$2"'
        return ["/bin/sh", "-c", script, tool, source, sink]

    return {
        OURS: ours(),
        OUR_COPY: ours("--limit-rate", "100T"),  # a pace has to see the bytes, and this one never bites
        GO: go,
        "httpx2": by_hand("httpx2"),
        "aiohttp": by_hand("aiohttp"),
        "curl | curl -T -": curl,
    }


def _taken(output: str) -> int:
    """The bytes that arrived: what the sink answered, which every peer prints, ours in its report."""
    try:
        said = json.loads(output)
        if "destination" in said:
            said = json.loads(said["destination"]["body"])
        return int(said["bytes"])
    except (ValueError, KeyError, TypeError):
        raise PeerFailed(f"no answer of the sink in {output[-200:]!r}") from None
