from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import penstock
from penstock import AsyncClient, ConcurrencyLimit
from penstock.client.request import Request, Send
from penstock.client.response import Response
from penstock.telemetry.opentelemetry import Tracing
from penstock.telemetry.opentelemetry.client import redacted, shown
from penstock.testing import close, pause, reset, script, wait_request
from tests.client.peers import SSE, answer, chunked, counting, fields_of, free_port, once, retries, until
from tests.telemetry.recorded import Telemetry, attributes

pytestmark = pytest.mark.anyio

LAST = "Connection: close"  # so that the next request does not meet a connection that is being closed


def exception_of(span: ReadableSpan) -> dict[str, Any]:
    (event,) = span.events
    assert event.name == "exception"
    return dict(event.attributes or {})


# -- how a span ends


async def test_a_span_lasts_to_the_end_of_the_body(telemetry: Telemetry) -> None:
    async with (
        script(wait_request(), chunked(b"12", b"345")) as server,
        AsyncClient(server.url, name="answers").use(telemetry.tracing()) as client,
        client.get("/a?b=c").send() as response,
    ):
        body = aiter(response)
        first = await anext(body)
        assert telemetry.ended == []
        rest = [piece async for piece in body]
        span = telemetry.only
    assert b"".join([first, *rest]) == b"12345"
    assert (span.name, span.kind, span.status.status_code) == ("GET", SpanKind.CLIENT, StatusCode.UNSET)
    assert span.parent is None
    told = attributes(span)
    first_byte = told.pop("penstock.time_to_first_byte")
    assert told == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.full": f"{server.url}/a?b=c",
        "http.response.status_code": 200,
        "penstock.client": "answers",
        "penstock.end": "complete",
        "penstock.bytes": 5,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < first_byte * 1e9 <= span.end_time - span.start_time


async def test_a_body_that_breaks_is_an_error_with_the_status_that_came(telemetry: Telemetry) -> None:
    async with (
        script(wait_request(), answer(b"12", length=5), close()) as server,
        AsyncClient(server.url, retry=0).use(telemetry.tracing()) as client,
    ):
        with pytest.raises(penstock.StreamTruncated) as caught:
            await client.get("/").read()
    span = telemetry.only
    told = attributes(span)
    assert told["http.response.status_code"] == 200
    assert told["error.type"] == "penstock.errors.StreamTruncated"
    assert (told["penstock.end"], told["penstock.bytes"]) == ("failed", 2)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(caught.value))
    recorded = exception_of(span)
    assert recorded["exception.type"] == "penstock.errors.StreamTruncated"
    assert recorded["exception.message"] == str(caught.value)
    assert str(caught.value) in recorded["exception.stacktrace"]


async def test_a_reader_who_leaves_is_no_error(telemetry: Telemetry) -> None:
    async with (
        script(wait_request(), chunked(b"12", end=False)) as server,
        AsyncClient(server.url).use(telemetry.tracing()) as client,
        client.get("/").send() as response,
    ):
        async for _ in response:
            break
    span = telemetry.only
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    told = attributes(span)
    assert (told["penstock.end"], told["penstock.bytes"], "error.type" in told) == ("cancelled", 2, False)


async def test_a_caller_who_is_cancelled_before_the_headers_is_no_error(telemetry: Telemetry) -> None:
    async with (
        script(wait_request()) as server,
        AsyncClient(server.url).use(telemetry.tracing()) as client,
    ):
        reading = asyncio.create_task(client.get("/").read())
        await until(lambda: bool(server.requests))
        assert telemetry.ended == []
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    span = telemetry.only
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    told = attributes(span)
    assert told["penstock.end"] == "cancelled"
    assert not {"http.response.status_code", "error.type"} & told.keys()


async def test_a_refused_connection_is_an_error_without_a_status(telemetry: Telemetry) -> None:
    with free_port() as port:
        async with AsyncClient(f"http://127.0.0.1:{port}", retry=0).use(telemetry.tracing()) as client:
            with pytest.raises(penstock.ConnectError) as caught:
                await client.get("/").read()
    span = telemetry.only
    told = attributes(span)
    assert (told["server.port"], told["error.type"]) == (port, "penstock.errors.ConnectError")
    assert "http.response.status_code" not in told
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(caught.value))
    assert exception_of(span)["exception.message"] == str(caught.value)


