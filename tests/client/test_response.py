from __future__ import annotations

import asyncio
import gc
import gzip
import json
from typing import Any

import httpx2
import pytest

import penstock
from penstock import AsyncClient, Breaker, BufferedResponse, End, Response, Timeout
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import Counted, answer, chunk, chunked, counting, once, until

pytestmark = pytest.mark.anyio


async def ends_of(response: Response) -> list[End]:
    found: list[End] = []
    response.on_end(found.append)
    return found


# -- what the headers tell


@pytest.mark.parametrize(
    ("path", "header", "name"),
    [
        ("/f", 'attachment; filename="report.csv"', "report.csv"),
        ("/f", "attachment; filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("/f", 'attachment; filename="../../etc/passwd"', "passwd"),
        ("/a/large%20file.txt?x=/y", None, "large file.txt"),
        ("/a/..%2f..%2fpasswd", None, "passwd"),
        ("/", None, "file"),
        ("/f", 'attachment; filename=".."', "f"),
    ],
)
async def test_filename(path: str, header: str | None, name: str) -> None:
    fields = () if header is None else (f"Content-Disposition: {header}",)
    async with (
        script(*once(answer(b"", "200 OK", *fields))) as server,
        AsyncClient(server.url) as client,
        client.get(path).send() as response,
    ):
        assert response.filename == name


@pytest.mark.parametrize(
    ("raw", "length"),
    [
        (answer(b"12345"), 5),
        (answer(b""), 0),
        (chunked(b"12345"), None),
        (answer(gzip.compress(b"12345", mtime=0), "200 OK", "Content-Encoding: gzip"), None),
        (answer(b"12345", "200 OK", "Content-Encoding: identity"), 5),
    ],
)
async def test_content_length_is_what_iterating_will_give(raw: bytes, length: int | None) -> None:
    async with script(*once(raw)) as server, AsyncClient(server.url) as client, client.get("/").send() as response:
        assert response.content_length == length
        body = await response.read()
        assert length in (None, len(body))
        assert response.bytes_received == int(response.headers.get("content-length", len(body)))  # as they came


@pytest.mark.parametrize("value", ["²", "٣", "-1", "five", " "])
async def test_a_length_that_is_no_number_is_not_known(value: str) -> None:
    headers = [(b"content-length", value.encode())]
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, headers=headers, content=b"x"))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        AsyncClient("http://h", http_client=http) as client,
        client.get("/").send() as response,
    ):
        assert response.content_length is None


async def test_a_response_tells_what_it_is() -> None:
    raw = answer(b"", "299 Fine By Me", "Content-Type: text/x-special; a=b", "X-Twice: 1", "X-Twice: 2")
    async with script(*once(raw)) as server, AsyncClient(server.url) as client, client.get("/p").send() as response:
        assert (response.status, response.reason, response.url) == (299, "Fine By Me", server.url + "/p")
        assert response.content_type == "text/x-special; a=b"
        assert response.headers.get_list("x-twice") == ["1", "2"]
        assert repr(response) == f"<Response 299 {server.url}/p>"
        assert response.request.method == "GET"


# -- a failed status


async def test_a_status_is_looked_at_or_raised() -> None:
    async with (
        script(*once(answer(b"no such thing", "404 Not Found"))) as server,
        AsyncClient(server.url) as client,
        client.get("/lost").send() as response,
    ):
        with pytest.raises(penstock.StatusError, match=r"GET http://.*/lost answered 404 Not Found; check the path$"):
            response.raise_for_status()
        error = response.status_error(await response.beginning())
    assert str(error).endswith("answered 404 Not Found: no such thing; check the path")
    assert (error.status, error.body, error.category, error.retry_after) == (404, b"no such thing", "server", None)


async def test_a_good_status_is_passed_on() -> None:
    async with (
        script(*once(answer())) as server,
        AsyncClient(server.url) as client,
        client.get("/").send() as response,
    ):
        assert response.raise_for_status() is response


