"""A relay that tells of itself: over real sockets, with the real SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Receive, Scope, Send

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.relay.app import Relay
from penstock.relay.operator.admin import Admin
from penstock.relay.settings.match import Match
from penstock.relay.settings.policy import OnDisconnect, Policy
from penstock.resilience.breaker import Breaker
from penstock.telemetry.opentelemetry import instrument_relay
from penstock.testing import serve
from tests.client.peers import free_port
from tests.relay.peers import answering, response, until, upstream
from tests.relay.readers import asking, fetch, origin, saying, settled, since, streams_of
from tests.relay.servers import Watched, watching
from tests.telemetry.recorded import Telemetry, attributes

pytestmark = pytest.mark.anyio

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = f"traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: theirs=1\r\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n'


@pytest.fixture
def instrumented(telemetry: Telemetry) -> Any:
    def make(upstream: str, **options: Any) -> Relay:
        relay = Relay(upstream, **{"store": "memory://", **options})
        instrument_relay(relay, telemetry.tracers, telemetry.meters)
        return relay

    return make


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def all_that_was_told(telemetry: Telemetry) -> str:
    """Every text of every span and of every measurement."""
    data = telemetry.reader.get_metrics_data()
    return "".join(span.to_json() for span in telemetry.ended) + ("" if data is None else data.to_json())


async def test_a_streams_reader_its_stream_and_its_upstream_are_one_trace(
    telemetry: Telemetry, instrumented: Any
) -> None:
    async with upstream(saying(b"data: 1\n\n", USAGE, b"data: [DONE]\n\n")) as up:
        relay = instrumented(up.url + "/base")
        async with serve(relay) as url:
            got = await fetch(url, "/v1/chat?api=mine", "POST", TRACED, b"{}")
            await settled(relay)
            await until(lambda: len(telemetry.ended) == 3)
    assert got.whole
    (reader,) = (span for span in telemetry.ended if span.kind is SpanKind.SERVER)
    (asked,) = (span for span in telemetry.ended if span.kind is SpanKind.CLIENT)
    (stream,) = telemetry.named("penstock.stream")
    assert {f"{span.context.trace_id:032x}" for span in telemetry.ended if span.context} == {TRACE}
    assert f"{parent_of(reader):016x}" == PARENT
    assert parent_of(asked) == parent_of(stream) == span_id(reader)
    # The upstream is told of the attempt, and not of the reader's own span.
    assert up.peers[0].all("traceparent") == [f"00-{TRACE}-{span_id(asked):016x}-01"]
    assert up.peers[0].all("tracestate") == ["theirs=1"]

    assert {span.status.status_code for span in telemetry.ended} == {StatusCode.UNSET}
    assert reader.name == "POST", "a gateway's default has no route"
    told = attributes(reader)
    assert re.fullmatch("[0-9a-f]{16}", told.pop("penstock.stream"))
    assert told == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/v1/chat",
        "server.address": "reader.test",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "penstock.end": "complete",
    }
    assert attributes(asked)["url.full"] == f"{up.url}/base/v1/chat"
    assert attributes(asked)["penstock.end"] == "complete"
    assert "penstock.redirected_to" not in attributes(asked)

    told = attributes(stream)
    assert told["penstock.stream"] == attributes(reader)["penstock.stream"]
    assert (told["penstock.end"], told["penstock.events"]) == ("done", 3)
    assert told["penstock.bytes"] == len(b"data: 1\n\n" + USAGE + b"data: [DONE]\n\n")
    assert (told["penstock.usage.input_tokens"], told["penstock.usage.output_tokens"]) == (7, 9)
    (first,) = stream.events
    assert first.name == "first_event"
    assert stream.start_time is not None
    assert stream.end_time is not None
    assert stream.start_time < first.timestamp <= stream.end_time
    assert reader.start_time is not None
    assert abs(stream.start_time - reader.start_time) < 5e9

    (duration,) = telemetry.points("http.server.request.duration")
    assert dict(duration.attributes or {}) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "penstock.end": "complete",
    }
    assert telemetry.counted("penstock.relay.events") == {(): 3}
    assert telemetry.counted("penstock.relay.bytes") == {(): told["penstock.bytes"]}
    assert [point.count for point in telemetry.points("penstock.relay.time_to_first_event")] == [1]
    (lasted,) = telemetry.points("penstock.relay.stream.duration")
    assert (lasted.count, dict(lasted.attributes or {})) == (1, {"penstock.end": "done"})
    for private in ("mine", got.stream, "127.0.0.1:" + url.rpartition(":")[2]):
        assert private not in all_that_was_told(telemetry)


async def test_one_that_stops_a_stream_ends_it_without_an_error(telemetry: Telemetry, instrumented: Any) -> None:
    async with origin() as up:
        relay = instrumented(up.url)
        async with serve(relay) as url, asking(url, "/events", more="Accept: text/event-stream\r\n") as first:
            call = await up.call()
            await call.head()
            await call.send(b"data: 1\n\n")
            await first.take_head()
            (stream,) = first.all("penstock-stream")
            assert telemetry.counted("penstock.relay.streams") == {(): 1}
            assert telemetry.counted("penstock.relay.readers") == {(): 1}
            stopped = await fetch(url, f"/_penstock/streams/{stream}", "DELETE")
            assert stopped.status == 204
            assert b"event: penstock.error" in await first.rest()
            again = await fetch(url, f"/_penstock/streams/{stream}?after=0")
            assert not again.whole
            await settled(relay)
            for path in ("health", "ready", "client.js"):
                assert (await fetch(url, f"/_penstock/{path}")).status == 200
            await until(lambda: len(telemetry.ended) == 5)
        assert telemetry.counted("penstock.relay.streams") == telemetry.counted("penstock.relay.readers") == {(): 0}
    (kept,) = telemetry.named("penstock.stream")
    readers = [span for span in telemetry.ended if span.kind is SpanKind.SERVER]
    assert {span.name for span in readers} == {
        "GET",
        "DELETE /_penstock/streams/{id}",
        "GET /_penstock/streams/{id}",
    }, "nobody is told of probes"
    for span in readers:
        assert span.status.status_code is StatusCode.UNSET
        if span.name != "GET":
            assert attributes(span)["url.path"] == attributes(span)["http.route"] == "/_penstock/streams/{id}"
    ends = {span.name: attributes(span)["penstock.end"] for span in readers}
    assert ends == {
        "GET": "cancelled",
        "GET /_penstock/streams/{id}": "cancelled",
        "DELETE /_penstock/streams/{id}": "complete",
    }
    assert attributes(kept)["penstock.end"] == "cancelled"
    assert kept.status.status_code is StatusCode.UNSET
    known = attributes(kept)["penstock.stream"]
    assert {attributes(span)["penstock.stream"] for span in readers if span.name.startswith("GET")} == {known}
    assert stream not in all_that_was_told(telemetry)


async def test_who_resumes_is_told_apart_and_the_upstream_is_asked_once(
    telemetry: Telemetry, instrumented: Any
) -> None:
    async with upstream(saying(b"data: 1\n\n", b"data: 2\n\n")) as up:
        relay = instrumented(up.url)
        async with serve(relay) as url:
            whole = await fetch(url, "/events")
            rest = await fetch(url, "/events", more=since(whole.ids[0]))
            await until(lambda: len(telemetry.named("GET")) == 3)
    assert rest.ids == whole.ids[1:]
    readers = [span for span in telemetry.ended if span.kind is SpanKind.SERVER]
    assert len({attributes(span)["penstock.stream"] for span in readers}) == 1
    assert len({span.context.trace_id for span in readers if span.context}) == 2
    assert len([span for span in telemetry.ended if span.kind is SpanKind.CLIENT]) == 1


async def test_a_reader_that_leaves_is_no_error_and_a_stream_that_breaks_is_one(
    telemetry: Telemetry, instrumented: Any
) -> None:
    async with origin() as up:
        relay = instrumented(up.url, policy=Policy(upstream=up.url, on_disconnect=OnDisconnect.parse("cancel")))
        async with serve(relay) as url:
            async with asking(url, "/leaves") as reader:
                call = await up.call()
                await call.head()
                await call.send(b"data: 1\n\n")
                await reader.take_head()
            await call.cancelled()
            async with asking(url, "/breaks") as reader:
                call = await up.call(1)
                await call.head()
                await call.send(b"data: 1\n\n")
                await reader.take_head()
                call.reset()
                await reader.rest()
            await settled(relay)
            await until(lambda: len(telemetry.ended) == 6)
    told = {}
    for span in telemetry.ended:
        about = attributes(span)
        path = about.get("url.path", about.get("url.full", "").removeprefix(up.url)) or about["penstock.end"]
        is_error = span.status.status_code is StatusCode.ERROR
        told[span.kind, path] = (is_error, about["penstock.end"], about.get("error.type"))
    assert told == {
        (SpanKind.SERVER, "/leaves"): (False, "cancelled", None),
        (SpanKind.CLIENT, "/leaves"): (False, "cancelled", None),
        (SpanKind.INTERNAL, "cancelled"): (False, "cancelled", None),
        (SpanKind.SERVER, "/breaks"): (True, "failed", "penstock.relay.downstream.subscriber.StreamBroken"),
        (SpanKind.CLIENT, "/breaks"): (True, "failed", "penstock.errors.StreamTruncated"),
        (SpanKind.INTERNAL, "error"): (True, "error", "error"),
    }
    ended = telemetry.points("penstock.relay.stream.duration")
    assert {((point.attributes or {})["penstock.end"], point.count) for point in ended} == {
        ("cancelled", 1),
        ("error", 1),
    }
    durations = telemetry.points("http.server.request.duration")
    assert {(dict(point.attributes or {})["penstock.end"], point.count) for point in durations} == {
        ("cancelled", 1),
        ("failed", 1),
    }


async def test_an_upstream_that_is_not_there_is_an_error_of_both(telemetry: Telemetry, instrumented: Any) -> None:
    with free_port() as port:
        relay = instrumented(f"http://127.0.0.1:{port}", store="none")
        async with serve(relay) as url:
            assert (await fetch(url, "/")).status == 502
            await until(lambda: len(telemetry.ended) == 2)
    asked, reader = telemetry.ended
    assert (asked.kind, reader.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert attributes(asked)["error.type"] == "penstock.errors.ConnectError"
    told = attributes(reader)
    assert (told["http.response.status_code"], told["error.type"], told["penstock.end"]) == (502, "502", "complete")
    assert {asked.status.status_code, reader.status.status_code} == {StatusCode.ERROR}
    assert telemetry.counted("penstock.relay.streams") == {(): 0}


async def test_a_route_is_told_as_it_is_configured_and_labels_are_nothing_else(
    telemetry: Telemetry, instrumented: Any
) -> None:
    async with upstream(answering(response())) as up:
        routes = (Policy(upstream=up.url, match=Match("/files/*/raw"), log="none"),)
        relay = instrumented(up.url, routes=routes, policy=Policy(upstream=up.url, breaker=Breaker()))
        for _ in range(2):  # an application may be started again
            async with serve(relay) as url:
                for n in range(2):
                    assert (await fetch(url, f"/files/{n}/raw", "PROPFIND")).status == 200
        await until(lambda: len(telemetry.ended) == 8)
        assert telemetry.counted("penstock.relay.circuit")[up.url, "closed"] == 1
    readers = [span for span in telemetry.ended if span.kind is SpanKind.SERVER]
    assert {span.name for span in readers} == {"HTTP /files/*/raw"}
    assert {attributes(span)["url.path"] for span in readers} == {"/files/0/raw", "/files/1/raw"}
    assert {attributes(span)["http.request.method_original"] for span in readers} == {"PROPFIND"}
    (duration,) = telemetry.points("http.server.request.duration")
    assert duration.count == 4
    assert (duration.attributes or {})["http.route"] == "/files/*/raw"
    assert (duration.attributes or {})["http.request.method"] == "_OTHER"


async def test_in_a_route_of_ones_own_the_readers_span_is_within_the_applications(
    telemetry: Telemetry, instrumented: Any
) -> None:
    relay = instrumented("http://127.0.0.1:9")
    app = FastAPI(lifespan=relay.lifespan)
    inside: list[int] = []

    def words() -> Iterator[str]:
        inside.append(trace.get_current_span().get_span_context().span_id)
        yield json.dumps({"usage": {"input_tokens": 3, "output_tokens": 4}})

    @app.post("/chat/{name}")
    async def chat(request: Request, name: str) -> Any:
        return await relay.stream(request, words, key=name)

    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/chat/a":
            await app(scope, receive, send)
            return
        tracer = telemetry.tracers.get_tracer("the application's")
        with tracer.start_as_current_span("theirs", kind=SpanKind.SERVER):
            await app(scope, receive, send)

    async with serve(within) as url:
        for name in ("a", "b"):
            assert (await fetch(url, f"/chat/{name}", "POST", TRACED)).whole
        await settled(relay)
        await until(lambda: len(telemetry.ended) == 5)
    (theirs,) = telemetry.named("theirs")
    nested, alone = telemetry.named("POST /chat/{name}")
    assert (nested.kind, parent_of(nested)) == (SpanKind.INTERNAL, span_id(theirs))
    assert (alone.kind, f"{parent_of(alone):016x}") == (SpanKind.SERVER, PARENT)
    assert inside == [span_id(nested), span_id(alone)], "what the generator does is within"
    for stream in telemetry.named("penstock.stream"):
        assert attributes(stream)["penstock.usage.output_tokens"] == 4
    (duration,) = telemetry.points("http.server.request.duration")
    assert duration.count == 1, "the application measures its own"


async def test_a_gap_is_counted_for_both(telemetry: Telemetry) -> None:
    async with origin() as up:
        relay = Relay(up.url, store=MemoryLog(retention=Retention(max_stream_bytes=20_000)))
        instrument_relay(relay, telemetry.tracers, telemetry.meters)
        admin = Admin(streams_of(relay), relay.routes, public="", store="memory://", hosts=("reader.test",))
        async with serve(relay) as url, serve(admin) as operator:
            async with asking(url) as reader:
                call = await up.call()
                await call.head()
                await reader.take_head()
                for _ in range(20):  # one at a time, so that this reader is never behind
                    await call.send(b"data: %b\n\n" % (b"x" * 2000))
                    await reader.chunk()
                await call.end()
                await reader.rest()
            await settled(relay)
            (path,) = reader.all("location")
            late = await fetch(url, f"{path}?after=0", more="Accept: text/event-stream\r\n")
            assert b"event: penstock.gap" in late.body
            plain = await fetch(url, f"{path}?after=0")
            assert plain.status == 410
            exposed = (await fetch(operator, "/_penstock/metrics")).body
        assert telemetry.counted("penstock.relay.gaps") == {(): 2}
    assert b"penstock_relay_gaps_total 2.0" in exposed
    assert b'penstock_relay_streams_ended_total{reason="done"} 1.0' in exposed


async def test_events_go_from_socket_to_socket_as_they_do_without(telemetry: Telemetry, instrumented: Any) -> None:
    # As cheap as before: each is written in the upstream's callback, and nobody else is called.
    seen: list[Watched] = []
    async with upstream(saying(*(b"data: %d\n\n" % n for n in range(50)))) as up:
        relay = instrumented(up.url)
        async with serve(watching(relay, seen)) as url:
            assert len((await fetch(url, "/")).ids) == 50
    (writer,) = seen
    assert writer.opened == 1


async def test_without_it_a_readers_trace_goes_through_as_it_came() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up, serve(Relay(up.url, store="memory://")) as url:
        await fetch(url, "/", more=TRACED)
    assert up.peers[0].all("traceparent") == [f"00-{TRACE}-{PARENT}-01"]


async def test_with_the_api_alone_a_readers_trace_goes_through_too() -> None:
    async with upstream(saying(b"data: 1\n\n")) as up:
        relay = Relay(up.url, store="memory://")
        instrument_relay(relay, trace.NoOpTracerProvider())
        async with serve(relay) as url:
            assert (await fetch(url, "/", more=TRACED)).whole
    assert up.peers[0].all("traceparent") == [f"00-{TRACE}-{PARENT}-01"]
