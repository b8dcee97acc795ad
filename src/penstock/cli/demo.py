"""`penstock demo`: the three jobs, on real processes, with what was measured.

Every server here is a process of its own, started with the same command that a person would type, on a free port.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from penstock.cli import demo_servers as servers
from penstock.cli import options, output
from penstock.cli.run import run
from penstock.client.client import AsyncClient
from penstock.client.notices import Notice, Reconnecting
from penstock.errors import CircuitOpenError
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker, State
from penstock.resilience.retry import Retry

LINES = 10_000_000
LENGTH = 478_888_897
CHUNKS = 30
INTERVAL = 0.1

SHOWN: dict[str, Callable[[Any], tuple[str, str]]] = {
    "bytes": lambda value: ("bytes", f"{value:,}"),
    "seconds": lambda value: ("time", f"{value:.2f} s"),
    "bytes_per_second": lambda value: ("speed", f"{value / 2**20:.0f} MB/s"),
    "memory_growth_kib": lambda value: ("memory grew by", f"{value:,} KiB"),
    "sha256": lambda value: ("SHA-256, sent and saved", f"{value[:16]}…"),
    "chunks": lambda value: ("chunks sent", str(value)),
    "reads": lambda value: ("reads they came in", str(value)),
    "delay_median_ms": lambda value: ("delay, median", f"{value:.1f} ms"),
    "delay_worst_ms": lambda value: ("delay, worst", f"{value:.1f} ms"),
    "events": lambda value: ("events", str(value)),
    "retries": lambda value: ("retries", str(value)),
    "success_rate": lambda value: ("success rate", f"{value:.1f}%"),
    "breaker": lambda value: ("breaker", value),
}
"""How each figure is called and written in the summary."""


@dataclass(frozen=True, slots=True)
class Result:
    """One job's line in the summary."""

    job: str
    measured: dict[str, Any]


