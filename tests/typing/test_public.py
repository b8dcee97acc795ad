"""What a type checker knows of the public API. mypy checks this file; nothing here is ever run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_type

import penstock
from penstock import (
    AsyncClient,
    BlockingEventStream,
    BlockingMultipartBuilder,
    BlockingRequestBuilder,
    BlockingResponse,
    BlockingStream,
    BufferedResponse,
    Client,
    Collected,
    End,
    Event,
    EventStream,
    LineStream,
    Metrics,
    ModelStream,
    MultipartBuilder,
    PenstockError,
    RecordStream,
    RequestBuilder,
    Response,
    State,
)

if TYPE_CHECKING:
    import httpx2


@dataclass
class Answer:
    text: str


async def pieces() -> AsyncIterator[bytes]:
    yield b""


async def clients(http: httpx2.AsyncClient) -> None:
    client = AsyncClient(
        "http://h",
        name="a",
        headers={"A": "1"},
        retry=penstock.Retry(retries=3, backoff=penstock.Backoff.quadratic()),
        breaker=penstock.Breaker(failure_threshold=3, recovery_timeout=30.0),
        timeout=penstock.Timeout(connect=5, first_event=30, between_events=60, total=None),
        limits=penstock.Limits(max_idle=100, max_idle_per_host=10, idle_timeout=90),
        http_client=http,
    )
    assert_type(client.use(penstock.Logging(), penstock.ConcurrencyLimit(3), penstock.Progress(print)), AsyncClient)
    assert_type(client.metrics, Metrics)
    assert_type(client.circuit_state(), State | None)
    async with AsyncClient(retry=3, timeout=30) as entered:
        assert_type(entered, AsyncClient)


def builders(client: AsyncClient) -> None:
    assert_type(client.get("/"), RequestBuilder)
    assert_type(client.request("REPORT", "/"), RequestBuilder)
    described = client.post("/").header("A", "1").headers({"B": "2"}).param("a", 1).json({}).timeout(30).retry(3)
    assert_type(described, RequestBuilder)
    assert_type(client.put("/").content(b"x"), RequestBuilder)
    assert_type(client.put("/").content("x"), RequestBuilder)
    assert_type(client.put("/").content(Path("x")), RequestBuilder)
    assert_type(client.put("/").content(pieces(), length=0), RequestBuilder)
    form = client.multipart("/").field("a", "b").field("c", b"d")
    assert_type(form, MultipartBuilder)
    assert_type(form.header("A", "1").timeout(30).file("f", "n", Path("x")), MultipartBuilder)
    assert_type(form.file("f", "n", pieces(), length=0, content_type="a/b"), MultipartBuilder)


async def sending(client: AsyncClient) -> None:
    response = await client.get("/").send()
    assert_type(response, Response)
    async with client.get("/").send() as entered:
        assert_type(entered, Response)
    async for piece in response:
        assert_type(piece, bytes)
    assert_type(response.status, int)
    assert_type(response.filename, str)
    assert_type(response.content_length, int | None)
    assert_type(response.raise_for_status(), Response)
    assert_type(await response.read(), bytes)
    assert_type(await response.text(), str)
    assert_type(await response.json(), Any)
    assert_type(response.end, End | None)
    assert_type(client.multipart("/").file("f", response.filename, response), MultipartBuilder)
    if response.end is not None:
        assert_type(response.end.reason, Literal["complete", "failed", "cancelled"])
        assert_type(response.end.error, PenstockError | None)


async def buffered(client: AsyncClient) -> None:
    response = await client.get("/").read(max_bytes=10)
    assert_type(response, BufferedResponse)
    assert_type(response.content, bytes)
    assert_type(response.text, str)
    assert_type(response.json(), Any)


async def streams(client: AsyncClient) -> None:
    assert_type(client.get("/").events(), EventStream)
    async with client.get("/").events() as events:
        assert_type(events, EventStream)
        async for event in events:
            assert_type(event, Event)
            assert_type(event.data, str)
        assert_type(events.last_event_id, str)
        assert_type(events.metrics, Metrics)
        assert_type(events.response, Response | None)
    assert_type(await client.get("/").events().collect(), Collected[Event])
    assert_type(await client.get("/").collect(max_events=1), Collected[Event])

    typed = client.get("/").events(model=Answer)
    assert_type(typed, ModelStream[Answer])
    async for answer in typed:
        assert_type(answer, Answer)
    assert_type((await typed.collect()).items, list[Answer])
    assert_type(client.get("/").events(model=int), ModelStream[int])

    assert_type(client.get("/").records(), RecordStream)
    async for record in client.get("/").records():
        assert_type(record, Any)

    assert_type(client.get("/").lines(), LineStream)
    async for line in client.get("/").lines():
        assert_type(line, str)
    assert_type((await client.get("/").lines().collect()).items, list[str])


async def metrics(client: AsyncClient) -> None:
    result = await client.get("/").collect()
    assert_type(result.events, list[Event])
    assert_type(result.metrics.total, int)
    assert_type(result.metrics.first_event, float | None)
    assert_type(result.metrics.success_rate, float)
    assert_type(result.metrics.to_dict(), dict[str, float | int | str | None])


async def middleware(request: penstock.Request, send: Any) -> Response:
    assert_type(request.method, str)
    assert_type(request.attempt, int)
    response: Response = await send(request)
    return response


def a_middleware() -> penstock.Middleware:
    return middleware


def errors(error: PenstockError) -> None:
    assert_type(error.category, Literal["network", "server", "stream", "application"])
    assert_type(error.url, str | None)
    match error:
        case penstock.StatusError():
            assert_type(error.status, int)
            assert_type(error.retry_after, str | None)
            assert_type(error.body, bytes)
        case penstock.RetriesExhausted():
            assert_type(error.last, PenstockError)
            assert_type(error.attempts, int)
        case penstock.CircuitOpenError():
            assert_type(error.retry_after, float)
        case penstock.ConnectError():
            assert_type(error.reason, str)
        case _:
            pass


async def pipes() -> None:
    report = await penstock.pipe("http://a/file", "http://b/upload", field="file", digest="sha256")
    assert_type(report, penstock.Report)
    assert_type(report.bytes, int)
    await penstock.pipe(Path("x"), penstock.Put("http://b/x"))
    await penstock.pipe(
        penstock.Source(pieces(), length=0), penstock.Multipart("http://b/upload", form={"owner": "me"})
    )


def blocking(client: Client, rows: Iterator[bytes]) -> None:
    assert_type(client.use(penstock.Logging()), Client)
    assert_type(client.metrics, Metrics)
    assert_type(client.circuits, dict[str, State])
    with Client("http://h", retry=3, timeout=penstock.Timeout(connect=5)) as entered:
        assert_type(entered, Client)
    builder = client.post("/").json({"a": 1}).header("A", "1").timeout(30).retry(5)
    assert_type(builder, BlockingRequestBuilder)
    assert_type(builder.content(rows).content(b"a").content(Path("x")), BlockingRequestBuilder)
    form = client.multipart("/upload").field("a", "b").file("f", "n", rows, length=3).header("A", "1")
    assert_type(form, BlockingMultipartBuilder)

    response = builder.send()
    assert_type(response, BlockingResponse)
    with response as entered_response:
        assert_type(entered_response, BlockingResponse)
    for piece in response:
        assert_type(piece, bytes)
    assert_type(response.status, int)
    assert_type(response.raise_for_status(), BlockingResponse)
    assert_type(response.read(max_bytes=3), bytes)
    assert_type(response.text(), str)
    assert_type(response.end, End | None)
    assert_type(client.multipart("/").file("f", response.filename, response), BlockingMultipartBuilder)
    assert_type(builder.read(max_bytes=3), BufferedResponse)

    with client.get("/").events() as events:
        assert_type(events, BlockingEventStream[Event])
        for event in events:
            assert_type(event, Event)
        assert_type(next(events), Event)
        assert_type(events.last_event_id, str)
        assert_type(events.metrics, Metrics)
        assert_type(events.response, BlockingResponse | None)
        assert_type(events.collect(max_events=3), Collected[Event])
    typed = client.get("/").events(model=Answer, reconnect="never")
    assert_type(typed, BlockingEventStream[Answer])
    for answer in typed:
        assert_type(answer, Answer)
    assert_type(typed.collect().items, list[Answer])
    assert_type(client.get("/").records(), BlockingStream[Any])
    assert_type(client.get("/").lines(), BlockingStream[str])
    assert_type(client.get("/").items(LineStream), BlockingStream[str])
    assert_type(client.get("/").collect(), Collected[Event])