async def test_a_body_of_the_callers_that_breaks_is_an_error_of_its_own_kind(telemetry: Telemetry) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise KeyError("x")

    async with script(wait_request()) as server, AsyncClient(server.url, retry=0) as client:
        with pytest.raises(Exception, match="x"):
            await client.use(telemetry.tracing()).post("/").content(broken()).read()
    assert telemetry.only.status.status_code is StatusCode.ERROR
    assert exception_of(telemetry.only)["exception.type"] == attributes(telemetry.only)["error.type"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("200 OK", (StatusCode.UNSET, None)),
        ("304 Not Modified", (StatusCode.UNSET, None)),
        ("404 Not Found", (StatusCode.ERROR, "404")),
        ("503 Busy", (StatusCode.ERROR, "503")),
    ],
)
async def test_a_status_decides_as_the_conventions_say(
    telemetry: Telemetry, status: str, expected: tuple[StatusCode, str | None]
) -> None:
    async with script(wait_request(), answer(b"", status)) as server, AsyncClient(server.url, retry=0) as client:
        await client.use(telemetry.tracing()).get("/").read()
    span = telemetry.only
    assert (span.status.status_code, attributes(span).get("error.type")) == expected
    # Neither a description nor an exception: the status says it all.
    assert (span.status.description, span.events) == (None, ())


async def test_a_stream_of_events_ends_its_span_with_its_last_event(telemetry: Telemetry) -> None:
    body = chunked(b"data: 1\n\n", b"data: 2\n\n", type=SSE)
    async with script(*once(body)) as server, AsyncClient(server.url).use(telemetry.tracing()) as client:
        result = await client.post("/").json({}).collect()
    assert [event.data for event in result.events] == ["1", "2"]
    assert (telemetry.only.name, attributes(telemetry.only)["penstock.end"]) == ("POST", "complete")
    assert attributes(telemetry.only)["penstock.bytes"] == result.metrics.bytes


# -- attempts


async def test_each_attempt_has_a_span_and_counts_what_was_sent_before_it(telemetry: Telemetry) -> None:
    async with (
        script(once(reset()), once(answer(b"no", "503 Busy", LAST)), once(answer(b"12"))) as server,
        AsyncClient(server.url, retry=retries(2)).use(telemetry.tracing()) as client,
    ):
        with telemetry.tracers.get_tracer("app").start_as_current_span("work") as work:
            await client.get("/").read()
    *attempts, parent = telemetry.ended
    assert parent.name == "work"
    assert [attributes(span).get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [attributes(span).get("http.response.status_code") for span in attempts] == [None, 503, 200]
    assert [attributes(span).get("error.type") for span in attempts] == ["penstock.errors.ReadError", "503", None]
    assert [attributes(span)["penstock.end"] for span in attempts] == ["failed", "cancelled", "complete"]
    errors = [span.status.status_code is StatusCode.ERROR for span in attempts]
    assert errors == [True, True, False]
    # Siblings, each told apart upstream by the traceparent that it sent.
    assert {span.parent.span_id for span in attempts if span.parent} == {work.get_span_context().span_id}
    sent = [fields_of(request)["traceparent"].split("-")[1:3] for request in server.requests]
    assert sent == [
        [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"] for span in attempts if span.context
    ]


async def test_a_stream_that_resumes_has_a_span_for_each_part(telemetry: Telemetry) -> None:
    broken = chunked(b"id: 1\ndata: 1\n\n", type=SSE, end=False)
    rest = chunked(b"id: 2\ndata: 2\n\n", type=SSE)
    async with (
        script(once(broken), once(rest)) as server,
        AsyncClient(server.url, retry=retries(1)).use(telemetry.tracing()) as client,
    ):
        result = await client.get("/").collect()
    assert [event.id for event in result.events] == ["1", "2"]
    assert [attributes(span)["penstock.end"] for span in telemetry.ended] == ["failed", "complete"]
    assert [attributes(span).get("http.request.resend_count") for span in telemetry.ended] == [None, 1]


async def test_a_redirect_is_within_its_attempts_span(telemetry: Telemetry) -> None:
    async with script(once(answer(b"12"))) as target:
        away = answer(b"", "302 Found", f"Location: {target.url}/b?token=abc")
        async with script(once(away)) as server, AsyncClient(server.url).use(telemetry.tracing()) as client:
            await client.get("/a").read()
        sent = fields_of(server.requests[0])["traceparent"]
        assert fields_of(target.requests[0])["traceparent"] == sent
    told = attributes(telemetry.only)
    assert told["url.full"] == f"{server.url}/a"
    assert told["server.port"] == server.port
    assert told["penstock.redirected_to"] == f"{target.url}/b?token=REDACTED"
    assert (told["http.response.status_code"], told["penstock.bytes"]) == (200, 2)


@pytest.mark.parametrize("path", ["", "/", "?a=b", "/ä?q=a b%20c#top", "/a%2fb"])
async def test_a_url_that_is_only_written_differently_is_no_redirect(telemetry: Telemetry, path: str) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing()).request("GET", server.url.replace("http", "HTTP") + path).read()
    assert "penstock.redirected_to" not in attributes(telemetry.only)


async def test_waiting_for_a_place_is_in_the_span_of_the_outer_middleware(telemetry: Telemetry) -> None:
    async with (
        script(once(answer(b"", "200 OK", LAST)), once(answer())) as server,
        AsyncClient(server.url).use(telemetry.tracing(), ConcurrencyLimit(1)) as client,
    ):
        await asyncio.gather(*(client.get(f"/{number}").read() for number in range(2)))
    first, second = telemetry.ended
    assert first.end_time is not None
    assert second.start_time is not None
    assert second.start_time < first.end_time


# -- context


@pytest.fixture
def user() -> Iterator[None]:
    """Baggage in the current context."""
    token = context.attach(baggage.set_baggage("user", "u1"))
    yield
    context.detach(token)


@pytest.mark.usefixtures("user")
async def test_the_request_carries_the_spans_context(telemetry: Telemetry) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing()).get("/").read()
    sent = fields_of(server.requests[0])
    spans = telemetry.only.context
    assert spans is not None
    version, trace_id, span_id, flags = sent["traceparent"].split("-")
    assert (version, trace_id, span_id) == ("00", f"{spans.trace_id:032x}", f"{spans.span_id:016x}")
    assert int(flags, 16) & trace.TraceFlags.SAMPLED
    assert sent["baggage"] == "user=u1"


