"""Providers as the ``OTEL_`` environment has them, for a program that is not started by one that sets them up.

===========================  ==============================================================================
``OTEL_TRACES_EXPORTER``     ``otlp`` (the default), ``console``, ``none``, or another that is installed;
``OTEL_METRICS_EXPORTER``    several with commas between them
===========================  ==============================================================================

What else there is (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``, …) the SDK and the
exporters read themselves. What has not been sent when the process ends is sent then.

Source: OpenTelemetry, Environment Variable Specification
"""

from __future__ import annotations

import os
import uuid
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import metrics, trace

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def exporters() -> tuple[list[Any], list[Any]]:
    """The classes of what spans, and what measurements, are sent with.

    Raises:
        ValueError: The SDK, or an exporter that the environment names, is not installed.
    """
    try:
        import opentelemetry.sdk  # noqa: F401 (whether it is there)
    except ModuleNotFoundError:
        raise ValueError(
            "telemetry needs OpenTelemetry's SDK and an exporter: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from None
    return _named("OTEL_TRACES_EXPORTER", "traces"), _named("OTEL_METRICS_EXPORTER", "metrics")


def set_up() -> None:
    """Make the global providers, where nobody has yet.

    Raises:
        ValueError: The SDK, or an exporter that the environment names, is not installed.
    """
    spans, measurements = exporters()
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Each process is an instance of its own, or the measurements of several workers would pass for one's.
    resource = Resource({"service.instance.id": str(uuid.uuid4())}).merge(Resource.create())
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "penstock-relay"}))
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        tracers = TracerProvider(resource=resource)
        for exporter in spans:
            tracers.add_span_processor(BatchSpanProcessor(exporter()))
        trace.set_tracer_provider(tracers)
    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        readers = [PeriodicExportingMetricReader(exporter()) for exporter in measurements]
        metrics.set_meter_provider(MeterProvider(readers, resource=resource))


def _named(variable: str, signal: str) -> list[Any]:
    found = []
    for name in os.environ.get(variable, "otlp").split(","):
        name = name.strip()
        if name in ("", "none"):
            continue
        if name == "otlp":
            name = _PROTOCOLS.get(os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), name)
        installed = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
        if not installed:
            package = f"opentelemetry-exporter-{name.replace('_', '-')}"
            raise ValueError(f"{variable}: no exporter {name!r} is installed: pip install {package}, or set it to none")
        found.append(next(iter(installed)).load())
    return found
