"""OpenTelemetry: one span and two histograms for each attempt, to the end of its body.

A span that ends at the headers measures how fast a stream began, and misses how it went on. Here it ends with the body,
and says with what: ::

    client.use(Tracing())

Names and meanings are those of OpenTelemetry's semantic conventions for HTTP clients; what they have no name for is
under ``penstock.``. Redirects happen within an attempt, so within its span: ``url.full`` is the URL that was asked for.

===========================  ===========  =====================================
the attempt                  span status  error.type
===========================  ===========  =====================================
complete, status below 400   unset
complete, 400 and above      ERROR        the status
failed before the headers    ERROR        the error's class, fully qualified
failed in the body           ERROR        the same; the status where it is 400 and above
cancelled by the caller      as its status says: a reader who leaves is no error
===========================  ===========  =====================================

A request that is relayed is told without its query, which is its reader's own, and its reader's trace context gives way
to the attempt's: the span that the reader's is the parent of stands between them.

Source: OpenTelemetry, Semantic Conventions for HTTP spans and HTTP metrics
"""

from __future__ import annotations

import re
import traceback
from dataclasses import replace
from importlib.metadata import version
from typing import TypeAlias
from urllib.parse import unquote

from opentelemetry import metrics, trace
from opentelemetry.propagate import get_global_textmap, inject

from penstock.client import seam
from penstock.client.request import Request, Send
from penstock.client.response import Response
from penstock.telemetry.attempt import Outcome, known_method, watched

Attributes: TypeAlias = dict[str, str | int | float]

# The conventions' bounds, and on to half an hour: a stream lasts longer than an answer.
DURATION_BOUNDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    30,
    60,
    120,
    300,
    600,
    1800,
)
FIRST_BYTE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)

# Signatures as the conventions list them, what stands beside those, and what API keys and tokens are called.
SECRETS = (
    *("AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature", "X-Goog-Credential"),
    *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token"),
    *("key", "(?:x-)?api[-_]?key", "(?:[a-z]+[-_])?token", "auth", "password", "(?:client[-_])?secret"),
)
# Neither looks ahead: a redirect's URL, as long as a server likes, is searched in one pass.
_SECRET = re.compile(rf"([?&](?:{'|'.join(SECRETS)})=)([^&#\s'\"]+)", re.IGNORECASE)
_CREDENTIALS = re.compile(r"://[^/?#\s@]*@")
_PUNCTUATION = ".,:;)"  # after a URL that stands in a sentence