@pytest.mark.parametrize(
    ("steps", "beginning", "reason"),
    [
        ([answer(b"all of it", "500 No")], b"all of it", "complete"),
        ([answer(b"x" * 5000, "500 No")], b"x" * 2048, "cancelled"),
        ([answer(b"cut", "500 No", length=10), close()], b"cut", "failed"),
        ([answer(b"then silence", "500 No", length=100)], b"then silence", "cancelled"),
        ([answer(b"", "500 No", length=100)], b"", "cancelled"),
    ],
    ids=["short", "long", "broken", "stalled", "nothing"],
)
async def test_the_beginning_of_an_explanation_never_fails(steps: list[Step], beginning: bytes, reason: str) -> None:
    async with script(wait_request(), *steps) as server, AsyncClient(server.url, retry=0) as client:
        response = await client.get("/").send()
        ends = await ends_of(response)
        assert await response.beginning(seconds=0.4) == beginning
        assert [end.reason for end in ends] == [reason]


# -- reading


async def test_the_bytes_come_as_they_arrive() -> None:
    gate = asyncio.Event()

    async def slowly(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"first", end=False))
        await gate.wait()
        writer.write(chunk(b"second") + b"0\r\n\r\n")

    async with counting(slowly) as server, AsyncClient(server.url) as client, client.get("/").send() as response:
        ends = await ends_of(response)
        body = aiter(response)
        assert await anext(body) == b"first"
        assert ends == []
        gate.set()
        assert await anext(body) == b"second"
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        assert [(end.reason, end.bytes, end.error) for end in ends] == [("complete", 11, None)]


async def test_codings_are_undone_unless_raw_is_asked_for() -> None:
    coded = gzip.compress(b"plain")
    raw = answer(coded, "200 OK", "Content-Encoding: gzip")
    async with script(once(raw), once(raw)) as server, AsyncClient(server.url) as client:
        assert (await client.get("/").read()).content == b"plain"
        async with client.get("/").send() as response:
            assert b"".join([piece async for piece in response.raw()]) == coded


@pytest.mark.parametrize("first", ["iterate", "part", "read", "raw", "close"])
@pytest.mark.parametrize("second", ["iterate", "read", "raw"])
async def test_a_second_reader_is_refused_and_not_told_of_a_broken_connection(first: str, second: str) -> None:
    async with script(wait_request(), answer(b"12345")) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        match first:
            case "iterate":
                assert [piece async for piece in response] == [b"12345"]
            case "part":
                async for _ in response:
                    break
            case "read":
                await response.read()
            case "raw":
                assert [piece async for piece in response.raw()] == [b"12345"]
            case _:
                await response.aclose()
        with pytest.raises(RuntimeError, match="already read, or closed"):
            match second:
                case "iterate":
                    aiter(response)
                case "read":
                    await response.read()
                case _:
                    response.raw()
        await response.aclose()


async def test_read_is_bounded_and_keeps_what_had_come() -> None:
    async with counting(endless) as server, AsyncClient(server.url) as client:
        with pytest.raises(penstock.LimitExceeded, match="larger than 1,000 bytes") as caught:
            await client.get("/").read(max_bytes=1000)
        assert caught.value.limit == "max_bytes"
        assert caught.value.category == "application"
        assert b"".join(caught.value.collected).startswith(b"tick" * 250)
        await until(lambda: server.open == 0)
    async with script(wait_request(), answer(b"x" * 1000)) as exact, AsyncClient(exact.url) as client:
        assert len((await client.get("/").read(max_bytes=1000)).content) == 1000