@pytest.mark.usefixtures("user")
async def test_a_request_that_carries_a_context_keeps_it_and_is_given_nothing(telemetry: Telemetry) -> None:
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing()).get("/").header("TraceParent", theirs).read()
    assert re.findall(rb"(?im)^(traceparent|tracestate|baggage): (.*)\r$", server.requests[0]) == [
        (b"TraceParent", theirs.encode())
    ]


@pytest.mark.usefixtures("user")
async def test_baggage_of_the_requests_own_is_kept_beside_the_spans_context(telemetry: Telemetry) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing()).get("/").header("Baggage", "user=u2").read()
    assert re.findall(rb"(?im)^baggage: (.*)\r$", server.requests[0]) == [b"user=u2"]
    assert "traceparent" in fields_of(server.requests[0])


async def test_a_request_can_be_left_as_it_is(telemetry: Telemetry) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing(propagate=False)).get("/").read()
    assert "traceparent" not in fields_of(server.requests[0])
    assert telemetry.only.name == "GET"


async def test_the_span_is_current_within_the_attempt_and_not_for_the_reader(telemetry: Telemetry) -> None:
    seen: list[trace.Span] = []

    async def inner(request: Request, send: Send) -> Response:
        seen.append(trace.get_current_span())
        return await send(request)

    before = trace.get_current_span()
    async with (
        script(wait_request(), chunked(b"1")) as server,
        AsyncClient(server.url).use(telemetry.tracing(), inner) as client,
        client.get("/").send() as response,
    ):
        async for _ in response:
            assert trace.get_current_span() is before
    assert [span.get_span_context() for span in seen] == [telemetry.only.context]


