"""A client whose streams can be watched: a span for each attempt, and metrics to scrape.

It reads events from a server that cuts the connection after every second one, and resumes. Each attempt is a span of
OpenTelemetry's, printed as it ends; at the end come the metrics, as Prometheus would scrape them::

    pip install 'penstock[opentelemetry,prometheus]' opentelemetry-sdk
    penstock origin --port 8000
    python examples/observed_client.py http://localhost:8000

A program that runs on would give its spans to an exporter, and its metrics to ``prometheus_client.start_http_server``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import prometheus_client
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import penstock
from penstock.telemetry.opentelemetry import Tracing
from penstock.telemetry.prometheus import Collector


def line(span: ReadableSpan) -> str:
    """A span in one line."""
    told: dict[str, Any] = {**(span.attributes or {})}
    resent = told.get("http.request.resend_count", 0)
    return (
        f"span {span.name} {told['url.full']} resent={resent} status={told.get('http.response.status_code')} "
        f"end={told['penstock.end']} bytes={told['penstock.bytes']} error={told.get('error.type')}\n"
    )


async def watch(base_url: str) -> str:
    """Read the events, show them and the attempts' spans; return what there is to scrape."""
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
    async with penstock.AsyncClient(
        base_url, name="watched", retry=penstock.Retry(retries=3, backoff=penstock.Backoff(initial=0.1))
    ) as client:
        metrics = prometheus_client.CollectorRegistry()
        collector = Collector(client)
        metrics.register(collector)
        client.use(Tracing(tracers), collector.observe)
        async with client.get("/events?count=5&interval=0.01&cut_after=2").events() as events:
            async for event in events:
                print(f"event {event.id}")
        return prometheus_client.generate_latest(metrics).decode()


def main() -> int:
    """Run it; 0, or 1 when the stream failed."""
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
    try:
        metrics = asyncio.run(watch(base_url))
    except penstock.PenstockError as error:
        print(f"Stream failed ({error.category}): {error}", file=sys.stderr)
        return 1
    print(metrics, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