@pytest.mark.parametrize(
    ("type", "body", "text"),
    [
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=latin-1", b"\xe9", "é"),
        ("text/plain", b"\xff", "�"),
        ("text/plain; charset=nonesuch", b"x", "x"),
        ("text/plain; charset=hex", b"6161", "6161"),
        ("text/plain; charset=undefined", b"x", "x"),
        ("text/plain; charset=idna", b"x", "x"),
    ],
)
async def test_text_never_fails_over_its_charset(type: str, body: bytes, text: str) -> None:
    raw = answer(body, "200 OK", f"Content-Type: {type}")
    async with (
        script(wait_request(), raw) as server,
        AsyncClient(server.url) as client,
        client.get("/").send() as response,
    ):
        assert await response.text() == text


async def test_json_is_json_or_a_decode_error() -> None:
    deep = b"[" * 200_000
    good, bad = answer(b'{"a": [1]}'), answer(b'{"a": ')
    async with script(*[once(raw) for raw in (good, bad, answer(deep))]) as server, AsyncClient(server.url) as client:
        async with client.get("/").send() as response:
            assert await response.json() == {"a": [1]}
        for _ in range(2):
            async with client.get("/x").send() as response:
                with pytest.raises(penstock.DecodeError, match="/x: the body is not JSON") as caught:
                    await response.json()
                assert caught.value.category == "application"


@pytest.mark.parametrize("body", [b"{", b"\xff\xff", b"[" * 200_000], ids=["cut", "not text", "deep"])
def test_a_buffered_response_reads_its_content(body: bytes) -> None:
    response = BufferedResponse(200, httpx2.Headers(), "http://h/", json.dumps({"é": 1}, ensure_ascii=False).encode())
    assert (response.text, response.json()) == ('{"é": 1}', {"é": 1})
    with pytest.raises(penstock.DecodeError, match="http://h/: the body is not JSON"):
        BufferedResponse(200, httpx2.Headers(), "http://h/", body).json()


# -- one end


async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(chunked(b"tick", end=False))
    while True:
        writer.write(chunk(b"tick"))
        await writer.drain()
        await asyncio.sleep(0.001)


async def read_to_the_end(response: Response) -> None:
    await response.read()


async def leave_unread(response: Response) -> None:
    await response.aclose()


async def leave_early(response: Response) -> None:
    async for _ in response:
        break
    await response.aclose()
    await response.aclose()


async def cancelled_while_reading(response: Response) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            async for _ in response:
                pass


async def cancelled_by_another_task(response: Response) -> None:
    async def read() -> None:
        async for _ in response:
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def closed_by_another_task(response: Response) -> None:
    async def read() -> None:
        with pytest.raises(penstock.StreamError):
            async for _ in response:
                pass

    task = asyncio.create_task(read())
    await until(lambda: response.bytes_received > 0)
    await response.aclose()
    await task


async def raise_in_the_loop(response: Response) -> None:
    with pytest.raises(ZeroDivisionError):
        async with response:
            async for _ in response:
                raise ZeroDivisionError


@pytest.mark.parametrize(
    "leave",
    [
        leave_unread,
        leave_early,
        cancelled_while_reading,
        cancelled_by_another_task,
        closed_by_another_task,
        raise_in_the_loop,
    ],
)
async def test_whoever_leaves_ends_it_once_and_closes_the_connection(leave: Any) -> None:
    async with counting(endless) as server, AsyncClient(server.url) as client:
        before = asyncio.all_tasks()
        response = await client.get("/").send()
        ends = await ends_of(response)
        await leave(response)
        assert [end.reason for end in ends] == ["cancelled"]
        assert ends[0] == response.end
        await until(lambda: server.open == 0)
        assert asyncio.all_tasks() - before <= {task for task in asyncio.all_tasks() if "connected" in repr(task)}


