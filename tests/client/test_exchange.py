from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

import penstock
from penstock import AsyncClient, Breaker, ConcurrencyLimit, Request, Response, State, Timeout
from penstock.client.request import Send
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import (
    SSE,
    answer,
    body_of,
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

BUSY = answer(b"later", "503 Service Unavailable")
Log = Callable[[str], list[str]]


async def pieces(*values: bytes) -> AsyncIterator[bytes]:
    for value in values:
        yield value


# -- what is tried again


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_what_is_idempotent_is_tried_again_after_a_reset(method: str) -> None:
    good = answer(b"") if method == "HEAD" else answer()
    async with script([wait_request(), reset()], once(good)) as server, AsyncClient(retry=retries(1)) as client:
        response = await client.request(method, server.url).read()
        assert response.status == 200
        assert server.connections == 2


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_is_not_is_not_after_a_reset(method: str) -> None:
    async with script([wait_request(), reset()], once(answer())) as server, AsyncClient(retry=retries(3)) as client:
        with pytest.raises(penstock.ReadError):
            await client.request(method, server.url).json({"pay": 100}).read()
        assert server.connections == 1


@pytest.mark.parametrize("sure", ["key", "the caller's word"])
async def test_unless_it_is_safe(sure: str) -> None:
    async with script([wait_request(), reset()], once(answer())) as server, AsyncClient(retry=retries(3)) as client:
        request = client.post(server.url).json({"pay": 100})
        if sure == "key":
            request = request.header("idempotency-KEY", "4711")
        else:
            request = request.retry(retries(1, idempotent=True))
        assert (await request.read()).content == b"ok"
        assert [body_of(each) for each in server.requests] == [b'{"pay":100}'] * 2


@pytest.mark.parametrize("status", ["408 Timeout", "425 Too Early", "429 Slow Down", "503 Busy"])
async def test_a_post_that_the_server_says_it_refused_is_tried_again(status: str) -> None:
    refused = answer(b"", status)
    async with script(once(refused), once(refused), once(answer())) as server, AsyncClient(retry=retries(2)) as client:
        assert (await client.post(server.url).content(b"x").read()).content == b"ok"
        assert [body_of(request) for request in server.requests] == [b"x"] * 3


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "404 Where", "422 What", "501 Never", "505 Version"])
async def test_what_will_not_get_better_is_not_tried_again(status: str) -> None:
    async with script(once(answer(b"no", status)), once(answer())) as server, AsyncClient(retry=retries(3)) as client:
        response = await client.get(server.url).read()
        assert response.status == int(status[:3])
        assert server.connections == 1


async def test_the_last_refusal_is_returned_to_be_looked_at() -> None:
    async with script(once(BUSY), once(BUSY)) as server, AsyncClient(retry=retries(1)) as client:
        response = await client.get(server.url).read()
        assert (response.status, response.content) == (503, b"later")
        assert server.connections == 2


async def test_the_last_failure_says_how_often_it_was_tried() -> None:
    async with (
        script([wait_request(), reset()], [wait_request(), reset()], [wait_request(), reset()]) as server,
        AsyncClient(retry=retries(2)) as client,
    ):
        with pytest.raises(penstock.RetriesExhausted, match="gave up after 3 attempts: http://") as caught:
            await client.get(server.url).read()
    assert caught.value.attempts == 3
    assert isinstance(caught.value.last, penstock.ReadError)
    assert (caught.value.category, caught.value.url) == ("network", server.url)
    assert isinstance(caught.value.__cause__, httpx2.HTTPError)


async def test_one_failure_that_nothing_mends_is_itself() -> None:
    async with script(wait_request(), b"junk\r\n\r\n") as server, AsyncClient(retry=retries(5)) as client:
        with pytest.raises(penstock.ProtocolError):
            await client.get(server.url).read()
        assert server.connections == 1


async def test_each_attempt_has_its_number() -> None:
    async with (
        script(once(BUSY), once(BUSY), once(answer())) as server,
        AsyncClient(retry=retries(5)) as client,
        client.get(server.url).send() as response,
    ):
        assert response.request.attempt == 3


async def test_retry_after_is_waited_for(origin: str) -> None:
    async with AsyncClient(origin, retry=retries(1)) as client:
        started_at = time.monotonic()
        response = await client.post("/generate?status=503&times=1&retry_after=1&chunks=1").read()
        assert time.monotonic() - started_at >= 1
        assert response.status == 405  # the second one reached the endpoint


