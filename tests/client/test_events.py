from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

import penstock
from penstock import AsyncClient, Event
from penstock.client.events import AnyStream, parser
from penstock.testing import reset, script, wait_request
from tests.client.peers import NDJSON, SSE, answer, chunked, fields_of, once, retries

pytestmark = pytest.mark.anyio


class Model(pydantic.BaseModel):
    n: int


@dataclass
class Point:
    n: int


def sse(body: bytes) -> bytes:
    return answer(body, "200 OK", f"Content-Type: {SSE}; charset=utf-8")


# -- events


async def test_events_have_type_data_and_id() -> None:
    body = b"\xef\xbb\xbfevent: a\nid: 7\ndata: x\ndata: y\n\n: comment\n\ndata\r\rdata: z\n\ndata: unfinished"
    async with (
        script(*once(sse(body))) as server,
        AsyncClient(server.url) as client,
        client.get("/").events() as events,
    ):
        assert [event async for event in events] == [
            Event("a", "x\ny", "7"),
            Event("message", "", "7"),
            Event("message", "z", "7"),
        ]
        assert events.last_event_id == "7"
        assert (events.metrics.failed, events.metrics.reason) == (1, "complete")


async def test_an_event_stream_is_asked_for(origin: str) -> None:
    async with script(once(sse(b"data: 1\n\n")), once(sse(b""))) as server, AsyncClient(server.url) as client:
        async with client.get("/").events() as events:
            assert events.last_event_id == ""
            assert [event.data async for event in events] == ["1"]
        await client.get("/").header("accept", "x/y").header("cache-control", "max-age=1").collect()
        first, second = map(fields_of, server.requests)
    assert (first["accept"], first["cache-control"]) == (SSE, "no-cache")
    assert (second["accept"], second["cache-control"]) == ("x/y", "max-age=1")


async def test_bytes_that_are_no_utf8_are_replaced_and_break_nothing(origin: str) -> None:
    async with AsyncClient(origin) as client:
        result = await client.get("/events?count=2&interval=0&malformed_after=1").collect()
        broken = [event for event in result.events if "�" in event.data]
        assert len(broken) == 1
        with pytest.raises(penstock.DecodeError, match="the data of the 'message' event is not JSON"):
            broken[0].json()


# -- models


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Model, [Model(n=1), Model(n=2)]),
        (Point, [Point(1), Point(2)]),
        (lambda value: value["n"] * 10, [10, 20]),
        (dict, [{"n": 1}, {"n": 2}]),
    ],
    ids=["pydantic", "dataclass", "function", "dict"],
)
async def test_events_as_values_of_a_model(origin: str, model: Callable[..., Any], values: list[Any]) -> None:
    async with AsyncClient(origin) as client:
        result = await client.get("/events?count=2&interval=0").events(model=model).collect()
    assert result.items == values


@pytest.mark.parametrize("model", [Model, Point], ids=["pydantic", "dataclass"])
async def test_a_payload_that_the_model_refuses_is_reported_and_left_out(
    model: Callable[..., Any], log: Callable[[str], list[str]]
) -> None:
    payloads = ['{"n": 1}', '{"m": 2}', "{", "", "[3]", '{"n": 4}']
    body = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    async with script(*once(sse(body))) as server, AsyncClient(server.url.replace("//", "//me:secret@")) as client:
        stream = client.get("/").events(model=model)
        result = await stream.collect()
    assert [value.n for value in result.items] == [1, 4]
    metrics = result.metrics
    assert (metrics.total, metrics.successful, metrics.failed, metrics.reason) == (6, 2, 4, "complete")
    lines = log("penstock.client")
    assert len(lines) == 4
    assert all(line.startswith(server.url) and "does not fit its model" in line for line in lines)
    assert not any("\n" in line or "secret" in line for line in lines)


async def test_a_stream_of_models_is_resumed_like_any_other(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(9)) as client:
        stream = client.get("/events?count=5&interval=0&cut_after=2").events(model=Model)
        assert [value.n for value in (await stream.collect()).items] == [1, 2, 3, 4, 5]
        assert stream.last_event_id == "5"


def test_a_parser_reads_events() -> None:
    event = Event("message", '{"n": 5}', "")
    assert parser(Model)(event) == Model(n=5)
    assert parser(Point)(event) == Point(5)
    assert parser(json.dumps)(event) == '{"n": 5}'


# -- records


