"""A blocking client in a plain script: a stream, some workers that share the client, and an upload from a generator.

No event loop in sight: threads wait, and Ctrl-C interrupts them::

    penstock origin --port 8000
    python examples/blocking_client.py http://localhost:8000
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import penstock


def watch(client: penstock.Client) -> None:
    """Show a stream's events as they arrive."""
    with client.post("/trigger_invocation").json({"query": "why?"}).events() as events:
        for event in events:
            print(event.json()["Data"])


def count(client: penstock.Client, worker: int) -> int:
    """Read a stream to its end, as one of several threads."""
    return len(client.get("/events").param("count", 10).param("interval", 0).collect().events)


def rows() -> Iterator[bytes]:
    """A report, made while it is sent."""
    yield b"n,square\n"
    for n in range(10_000):
        yield b"%d,%d\n" % (n, n * n)


def work(base_url: str) -> None:
    """Do all three through one client."""
    retry = penstock.Retry(retries=1, backoff=penstock.Backoff(initial=0.1))
    with penstock.Client(base_url, retry=retry, timeout=penstock.Timeout(between_events=10)) as client:
        watch(client)
        with ThreadPoolExecutor(max_workers=4) as pool:
            counted = sum(pool.map(lambda worker: count(client, worker), range(4)))
        print(f"4 workers read {counted} events")
        print(client.multipart("/upload").file("file", "report.csv", rows()).read().text.strip())
        seen = client.metrics
        print(
            f"{seen.streams} streams, {seen.total} events, {seen.failed} failed, in {seen.duration:.2f} s of streaming"
        )


def main() -> int:
    """Run it; 0, or 1 when it failed, or 130 after Ctrl-C."""
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
    try:
        work(base_url)
    except penstock.PenstockError as error:
        print(f"Failed ({error.category}): {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