async def test_a_pause_that_ends_after_the_total_is_not_begun() -> None:
    busy = answer(b"later", "503 Busy", "Retry-After: 50")
    async with script(once(busy), once(answer())) as server, AsyncClient(retry=retries(3), timeout=30) as client:
        response = await client.get(server.url).read()
        assert (response.status, server.connections) == (503, 1)


async def test_a_refused_response_is_closed_before_the_next_attempt() -> None:
    async def busy(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"x", "503 Busy", length=1000))
        await asyncio.sleep(60)

    async with counting(busy) as server, AsyncClient(retry=retries(3)) as client:
        response = await client.get(server.url).send()
        assert (server.served, server.open) == (4, 1)
        await response.aclose()
        await until(lambda: server.open == 0)


# -- what can be sent again


async def test_a_stream_that_was_read_is_not_sent_again() -> None:
    async with script(once(BUSY), once(answer())) as server, AsyncClient(retry=retries(3)) as client:
        response = await client.put(server.url).content(pieces(b"a", b"b")).read()
        assert (response.status, server.connections) == (503, 1)
        assert body_of(server.requests[0]) == b"ab"


@pytest.mark.parametrize("terminal", ["read", "collect"])
async def test_a_stream_that_nobody_read_yet_is_sent_once_there_is_a_connection(terminal: str) -> None:
    events = chunked(b"data: 1\n\n", type=SSE)
    async with script(once(events)) as server:
        refusals = iter([httpx2.ConnectError("refused"), httpx2.ConnectTimeout("slow")])

        class Reluctant(httpx2.AsyncHTTPTransport):
            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                if (error := next(refusals, None)) is not None:
                    raise error
                return await super().handle_async_request(request)

        async with (
            httpx2.AsyncClient(transport=Reluctant()) as http,
            AsyncClient(server.url, http_client=http, retry=retries(2)) as client,
        ):
            request = client.post("/").content(pieces(b"a", b"b"))
            await (request.read() if terminal == "read" else request.collect())
        assert [body_of(each) for each in server.requests] == [b"ab"]


async def test_a_stream_whose_own_source_cannot_be_reached_is_not_sent_again_empty() -> None:
    async def relayed() -> AsyncIterator[bytes]:
        yield b"first"
        raise penstock.ConnectError("http://source: gone", url="http://source")

    async with script(wait_request(), answer()) as server, AsyncClient(retry=retries(3)) as client:
        with pytest.raises(penstock.ConnectError, match="http://source: gone"):
            await client.put(server.url).content(relayed()).read()
        await until(lambda: server.connections == 1)
        assert server.requests == []


async def test_a_builder_with_an_iterator_cannot_be_sent_twice() -> None:
    async with script(once(answer()), once(answer())) as server, AsyncClient(server.url) as client:
        request = client.put("/").content(pieces(b"once"))
        await request.read()
        with pytest.raises(RuntimeError, match="already sent"):
            await request.read()
        assert [body_of(each) for each in server.requests] == [b"once"]


async def test_a_source_that_stalls_says_so_and_breaks_the_upload() -> None:
    async with (
        script(wait_request(), answer(b"abc", length=100)) as source,
        script(wait_request(), answer()) as destination,
        AsyncClient(timeout=Timeout(between_events=0.2)) as client,
        client.get(source.url).send() as response,
    ):
        with pytest.raises(penstock.StreamStalled, match=r"silent for 0\.2 s after 3 bytes") as caught:
            await client.put(destination.url).content(response).read()
        assert caught.value.url == source.url
        assert destination.requests == []


@pytest.mark.parametrize("length", [2, 4])
async def test_a_body_that_is_not_as_long_as_it_said_is_a_broken_request(length: int) -> None:
    async with script(wait_request(), answer()) as server, AsyncClient(retry=retries(3)) as client:
        with pytest.raises(
            penstock.StreamError, match=rf"has (at least )?3 bytes, and {length} were announced"
        ) as caught:
            await client.put(server.url).content(pieces(b"ab", b"c"), length=length).read()
        assert (caught.value.category, caught.value.url) == ("stream", server.url)
        await until(lambda: server.connections == 1)
        assert server.requests == [] or length == 2


# -- the breaker


