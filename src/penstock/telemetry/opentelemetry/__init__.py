"""OpenTelemetry: spans and measurements that end with the body, of a client and of a relay.

client       Tracing: a middleware; a CLIENT span for each attempt
relay        instrument_relay: a SERVER span for each reader, a span for each stream, and the attempts at the upstream
environment  providers as the ``OTEL_`` environment has them, for a program that has set up none
"""

try:
    import opentelemetry.trace  # noqa: F401 (whether it is there)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"penstock.telemetry.opentelemetry needs OpenTelemetry's API ({error}): pip install 'penstock[opentelemetry]'",
        name=error.name,
    ) from None

from penstock.telemetry.opentelemetry.client import Tracing
from penstock.telemetry.opentelemetry.relay import instrument_relay

__all__ = ["Tracing", "instrument_relay"]
