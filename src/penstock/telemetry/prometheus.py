"""Prometheus: a client's own counters, read when they are scraped, and histograms that end with the body.

::

    collector = Collector(client)
    prometheus_client.REGISTRY.register(collector)
    client.use(collector.observe)  # for the histograms

The counters cost nothing while streams run: `AsyncClient.metrics` is a frozen value that any thread may read. They add
up the streams of items (events, records, lines) that have *ended*. The histograms are told of every attempt, once, at
the end of its body.

Labels are bounded, whatever is asked for: the client's name, a known method, a status class, the kind of end, and the
origin of the client's base URL. Never the URL of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from penstock.client import seam
from penstock.client.metrics import Metrics
from penstock.client.request import Request, Send
from penstock.client.response import Response
from penstock.resilience.breaker import State
from penstock.telemetry.attempt import Outcome, known_method, watched

try:
    from prometheus_client import Histogram
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector as CollectorProtocol
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"penstock.telemetry.prometheus needs prometheus-client ({error}): pip install 'penstock[prometheus]'",
        name=error.name,
    ) from None

DURATION_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Name, help, and the field of `Metrics`.
COUNTERS = (
    ("streams", "Streams that have ended.", "streams"),
    ("retries", "Attempts after the first.", "retries"),
    ("reconnects", "Retries that continued a stream where it had broken.", "reconnects"),
    ("replayed_events", "Events that a server sent again and that were not passed on.", "replayed"),
    ("received_bytes", "Body bytes received.", "bytes"),
    ("stream_seconds", "Seconds that streams lasted, from their first attempts to their ends.", "duration"),
)
GAPS = (("0.5", "gap_p50"), ("0.99", "gap_p99"), ("1", "gap_max"))

OURS = frozenset({"client", "outcome", "quantile", "origin", "state", "method", "status", "end", "le"})


class Observed(Protocol):
    """What is read of a client."""

    @property
    def name(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def metrics(self) -> Metrics: ...
    def circuit_state(self, url: str = "") -> State | None: ...


class Collector(CollectorProtocol):
    """What some clients have seen, for one registry: register it there, and add `observe` to the clients.

    Args:
        clients: Whose metrics to read; each is told apart by its name, as the label ``client``.
        name: What the metrics' names begin with.
        labels: Of every series, and their values.
    Raises:
        ValueError: Two clients have one name, or a label is one of ours.
    """

    def __init__(
        self,
        *clients: Observed,
        name: str = "penstock_client",
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        names = [client.name for client in clients]
        if len(set(names)) < len(names):
            raise ValueError(f"each client needs a name of its own, to be told apart by; got {names}")
        if taken := OURS.intersection(labels):
            raise ValueError(f"the labels {sorted(taken)} are set by the collector itself; name yours differently")
        self._clients = clients
        self._name = name
        self._labels = dict(labels)
        always = (*self._labels, "client")
        self._duration = Histogram(
            f"{name}_attempt_seconds",
            "Seconds from before an attempt to the end of its body.",
            (*always, "method", "status", "end"),
            buckets=DURATION_BUCKETS,
            registry=None,  # it is collected with the rest
        )
        self._first_byte = Histogram(
            f"{name}_time_to_first_byte_seconds",
            "Seconds from before an attempt to the first byte of its body.",
            (*always, "method", "status"),
            buckets=FIRST_BYTE_BUCKETS,
            registry=None,
        )

    # -- while requests run --------------------------------------------------------------------------------------

    async def observe(self, request: Request, send: Send) -> Response:
        """The middleware: each attempt's duration, and its time to the first byte, at the end of its body."""

        def tell(outcome: Outcome) -> None:
            labels = {
                **self._of(request.client),
                "method": known_method(request.method),
                "status": "none" if outcome.status is None else f"{outcome.status // 100}xx",
            }
            self._duration.labels(**labels, end=outcome.reason).observe(outcome.seconds)
            if outcome.first_byte is not None:
                self._first_byte.labels(**labels).observe(outcome.first_byte)

        return await watched(request, send, tell)

    # -- when it is scraped --------------------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Every family, with the samples of this moment. From any thread."""
        seen = [(self._of(client.name), client.metrics) for client in self._clients]
        yield self._events(seen)
        yield from self._counters(seen)
        yield self._gaps(seen)
        yield self._circuits()
        yield from self._duration.collect()
        yield from self._first_byte.collect()

    def _events(self, seen: list[tuple[dict[str, str], Metrics]]) -> Metric:
        family = CounterMetricFamily(f"{self._name}_events", "Items that arrived in streams that have ended.")
        for labels, metrics in seen:
            family.add_sample(f"{family.name}_total", {**labels, "outcome": "successful"}, metrics.successful)
            family.add_sample(f"{family.name}_total", {**labels, "outcome": "failed"}, metrics.failed)
        return family

    def _counters(self, seen: list[tuple[dict[str, str], Metrics]]) -> Iterator[Metric]:
        for name, documentation, field in COUNTERS:
            family = CounterMetricFamily(f"{self._name}_{name}", documentation)
            for labels, metrics in seen:
                if (value := getattr(metrics, field, None)) is not None:
                    family.add_sample(f"{family.name}_total", labels, value)
            yield family

    def _gaps(self, seen: list[tuple[dict[str, str], Metrics]]) -> Metric:
        family = GaugeMetricFamily(f"{self._name}_event_gap_seconds", "Seconds between an event and the next.")
        for labels, metrics in seen:
            for quantile, field in GAPS:
                if (value := getattr(metrics, field, None)) is not None:
                    family.add_sample(family.name, {**labels, "quantile": quantile}, value)
        return family

    def _circuits(self) -> Metric:
        """The state of the breaker at each client's base URL: its other origins may be anybody's choice."""
        family = GaugeMetricFamily(f"{self._name}_circuit", "1 for the state that the circuit breaker is in.")
        for client in self._clients:
            if not client.base_url or (current := client.circuit_state()) is None:
                continue
            labels = {**self._of(client.name), "origin": seam.origin_of(client.base_url)}
            for state in State:
                family.add_sample(family.name, {**labels, "state": state.value}, float(state is current))
        return family

    def _of(self, client: str) -> dict[str, str]:
        return {**self._labels, "client": client}