async def test_the_breaker_opens_after_three_failures_and_refuses_at_once() -> None:
    with free_port() as port:
        url = f"http://127.0.0.1:{port}"
        async with AsyncClient(url, retry=0, breaker=Breaker(failure_threshold=3, recovery_timeout=600)) as client:
            assert client.circuit_state() is State.CLOSED
            for _ in range(3):
                with pytest.raises(penstock.ConnectError):
                    await client.get("/").read()
            assert client.circuit_state() is State.OPEN
            with pytest.raises(penstock.CircuitOpenError) as caught:
                await client.get("/").read()
    error = caught.value
    assert 500 < error.retry_after <= 600
    assert (error.category, error.url) == ("network", url)
    assert f"circuit breaker open for {url} after 3 failures in a row" in str(error)
    assert "connection refused" in str(error)
    assert "the next attempt is allowed in" in str(error)


async def test_retries_end_when_the_breaker_opens_under_them() -> None:
    with free_port() as port:
        breaker = Breaker(failure_threshold=3, recovery_timeout=600)
        async with AsyncClient(f"http://127.0.0.1:{port}", retry=retries(100), breaker=breaker) as client:
            with pytest.raises(penstock.CircuitOpenError, match="after 3 failures") as caught:
                await client.get("/").read()
    assert isinstance(caught.value.__cause__, penstock.ConnectError)


async def test_a_retry_whose_pause_outlasts_the_open_circuit_becomes_the_probe() -> None:
    async with script([reset()], [reset()], once(answer())) as server:
        breaker = Breaker(failure_threshold=2, recovery_timeout=0)
        async with AsyncClient(server.url, retry=retries(2), breaker=breaker) as client:
            assert (await client.get("/").read()).content == b"ok"
            assert client.circuit_state() is State.CLOSED


async def opened(client: AsyncClient) -> None:
    """Break the server's connection once; with a threshold of 1 the circuit is open then."""
    with pytest.raises(penstock.ReadError):
        await client.get("/").read()
    assert client.circuit_state() is State.OPEN


PROBING = Breaker(failure_threshold=1, recovery_timeout=0)


async def test_half_open_lets_one_probe_through_and_closes_with_its_first_byte() -> None:
    gate = asyncio.Event()
    broken = [True]

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        if broken.pop() if broken else False:
            raise ConnectionAbortedError
        writer.write(chunked(end=False))
        await gate.wait()
        writer.write(chunk(b"well") + b"0\r\n\r\n")

    async with counting(answering) as server, AsyncClient(server.url, retry=0, breaker=PROBING) as client:
        await opened(client)
        probe = await client.get("/").send()
        assert client.circuit_state() is State.HALF_OPEN
        with pytest.raises(penstock.CircuitOpenError, match="a probe is under way") as caught:
            await client.get("/").read()
        assert caught.value.retry_after == 0
        gate.set()
        body = aiter(probe)
        await anext(body)
        states = [client.circuit_state()]
        assert states == [State.CLOSED], "an hour-long stream need not end first"
        assert (await client.get("/").read()).content == b"well"
        await probe.aclose()


async def test_a_probe_whose_body_is_pushed_closes_the_circuit_with_its_first_byte() -> None:
    gate = asyncio.Event()
    broken = [True]

    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        if broken.pop() if broken else False:
            raise ConnectionAbortedError
        writer.write(chunked(end=False))
        await writer.drain()
        await gate.wait()
        writer.write(chunk(b"well"))

    async with counting(answering) as server, AsyncClient(server.url, retry=0, breaker=PROBING) as client:
        await opened(client)
        probe = await client.get("/").send()
        came = asyncio.Event()
        states: list[State | None] = []

        def sink(data: bytes) -> None:
            states.append(client.circuit_state())
            came.set()

        pushing = asyncio.create_task(probe.push(sink, lambda pause, resume: None))
        assert client.circuit_state() is State.HALF_OPEN
        gate.set()
        await came.wait()
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
    assert states == [State.CLOSED]


