from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import penstock
from penstock import AsyncClient, Limits, Retry, Timeout
from penstock.testing import script, wait_request
from tests.client.peers import answer, counting, fields_of, once, until

pytestmark = pytest.mark.anyio


# -- settings


def test_the_defaults() -> None:
    client = AsyncClient()
    assert (client.base_url, client.name) == ("", "")
    assert client.retry == Retry()
    assert client.timeout == Timeout()
    assert client.circuit_state("http://h/") is None


def test_numbers_stand_for_policies() -> None:
    client = AsyncClient(retry=0, timeout=7)
    assert (client.retry, client.timeout) == (Retry(retries=0), Timeout(total=7))
    assert AsyncClient(timeout=None).timeout == Timeout(None, None, None, None)


@pytest.mark.parametrize("url", ["h", "/v1", "ftp://h", "http://", "http://h:0"])
def test_a_bad_base_is_refused_at_once(url: str) -> None:
    with pytest.raises(penstock.InvalidURL):
        AsyncClient(url)


@pytest.mark.parametrize("url", ["/path", "ftp://h/", "http://:1/", "http://h:x/"])
def test_a_bad_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(penstock.InvalidURL):
        AsyncClient().get(url)


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\nX: 1", "ÜBER", "GET/"])
def test_a_bad_method_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="is not an HTTP method"):
        AsyncClient("http://h").request(method)
    with pytest.raises(ValueError, match="is not an HTTP method"):
        AsyncClient("http://h").multipart("/", method=method)


# -- requests


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "patch", "delete"])
async def test_a_verb_for_every_method(method: str) -> None:
    body = b"" if method == "head" else b"ok"
    async with script(*once(answer(body))) as server, AsyncClient(server.url + "/v1") as client:
        response = await getattr(client, method)("x").read()
        assert response.content == body
        assert server.requests[0].startswith(f"{method.upper()} /v1/x HTTP/1.1\r\n".encode())


async def test_any_method_in_any_case() -> None:
    async with script(*once(answer())) as server, AsyncClient(server.url) as client:
        await client.request("report-x").read()
        assert server.requests[0].startswith(b"REPORT-X / ")


async def test_the_headers_that_nobody_asked_for() -> None:
    async with script(*once(answer())) as server, AsyncClient(server.url) as client:
        await client.get("/").read()
        found = fields_of(server.requests[0])
    assert found.pop("user-agent").startswith("penstock/")
    assert found.pop("host") == server.url.removeprefix("http://")
    assert found == {"accept": "*/*", "accept-encoding": "identity", "connection": "keep-alive"}


# -- cookies


SET = answer(b"", "200 OK", "Set-Cookie: session=s1; Path=/")


@pytest.mark.parametrize(("keep", "sent"), [(True, "session=s1"), (False, None)])
async def test_cookies_are_kept_or_not(keep: bool, sent: str | None) -> None:
    async with script(once(SET), once(answer())) as server, AsyncClient(server.url, keep_cookies=keep) as client:
        await client.get("/").read()
        await client.get("/").read()
        assert [fields_of(request).get("cookie") for request in server.requests] == [None, sent]


async def test_cookies_of_a_redirect_are_kept() -> None:
    login = answer(b"", "303 See Other", "Set-Cookie: session=s1; Path=/", "Location: /home")
    async with script(once(login), once(answer())) as server, AsyncClient(server.url) as client:
        await client.get("/login").read()
        assert fields_of(server.requests[1])["cookie"] == "session=s1"


async def test_relay_neither_keeps_nor_sends_cookies_of_its_own() -> None:
    async with script(once(SET), once(answer())) as server, AsyncClient(server.url, keep_cookies=False) as client:
        for _ in range(2):
            host = (("Host", "h"),)
            response = await client.relay("GET", server.url, headers=host, body=None, target=b"/")
            await response.aclose()
        assert fields_of(server.requests[1]) == {"host": "h"}


# -- the pool


