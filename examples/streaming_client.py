"""A streaming client for a server of server-sent events, in one file.

It reads `POST /trigger_invocation` of examples/fastapi_server.py (or of `penstock origin`), shows each event as it
arrives, collects them all, and tells what it measured. Retries with backoff and jitter, a circuit breaker, a
connection pool, error categories and a clean end on Ctrl-C are the client's::

    python examples/fastapi_server.py --port 8000
    python examples/streaming_client.py http://localhost:8000

The totals count events: five here. (The Go program that this one follows counted calls, and so said one.)
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

import penstock


@dataclass(frozen=True)
class StreamResponse:
    """One event's data: a counted event, a message, or the server's word that it failed."""

    Count: int = 0
    Data: str = ""
    error: str = ""


async def stream(base_url: str, query: str) -> tuple[list[StreamResponse], penstock.Metrics]:
    """Show every event as it arrives; return them all, and the metrics."""
    async with penstock.AsyncClient(
        base_url,
        retry=penstock.Retry(retries=3),
        breaker=penstock.Breaker(failure_threshold=3, recovery_timeout=30.0),
        timeout=penstock.Timeout(connect=5, first_event=30, between_events=30),
        limits=penstock.Limits(max_idle=100, max_idle_per_host=10, idle_timeout=90),
    ) as client:
        responses: list[StreamResponse] = []
        request = client.post("/trigger_invocation").json({"query": query})
        async with request.events(model=StreamResponse) as events:
            async for response in events:
                responses.append(response)
                if response.error:
                    raise penstock.InBandError(f"the server says: {response.error}", collected=responses)
                print(f"Event {response.Count}: {response.Data}" if response.Count else f"Message: {response.Data}")
        return responses, events.metrics


def show(responses: list[StreamResponse], metrics: penstock.Metrics) -> None:
    """Tell what was measured and what was collected."""
    print("\n=== Streaming Metrics ===")
    print(f"Duration: {metrics.duration:.2f}s")
    print(f"Total Events: {metrics.total}")  # events, where the Go client counted calls
    print(f"Successful: {metrics.successful}")
    print(f"Failed: {metrics.failed}")
    print(f"Retries: {metrics.retries}")
    print(f"Success Rate: {metrics.success_rate:.1f}%")
    print("=======================")
    print("Stream completed successfully")
    print("\n=== Collected Response Data ===")
    messages = 0
    for response in responses:
        if response.Count:
            print(f"Event {response.Count}: {response.Data}")
        else:
            messages += 1
            print(f"Message {messages}: {response.Data}")
    print(f"Total responses collected: {len(responses)}")
    print("==============================")


def main() -> int:
    """Run it; 0, or 1 when the stream failed, or 130 after Ctrl-C."""
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
    print(f"Starting advanced stream to {base_url}")
    print("Press Ctrl+C to stop")
    try:
        responses, metrics = asyncio.run(stream(base_url, "tell me everything"))
    except penstock.PenstockError as error:
        print(f"Stream failed ({error.category}): {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped", file=sys.stderr)
        return 130
    show(responses, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