@pytest.mark.parametrize(
    ("steps", "reason", "received"),
    [
        ([answer(b"12345")], "complete", 5),
        ([answer(b"")], "complete", 0),
        ([answer(b"123", length=5), close()], "failed", 3),
        ([answer(b"123", length=5), reset()], "failed", 3),
        ([chunked(b"123", end=False) + b"junk\r\n"], "failed", 3),
    ],
)
async def test_a_body_ends_once_and_says_how(steps: list[Step], reason: str, received: int) -> None:
    async with script(wait_request(), *steps) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        ends = await ends_of(response)
        raised: list[BaseException] = []
        try:
            async for _ in response:
                pass
        except penstock.PenstockError as error:
            raised.append(error)
        await response.aclose()
        assert [(end.reason, end.bytes) for end in ends] == [(reason, received)]
        assert raised == ([] if ends[0].error is None else [ends[0].error])
        assert ends[0].seconds >= 0
        late = await ends_of(response)
        assert late == ends


async def test_one_that_raises_at_the_end_does_not_keep_it_from_the_others() -> None:
    async with script(wait_request(), answer(b"12345")) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        told: list[str] = []
        response.on_end(lambda end: told.append("first"))

        def broken(end: End) -> None:
            told.append("second")
            raise BrokenPipeError

        response.on_end(broken)
        response.on_end(lambda end: told.append("third"))
        with pytest.raises(BrokenPipeError):
            await response.read()
        await response.aclose()
        assert told == ["first", "second", "third"]


async def test_the_first_byte_is_told_once_to_all() -> None:
    async with script(wait_request(), chunked(b"1", b"2", b"3")) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        told: list[int] = []
        response.on_first_byte(lambda: told.append(1))
        response.on_first_byte(lambda: told.append(2))
        assert told == []
        await response.read()
        assert told == [1, 2]


async def test_an_empty_body_has_no_first_byte() -> None:
    async with script(wait_request(), answer(b"")) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        response.on_first_byte(pytest.fail)
        assert await response.read() == b""


async def test_a_connection_whose_body_was_read_serves_the_next_request() -> None:
    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    async with counting(ok) as server, AsyncClient(server.url) as client:
        for _ in range(5):
            await client.get("/").read()
        assert (server.open, server.served) == (1, 5)


# -- ends that are said


async def test_what_is_concluded_is_complete_and_its_connection_used_again() -> None:
    async def answering(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"all that matters", end=False))
        await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    async with counting(answering) as server, AsyncClient(server.url) as client:
        for _ in range(3):
            response = await client.get("/").send()
            async for _ in response:
                break
            await response.conclude(within=30)
            assert response.end is not None
            assert (response.end.reason, response.end.bytes) == ("complete", 16)
        assert (server.open, server.served) == (1, 3)


@pytest.mark.parametrize("read", [False, True], ids=["unread", "begun"])
@pytest.mark.parametrize(
    "rest", [[], [reset()], [close()], [chunk(b"more and more")]], ids=["silence", "reset", "closed", "more"]
)
async def test_what_is_concluded_is_complete_whatever_follows(rest: list[Step], read: bool) -> None:
    async with script(wait_request(), chunked(b"all", end=False), *rest) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        ends = await ends_of(response)
        if read:
            async for _ in response:
                break
        await response.conclude(within=0.1)
        await response.conclude()
        await response.aclose()
        assert [(end.reason, end.error) for end in ends] == [("complete", None)]


async def test_who_is_cancelled_while_concluding_leaves_a_complete_response() -> None:
    async with counting(endless) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.conclude(within=60)
        await response.aclose()
        assert response.end is not None
        assert response.end.reason == "complete"
        await until(lambda: server.open == 0)


async def test_a_body_that_says_that_it_failed_has_failed_at_once() -> None:
    async with counting(endless) as server, AsyncClient(server.url) as client:
        response = await client.get("/").send()
        ends = await ends_of(response)
        async for _ in response:
            break
        error = penstock.InBandError("it said so")
        await response.fail(error)
        await response.fail(penstock.InBandError("and again"))
        await response.aclose()
        assert [(end.reason, end.error) for end in ends] == [("failed", error)]
        await until(lambda: server.open == 0)