async def test_idle_connections_are_kept_up_to_the_limit() -> None:
    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(answer())

    async with counting(ok) as server:
        async with AsyncClient(server.url, limits=Limits(max_idle=2)) as client:
            await asyncio.gather(*(client.get("/").read() for _ in range(5)))
            await until(lambda: server.open == 2)
        await until(lambda: server.open == 0)


async def test_an_idle_connection_is_not_used_after_its_time() -> None:
    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    async with counting(ok) as server, AsyncClient(server.url, limits=Limits(idle_timeout=0.05)) as client:
        await client.get("/").read()
        await asyncio.sleep(0.2)
        await client.get("/").read()
        assert server.open == 1


# -- an httpx2 client of the caller's


async def numbers(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for number in range(3):
            yield f"data: {number}\n\n".encode()

    return StreamingResponse(body(), media_type="text/event-stream")


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"body": (await request.body()).decode(), "headers": dict(request.headers)})


APP = Starlette(routes=[Route("/numbers", numbers), Route("/echo", echo, methods=["POST"])])


class Canned(httpx2.AsyncBaseTransport):
    """A transport of somebody's own, which gives a body in pieces, some of them empty."""

    def __init__(self) -> None:
        self.closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        class Body(httpx2.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in (b"", b"data: ", b"", b"1\n", b"\n"):
                    yield piece

        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())

    async def aclose(self) -> None:
        self.closed = True


async def test_any_transport_of_httpx2_will_do() -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(APP)) as http:
        client = AsyncClient("http://app", http_client=http, headers={"X-Client": "1"})
        assert [event.data for event in (await client.get("/numbers").collect()).events] == ["0", "1", "2"]
        answered = (await client.post("/echo").json([1]).read()).json()
        assert answered["body"] == "[1]"
        assert answered["headers"]["x-client"] == "1"
    async with httpx2.AsyncClient(transport=Canned()) as http:
        result = await AsyncClient("http://app", http_client=http).get("/").collect()
        assert [event.data for event in result.events] == ["1"]


async def test_a_client_that_was_handed_in_stays_open() -> None:
    transport = Canned()
    async with httpx2.AsyncClient(transport=transport) as http:
        async with AsyncClient("http://app", http_client=http) as client:
            await client.get("/").read()
        assert not http.is_closed
        assert not transport.closed
        assert (await http.get("http://app/")).status_code == 200
    assert transport.closed


async def test_a_handed_in_clients_auth_cookies_hooks_and_defaults_hold() -> None:
    hooked: list[str] = []

    async def hook(request: httpx2.Request) -> None:
        hooked.append(request.method)

    async with (
        script(*once(answer())) as server,
        httpx2.AsyncClient(
            auth=("me", "pw"),
            cookies={"c": "1"},
            headers={"X-Http": "1", "X-Both": "http"},
            params={"p": "1"},
            event_hooks={"request": [hook]},
            follow_redirects=True,
            timeout=0.000001,
        ) as http,
    ):
        client = AsyncClient(server.url, http_client=http, headers={"X-Both": "ours"})
        await client.get("/").param("q", 2).read()
        found = fields_of(server.requests[0])
    assert found["authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
    assert (found["cookie"], found["x-http"], found["x-both"]) == ("c=1", "1", "ours")
    assert server.requests[0].startswith(b"GET /?q=2&p=1 ") or server.requests[0].startswith(b"GET /?p=1&q=2 ")
    assert hooked == ["GET"]


async def test_a_closed_client_says_so() -> None:
    async with AsyncClient("http://h") as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/").read()


async def test_closing_twice_is_closing_once() -> None:
    client = AsyncClient()
    await client.aclose()
    await client.aclose()


async def test_use_adds_and_gives_the_client_back() -> None:
    calls: list[str] = []

    async def middleware(request: penstock.Request, send: Any) -> penstock.Response:
        calls.append(f"{request.client} {request.method} {request.url}")
        response: penstock.Response = await send(request)
        return response

    async with script(wait_request(), answer()) as server, AsyncClient(server.url, name="server1") as client:
        assert client.use(middleware) is client
        await client.get("/x").read()
        assert calls == [f"server1 GET {server.url}/x"]
