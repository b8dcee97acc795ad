"""OpenTelemetry for a relay: who asked, what ran, and what the upstream was asked; each told at its end.

::

    instrument_relay(relay)

===========  ========  ===================================  ==========================================================
span         kind      lasts                                child of
===========  ========  ===================================  ==========================================================
the reader   SERVER    from the request to the end of its   what the request's ``traceparent`` names
                       answer, whole or not
the stream   INTERNAL  from the request that began it to    that request's span, which may have ended long before: a
                       its one end                          stream outlives its readers
the attempt  CLIENT    as `Tracing` has it                  the same; its ``traceparent`` goes to the upstream
===========  ========  ===================================  ==========================================================

Where a span is current already, an application's that the relay is a part of, the reader's is INTERNAL and its child,
and the duration of the request is that application's to measure.

An id opens a stream to whoever has it, where there are no owners: what is told of it is the beginning of its SHA-256,
by which the spans of several readers, in several processes, are still found together. Queries, keys, owners, addresses
of readers and what goes by are not told.

Source: OpenTelemetry, Semantic Conventions for HTTP spans and HTTP metrics
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from urllib.parse import quote

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.propagate import extract, get_global_textmap
from starlette.requests import Request

from penstock.resilience.breaker import State
from penstock.telemetry.attempt import known_method
from penstock.telemetry.opentelemetry.client import (
    DURATION_BOUNDS,
    FIRST_BYTE_BOUNDS,
    Attributes,
    Tracing,
    name_of,
    redacted,
)
from penstock.telemetry.relayed import Answer, Relayed, StreamEnd

STREAMS = "/_penstock/streams/"
UNTOLD = frozenset({"/_penstock/health", "/_penstock/ready", "/_penstock/client.js"})
"""What is asked for every few seconds by those who only want to know whether we are here, and a file."""

# What providers call the two; the conventions' own names are not stable yet.
TOKENS = {
    "penstock.usage.input_tokens": ("input_tokens", "prompt_tokens"),
    "penstock.usage.output_tokens": ("output_tokens", "completion_tokens"),
}


def instrument_relay(
    relay: Relayed,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> None:
    """Have a relay tell of its readers, its streams and its attempts at the upstream. Once for each relay.

    Args:
        relay: The `Relay`.
        tracer_provider: Where spans go; the global provider by default.
        meter_provider: Where measurements go; the global provider by default.
    """
    relay.use(Tracing(tracer_provider, meter_provider))
    tracer = trace.get_tracer("penstock", version("penstock"), tracer_provider)
    meter = metrics.get_meter("penstock", version("penstock"), meter_provider)
    _observe_running(relay, meter)
    relay.watch(asked=_Readers(tracer, meter).asked, settled=_Ends(tracer, meter).settled)


# -- readers ----------------------------------------------------------------------------------------------------------


class _Readers:
    """A span for each request of a reader's, and how long it took."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests, to the end of the response's body.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._gaps = meter.create_counter(
            "penstock.relay.gaps", "{gap}", "Readers that were told that what they asked for is no longer kept."
        )

    def asked(self, request: Request) -> Callable[[Answer, BaseException | None], None]:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path in UNTOLD:
            return _nothing
        around = trace.get_current_span().get_span_context()
        nested = around.is_valid and not around.is_remote
        parent = None if nested else extract(_carried(request))
        method = known_method(request.method)
        name = "HTTP" if method == "_OTHER" else method
        common: Attributes = {
            "http.request.method": method,
            "url.scheme": "https" if request.scope.get("scheme") == "https" else "http",
        }
        hosts_route = getattr(request.scope.get("route"), "path", None)
        span = self._tracer.start_span(
            name,
            parent,
            kind=trace.SpanKind.INTERNAL if nested else trace.SpanKind.SERVER,
            attributes={**common, **_asked(request, method, hidden=path.startswith(STREAMS))},
        )
        token = contexts.attach(trace.set_span_in_context(span, parent))
        started_at = time.monotonic()

        def over(answer: Answer, error: BaseException | None) -> None:
            contexts.detach(token)
            if (route := answer.route or hosts_route) is not None:
                common["http.route"] = route
                span.update_name(f"{name} {route}")
            common.update(_answered(answer, error))
            if span.is_recording():
                span.set_attributes(common)
                if answer.stream is not None:
                    span.set_attribute("penstock.stream", _known_by(answer.stream.id))
                if "error.type" in common:
                    span.set_status(trace.StatusCode.ERROR)
            span.end()
            beside = trace.set_span_in_context(span)
            if not nested:
                self._duration.record(time.monotonic() - started_at, common, beside)
            if answer.gaps:
                self._gaps.add(answer.gaps, context=beside)

        return over


def _nothing(answer: Answer, error: BaseException | None) -> None:
    pass