async def test_records_are_the_values_of_each_line() -> None:
    body = b'{"a":1}\n\n[2]\r\n"3"\n4\nnull'
    async with (
        script(*once(answer(body, "200 OK", f"Content-Type: {NDJSON}"))) as server,
        AsyncClient(server.url) as client,
    ):
        result = await client.get("/").records().collect()
        assert result.items == [{"a": 1}, [2], "3", 4, None]
        assert fields_of(server.requests[0])["accept"] == NDJSON


@pytest.mark.parametrize(
    ("bad", "says"),
    [(b"{oops}\n", "record 2 is not JSON"), (b'"\xff"\n', "record 2 is not UTF-8"), (b"NaN\n", "not JSON")],
)
async def test_a_bad_record_ends_the_stream_after_the_good_ones(bad: bytes, says: str) -> None:
    raw = chunked(b"1\n" + bad + b"3\n", type=NDJSON)
    async with script(once(raw)) as server, AsyncClient(server.url, retry=retries(3)) as client:
        got = []
        with pytest.raises(penstock.DecodeError, match=says) as caught:
            async with client.get("/").records() as records:
                async for record in records:
                    got += [record]
        assert (got, server.connections, caught.value.category) == ([1], 1, "application")


async def test_records_that_broke_cannot_be_resumed() -> None:
    raw = chunked(b"1\n2\n", type=NDJSON, end=False)
    async with (
        script([wait_request(), raw, reset()], once(raw)) as server,
        AsyncClient(server.url, retry=retries(3)) as client,
    ):
        with pytest.raises(penstock.StreamTruncated) as caught:
            await client.get("/").records().collect()
        assert caught.value.collected == [1, 2]
        assert server.connections == 1


async def test_json_is_not_a_stream_of_records() -> None:
    async with (
        script(*once(answer(b"{}", "200 OK", "Content-Type: application/json"))) as server,
        AsyncClient(server.url) as client,
    ):
        with pytest.raises(penstock.ContentTypeError, match="application/json, not a stream of application/x-ndjson"):
            await client.get("/").records().collect()


# -- lines


async def test_lines_are_text_of_any_type() -> None:
    body = b"one\r\n\ntwo \xc3\xa9\rthree \xff\nlast"
    async with (
        script(*once(answer(body, "200 OK", "Content-Type: application/json"))) as server,
        AsyncClient(server.url) as client,
    ):
        result = await client.get("/").lines().collect()
    assert result.items == ["one", "", "two é", "three �", "last"]


async def test_lines_arrive_as_they_are_sent(origin: str) -> None:
    async with AsyncClient(origin) as client, client.get("/generate?chunks=1000&interval=0.02").lines() as lines:
        async for line in lines:
            assert line.startswith("Chunk 1 [")
            break
        assert lines.response is not None
        assert lines.response.bytes_received < 1000


# -- whatever comes


@pytest.mark.parametrize(
    ("type", "body", "items"),
    [
        (SSE, b"data: 1\n\n", [Event("message", "1", "")]),
        ("application/jsonl", b"1\n[2]\n", [1, [2]]),
        ("text/plain; charset=utf-8", b"a\nb", ["a", "b"]),
    ],
)
async def test_any_stream_goes_by_its_type(type: str, body: bytes, items: list[Any]) -> None:
    async with (
        script(*once(answer(body, "200 OK", f"Content-Type: {type}"))) as server,
        AsyncClient(server.url) as client,
    ):
        assert (await client.get("/").items(AnyStream).collect()).items == items


@pytest.mark.parametrize("type", ["text/html", "application/json", "image/png"])
async def test_any_stream_is_not_anything(type: str) -> None:
    async with (
        script(*once(answer(b"x", "200 OK", f"Content-Type: {type}"))) as server,
        AsyncClient(server.url) as client,
    ):
        says = f"this is {type}, not a stream of text/event-stream or application/x-ndjson or text/plain; check"
        with pytest.raises(penstock.ContentTypeError, match=says):
            await client.get("/").items(AnyStream).collect()


async def test_any_stream_is_resumed_only_where_it_has_ids(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(9)) as client:
        result = await client.get("/events?count=4&interval=0&cut_after=3").items(AnyStream).collect()
        assert [event.id for event in result.items] == ["1", "2", "3", "4"]
        with pytest.raises(penstock.StreamTruncated) as caught:
            await client.get("/generate?chunks=4&interval=0&cut_after=3").items(AnyStream).collect()
        assert len(caught.value.collected) == 3
