"""Real providers of OpenTelemetry's that keep what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.telemetry.opentelemetry import Tracing


@dataclass
class Telemetry:
    """Real providers that keep what they are given."""

    tracers: TracerProvider
    spans: InMemorySpanExporter
    meters: MeterProvider
    reader: InMemoryMetricReader

    def tracing(self, *, propagate: bool = True) -> Tracing:
        return Tracing(self.tracers, self.meters, propagate)

    @property
    def ended(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order of their ends."""
        return list(self.spans.get_finished_spans())

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.ended
        return span

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of a name that have ended."""
        return [span for span in self.ended if span.name == name]

    def points(self, name: str) -> list[HistogramDataPoint]:
        """A histogram in seconds."""
        found = self._metric(name)
        assert all(unit == "s" for unit, _ in found)
        return [point for _, point in found if isinstance(point, HistogramDataPoint)]

    def counted(self, name: str) -> dict[tuple[Any, ...], float]:
        """A counter or a gauge: the value for each set of attributes, by those attributes' values."""
        found = [point for _, point in self._metric(name) if isinstance(point, NumberDataPoint)]
        return {tuple((point.attributes or {}).values()): point.value for point in found}

    def _metric(self, name: str) -> list[tuple[str | None, Any]]:
        data = self.reader.get_metrics_data()
        found: list[tuple[str | None, Any]] = []
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "penstock"
                for metric in scope.metrics:
                    if metric.name == name:
                        found += [(metric.unit, point) for point in metric.data.data_points]
        return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
