"""The setting of each software that mends a finding.

Data: defaults are named where they are the trouble, versions where they matter. `mend` picks: what is on the way
alone, everything where nobody gave a name, and always, at the end, what works everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from penstock.doctor.hops import Software

Kind = Literal[
    "buffered",
    "coalesced",
    "compressed",
    "reframed",
    "timed-out",
    "cut-off",
    "miscoded",
    "outgrown",
    "truncated",
    "refused",
    "delayed",
    "content-type",
    "stripped",
    "ids",
    "last-event-id",
    "comments",
    "cached",
    "cacheable",
    "no-ids",
    "no-keep-alive",
    "cannot-tell",
]
"""What can be found."""


class Remedy(NamedTuple):
    """A setting.

    Attributes:
        software: Whose it is: a key of `hops.NAMES`, or "any".
        setting: As it is written there.
        says: What to know about it, "" where nothing.
    """

    software: Software
    setting: str
    says: str = ""


_BUFFERS = (
    Remedy("any", "X-Accel-Buffering: no", "on the server's answer; nginx and several platforms obey it"),
    Remedy("nginx", "proxy_buffering off;", "in the stream's location; it is on by default"),
    Remedy("caddy", "flush_interval -1", "in reverse_proxy; text/event-stream is flushed by itself"),
    Remedy(
        "haproxy",
        "option http-no-delay",
        "without it small pieces may wait 200 ms; a wait-for-body rule holds whole bodies",
    ),
    Remedy("apache", "ProxyPass … flushpackets=on", "for the stream's path"),
    Remedy(
        "traefik",
        "loadBalancer.responseForwarding.flushInterval: 1ms",
        "100ms by default, and no buffering middleware on the route; text/event-stream is flushed at once",
    ),
    Remedy("envoy", "no envoy.filters.http.buffer on the route", "Envoy streams unless a filter asks for whole bodies"),
    Remedy("cloudflare", "Content-Type: text/event-stream", "and Response Buffering off in the zone's settings"),
    Remedy("cloudfront", "Compress objects automatically: No", "for the stream's cache behaviour"),
    Remedy("aws", "responseTransferMode: STREAM", "API Gateway REST; a Lambda needs InvokeMode: RESPONSE_STREAM"),
    Remedy("azure", "enableResponseBuffering: false", "Application Gateway, global configuration"),
    Remedy("fly", "Content-Encoding set by the app", "Fly.io's proxy buffers what it compresses"),
    Remedy("varnish", "set beresp.do_stream = true;", "in vcl_backend_response; or pipe the request"),
    Remedy(
        "asgi",
        "StreamingResponse(async_generator())",
        "Starlette, FastAPI: a generator that blocks instead of awaiting holds everything",
    ),
    Remedy(
        "asgi", "StreamingHttpResponse(async_iterator)", "Django: under ASGI a sync iterator is consumed whole first"
    ),
    Remedy(
        "wsgi", "Response(stream_with_context(generate()))", "Flask: yield, never join; no middleware that reads bodies"
    ),
    Remedy("express", "res.flushHeaders(); res.write(…)", "and res.flush() after each write under compression()"),
    Remedy("nextjs", "compress: false", "in next.config.js; and return a Response with a ReadableStream"),
)

_TIMEOUTS = (
    Remedy("any", ": keep-alive", "a comment line from the server every 15 s keeps every hop awake"),
    Remedy("nginx", "proxy_read_timeout 1h;", "60 s by default, between two reads"),
    Remedy("caddy", "transport http { read_timeout 1h }", "none by default"),
    Remedy("haproxy", "timeout server 1h and timeout client 1h", "timeout tunnel is for upgraded connections only"),
    Remedy("apache", "ProxyTimeout 3600", "Timeout's 60 s by default"),
    Remedy("traefik", "respondingTimeouts.writeTimeout: 0", "of the entry point; it counts the whole answer"),
    Remedy(
        "envoy", "timeout: 0s and idle_timeout: 3600s", "on the route: 15 s for the whole, 5 min between, by default"
    ),
    Remedy("cloudflare", ": keep-alive within 100 s", "its limit between two reads; Enterprise: proxy_read_timeout"),
    Remedy("cloudfront", "Origin response timeout: 60", "30 s by default, between two packets"),
    Remedy("aws", "idle_timeout.timeout_seconds=3600", "Application Load Balancer, 60 s by default"),
    Remedy("google", "timeoutSec: 3600", "of the backend service: 30 s for the whole answer by default"),
    Remedy("heroku", ": keep-alive within 55 s", "its router's limit between two bytes cannot be set"),
    Remedy("vercel", "maxDuration", "of the function: it limits the whole answer"),
    Remedy("gunicorn", "--worker-class gthread", "a sync worker is killed after --timeout, 30 s"),
    Remedy("azure", "requestTimeout: 3600", "Application Gateway's backend setting, 20 s by default"),
)

REMEDIES: dict[Kind, tuple[Remedy, ...]] = {
    "buffered": _BUFFERS,
    "coalesced": _BUFFERS,
    "compressed": (
        Remedy("any", "Cache-Control: no-transform", "on the server's answer; Express and Cloudflare obey it"),
        Remedy("nginx", "gzip off;", "in the stream's location, or no text/event-stream and no * in gzip_types"),
        Remedy(
            "caddy", "encode { match { header Content-Type … } }", "name types without text/event-stream, not text/*"
        ),
        Remedy("haproxy", "compression type …", "name types without text/event-stream"),
        Remedy("apache", 'SetEnvIf Request_URI "^/stream" no-gzip', "or no text/event-stream for mod_deflate"),
        Remedy("traefik", "compress.excludedContentTypes: text/event-stream"),
        Remedy("envoy", "compressor: content_type without text/event-stream"),
        Remedy("cloudflare", "Compression Rule: disable", "for the stream's path"),
        Remedy("cloudfront", "Compress objects automatically: No", "for the stream's cache behaviour"),
        Remedy("fly", "Content-Encoding set by the app", "what is coded already is passed on as it is"),
        Remedy(
            "asgi",
            "GZipMiddleware of Starlette 1.5 or newer",
            "flushes each chunk; text/event-stream is left alone since 0.46; or exclude_content_types",
        ),
        Remedy(
            "asgi", 'response["Content-Encoding"] = "identity"', "Django: its GZipMiddleware leaves such answers alone"
        ),
        Remedy("wsgi", "COMPRESS_STREAMS = False", "Flask-Compress; from 1.21 on it compresses chunk by chunk"),
        Remedy("express", "compression({ filter })", "false for text/event-stream; or res.flush() after each write"),
        Remedy("nextjs", "compress: false", "in next.config.js"),
    ),
    "reframed": (
        Remedy("nginx", "chunked_transfer_encoding on;", "the default; some recipes for streams turn it off"),
        Remedy(
            "any", "HTTP/1.1 and Transfer-Encoding: chunked", "a body that ends with its connection has no proper end"
        ),
    ),
    "truncated": (
        Remedy(
            "nginx",
            'proxy_http_version 1.1; proxy_set_header Connection "";',
            "1.0 was the default before 1.29.7: there a server that breaks off looks as if it had ended",
        ),
        Remedy("any", "HTTP/1.1 with chunks between all hops", "over HTTP/1.0 a break and an end are the same"),
    ),
    "timed-out": _TIMEOUTS,
    "cut-off": (
        Remedy("envoy", "timeout: 0s", "on the route: 15 s for the whole answer by default"),
        Remedy("traefik", "respondingTimeouts.writeTimeout: 0", "of the entry point"),
        Remedy("google", "timeoutSec: 3600", "of the backend service: 30 s for the whole answer by default"),
        Remedy("vercel", "maxDuration", "of the function"),
        Remedy("aws", "the function's Timeout", "a Lambda ends with it, in mid-stream"),
        Remedy("gunicorn", "--worker-class gthread or an ASGI worker", "a sync worker is killed after --timeout, 30 s"),
        Remedy("any", "the server's log at that instant", "a crash, a restart and a limit on the whole look alike"),
    ),
    "miscoded": (
        Remedy("nginx", "no add_header Content-Encoding", "a name for the coding that nobody applies"),
        Remedy(
            "any", "one coder, and none after it", "a body coded twice, or undone under its old name, looks like this"
        ),
        Remedy("any", "a flush of the coder's own after each event", "a part of another stream in its midst breaks it"),
    ),
    "outgrown": (
        Remedy(
            "any", "smaller events, each line ended", "a reader must hold an event whole, and refuses one without end"
        ),
    ),
    "content-type": (
        Remedy("any", "Content-Type: text/event-stream", "on the server's answer; browsers refuse anything else"),
        Remedy("nginx", "no proxy_hide_header Content-Type, no default_type", "in the stream's location"),
    ),
    "stripped": (
        Remedy("nginx", "no proxy_hide_header, no proxy_ignore_headers", "or proxy_pass_header NAME;"),
        Remedy("caddy", "no header_down -NAME and no header -NAME"),
        Remedy("haproxy", "no http-response del-header NAME"),
        Remedy("apache", "no Header unset NAME"),
        Remedy("traefik", "no empty customResponseHeaders.NAME"),
        Remedy("envoy", "no response_headers_to_remove: NAME"),
        Remedy("cloudflare", "no Modify Response Header rule", "that removes it; under Rules"),
        Remedy("cloudfront", "no RemoveHeadersConfig", "in the response headers policy"),
    ),
    "ids": (Remedy("any", "pass the body on byte for byte", "whatever parses events and writes them anew drops ids"),),
    "comments": (
        Remedy("any", "pass the body on byte for byte", "whatever parses events and writes them anew drops comments"),
    ),
    "last-event-id": (
        Remedy("any", "read Last-Event-ID in the server", "and continue after it; 204 when there is nothing more"),
        Remedy("nginx", "proxy_set_header Last-Event-ID $http_last_event_id;", "and proxy_pass_request_headers on"),
        Remedy("caddy", "no header_up -Last-Event-ID"),
        Remedy("haproxy", "no http-request del-header Last-Event-ID"),
        Remedy("cloudfront", "Origin request policy: AllViewer", "it forwards few request headers by default"),
    ),
    "cached": (
        Remedy("any", "Cache-Control: no-store", "on the server's answer"),
        Remedy("nginx", "proxy_cache off;", "in the stream's location"),
        Remedy("varnish", "return (pass);", "in vcl_recv, for the stream's path"),
        Remedy("cloudflare", "Cache Rule: bypass", "for the stream's path"),
        Remedy("cloudfront", "Cache policy: CachingDisabled", "for the stream's behaviour"),
    ),
    "cacheable": (
        Remedy(
            "any", "Cache-Control: no-store, no-transform", "keeps caches and compressors away; on the server's answer"
        ),
    ),
    "no-ids": (Remedy("any", "id: CURSOR", "a line in each event lets a reader that comes back continue"),),
    "no-keep-alive": _TIMEOUTS,
}


def mend(kind: Kind, seen: Sequence[Software]) -> tuple[Remedy, ...]:
    """The remedies for a finding: those for what was seen on the way, or all; what works everywhere comes last.

    Args:
        kind: The finding's.
        seen: Who was seen on the way.
    """
    known = REMEDIES.get(kind, ())
    own = tuple(remedy for remedy in known if remedy.software in seen)
    chosen = own or tuple(remedy for remedy in known if remedy.software != "any")
    return chosen + tuple(remedy for remedy in known if remedy.software == "any")