def demo(
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep the servers, and the relay's page for a browser, until Ctrl-C.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Show the three jobs on real servers: a 457 MB pipe, a relayed generator, a stream that fails at first."""
    try:
        run(_demo(stay=stay, json=json))
    except servers.Failed as failed:
        if json:
            output.record(output.error_record(failed, str(failed)))
        else:
            output.note(f"penstock demo: {failed}")
        return 1
    return 0


async def _demo(*, stay: bool, json: bool) -> None:
    say = (lambda text: None) if json else output.note
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        async with (
            servers.origin(folder) as first,
            servers.origin(folder) as second,
            servers.relay(first.url, folder) as relay,
        ):
            say(f"two sample servers: {first.url} and {second.url}")
            if stay:
                _show_page(relay, json=json)
            results = await _three_jobs(first.url, second.url, relay.url, say, json=json)
            if json:
                output.record({"demo": {result.job: result.measured for result in results}})
            else:
                _summary(results)
            if stay:
                say(f"\nthe page stays until you press Ctrl-C: {relay.page}")
                await servers.watch(first, second, relay)


def _show_page(relay: servers.Started, *, json: bool) -> None:
    if json:
        output.record({"listening": {"url": relay.url, "page": relay.page}})
    else:
        output.note(f"the relay's page, for a browser: {relay.page}")


def _summary(results: list[Result]) -> None:
    table = Table(title="What was measured", title_justify="left", show_lines=True)
    table.add_column("job")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for result in results:
        shown = [SHOWN[name](value) for name, value in result.measured.items()]
        table.add_row(result.job, "\n".join(label for label, _ in shown), "\n".join(value for _, value in shown))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print()
    console.print(table)


# -- the three jobs ----------------------------------------------------------------------------------------------


async def _three_jobs(first: str, second: str, relay: str, say: Callable[[str], None], *, json: bool) -> list[Result]:
    say(f"\n1. pipe: {LENGTH / 2**20:.0f} MB from {first}/file into {second}/upload, in constant memory")
    piped = await _pipe(first, second, progress=not json)
    say(f"\n2. relay: {first}/generate, ten chunks a second, through {relay}")
    relayed = await _relay(relay, say)
    say(f"\n3. consume: events from {first}/trigger_invocation, which fails twice")
    return [piped, relayed, await _consume(first, say)]


async def _pipe(source: str, destination: str, *, progress: bool) -> Result:
    arguments = ["pipe", f"{source}/file?lines={LINES}", f"{destination}/upload"]
    arguments += ["-H", "Accept: application/json", "--digest", "sha256"]
    code, report = await servers.run(*arguments, quietly=not progress)
    if code or "error" in report:
        raise servers.Failed(f"the pipe failed: {report.get('error', {}).get('message', 'without a word')}")
    saved = jsonlib.loads(report["destination"]["body"])["files"][0]
    if saved["sha256"] != report["digest"]["sha256"] or saved["bytes"] != LENGTH:
        raise servers.Failed(f"the pipe is not faithful: {report['digest']} was sent and {saved} was saved")
    return Result(
        "pipe",
        {
            "bytes": report["bytes"],
            "seconds": report["seconds"],
            "bytes_per_second": report["bytes_per_second"],
            "memory_growth_kib": report["memory_growth_kib"],
            "sha256": saved["sha256"],
        },
    )


async def _relay(relay: str, say: Callable[[str], None]) -> Result:
    delays: list[float] = []
    reads = 0
    async with (
        AsyncClient(relay) as client,
        client.get("/generate").param("chunks", CHUNKS).param("interval", INTERVAL).send() as response,
    ):
        rest = b""
        async for piece in response:
            now = time.time()
            reads += 1
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                delays.append(_delay(line.decode(), now))
                if len(delays) % 10 == 1:
                    say(f"   {line.decode()} came after {delays[-1] * 1000:.1f} ms")
    if len(delays) != CHUNKS:
        raise servers.Failed(f"the relay passed on {len(delays)} of {CHUNKS} chunks")
    if reads < CHUNKS:
        raise servers.Failed(f"{CHUNKS} chunks came in {reads} pieces: something buffered them")
    delays.sort()
    return Result(
        "relay",
        {
            "chunks": len(delays),
            "reads": reads,
            "delay_median_ms": round(delays[len(delays) // 2] * 1000, 2),
            "delay_worst_ms": round(delays[-1] * 1000, 2),
        },
    )


def _delay(line: str, now: float) -> float:
    """Seconds from the instant that a chunk names to now; the generator tells the local time of the day."""
    stamp = line[line.index("[") + 1 : line.index("]")]
    hours, minutes, seconds = stamp.split(":")
    written = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    local = time.localtime(now)
    today = local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now % 1
    return (today - written) % 86400


async def _consume(origin: str, say: Callable[[str], None]) -> Result:
    """A server that answers 503 twice: within the retries, and then with a breaker that has had enough."""

    def tell(notice: Notice) -> None:
        if isinstance(notice, Reconnecting):
            say(f"   {notice.failure}; attempt {notice.attempt} in {notice.pause:.2f} s")

    backoff = Backoff(initial=0.2)
    async with AsyncClient(origin, retry=Retry(retries=3, backoff=backoff), breaker=Breaker()) as client:
        failing = client.post("/trigger_invocation").param("status", 503).param("times", 2).param("interval", 0.05)
        async with failing.json({"query": "the demo"}).events(on_notice=tell) as events:
            async for event in events:
                say(f"   event: {event.data}")
        metrics = events.metrics
    if (metrics.total, metrics.retries) != (5, 2):
        raise servers.Failed(f"the stream gave {metrics.total} events after {metrics.retries} retries, not 5 after 2")
    breaker = Breaker(failure_threshold=2, recovery_timeout=0.5)
    async with AsyncClient(origin, retry=Retry(retries=5, backoff=backoff), breaker=breaker) as client:
        states = [client.circuit_state()]
        failing = client.get("/events").param("count", 3).param("interval", 0).param("status", 500).param("times", 2)
        try:
            await failing.collect()
            raise servers.Failed("the breaker did not open after two failures")
        except CircuitOpenError as error:
            say(f"   {error}")
        states.append(client.circuit_state())
        await asyncio.sleep(0.6)
        collected = await failing.collect()
        states.append(client.circuit_state())
    if states != [State.CLOSED, State.OPEN, State.CLOSED] or len(collected.events) != 3:
        raise servers.Failed(f"the breaker did not recover: {states}")
    say("   after its pause the breaker let a probe through, and closed")
    return Result(
        "consume",
        {
            "events": metrics.total,
            "retries": metrics.retries,
            "success_rate": metrics.success_rate,
            "seconds": round(metrics.duration, 3),
            "breaker": " → ".join(state.value for state in states if state is not None),
        },
    )