@pytest.mark.parametrize("carrier", ["engine", "httpx2"])
async def test_content_is_expected_by_an_instant_whatever_comes(carrier: str) -> None:
    async with counting(endless) as server, httpx2.AsyncClient() as http:
        client = AsyncClient(server.url, http_client=None if carrier == "engine" else http)
        async with client, client.get("/").send() as response:
            now = asyncio.get_running_loop().time()
            response.expect_content(now + 0.2, 0.2)
            with pytest.raises(penstock.StreamStalled, match=r"nothing but signs of life for 0\.2 s"):
                async for _ in response:
                    pass


@pytest.mark.parametrize("carrier", ["engine", "httpx2"])
async def test_content_that_is_expected_no_more_is_not_waited_for(carrier: str) -> None:
    async with counting(endless) as server, httpx2.AsyncClient() as http:
        client = AsyncClient(server.url, http_client=None if carrier == "engine" else http)
        async with client, client.get("/").send() as response:
            response.expect_content(asyncio.get_running_loop().time() + 0.1, 0.1)
            response.expect_content(None, None)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.4):
                    async for _ in response:
                        pass
            assert not isinstance(caught.value, penstock.PenstockError)


# -- forgotten


async def test_a_response_that_is_forgotten_is_closed_and_says_so() -> None:
    ends: list[End] = []
    async with counting(endless) as server, AsyncClient(server.url) as client:
        for how in ("unread", "begun"):
            response: Response | None = await client.get(f"/{how}").send()
            assert response is not None
            response.on_end(ends.append)
            if how == "begun":
                async for _ in response:
                    break
            kept, response = [response], None
            with pytest.warns(ResourceWarning, match=f"<Response 200 .*/{how}> was neither read to its end nor closed"):
                forget(kept)
            await until(lambda: server.open == 0)
        assert [end.reason for end in ends] == ["cancelled"] * 2
        await asyncio.wait_for(client.aclose(grace=60), 20)  # nothing is believed to run


async def test_a_forgotten_probe_gives_its_permit_back() -> None:
    async with (
        script([reset()], [wait_request(), answer(b"", length=9)], once(answer())) as server,
        AsyncClient(server.url, retry=0, breaker=Breaker(1, 0.0)) as client,
    ):
        with pytest.raises(penstock.ReadError):
            await client.get("/").read()
        kept = [await client.get("/").send()]
        with pytest.warns(ResourceWarning, match="neither read"):
            forget(kept)
        await asyncio.sleep(0)
        assert (await client.get("/").read()).content == b"ok"
        assert client.circuit_state() is penstock.State.CLOSED


async def test_it_may_be_forgotten_in_another_thread_and_after_its_loop() -> None:
    async with counting(endless) as server, AsyncClient(server.url) as client:
        kept = [await client.get("/").send()]
        ends = await ends_of(kept[0])
        with pytest.warns(ResourceWarning, match="neither read"):
            await asyncio.to_thread(forget, kept)
        await until(lambda: len(ends) == 1 and server.open == 0)


def test_forgetting_one_after_its_loop_has_ended_harms_nobody() -> None:
    kept: list[Response] = []

    async def main() -> None:
        async with script(wait_request(), answer(b"", length=9)) as server:
            kept.append(await AsyncClient(server.url).get("/").send())

    asyncio.run(main())
    with pytest.warns(ResourceWarning, match="neither read"):
        forget(kept)


def forget(kept: list[Response]) -> None:
    kept.clear()
    gc.collect()


# -- timers


async def timed_out(server: Counted | Any, timeout: Timeout) -> penstock.StreamStalled:
    async with AsyncClient(server.url, retry=0, timeout=timeout) as client:
        with pytest.raises(penstock.StreamStalled) as caught:
            await client.get("/").read()
    return caught.value


async def test_the_timer_for_the_first_byte() -> None:
    async with script(wait_request(), chunked(end=False)) as server:
        error = await timed_out(server, Timeout(first_event=0.3))
    assert "went silent for 0.3 s after 0 bytes" in str(error)