class Tracing:
    """A middleware: a CLIENT span for each attempt, child of the current one, and histograms beside it.

    Added first, it is outermost: its span holds what the other middleware does, a wait for a place included.

    Args:
        tracer_provider: Where spans go; the global provider by default.
        meter_provider: Where measurements go; the global provider by default.
        propagate: Whether the request carries the span's context (``traceparent``, as the global propagator writes it).
            A request that has a ``traceparent`` keeps it, and is given nothing, unless it is relayed.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        propagate: bool = True,
    ) -> None:
        self._propagate = propagate
        self._tracer = trace.get_tracer("penstock", version("penstock"), tracer_provider)
        meter = metrics.get_meter("penstock", version("penstock"), meter_provider)
        self._duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests, to the end of the response's body.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._first_byte = meter.create_histogram(
            "penstock.client.time_to_first_byte",
            "s",
            "From before the request to the first byte of the response's body.",
            explicit_bucket_boundaries_advisory=FIRST_BYTE_BOUNDS,
        )

    async def __call__(self, request: Request, send: Send) -> Response:
        method = known_method(request.method)
        common: Attributes = {"http.request.method": method, **_server(request.url)}
        span = self._tracer.start_span(
            "HTTP" if method == "_OTHER" else method,
            kind=trace.SpanKind.CLIENT,
            attributes={**common, **_asked(request, method)},
        )

        async def within(request: Request) -> Response:
            # The response is not read in here: its reader has a context of his own.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                return await send(_carrying_context(request) if self._propagate else request)

        def tell(outcome: Outcome) -> None:
            common.update(_answered(outcome))
            if span.is_recording():
                _finish(span, request, outcome, common)
            span.end()
            # The histograms are told beside the span, so that a sampled one can be their exemplar.
            beside = trace.set_span_in_context(span)
            self._duration.record(outcome.seconds, {**common, "penstock.end": outcome.reason}, beside)
            if outcome.first_byte is not None:
                self._first_byte.record(outcome.first_byte, common, beside)

        return await watched(request, within, tell)


# -- what is told ------------------------------------------------------------------------------------------------------


def _asked(request: Request, method: str) -> Attributes:
    about: Attributes = {"url.full": shown(_full(request))}
    if method != request.method:
        about["http.request.method_original"] = request.method
    if request.attempt > 1:
        about["http.request.resend_count"] = request.attempt - 1
    if request.client:
        about["penstock.client"] = request.client
    return about


def _answered(outcome: Outcome) -> Attributes:
    about: Attributes = {}
    if outcome.status is not None:
        about["http.response.status_code"] = outcome.status
    if outcome.status is not None and outcome.status >= 400:
        about["error.type"] = str(outcome.status)
    elif outcome.error is not None:
        about["error.type"] = name_of(outcome.error)
    return about


def _finish(span: trace.Span, request: Request, outcome: Outcome, answered: Attributes) -> None:
    span.set_attributes({**answered, "penstock.end": outcome.reason, "penstock.bytes": outcome.bytes})
    if outcome.first_byte is not None:
        span.set_attribute("penstock.time_to_first_byte", outcome.first_byte)
    if outcome.response is not None and _place(outcome.response.url) != _place(request.url):
        span.set_attribute("penstock.redirected_to", shown(outcome.response.url))
    if (error := outcome.error) is not None:
        span.set_status(trace.StatusCode.ERROR, redacted(str(error)))
        # An error's message names the URL, and so may the messages of what caused it.
        told = {
            "exception.message": redacted(str(error)),
            "exception.stacktrace": redacted("".join(traceback.format_exception(error))),
        }
        span.record_exception(error, told)
    elif "error.type" in answered:
        span.set_status(trace.StatusCode.ERROR)


def _full(request: Request) -> str:
    """The URL that is asked for; of a relayed request without the query."""
    if request.target is None:
        return request.url
    path = request.target.decode("latin-1").partition("?")[0]
    return seam.origin_of(request.url) + path if path.startswith("/") else request.url


def shown(url: str) -> str:
    """The URL as it may be stored: credentials, and the values of parameters that hold secrets, are replaced."""
    bare = seam.shown(url)
    return redacted(bare if bare == url else bare.replace("://", "://REDACTED:REDACTED@", 1))


def redacted(text: str) -> str:
    """A text, an error's message or a traceback, with the URLs in it as they may be stored."""
    return _SECRET.sub(_named_only, _CREDENTIALS.sub("://REDACTED:REDACTED@", text))


def _named_only(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    return f"{name}REDACTED{value[len(value.rstrip(_PUNCTUATION)) :]}"


def _carrying_context(request: Request) -> Request:
    """The request with the current context in its headers; as it is where it carries one of its sender's."""
    if request.exact:  # what it carries is of the reader that it is relayed for
        ours = get_global_textmap().fields
        request = replace(request, headers=tuple(pair for pair in request.headers if pair[0].lower() not in ours))
    elif request.has_header("traceparent"):
        return request
    carrier: dict[str, str] = {}
    inject(carrier)
    added = ((name, value) for name, value in carrier.items() if not request.has_header(name))
    return replace(request, headers=(*request.headers, *added))


def _server(url: str) -> Attributes:
    scheme, _, authority = seam.origin_of(url).partition("://")
    host, _, port = authority.rpartition(":")
    if not port.isdecimal():  # none given, or the end of an IPv6 address
        host, port = authority, "443" if scheme == "https" else "80"
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _place(url: str) -> tuple[str, str]:
    """A URL, however it is written: its origin, and the rest without what is optional in it."""
    rest = seam.shown(url).partition("://")[2]
    at = min((index for mark in "/?#" if (index := rest.find(mark)) >= 0), default=len(rest))
    return seam.origin_of(url), unquote(rest[at:].partition("#")[0]).lstrip("/")


def name_of(error: Exception) -> str:
    """Its class, fully qualified, as error.type has it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