@pytest.mark.parametrize("how", ["closed unread", "cancelled before the headers"])
async def test_a_cancelled_probe_gives_its_permit_back(how: str) -> None:
    silent: list[Step] = [wait_request()] if how != "closed unread" else [wait_request(), answer(b"", length=9)]
    async with (
        script([reset()], silent, once(answer())) as server,
        AsyncClient(server.url, retry=0, breaker=PROBING) as client,
    ):
        await opened(client)
        if how == "closed unread":
            async with client.get("/").send():
                assert client.circuit_state() is State.HALF_OPEN
        else:
            task = asyncio.create_task(client.get("/").read())
            await until(lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        states = [client.circuit_state()]
        assert states == [State.HALF_OPEN]
        assert (await client.get("/").read()).content == b"ok"
        assert client.circuit_state() is State.CLOSED


@pytest.mark.parametrize("how", ["middleware", "body"])
async def test_a_probe_that_ends_by_our_own_fault_gives_its_permit_back(how: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async def refusing(request: Request, send: Send) -> Response:
        response = await send(request)
        if "refuse" in request.url:
            raise ZeroDivisionError
        return response

    async with (
        script([reset()], [wait_request(), answer(b"", length=9)], once(answer())) as server,
        AsyncClient(server.url, retry=0, breaker=PROBING) as client,
    ):
        client.use(refusing)
        await opened(client)
        request = client.get("/refuse") if how == "middleware" else client.get("/").content(broken())
        with pytest.raises(ZeroDivisionError):
            await request.read()
        states = [client.circuit_state()]
        assert states == [State.HALF_OPEN]
        assert (await client.get("/").read()).content == b"ok"


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([answer(b"", "500 No")], State.OPEN),
        ([answer(b"", "503 No")], State.OPEN),
        ([answer(b"", "404 No")], State.CLOSED),
        ([answer(b"", "429 No")], State.HALF_OPEN),
        ([b"junk\r\n\r\n"], State.OPEN),
        ([answer(b"", length=5), close()], State.OPEN),
        ([answer(b"")], State.CLOSED),
    ],
    ids=["500", "503", "404", "429", "garbage", "truncated", "empty"],
)
async def test_what_a_probes_end_says_of_the_server(steps: list[Step], state: State) -> None:
    async with (
        script([reset()], [wait_request(), *steps]) as server,
        AsyncClient(server.url, retry=0, breaker=PROBING) as client,
    ):
        await opened(client)
        try:
            await client.get("/").read()
        except penstock.PenstockError:
            pass
        assert client.circuit_state() is state


async def test_success_is_counted_at_the_end_of_the_body_and_not_at_the_headers() -> None:
    cut: list[Step] = [wait_request(), answer(b"12", length=5), close()]
    async with (
        script(cut, cut, cut) as server,
        AsyncClient(server.url, retry=0, breaker=Breaker(failure_threshold=3)) as client,
    ):
        for _ in range(3):
            assert client.circuit_state() is State.CLOSED
            with pytest.raises(penstock.StreamTruncated):
                await client.get("/").read()
        states = [client.circuit_state()]
        assert states == [State.OPEN], "a 200 that is cut off each time is no success"


async def test_an_event_stream_with_nothing_in_it_speaks_against_the_server() -> None:
    empty = once(chunked(type=SSE))
    async with (
        script(empty, empty) as server,
        AsyncClient(server.url, retry=0, breaker=Breaker(failure_threshold=2)) as client,
    ):
        for _ in range(2):
            assert (await client.get("/").collect()).items == []
        assert client.circuit_state() is State.OPEN


async def test_there_is_a_circuit_per_origin_however_it_is_written() -> None:
    async with script(once(answer())) as good, AsyncClient(retry=0, breaker=Breaker(1, 600)) as client:
        with free_port() as port:
            with pytest.raises(penstock.ConnectError):
                await client.get(f"http://127.0.0.1:{port}/a").read()
            assert client.circuit_state(f"HTTP://me:pw@127.0.0.1:{port}/b") is State.OPEN
            assert (await client.get(good.url).read()).content == b"ok"
    assert AsyncClient("http://h").circuit_state() is None


async def test_a_source_that_breaks_does_not_speak_against_the_destination() -> None:
    async with (
        script(wait_request(), answer(b"abc", length=100), close()) as source,
        script(wait_request()) as destination,
        AsyncClient(retry=0) as reader,
        AsyncClient(retry=0, breaker=Breaker(1, 600)) as writer,
        reader.get(source.url).send() as response,
    ):
        with pytest.raises(penstock.StreamTruncated):
            await writer.put(destination.url).content(response).read()
        assert writer.circuit_state(destination.url) is State.CLOSED


# -- redirects


