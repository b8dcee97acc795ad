"""What a relay has seen, for Prometheus.

Ended streams are counted as they settle, gaps as the answers end that told of them, and what runs is read when somebody
asks: nothing happens per event. Labels are the ends' reasons and the upstreams of the configuration, so that no request
can make a new series.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from penstock.relay.downstream.reader import Downstream
from penstock.relay.route import Route
from penstock.relay.streams.ends import StreamEnd
from penstock.relay.streams.streams import Streams

if TYPE_CHECKING:
    from prometheus_client.core import Metric

REASONS = ("done", "error", "cancelled", "producer_lost")
STATES = ("closed", "half_open", "open")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class RelayMetrics:
    """A relay's counters, as a collector of prometheus_client.

    Args:
        streams: The relay's; it is told of their readers and of their ends.
        routes: Whose breakers are told of.
    Raises:
        ModuleNotFoundError: prometheus_client is not installed: ``pip install 'penstock[prometheus]'``.
    """

    def __init__(self, streams: Streams, routes: list[Route]) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "metrics need prometheus_client: pip install 'penstock[prometheus]'", name="prometheus_client"
            ) from None
        self.registry = CollectorRegistry(auto_describe=False)
        self._streams = streams
        self._routes = routes
        streams.on_asked.append(lambda request: self._answered)
        streams.on_settled.append(self._settled)
        make: dict[str, Any] = {"registry": self.registry, "namespace": "penstock", "subsystem": "relay"}
        self._ended = Counter("streams_ended", "Streams that have ended, by how.", ["reason"], **make)
        self._events = Counter("events_ended", "Events of streams that have ended.", **make)
        self._bytes = Counter("bytes_ended", "Bytes of streams that have ended, as the upstream sent them.", **make)
        self._gaps = Counter("gaps", "Readers told that what they asked for is no longer kept.", **make)
        self._first = Histogram(
            "first_event_seconds", "From a stream's start to its first event.", buckets=_SECONDS, **make
        )
        self._duration = Histogram("stream_seconds", "From a stream's start to its end.", buckets=_SECONDS, **make)
        for reason in REASONS:
            self._ended.labels(reason)
        self.registry.register(self)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them, and their content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """What runs now; for prometheus_client."""
        from prometheus_client.core import GaugeMetricFamily

        sessions = self._streams.sessions
        for name, says, value in (
            ("streams", "Streams that run here.", len(sessions)),
            ("readers", "Readers of streams that run here.", sum(each.readers for each in sessions)),
            ("events_running", "Events of streams that run.", sum(each.event_count for each in sessions)),
            ("draining", "Whether no new stream begins.", int(self._streams.draining)),
            ("store_away", "Whether the store does not do its work.", int(self._streams.store_away)),
        ):
            yield GaugeMetricFamily(f"penstock_relay_{name}", says, value=value)
        circuit = GaugeMetricFamily(
            "penstock_relay_circuit", "The state of the breaker of each upstream.", labels=["upstream", "state"]
        )
        for route in self._routes:
            state = route.client.circuit_state()
            if state is not None:
                for name in STATES:
                    circuit.add_metric([route.upstream, name], int(state.value == name))
        yield circuit

    def _answered(self, answer: Downstream, error: BaseException | None) -> None:
        if answer.gaps:
            self._gaps.inc(answer.gaps)

    def _settled(self, end: StreamEnd) -> None:
        self._ended.labels(end.reason).inc()
        self._events.inc(end.event_count)
        self._bytes.inc(end.byte_count)
        self._duration.observe(end.duration)
        if end.first_event is not None:
            self._first.observe(end.first_event)