async def test_streams_at_once_keep_to_their_own_parents(telemetry: Telemetry) -> None:
    tracer = telemetry.tracers.get_tracer("app")
    count = 20

    async def work(client: AsyncClient, number: int) -> None:
        with tracer.start_as_current_span(f"work {number}"):
            await client.get(f"/{number}").read()

    async with (
        script(*[once(chunked(b"1", end=False), pause(0.001), b"0\r\n\r\n")] * count) as server,
        AsyncClient(server.url).use(telemetry.tracing()) as client,
    ):
        await asyncio.gather(*(work(client, number) for number in range(count)))
    parents = {span.context.span_id: span.name for span in telemetry.ended if span.context and not span.parent}
    pairs = {
        (parents[span.parent.span_id], attributes(span)["url.full"].rpartition("/")[2])
        for span in telemetry.ended
        if span.parent
    }
    assert pairs == {(f"work {number}", str(number)) for number in range(count)}


async def test_a_span_that_is_not_sampled_is_measured_all_the_same(telemetry: Telemetry) -> None:
    tracing = Tracing(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False), telemetry.meters)
    async with script(wait_request(), answer(b"1", length=5), close()) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.StreamTruncated):
            await client.use(tracing).get("/").retry(0).read()
    assert not int(fields_of(server.requests[0])["traceparent"][-2:], 16) & trace.TraceFlags.SAMPLED
    (point,) = telemetry.points("http.client.request.duration")
    assert point.count == 1


async def test_without_providers_the_global_ones_are_asked() -> None:
    # Nobody has set any in this process: what they do then is nothing, and so do we.
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        assert (await client.use(Tracing()).get("/").read()).content == b"ok"
    assert "traceparent" not in fields_of(server.requests[0])


# -- what may be told


async def test_a_method_that_nobody_knows_names_no_span(telemetry: Telemetry) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(server.url) as client:
        await client.use(telemetry.tracing()).request("PROPFIND", "/").read()
    told = attributes(telemetry.only)
    assert (telemetry.only.name, told["http.request.method"]) == ("HTTP", "_OTHER")
    assert told["http.request.method_original"] == "PROPFIND"
    (point,) = telemetry.points("http.client.request.duration")
    assert dict(point.attributes or {})["http.request.method"] == "_OTHER"


async def test_secrets_are_in_no_attribute_message_or_traceback(telemetry: Telemetry) -> None:
    with free_port() as port:
        url = f"http://me:hunter2@127.0.0.1:{port}/a?color=blue&sig=s3cret&api_key=s3cret&key=s3cret#top"
        async with AsyncClient(retry=0).use(telemetry.tracing()) as client:
            with pytest.raises(penstock.ConnectError):
                await client.get(url).read()
    span = telemetry.only
    place = f"127.0.0.1:{port}/a?color=blue&sig=REDACTED&api_key=REDACTED&key=REDACTED"
    assert attributes(span)["url.full"] == f"http://REDACTED:REDACTED@{place}"
    message = f"http://{place}: connection refused; is a server running there?"
    assert span.status.description == message
    assert exception_of(span)["exception.message"] == message
    assert message in exception_of(span)["exception.stacktrace"]
    everything = span.to_json()
    assert "s3cret" not in everything
    assert "hunter2" not in everything


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/a?b=c", "http://h/a?b=c"),
        ("http://u@h/", "http://REDACTED:REDACTED@h/"),
        ("http://u:p@q@h/x@y", "http://REDACTED:REDACTED@h/x@y"),
        ("http://h/?X-Amz-Signature=1&X-Amz-Date=2", "http://h/?X-Amz-Signature=REDACTED&X-Amz-Date=2"),
        ("http://h/?AWSAccessKeyId=1&Signature=2%2B", "http://h/?AWSAccessKeyId=REDACTED&Signature=REDACTED"),
        ("http://h/?X-Goog-Signature=1#sig=2", "http://h/?X-Goog-Signature=REDACTED#sig=2"),
        (
            "http://h/?access_token=1&csrf-token=2&tokens=3",
            "http://h/?access_token=REDACTED&csrf-token=REDACTED&tokens=3",
        ),
        ("http://h/?monkey=1&design=2&signal=3&sig=", "http://h/?monkey=1&design=2&signal=3&sig="),
        ("http://h/sig=1?SIG=1", "http://h/sig=1?SIG=REDACTED"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, expected: str) -> None:
    assert shown(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h/?sig=a.b: refused", "http://h/?sig=REDACTED: refused"),
        ("(see 'http://h/?sig=a'), it said", "(see 'http://h/?sig=REDACTED'), it said"),
        ("GET http://u:p@h/ by me@example.org", "GET http://REDACTED:REDACTED@h/ by me@example.org"),
        ("no URL: me@example.org, what? sig=1", "no URL: me@example.org, what? sig=1"),
    ],
)
def test_a_text_keeps_all_but_the_secrets(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_an_endless_url_of_a_redirect_is_searched_in_one_pass() -> None:
    # Were each position tried anew, this would take minutes, and the test's timeout would end it.
    assert redacted("http://h/?sig=" + ":" * 1_000_000 + "x") == "http://h/?sig=REDACTED"
    assert redacted("?" * 1_000_000).count("?") == 1_000_000
    assert len(redacted("://" * 300_000)) == 900_000


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("LOCALHOST", "localhost")]
)
async def test_the_server_is_told_as_it_was_named(telemetry: Telemetry, host: str, address: str) -> None:
    with free_port() as port:
        async with AsyncClient(retry=0).use(telemetry.tracing()) as client:
            with pytest.raises(penstock.ConnectError):
                await client.get(f"http://{host}:{port}/").read()
    told = attributes(telemetry.only)
    assert (told["server.address"], told["server.port"]) == (address, port)