def moved(to: str, status: int = 302) -> bytes:
    return answer(b"", f"{status} Moved", f"Location: {to}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_for_get_with_its_credentials_on_the_same_origin(status: int) -> None:
    async with script(once(moved("/b?c=d", status)), once(answer(b"there"))) as server:
        async with AsyncClient(server.url, headers={"X-API-Key": "secret"}) as client:
            response = await client.get("/a").header("Authorization", "Bearer t").read()
        assert (response.content, response.url) == (b"there", server.url + "/b?c=d")
        sent = fields_of(server.requests[1])
        assert (sent["authorization"], sent["x-api-key"]) == ("Bearer t", "secret")


@pytest.mark.parametrize("credentials", ["headers", "of the client", "auth", "url"])
async def test_credentials_are_left_behind_on_another_origin(credentials: str) -> None:
    secrets = {
        "Authorization": "Bearer t",
        "Cookie": "c=1",
        "X-API-Key": "k",
        "Api-Key": "k",
        "Proxy-Authorization": "p",
    }
    async with script(once(answer(b"there"))) as other, script(once(moved(other.url + "/b"))) as first:
        async with httpx2.AsyncClient(auth=("me", "pw") if credentials == "auth" else None) as http:
            defaults = {**secrets, "X-Other": "1"} if credentials == "of the client" else {"X-Other": "1"}
            base = first.url.replace("//", "//me:pw@") if credentials == "url" else first.url
            async with AsyncClient(base, http_client=http, headers=defaults) as client:
                request = client.get("/a")
                response = await (request.headers(secrets) if credentials == "headers" else request).read()
        assert response.content == b"there"
        assert "authorization" in fields_of(first.requests[0])
        arrived = fields_of(other.requests[0])
        assert not {name.lower() for name in secrets} & set(arrived)
        assert arrived["x-other"] == "1"


async def test_credentials_do_not_come_back_by_a_detour() -> None:
    first_url: list[str] = []
    async with httpx2.AsyncClient(auth=("me", "pw")) as http, AsyncClient(http_client=http) as client:

        async def there(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(moved(first_url[0] + "/end"))

        heads: list[bytes] = []
        async with counting(there) as other:

            async def here(head: bytes, writer: asyncio.StreamWriter) -> None:
                heads.append(head)
                writer.write(answer(b"end") if b"/end" in head else moved(other.url))

            async with counting(here) as first:
                first_url.append(first.url)
                assert (await client.get(first.url).read()).content == b"end"
    assert [b"authorization" in head.lower() for head in heads] == [True, False]


async def test_redirects_are_not_followed_for_post() -> None:
    async with script(once(moved("/b", 307)), once(answer())) as server, AsyncClient(server.url) as client:
        response = await client.post("/a").content(b"x").read()
        assert (response.status, response.headers["location"]) == (307, "/b")
        assert server.connections == 1


async def test_redirects_in_a_circle_end_and_leave_no_connection() -> None:
    async def round_and_round(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(moved("/again"))

    async with counting(round_and_round) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.ProtocolError, match="more than 20 redirects"):
            await client.get("/").read()
        assert server.served == 21
        assert (await client.post("/").read()).status == 302
        assert server.open == 1


async def test_a_redirect_to_nowhere_is_returned() -> None:
    async with script(once(moved("http://h:port/"))) as server, AsyncClient(server.url) as client:
        assert (await client.get("/").read()).status == 302


async def test_the_timer_for_the_headers_covers_each_hop() -> None:
    async with (
        script(once(moved("/b")), [wait_request()]) as server,
        AsyncClient(server.url, retry=0, timeout=Timeout(first_event=0.2)) as client,
    ):
        with pytest.raises(penstock.ReadTimeout):
            await client.get("/a").read()


# -- middleware around an attempt


async def test_middleware_runs_once_per_attempt_the_first_outermost() -> None:
    told: list[str] = []

    def noting(name: str) -> penstock.Middleware:
        async def middleware(request: Request, send: Send) -> Response:
            told.append(f"{name} {request.attempt} in")
            response = await send(request)
            told.append(f"{name} {response.status} out")
            return response

        return middleware

    async with script(once(BUSY), once(answer())) as server, AsyncClient(server.url, retry=retries(1)) as client:
        client.use(noting("a"), noting("b"))
        await client.get("/").read()
    assert told == ["a 1 in", "b 1 in", "b 503 out", "a 503 out", "a 2 in", "b 2 in", "b 200 out", "a 200 out"]


async def test_a_response_that_a_middleware_refuses_is_closed_and_ended() -> None:
    ends: list[str] = []

    async def outer(request: Request, send: Send) -> Response:
        response = await send(request)
        raise ValueError(f"{response.status} is not wanted")

    async def inner(request: Request, send: Send) -> Response:
        response = await send(request)
        response.on_end(lambda end: ends.append(end.reason))
        return response

    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"x", end=False))
        await asyncio.sleep(60)

    async with counting(endless) as server, AsyncClient(server.url) as client:
        client.use(outer, inner)
        with pytest.raises(ValueError, match="200 is not wanted"):
            await client.get("/").read()
        assert ends == ["cancelled"]
        await until(lambda: server.open == 0)