async def test_the_timer_between_pieces() -> None:
    async with script(wait_request(), chunked(b"12", end=False)) as server:
        error = await timed_out(server, Timeout(first_event=30, between_events=0.1))
    assert "went silent for 0.1 s after 2 bytes" in str(error)


async def test_the_total_ends_a_body_that_never_falls_silent() -> None:
    async with counting(endless) as server:
        error = await timed_out(server, Timeout(total=0.2))
        assert "not finished within the total timeout of 0.2 s" in str(error)
        await until(lambda: server.open == 0)


async def test_the_total_covers_the_wait_for_the_headers() -> None:
    async with script(wait_request()) as server, AsyncClient(server.url, timeout=0.1, retry=5) as client:
        with pytest.raises(penstock.ReadTimeout, match=r"no response within the total timeout of 0\.1 s"):
            await client.get("/").read()


async def test_none_waits_for_ever() -> None:
    async with script(wait_request(), chunked(b"12", end=False)) as server:
        async with AsyncClient(server.url, retry=0, timeout=None) as client:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.2):
                    await client.get("/").read()
        assert not isinstance(caught.value, penstock.PenstockError)


async def test_the_timer_between_pieces_stands_still_while_the_caller_is_slow() -> None:
    async with (
        script(wait_request(), *map(chunk_step, range(2)), b"0\r\n\r\n") as server,
        AsyncClient(server.url, retry=0, timeout=Timeout(between_events=0.4)) as client,
        client.get("/").send() as response,
    ):
        async for _ in response:
            await asyncio.sleep(0.6)
        assert response.bytes_received == 2000


def chunk_step(number: int) -> bytes:
    return chunk(b"x" * 1000) if number else chunked(b"x" * 1000, end=False)


async def test_a_slow_reader_slows_the_sender() -> None:
    sent = 0

    async def flood(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(chunked(end=False))
        for _ in range(512):
            writer.write(chunk(bytes(1 << 16)))
            await writer.drain()
            sent += 1 << 16
        writer.write(b"0\r\n\r\n")

    async with counting(flood) as server, AsyncClient(server.url) as client, client.get("/").send() as response:
        body = aiter(response)
        await anext(body)
        stood = -1
        for _ in range(100):  # time for a sender that nobody holds back
            if sent == stood:
                break
            stood = sent
            await asyncio.sleep(0.1)
        assert sent == stood < 512 << 16
        async for _ in body:
            pass
        assert response.bytes_received == 512 << 16


# -- content codings


@pytest.mark.parametrize("missing", [1, 10])
async def test_a_coded_body_that_ends_before_its_coding_is_truncated(missing: int) -> None:
    coded = gzip.compress(b"hello " * 1000)[:-missing]
    async with (
        script(*once(answer(coded, "200 OK", "Content-Encoding: gzip"))) as server,
        AsyncClient(server.url, retry=0) as client,
    ):
        with pytest.raises(penstock.StreamTruncated, match="before the end of its gzip coding") as caught:
            await client.get("/x").read()
    assert caught.value.url == f"{server.url}/x"


async def test_a_coding_that_nobody_asked_for_is_an_error() -> None:
    async with (
        script(*once(answer(b"?", "200 OK", "Content-Encoding: br"))) as server,
        AsyncClient(server.url, retry=0) as client,
    ):
        with pytest.raises(penstock.DecodeError, match="'br', which was not asked for"):
            await client.get("/").read()


async def test_a_coded_body_left_early_lets_go_of_its_connection() -> None:
    coded = gzip.compress(bytes(range(256)) * 4000)
    async with (
        script(*once(answer(coded, "200 OK", "Content-Encoding: gzip"))) as server,
        AsyncClient(server.url, retry=0) as client,
        client.get("/").send() as response,
    ):
        async for _ in response:
            break
    assert response.end is not None