async def test_the_schemes_port_is_told_where_none_was_named(telemetry: Telemetry) -> None:
    async def refuse(request: Request, send: Send) -> Response:
        raise penstock.ConnectError("not in a test", url=request.url)

    async with AsyncClient(retry=0).use(telemetry.tracing(), refuse) as client:
        for url in ("http://h.example", "https://h.example/", "https://[::1]/"):
            with pytest.raises(penstock.ConnectError):
                await client.get(url).read()
    told = [(attributes(span)["server.address"], attributes(span)["server.port"]) for span in telemetry.ended]
    assert told == [("h.example", 80), ("h.example", 443), ("::1", 443)]


# -- histograms


async def test_the_histograms_end_with_the_body(telemetry: Telemetry) -> None:
    gate = asyncio.Event()

    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"12", end=False))
        await gate.wait()
        writer.write(b"0\r\n\r\n")

    started_at = time.monotonic()
    async with (
        counting(slow) as server,
        AsyncClient(server.url).use(telemetry.tracing()) as client,
        client.get("/secret/path").send() as response,
    ):
        body = aiter(response)
        assert await anext(body) == b"12"
        to_first_byte = time.monotonic() - started_at
        assert telemetry.points("http.client.request.duration") == []
        gate.set()
        assert [piece async for piece in body] == []
        (duration,) = telemetry.points("http.client.request.duration")
        (first_byte,) = telemetry.points("penstock.client.time_to_first_byte")
    common = {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "http.response.status_code": 200,
    }
    assert dict(duration.attributes or {}) == {**common, "penstock.end": "complete"}
    assert dict(first_byte.attributes or {}) == common
    assert (duration.count, first_byte.count) == (1, 1)
    assert 0 < first_byte.sum < min(duration.sum, to_first_byte)
    assert duration.explicit_bounds[-1] == 1800
    span = telemetry.only
    assert span.start_time is not None
    assert span.end_time is not None
    assert duration.sum * 1e9 <= span.end_time - span.start_time
    assert [exemplar.span_id for exemplar in duration.exemplars] == [span.context and span.context.span_id]


async def test_each_kind_of_end_is_measured_apart(telemetry: Telemetry) -> None:
    async with (
        script(
            once(answer(b"1", "200 OK", LAST)),
            once(answer(b"1", length=5)),
            once(reset()),
            [wait_request(), chunked(b"1", end=False)],
        ) as server,
        AsyncClient(server.url, retry=0).use(telemetry.tracing()) as client,
    ):
        await client.get("/").read()
        for _ in range(2):
            with pytest.raises(penstock.PenstockError):
                await client.get("/").read()
        async with client.get("/").send() as response:
            async for _ in response:
                break
    points = telemetry.points("http.client.request.duration")
    told = [dict(point.attributes or {}) for point in points]
    assert {(each["penstock.end"], each.get("error.type"), each.get("http.response.status_code")) for each in told} == {
        ("complete", None, 200),
        ("failed", "penstock.errors.StreamTruncated", 200),
        ("failed", "penstock.errors.ReadError", None),
        ("cancelled", None, 200),
    }
    assert {point.count for point in points} == {1}
    assert sum(point.count for point in telemetry.points("penstock.client.time_to_first_byte")) == 3