# -- exactly this


async def test_relay_sends_exactly_what_it_is_given() -> None:
    async with script(once(moved("/b"))) as server, AsyncClient(headers={"X-Default": "1"}, retry=retries(3)) as client:
        host = server.url.removeprefix("http://")
        headers = (("Host", host), ("X-Latin", "caf\xe9"), ("x-twice", "1"), ("x-twice", "2"))
        response = await client.relay("GET", server.url, headers=headers, body=None, target=b"/a/../b%2f?x=%zz|")
        assert response.status == 302
        await response.aclose()
    sent = server.requests[0]
    expected = f"GET /a/../b%2f?x=%zz| HTTP/1.1\r\nHost: {host}\r\nX-Latin: caf\xe9\r\nx-twice: 1\r\nx-twice: 2\r\n\r\n"
    assert sent == expected.encode("latin-1")


# -- nothing is left behind


@pytest.mark.parametrize("terminal", ["send", "events"])
async def test_cancelled_anywhere_nothing_is_left_open_or_held(terminal: str) -> None:
    async def slowly(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        writer.write(chunked(end=False, type=SSE))
        for number in range(4):
            await asyncio.sleep(0.001)
            writer.write(chunk(b"data: %d\n\n" % number))
        writer.write(b"0\r\n\r\n")

    draw = random.Random(4711)
    limit = ConcurrencyLimit(2)
    ends: list[str] = []
    began = 0

    async def noting(request: Request, send: Send) -> Response:
        nonlocal began
        response = await send(request)
        began += 1
        response.on_end(lambda end: ends.append(end.reason))
        return response

    async with counting(slowly) as server, httpx2.AsyncClient(limits=httpx2.Limits(max_connections=2)) as http:
        client = AsyncClient(server.url, http_client=http, breaker=Breaker(1, 0.0), timeout=None)
        client.use(limit, noting)
        before = asyncio.all_tasks()

        async def one() -> None:
            if terminal == "send":
                async with client.get("/").send() as response:
                    async for _ in response:
                        pass
            else:
                async with client.get("/").events() as events:
                    async for _ in events:
                        pass

        for _ in range(120):
            task = asyncio.create_task(one())
            await asyncio.sleep(draw.random() * 0.012)
            task.cancel()
            if draw.random() < 0.5:  # and once more, while it cleans up
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        assert len(ends) == began
        assert {"cancelled"} <= set(ends) <= {"cancelled", "complete"}
        await until(lambda: server.answering == 0)
        # All permits, places and connections are there: two at a time go through, and more than once.
        async with asyncio.timeout(20):
            for _ in range(3):
                await asyncio.gather(one(), one())
        assert server.open <= 2
        assert client.circuit_state() is State.CLOSED
        await http.aclose()
        await until(lambda: server.open == 0)
        ours = [task for task in asyncio.all_tasks() - before if "connected" not in repr(task)]
        assert ours == []


async def test_leaving_a_loop_early_stops_the_server(origin: str, log: Log) -> None:
    async with AsyncClient(origin) as client:
        async with client.get("/events?count=1000&interval=0.01").events() as events:
            async for event in events:
                if event.id == "3":
                    break
        await until(lambda: any("the reader left" in line for line in log("penstock.origin")))


async def test_cancelling_before_the_headers_stops_the_server(origin: str, log: Log) -> None:
    async with AsyncClient(origin) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.get("/generate?stall_after=0").read()
        await until(lambda: any("the reader left after 0 chunks" in line for line in log("penstock.origin")))


async def test_closing_the_client_breaks_what_still_runs(origin: str) -> None:
    client = AsyncClient(origin, retry=0)
    response: Any = await client.get("/generate?chunks=1000&interval=0.01").send()
    body = aiter(response)
    await anext(body)
    await client.aclose()
    with pytest.raises(penstock.StreamError):
        async for _ in body:
            pass
    assert response.end.reason == "failed"
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/").read()
