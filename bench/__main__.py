"""The command line: `python -m bench [--quick] [--only relay,pipe]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import build, consume, decode, fanout, goals, log, pipe, relay, table
from bench.plan import FULL, QUICK, Plan
from bench.results import Table

WORKS: dict[str, Callable[[Plan], Iterator[Table]]] = {
    decode.WORK: decode.run,
    consume.WORK: consume.run,
    relay.WORK: relay.run,
    fanout.WORK: fanout.run,
    log.WORK: log.run,
    pipe.WORK: pipe.run,
}
BUSY = 0.25  # of all cores, before the start
LATEST = build.HERE / "results" / "latest.json"


def main() -> int:
    """Measure, print the tables on stdout, write them as JSON; progress goes to stderr."""
    arguments = _arguments()
    plan = QUICK if arguments.quick else FULL
    if arguments.repeats:
        plan = dataclasses.replace(plan, repeats=arguments.repeats)
    signal.signal(signal.SIGTERM, _terminated)
    started = time.monotonic()
    facts = build.machine()
    if facts["load_average"][0] > BUSY * facts["cores"]:
        print("this machine is busy with other things: expect noise, and not small", file=sys.stderr)
    tables: list[Table] = []
    try:
        for work in arguments.only:
            for measured in _measured(work, plan):
                tables.append(measured)
                print(f"\n{table.shown(measured)}\n", flush=True)
    except KeyboardInterrupt:
        print("interrupted; what was measured so far is kept", file=sys.stderr)
        return 130
    finally:
        _write(arguments.output, plan, facts, tables, time.monotonic() - started)
    if any(judged := goals.judged(tables)):
        print(table.goals(judged))
    print(f"\n{table.machine(facts)}")
    print(f"{time.monotonic() - started:.0f} s; every sample is in {arguments.output}", file=sys.stderr)
    return 0


def _measured(work: str, plan: Plan) -> Iterator[Table]:
    if work != decode.WORK and sys.platform != "linux":
        print(f"{work}: not measured: what a process uses is read from Linux's /proc", file=sys.stderr)
        return
    try:
        yield from WORKS[work](plan)
    except build.NotInstalled as error:
        print(f"{work}: not measured: {error} is not installed", file=sys.stderr)


def _write(path: Path, plan: Plan, facts: dict[str, Any], tables: list[Table], seconds: float) -> None:
    judged = [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals.judged(tables)]
    report = {
        "machine": facts,
        "plan": dataclasses.asdict(plan),
        "seconds": round(seconds, 1),
        "tables": [each.to_dict() for each in tables],
        "goals": judged,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a first look: one round, small sizes")
    parser.add_argument(
        "--only", type=_works, default=list(WORKS), metavar="WORK,…", help=f"of {', '.join(WORKS)}; else all"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help=f"rounds over all peers (else {FULL.repeats})")
    parser.add_argument("--output", type=Path, default=LATEST, metavar="FILE", help="where the JSON goes")
    return parser.parse_args()


def _works(text: str) -> list[str]:
    wanted = [word for word in text.split(",") if word]
    if unknown := [word for word in wanted if word not in WORKS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; choose from {', '.join(WORKS)}")
    return wanted


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # by way of every `finally`


if __name__ == "__main__":
    sys.exit(main())
