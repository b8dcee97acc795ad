"""What is tried again, how often, and what may go on once a stream has begun: the client's settings, on the wire."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Backoff, Breaker, Retry, State
from penstock.client.notices import Interrupted, Notice, Replayed
from penstock.resilience.budget import RetryBudget
from penstock.resilience.classify import Cause
from penstock.testing import close, pause, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import (
    NDJSON,
    SSE,
    answer,
    chunk,
    chunked,
    counting,
    fields_of,
    free_port,
    once,
    retries,
    until,
)

pytestmark = pytest.mark.anyio

BUSY = answer(b"later", "503 Busy", "Retry-After: 0")
SLOW_DOWN = answer(b"slow", "429 Slow Down", "Retry-After: 0")


def numbered(first: int, last: int, *, end: bool = False) -> bytes:
    events = (f"id: {number}\ndata: {number}\n\n".encode() for number in range(first, last + 1))
    return chunked(*events, type=SSE, end=end)


def plain(*data: str, end: bool = False) -> bytes:
    return chunked(*(f"data: {each}\n\n".encode() for each in data), type=SSE, end=end)


def cut(*steps: Step) -> list[Step]:
    return [wait_request(), *steps, reset()]


# -- failures in a row


async def test_a_stream_may_break_more_often_than_retries_while_it_gets_on() -> None:
    breaks = [cut(numbered(number, number)) for number in range(1, 11)]
    async with (
        script(*breaks, once(numbered(11, 11, end=True))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        result = await client.get("/").collect()
    assert [event.id for event in result.events] == [str(number) for number in range(1, 12)]
    assert (result.metrics.retries, result.metrics.reconnects, result.metrics.reason) == (10, 10, "complete")


async def test_and_is_given_up_once_it_does_not() -> None:
    stuck = cut(plain())
    async with script(cut(numbered(1, 1)), stuck, cut(numbered(2, 2)), stuck, stuck, stuck) as server:
        async with AsyncClient(server.url, retry=retries(2)) as client:
            with pytest.raises(penstock.RetriesExhausted, match="gave up after 5 attempts") as caught:
                await client.get("/").collect()
        assert server.connections == 5
    assert [event.id for event in caught.value.collected] == ["1", "2"]
    assert isinstance(caught.value.last, penstock.StreamTruncated)
    assert [event.id for event in caught.value.last.collected] == ["1", "2"]
    assert caught.value.category == "stream"


async def test_a_comment_or_a_replayed_event_is_no_progress() -> None:
    alive = cut(chunked(b": here\n\n", type=SSE, end=False))
    again = cut(numbered(1, 1))
    async with script(cut(numbered(1, 2)), alive, again, alive) as server:
        async with AsyncClient(server.url, retry=retries(2)) as client:
            with pytest.raises(penstock.RetriesExhausted):
                await client.get("/").collect()
        assert server.connections == 3


# -- a server that plays again what it had played


async def test_a_replay_that_breaks_too_does_not_take_the_reader_back() -> None:
    async with script(
        cut(numbered(1, 5)), cut(numbered(1, 3)), cut(numbered(1, 2)), once(numbered(1, 7, end=True))
    ) as s:
        async with AsyncClient(s.url, retry=retries(3)) as client:
            result = await client.get("/").collect()
        assert [fields_of(request).get("last-event-id") for request in s.requests] == [None, "5", "5", "5"]
    assert [event.id for event in result.events] == list("1234567")
    assert result.metrics.replayed == 3 + 2 + 5


async def test_a_replay_that_ends_where_the_stream_broke_is_its_end() -> None:
    async with (
        script(cut(numbered(1, 3)), once(numbered(1, 3, end=True))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        result = await client.get("/").collect()
    assert [event.id for event in result.events] == list("123")
    assert (result.metrics.replayed, result.metrics.reason) == (3, "complete")


async def test_a_replay_that_ends_before_it_comes_to_the_break_is_truncated() -> None:
    async with (
        script(cut(numbered(1, 3)), *[once(numbered(1, 2, end=True))] * 2) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        with pytest.raises(penstock.PenstockError, match="ended before it came to the break") as caught:
            await client.get("/").collect()
    assert caught.value.category == "stream"


async def test_pings_that_a_model_is_not_given_are_replayed_like_all_others() -> None:
    ping = b"event: ping\ndata: {}\n\n"
    first = chunked(b"id: 1\ndata: 1\n\n", ping, ping, b"data: 2\n\n", type=SSE, end=False)
    last = b"event: message_stop\ndata: {}\n\n"
    whole = chunked(b"id: 1\ndata: 1\n\n", ping, ping, b"data: 2\n\n", b"data: 3\n\n", last, type=SSE)
    async with script(cut(first), once(whole)) as server, AsyncClient(server.url, retry=retries(1)) as client:
        stream = client.get("/").events(model=lambda value: value, terminator="anthropic")
        items = (await stream.collect()).items
    assert [item for item in items if item != {}] == [1, 2, 3]


# -- after_first_event="restart"


async def test_a_restart_is_only_for_those_who_ask_and_begins_anew() -> None:
    restarting = Retry(retries=1, backoff=Backoff(initial=0), after_first_event="restart")
    for whole in (plain("a", "b", "c", end=True), chunked(b"1\n2\n", type=NDJSON), chunked(b"x\ny\n")):
        part = whole.removesuffix(b"0\r\n\r\n")[:-3]
        async with script(cut(part), once(whole)) as server, AsyncClient(server.url, retry=restarting) as client:
            request = client.get("/")
            kind: Any = request.events() if b"event-stream" in whole else request.lines()
            kind = request.records() if b"ndjson" in whole else kind
            result = await kind.collect()
        assert len(result.items) > len(set(result.items)), "what had come comes again"
        metrics = result.metrics
        assert (metrics.restarts, metrics.reconnects, metrics.retries, metrics.replayed) == (1, 1, 1, 0)
        assert metrics.reason == "complete"


async def test_where_there_is_an_id_even_who_asks_for_a_restart_gets_a_resume() -> None:
    restarting = Retry(retries=1, backoff=Backoff(initial=0), after_first_event="restart")
    async with (
        script(cut(numbered(1, 2)), once(numbered(3, 3, end=True))) as server,
        AsyncClient(server.url, retry=restarting) as client,
    ):
        result = await client.get("/").collect()
    assert [event.id for event in result.events] == ["1", "2", "3"]
    assert (result.metrics.restarts, result.metrics.reconnects) == (0, 1)


async def test_a_post_is_restarted_only_if_it_is_safe() -> None:
    restarting = Retry(retries=1, backoff=Backoff(initial=0), after_first_event="restart")
    async with (
        script(cut(plain("a")), cut(plain("a")), once(plain("a", end=True))) as server,
        AsyncClient(server.url, retry=restarting) as client,
    ):
        with pytest.raises(penstock.StreamTruncated):
            await client.post("/").json({}).collect()
        assert server.connections == 1
        result = await client.post("/").json({}).header("Idempotency-Key", "k").collect()
    assert [event.data for event in result.events] == ["a", "a"]


# -- per cause


@pytest.mark.parametrize(
    ("per_cause", "steps", "attempts"),
    [
        ({"throttled": 4}, once(SLOW_DOWN), 5),
        ({"throttled": 0}, once(SLOW_DOWN), 1),
        ({"unavailable": 3}, once(BUSY), 4),
        ({"lost": 0}, [wait_request(), reset()], 1),
        ({"lost": 3}, [wait_request(), reset()], 4),
        ({"truncated": 0}, cut(plain()), 1),
        ({"truncated": 3}, cut(plain()), 4),
        ({"status": 2}, once(answer(b"", "404 No")), 3),
        ({"content_type": 2}, once(answer(b"<p>", "200 OK", "Content-Type: text/html")), 3),
        ({}, once(BUSY), 2),
    ],
)
async def test_a_number_of_retries_for_each_cause(
    per_cause: dict[Cause, int], steps: list[Step], attempts: int
) -> None:
    policy = Retry(retries=1, backoff=Backoff(initial=0), per_cause=per_cause)
    async with script(*[steps] * 9) as server, AsyncClient(server.url, retry=policy) as client:
        with pytest.raises(penstock.PenstockError):
            await client.get("/").collect()
        assert server.connections == attempts


async def test_sends_go_by_the_cause_too() -> None:
    policy = Retry(retries=1, backoff=Backoff(initial=0), per_cause={"throttled": 2, "unavailable": 0})
    async with script(once(SLOW_DOWN), once(SLOW_DOWN), once(BUSY), once(answer())) as server:
        async with AsyncClient(server.url, retry=policy) as client:
            assert (await client.get("/").read()).status == 503
        assert server.connections == 3


# -- what the breaker is told


OPENS = Breaker(failure_threshold=1, recovery_timeout=600)
IN_BAND = '{"error": {"message": "no", "type": "%s"}}'


@pytest.mark.parametrize(
    ("steps", "terminator", "state"),
    [
        ([plain("a", "[DONE]", end=True)], "openai", State.CLOSED),
        ([plain("a", "[DONE]")], "openai", State.CLOSED),
        ([plain("a", end=True)], "openai", State.OPEN),
        ([plain("a", end=True)], None, State.CLOSED),
        ([plain(end=True)], None, State.OPEN),
        ([plain("a", IN_BAND % "server_error")], "openai", State.OPEN),
        ([plain("a", IN_BAND % "rate_limit_error", end=True)], "openai", State.CLOSED),
        ([plain("a", IN_BAND % "invalid_request_error", end=True)], "openai", State.CLOSED),
        ([chunked(b"event: error\ndata: {}\n\n", type=SSE)], "anthropic", State.OPEN),
        ([plain("a"), reset()], None, State.OPEN),
        ([plain("a"), close()], None, State.OPEN),
        ([answer(b"", "404 No")], None, State.CLOSED),
        ([SLOW_DOWN], None, State.CLOSED),
        ([answer(b"", "500 No")], None, State.OPEN),
        ([answer(b"<p>", "200 OK", "Content-Type: text/html")], None, State.CLOSED),
        ([answer(b"", "204 No Content")], None, State.CLOSED),
    ],
    ids=[
        "terminator",
        "terminator, and no end of the body",
        "no terminator",
        "none needed",
        "nothing in it",
        "in-band, the server's",
        "in-band, throttled",
        "in-band, the request's",
        "in-band, by its type",
        "reset",
        "closed",
        "404",
        "429",
        "500",
        "another type",
        "204",
    ],
)
async def test_the_breaker_judges_the_whole_body(steps: list[Step], terminator: str | None, state: State) -> None:
    async with (
        script([wait_request(), *steps]) as server,
        AsyncClient(server.url, retry=0, breaker=OPENS) as client,
    ):
        stream = client.get("/").events(terminator=terminator)
        with suppress(penstock.PenstockError):
            await stream.collect()
        assert client.circuit_state() is state
        assert stream.metrics.breaker == state.value


async def test_the_success_behind_a_terminator_closes_a_half_open_circuit() -> None:
    probing = Breaker(failure_threshold=2, recovery_timeout=0)
    bad, good = once(plain("a", end=True)), once(plain("a", "[DONE]", end=True))
    async with (
        script(bad, good, bad, bad, good) as server,
        AsyncClient(server.url, retry=0, breaker=probing) as client,
    ):
        states = []
        for _ in range(5):
            try:
                await client.get("/").collect(terminator="openai")
            except penstock.StreamTruncated:
                pass
            states.append(client.circuit_state())
    # Not three failures in all but two in a row open it: the success between them counted.
    assert states == [State.CLOSED, State.CLOSED, State.CLOSED, State.OPEN, State.CLOSED]


async def test_a_cancelled_stream_says_nothing_of_the_server() -> None:
    probing = Breaker(failure_threshold=1, recovery_timeout=0)
    silent: list[Step] = [wait_request(), plain()]
    async with (
        script([reset()], silent, silent, once(plain("a", end=True))) as server,
        AsyncClient(server.url, retry=0, breaker=probing) as client,
    ):
        with pytest.raises(penstock.PenstockError):
            await client.get("/").collect()
        for number in (2, 3):
            task = asyncio.create_task(client.get("/").collect())
            await until(lambda number=number: server.connections == number)  # type: ignore[misc]
            await until(lambda: client.circuit_state() is State.HALF_OPEN)
            task.cancel()
            await asyncio.wait({task})
            assert client.circuit_state() is State.HALF_OPEN
        await client.get("/").collect()
        assert client.circuit_state() is State.CLOSED


# -- the registry of circuits


async def test_origins_without_end_are_forgotten() -> None:
    with free_port() as port:
        async with AsyncClient(retry=0, breaker=Breaker(failure_threshold=3)) as client:
            for number in range(1100):
                with pytest.raises(penstock.ConnectError):
                    await client.get(f"http://127.{number // 250 + 1}.{number % 250}.1:{port}/").read()
            assert 1000 < len(client.circuits) <= 1024
            assert set(client.circuits.values()) == {State.CLOSED}
            assert list(client.circuits)[-1] == f"http://127.5.99.1:{port}"


async def test_changes_are_told_and_a_listener_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, State, State]] = []

    def listener(origin: str, before: State, after: State) -> None:
        told.append((origin, before, after))
        raise ZeroDivisionError("the listener's own")

    breaker = Breaker(failure_threshold=1, recovery_timeout=0, on_change=listener)
    async with (
        script(cut(plain()), once(plain("a", end=True))) as server,
        AsyncClient(server.url, retry=retries(1), breaker=breaker) as client,
    ):
        result = await client.get("/").collect()
        assert [event.data for event in result.events] == ["a"]
        assert client.circuits == {server.url: State.CLOSED}
    assert told == [
        (server.url, State.CLOSED, State.OPEN),
        (server.url, State.OPEN, State.HALF_OPEN),
        (server.url, State.HALF_OPEN, State.CLOSED),
    ]
    assert [record.levelname for record in caplog.records if "listener" in record.getMessage()] == ["ERROR"] * 3


# -- where the fault lies


async def test_killing_the_server_gives_each_phase_its_category() -> None:
    async with AsyncClient(retry=0) as client:
        with free_port() as port, pytest.raises(penstock.ConnectError) as connecting:
            await client.get(f"http://127.0.0.1:{port}/").collect()
        async with script(wait_request(), reset()) as server:
            with pytest.raises(penstock.ReadError) as before:
                await client.get(server.url).collect()
        async with script(wait_request(), plain("a"), reset()) as server:
            with pytest.raises(penstock.StreamTruncated) as amid:
                await client.get(server.url).collect()
    found = [(caught.value.category, caught.value.url is not None) for caught in (connecting, before, amid)]
    assert found == [("network", True), ("network", True), ("stream", True)]
    assert [event.data for event in amid.value.collected] == ["a"]


@pytest.mark.parametrize(
    ("steps", "category"),
    [
        ([answer(b"", "500 No")], "server"),
        ([answer(b"", "404 No")], "server"),
        ([answer(b"<p>", "200 OK", "Content-Type: text/html")], "server"),
        ([b"junk\r\n\r\n"], "server"),
        ([plain("a") + b"junk\r\n"], "server"),
        ([plain("a"), pause(60)], "stream"),
        ([plain("a", IN_BAND % "x")], "stream"),
    ],
    ids=["5xx", "4xx", "content type", "not HTTP", "framing", "stall", "in-band"],
)
async def test_so_has_every_other_failure(steps: list[Step], category: str) -> None:
    async with (
        script([wait_request(), *steps]) as server,
        AsyncClient(server.url, retry=0, timeout=penstock.Timeout(between_events=0.3)) as client,
    ):
        with pytest.raises(penstock.PenstockError) as caught:
            await client.get("/").collect(terminator="openai")
    assert caught.value.category == category
    assert caught.value.url == f"{server.url}/"


# -- the notices of all that


async def test_a_replay_is_told_and_so_is_what_broke() -> None:
    told: list[Notice] = []
    async with (
        script(cut(numbered(1, 3)), once(numbered(1, 4, end=True))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
        client.get("/").events(on_notice=told.append) as events,
    ):
        assert [event.id async for event in events] == list("1234")
    assert sum(notice.events for notice in told if isinstance(notice, Replayed)) == 3
    assert [type(n.failure) for n in told if isinstance(n, Interrupted)] == [penstock.StreamTruncated]


async def test_no_budget_is_no_bound() -> None:
    unbound = Retry(retries=30, backoff=Backoff(initial=0), budget=None)
    bound = Retry(retries=30, backoff=Backoff(initial=0), budget=RetryBudget(share=0, floor=0))

    async def dropping(head: bytes, writer: asyncio.StreamWriter) -> None:
        raise ConnectionAbortedError

    for policy, served in ((unbound, 31), (bound, 1)):
        async with counting(dropping) as server, AsyncClient(server.url, retry=policy) as client:
            with pytest.raises(penstock.PenstockError):
                await client.get("/").collect()
            assert server.served == served


async def test_the_pieces_of_a_chunk_make_no_difference_to_any_of_it() -> None:
    raw = b"".join(f"id: {number}\ndata: {number}\n\n".encode() for number in range(1, 4))
    bytewise = chunked(type=SSE, end=False) + b"".join(chunk(raw[at : at + 1]) for at in range(len(raw) - 1))
    async with (
        script(cut(bytewise), once(numbered(3, 4, end=True))) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        result = await client.get("/").collect()
    assert [event.id for event in result.events] == list("1234")
    assert (result.metrics.total, result.metrics.failed) == (5, 1)