def _carried(request: Request) -> dict[str, list[str]]:
    """The fields that a trace's context is in."""
    return {name: request.headers.getlist(name) for name in get_global_textmap().fields}


def _asked(request: Request, method: str, *, hidden: bool) -> Attributes:
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    about: Attributes = {"url.path": f"{STREAMS}{{id}}" if hidden else raw.decode("latin-1").partition("?")[0]}
    if method != request.method:
        about["http.request.method_original"] = request.method
    named = request.headers.get("host", "")[:255]
    host, _, port = named.rpartition(":")
    if not port.isdecimal():  # none given, or the end of an IPv6 address
        host, port = named, ""
    if host:
        about["server.address"] = host.strip("[]")
    if port:
        about["server.port"] = int(port)
    if protocol := request.scope.get("http_version"):
        about["network.protocol.version"] = protocol
    return about


def _answered(answer: Answer, error: BaseException | None) -> Attributes:
    """How an answer ended. A reader who leaves, or a stream that was stopped, is no error."""
    stopped = (
        answer.stream is not None and answer.stream.ended is not None and answer.stream.ended.reason == "cancelled"
    )
    about: Attributes = {"penstock.end": "cancelled"}
    if answer.status is not None:
        about["http.response.status_code"] = answer.status
    if answer.whole:
        about["penstock.end"] = "complete"
    elif isinstance(error, Exception) and not stopped:
        about |= {"penstock.end": "failed", "error.type": name_of(error)}
    if answer.status is not None and answer.status >= 500:
        about["error.type"] = str(answer.status)
    return about


# -- streams ----------------------------------------------------------------------------------------------------------


class _Ends:
    """A span for each stream that has ended, with the time it took, and what went by in all."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._events = meter.create_counter("penstock.relay.events", "{event}", "Events of streams that have ended.")
        self._bytes = meter.create_counter(
            "penstock.relay.bytes", "By", "Bytes of streams that have ended, as the upstream sent them."
        )
        self._duration = meter.create_histogram(
            "penstock.relay.stream.duration",
            "s",
            "From a stream's start to its end; its count is that of the streams that have ended.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._first = meter.create_histogram(
            "penstock.relay.time_to_first_event",
            "s",
            "From a stream's start to its first event.",
            explicit_bucket_boundaries_advisory=FIRST_BYTE_BOUNDS,
        )

    def settled(self, end: StreamEnd) -> None:
        began = end.ended_at - end.duration
        span = self._tracer.start_span(
            "penstock.stream", attributes=_of_stream(end), start_time=_ns(began), kind=trace.SpanKind.INTERNAL
        )
        if end.first_event is not None:
            span.add_event("first_event", timestamp=_ns(began + end.first_event))
        if end.reason in ("error", "producer_lost"):
            span.set_status(trace.StatusCode.ERROR, redacted(end.detail))
        span.end(_ns(end.ended_at))
        beside = trace.set_span_in_context(span)
        self._events.add(end.event_count, context=beside)
        self._bytes.add(end.byte_count, context=beside)
        self._duration.record(end.duration, {"penstock.end": end.reason}, beside)
        if end.first_event is not None:
            self._first.record(end.first_event, context=beside)


def _of_stream(end: StreamEnd) -> Attributes:
    about: Attributes = {
        "penstock.stream": _known_by(end.id),
        "penstock.end": end.reason,
        "penstock.events": end.event_count,
        "penstock.bytes": end.byte_count,
    }
    if end.first_event is not None:
        about["penstock.time_to_first_event"] = end.first_event
    if end.reason in ("error", "producer_lost"):
        about["error.type"] = end.reason
    for name, theirs in TOKENS.items():
        told = [count for each in theirs if isinstance(count := (end.usage or {}).get(each), int)]
        if told:
            about[name] = told[0]
    return about


def _known_by(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:16]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


# -- what runs --------------------------------------------------------------------------------------------------------


def _observe_running(relay: Relayed, meter: metrics.Meter) -> None:
    """Have what runs now read whenever it is exported, from whichever thread that is."""

    def streams(options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(len(relay.kept.sessions) if relay.kept else 0)

    def readers(options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(sum(each.readers for each in relay.kept.sessions) if relay.kept else 0)

    def circuits(options: CallbackOptions) -> Iterable[Observation]:
        for upstream, current in {route.upstream: route.client.circuit_state() for route in relay.routes}.items():
            for state in State if current is not None else ():
                yield Observation(int(state is current), {"penstock.upstream": upstream, "penstock.state": state.value})

    make = meter.create_observable_up_down_counter
    make("penstock.relay.streams", [streams], "{stream}", "Streams that run here.")
    make("penstock.relay.readers", [readers], "{reader}", "Readers of streams that run here.")
    meter.create_observable_gauge(
        "penstock.relay.circuit", [circuits], "1", "1 for the state that an upstream's circuit breaker is in."
    )
