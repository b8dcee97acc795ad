from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import gzip
import hashlib
import itertools
import os
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpcore2
import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from penstock.engine.transport import Transport
from penstock.errors import LimitExceeded, PenstockError
from penstock.origin.app import app as origin
from penstock.testing import close, pause, reset, script, serve, wait_request
from penstock.testing.script import Step
from tests.engine.talk import nothing_left
from tests.engine.test_dial import Secure, secure_server, silent

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
OKAY = OK + b"Content-Length: 2\r\n\r\nok"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxy variables are none of the tests'."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def ours(**settings: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=Transport(**settings), timeout=5)


def stock(**settings: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(**settings), timeout=5)


# -- the same answers as httpx2's own --------------------------------------------------------------------------------


async def echo(request: Request) -> Response:
    body = await request.body()
    told = {
        "method": request.method,
        "path": request.url.path,
        "query": request.url.query,
        "headers": {k: v for k, v in request.headers.items() if k != "host"},
        "body": body.decode("latin-1"),
    }
    return JSONResponse(told, headers={"X-Twice": "a"})


async def hop(request: Request) -> Response:
    left = int(request.path_params["left"])
    return RedirectResponse(f"/hop/{left - 1}" if left else "/echo", int(request.query_params.get("status", 302)))


async def basic(request: Request) -> Response:
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()
    good = request.headers.get("authorization") == wanted
    return PlainTextResponse("in" if good else "out", 200 if good else 401)


async def digest(request: Request) -> Response:
    given = dict(re.findall(r'(\w+)="?([^",]+)"?', request.headers.get("authorization", "")))
    await request.body()

    def md5(*parts: str) -> str:
        return hashlib.md5(":".join(parts).encode()).hexdigest()

    if given:
        one, two = md5("me", "r", "secret"), md5(request.method, given["uri"])
        if given["response"] == md5(one, given["nonce"], given["nc"], given["cnonce"], given["qop"], two):
            return PlainTextResponse("in")
    ask = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
    return PlainTextResponse("out", 401, headers={"WWW-Authenticate": ask})


async def bake(request: Request) -> Response:
    response = JSONResponse(dict(request.cookies))
    response.set_cookie("crumb", str(len(request.cookies)))
    return response


async def zipped(request: Request) -> Response:
    return Response(gzip.compress(b"hello " * 1000), headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"})


async def trickle(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"%d\n" % number
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


async def sleep(request: Request) -> Response:
    await asyncio.sleep(0.02)
    return PlainTextResponse("ok")


METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
APP = Starlette(
    routes=[
        Route("/echo", echo, methods=METHODS),
        Route("/hop/{left}", hop, methods=METHODS),
        Route("/basic", basic),
        Route("/digest", digest, methods=METHODS),
        Route("/cookies", bake),
        Route("/zipped", zipped),
        Route("/trickle", trickle),
        Route("/sleep", sleep),
    ]
)


async def agen(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


Asking = Callable[[httpx2.AsyncClient, str], Awaitable[Any]]


def _plain(response: httpx2.Response) -> Any:
    body = re.sub(r"boundary=\w+|--\w{16,}", "", response.text)
    return response.status_code, str(response.url.path), body, response.http_version, response.reason_phrase, [
        (name, value) for name, value in response.headers.multi_items() if name != "date"
    ]  # fmt: skip


# fmt: off
ASKED: dict[str, Asking] = {
    "get": lambda c, u: c.get(f"{u}/echo?a=b&c=%20d", headers={"X-Case": "Kept", "accept": "x"}),
    "head": lambda c, u: c.head(f"{u}/zipped"),
    "options": lambda c, u: c.options(f"{u}/echo"),
    "delete": lambda c, u: c.delete(f"{u}/echo"),
    "json": lambda c, u: c.post(f"{u}/echo", json={"a": "é"}),
    "form": lambda c, u: c.post(f"{u}/echo", data={"a": "b c"}),
    "bytes": lambda c, u: c.put(f"{u}/echo", content=b"abc"),
    "no content": lambda c, u: c.post(f"{u}/echo"),
    "a stream": lambda c, u: c.post(f"{u}/echo", content=agen(b"ab", b"", b"c")),
    "a stream with a length":
        lambda c, u: c.post(f"{u}/echo", content=agen(b"ab", b"c"), headers={"Content-Length": "3"}),
    "multipart":
        lambda c, u: c.post(f"{u}/echo", data={"a": "b"}, files={"f": ("n.txt", b"x" * 100_000, "text/plain")}),
    "redirects": lambda c, u: c.get(f"{u}/hop/3", follow_redirects=True),
    "a redirect that keeps its body":
        lambda c, u: c.post(f"{u}/hop/0?status=307", content=b"abc", follow_redirects=True),
    "a redirect that drops it": lambda c, u: c.post(f"{u}/hop/0?status=303", content=b"abc", follow_redirects=True),
    "basic": lambda c, u: c.get(f"{u}/basic", auth=("me", "secret")),
    "digest": lambda c, u: c.get(f"{u}/digest", auth=httpx2.DigestAuth("me", "secret")),
    "digest with a body": lambda c, u: c.post(f"{u}/digest", content=b"abc", auth=httpx2.DigestAuth("me", "secret")),
    "gzip": lambda c, u: c.get(f"{u}/zipped"),
    "a streamed answer": lambda c, u: c.get(f"{u}/trickle"),
    "not found": lambda c, u: c.get(f"{u}/nowhere"),
    "target": lambda c, u: c.get(u, extensions={"target": b"/echo?raw=%7E%7e"}),
    "chunked by hand": lambda c, u: c.post(f"{u}/echo", content=b"abc", headers={"Transfer-Encoding": "chunked"}),
}
# fmt: on


@pytest.mark.parametrize("asked", ASKED)
async def test_the_same_answer(asked: str) -> None:
    async with nothing_left(), serve(APP) as url:
        answers = []
        for client in (ours(), stock()):
            async with client:
                answers.append(_plain(await ASKED[asked](client, url)))
        if asked == "chunked by hand":  # httpx2's own sends a Content-Length as well, which our server rightly refuses
            assert answers[0][0] == 200
            assert '"body":"abc"' in answers[0][2]
        else:
            assert answers[0] == answers[1]
            assert answers[0][0] == (404 if asked == "not found" else 200)


async def test_cookies_and_hooks() -> None:
    told: list[str] = []

    async def on_request(request: httpx2.Request) -> None:
        told.append(request.method)

    async def on_response(response: httpx2.Response) -> None:
        await response.aread()
        told.append(response.text)

    async with nothing_left(), serve(APP) as url, ours() as client:
        client.event_hooks = {"request": [on_request], "response": [on_response]}
        for _ in range(2):
            await client.get(f"{url}/cookies")
    assert told == ["GET", "{}", "GET", '{"crumb":"0"}']


async def test_header_names_and_order_reach_the_wire_as_they_are() -> None:
    async with script([wait_request(), OKAY], repeat=True) as server:
        for client in (ours(), stock()):
            async with client:
                await client.get(server.url, headers=[("X-b", "1"), ("x-A", "2"), ("X-b", "3")])
    assert server.requests[0] == server.requests[1]


async def test_what_came_and_how() -> None:
    answer = b"HTTP/1.0 299 Odd  One\r\nX-A: 1 \t\r\nx-a: 2\r\n\r\nbody"
    async with nothing_left(), script([wait_request(), answer, close()], repeat=True) as server:
        for client in (ours(), stock()):
            async with client:
                response = await client.get(server.url)
                assert response.extensions["http_version"] == b"HTTP/1.0"
                assert response.extensions["reason_phrase"] == b"Odd  One"
                assert response.headers.raw == [(b"X-A", b"1"), (b"x-a", b"2")]
                assert (response.status_code, response.content) == (299, b"body")


async def test_the_network_stream() -> None:
    async with nothing_left(), serve(APP) as url, ours() as client, client.stream("GET", f"{url}/echo") as response:
        stream = response.extensions["network_stream"]
        assert f"http://127.0.0.1:{stream.get_extra_info('server_addr')[1]}" == url
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("nothing") is None
        with pytest.raises(httpcore2.ReadError):
            await stream.read(10)


async def test_an_upgraded_connection() -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nfirst"
    for client in (ours(), stock()):
        async with nothing_left(), script(wait_request(), answer, pause(0.6), b"second", close()) as server:
            headers = {"Connection": "upgrade", "Upgrade": "x"}
            async with client, client.stream("GET", server.url, headers=headers, timeout=0.5) as response:
                assert response.status_code == 101
                stream = response.extensions["network_stream"]
                assert [await stream.read(3), await stream.read(100)] == [b"fir", b"st"]
                with pytest.raises(httpcore2.ReadTimeout):
                    await stream.read(100, timeout=0.02)
                await stream.write(b"hello")
                assert await stream.read(100, timeout=20) == b"second"
                assert await stream.read(100, timeout=20) == b""


async def test_an_upgrade_that_is_read_as_a_response_has_no_body() -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nfirst"
    for client in (ours(), stock()):
        async with nothing_left(), script(wait_request(), answer) as server, client:
            response = await client.get(server.url, headers={"Connection": "upgrade", "Upgrade": "x"})
            assert (response.status_code, response.content) == (101, b"")


async def test_trace() -> None:
    async def traced(client: httpx2.AsyncClient, url: str) -> list[list[str]]:
        told: list[list[str]] = []

        async def trace(name: str, info: dict[str, Any]) -> None:
            told[-1].append(name)

        async with client:
            for _ in range(2):
                told.append([])
                await client.get(url, extensions={"trace": trace})
        return told

    async with nothing_left(), serve(APP) as url:
        mine, theirs = await traced(ours(), f"{url}/echo"), await traced(stock(), f"{url}/echo")
    assert mine == [[name for name in each if "send_request" not in name] for each in theirs]
    assert not any("connect" in name for name in mine[1])


@pytest.mark.parametrize("step", range(8))
async def test_a_trace_that_raises_leaves_nothing(step: int) -> None:
    count = itertools.count()

    async def trace(name: str, info: dict[str, Any]) -> None:
        if next(count) == step:
            raise RuntimeError("traced")

    async with nothing_left(), serve(APP) as url:
        transport = Transport(limits=httpx2.Limits(max_connections=1))
        async with httpx2.AsyncClient(transport=transport) as client:
            with pytest.raises(RuntimeError, match="traced"):
                await client.get(f"{url}/echo", extensions={"trace": trace})
            assert (await client.get(f"{url}/echo", timeout=20)).status_code == 200


# -- the same errors -------------------------------------------------------------------------------------------------


async def get(client: httpx2.AsyncClient, url: str) -> None:
    await client.get(url, timeout=httpx2.Timeout(1, read=0.1, write=0.2))


FAULTS: dict[str, tuple[Sequence[Step], Asking]] = {
    "closed without an answer": ([wait_request(), close()], get),
    "reset without an answer": ([wait_request(), reset()], get),
    "closed in the head": ([wait_request(), OK, close()], get),
    "reset in the head": ([wait_request(), OK, reset()], get),
    "never answers": ([wait_request()], get),
    "silent in the head": ([wait_request(), OK], get),
    "silent in the body": ([wait_request(), CHUNKED], get),
    "short of its length": ([wait_request(), OK + b"Content-Length: 5\r\n\r\nhe", close()], get),
    "reset in the body": ([wait_request(), OK + b"Content-Length: 5\r\n\r\nhe", reset()], get),
    "reset in a body to the end": ([wait_request(), OK + b"\r\nhe", reset()], get),
    "closed in the chunks": ([wait_request(), CHUNKED + b"5\r\nhe", close()], get),
    "reset in the chunks": ([wait_request(), CHUNKED + b"5\r\nhe", reset()], get),
    "malformed chunks": ([wait_request(), CHUNKED + b"zz\r\n"], get),
    "not HTTP": ([wait_request(), b"SSH-2.0\r\n\r\n"], get),
    "two lengths": ([wait_request(), OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"], get),
    "a coding": ([wait_request(), OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"], get),
    "a long head": ([wait_request(), OK + b"A: " + b"x" * 1_000_000], get),
    "101 unasked": ([wait_request(), b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], get),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_same_error(fault: str) -> None:
    steps, asking = FAULTS[fault]
    kinds = []
    async with nothing_left(), script(list(steps), repeat=True) as server:
        for client in (ours(), stock()):
            async with client:
                with pytest.raises(httpx2.TransportError) as caught:
                    await asking(client, server.url)
                kinds.append(type(caught.value))
                assert caught.value.request.url == server.url
    assert kinds[0] is kinds[1]


async def test_a_server_that_never_reads_is_a_write_timeout() -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    with silent_reader() as url:
        for client in (ours(), stock()):
            async with nothing_left(), client:
                with pytest.raises(httpx2.WriteTimeout):
                    await client.post(url, content=forever(), timeout=httpx2.Timeout(5, write=0.1))


@contextlib.contextmanager
def silent_reader() -> Any:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_the_same_error_without_a_connection() -> None:
    secure = Secure("localhost")
    with silent() as (host, port):
        async with nothing_left(), secure_server(secure) as (secure_port, _), script([], repeat=True) as plain:
            for url in (
                "http://127.0.0.1:1/",
                "http://nowhere.invalid/",
                f"http://{host}:{port}/",
                f"https://localhost:{secure_port}/",
                f"https://127.0.0.1:{plain.port}/",
                "ftp://127.0.0.1/",
            ):
                kinds = []
                # To look a name up may take a while.
                patience = httpx2.Timeout(5, connect=20 if "nowhere" in url else 0.2)
                for client in (ours(), stock()):
                    async with client:
                        with pytest.raises(httpx2.TransportError) as caught:
                            await client.get(url, timeout=patience)
                        kinds.append(type(caught.value))
                assert kinds[0] is kinds[1], url


async def test_the_same_error_without_a_place() -> None:
    limits = httpx2.Limits(max_connections=1)
    async with nothing_left(), script([wait_request(), OK + b"\r\n"], repeat=True) as server:
        for client in (ours(limits=limits), stock(limits=limits)):
            async with client, client.stream("GET", server.url):
                with pytest.raises(httpx2.PoolTimeout):
                    await client.get(server.url, timeout=httpx2.Timeout(5, pool=0.05))


@pytest.mark.parametrize(
    ("method", "headers", "extensions"),
    [
        ("GET", {"A": "b\r\nc: d"}, {}),
        ("GET", {"A": "b\0"}, {}),
        ("GET", {"A b": "c"}, {}),
        ("GET", {"": "c"}, {}),
        ("GE T", {}, {}),
        ("GET(", {}, {}),
        ("GET", {}, {"target": b"/a b"}),
        ("GET", {}, {"target": b"/a\r\nX: y"}),
        ("POST", {"Content-Length": "x"}, {}),
    ],
)
async def test_what_no_request_may_hold(method: str, headers: dict[str, str], extensions: dict[str, Any]) -> None:
    async with nothing_left(), script([]) as server:
        for client in (ours(), stock()):
            async with client:
                with pytest.raises(httpx2.LocalProtocolError):
                    await client.request(method, server.url, headers=headers, extensions=extensions)
        assert server.requests == []


async def test_the_engines_error_is_the_cause() -> None:
    async with script([wait_request(), OK + b"A" * 200_000], repeat=True) as server, ours() as client:
        with pytest.raises(httpx2.RemoteProtocolError) as caught:
            await client.get(server.url)
        assert isinstance(caught.value.__cause__, LimitExceeded)


@pytest.mark.parametrize("parts", [[b"ab"], [b"ab", b"cd"]])
async def test_a_body_that_is_not_as_long_as_it_says(parts: list[bytes]) -> None:
    async with nothing_left(), script(pause(0)) as server, ours() as client:
        with pytest.raises(httpx2.LocalProtocolError, match="the request's body"):  # of httpx2's own it is h11's
            await client.post(server.url, content=agen(*parts), headers={"Content-Length": "3"})


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    class SourceError(PenstockError):
        pass

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise SourceError("the source broke")

    async with nothing_left(), script([]) as server, ours() as client:
        with pytest.raises(SourceError, match="the source broke"):
            await client.post(server.url, content=broken())


# -- connections that are kept ---------------------------------------------------------------------------------------


def dying(after: Step) -> list[list[Step]]:
    """A connection that answers once and dies as it gets its second request; and another."""
    return [[wait_request(), OKAY, wait_request(), after], [wait_request(), OKAY]]


@pytest.mark.parametrize("after", [close(), reset()])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_what_died_while_idle_is_asked_again(method: str, after: Step) -> None:
    async with nothing_left(), script(*dying(after)) as server, ours() as client:
        await client.get(server.url)
        response = await client.request(method, server.url, content=b"abc" if method == "PUT" else None)
        assert response.status_code == 200
        assert server.connections == 2
        assert server.requests[1] == server.requests[2]


async def test_what_cannot_be_sent_twice_is_not() -> None:
    for method, content in (("POST", b"abc"), ("PATCH", b"abc"), ("PUT", agen(b"abc"))):
        async with nothing_left(), script(*dying(close())) as server, ours() as client:
            await client.get(server.url)
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.request(method, server.url, content=content)
            assert (server.connections, len(server.requests)) == (1, 2)


async def test_what_died_after_a_first_byte_or_on_a_new_connection_is_not_asked_again() -> None:
    async with nothing_left(), script(*dying(b"H"), repeat=True) as server, ours() as client:
        await client.get(server.url)
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(server.url, timeout=0.1)
        assert server.connections == 1
    async with nothing_left(), script([wait_request(), close()], repeat=True) as server, ours() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(server.url)
        assert server.connections == 1


async def test_a_connection_that_the_server_closed_is_not_used_even_for_a_post() -> None:
    async with (
        nothing_left(),
        script([wait_request(), OKAY, close()], [wait_request(), OKAY]) as server,
        ours() as client,
    ):
        await client.get(server.url)
        await asyncio.sleep(0.02)
        assert (await client.post(server.url, content=b"abc")).status_code == 200
        assert server.connections == 2


async def test_two_hundred_at_once() -> None:
    async with nothing_left(), serve(APP) as url, ours() as client:
        answers = await asyncio.gather(*(client.get(f"{url}/sleep?{number}") for number in range(200)))
        assert {answer.text for answer in answers} == {"ok"}
        answers = await asyncio.gather(*(client.post(f"{url}/echo", content=b"%d" % n) for n in range(200)))
        assert [answer.json()["body"] for answer in answers] == [str(number) for number in range(200)]


async def test_cancelled_at_any_moment() -> None:
    async with nothing_left(), serve(APP) as url:
        transport = Transport(limits=httpx2.Limits(max_connections=3))
        async with httpx2.AsyncClient(transport=transport) as client:
            for turns in range(60):
                path = ["/trickle", "/echo"][turns % 2]
                task = asyncio.create_task(client.post(url + path, content=agen(b"x" * 70_000, b"y" * 70_000)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert (await client.get(f"{url}/echo", timeout=20)).status_code == 200


async def test_a_body_that_is_left_in_the_middle() -> None:
    async with (
        nothing_left(),
        script([wait_request(), CHUNKED + b"1\r\na\r\n"], repeat=True) as server,
        ours() as client,
    ):
        async with client.stream("GET", server.url) as response:
            async for piece in response.aiter_raw():
                assert piece == b"a"
                break
        async with client.stream("GET", server.url) as response:
            reader = asyncio.create_task(response.aread())
            await asyncio.sleep(0.02)
            await response.aclose()
            with pytest.raises(httpx2.TransportError):
                async with asyncio.timeout(20):
                    await reader
        assert server.connections == 2


async def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with nothing_left(), serve(APP) as url:
            async with ours() as client:
                await client.get(f"{url}/echo")
                async with client.stream("GET", f"{url}/trickle"):
                    pass
            gc.collect()


# -- TLS and Unix sockets ----------------------------------------------------------------------------------------------


async def test_tls() -> None:
    secure = Secure("localhost", "other.example")
    async with nothing_left(), secure_server(secure) as (port, names), ours(verify=secure.client) as client:
        assert (await client.get(f"https://localhost:{port}/")).text == "ok"
        response = await client.get(f"https://127.0.0.1:{port}/", extensions={"sni_hostname": "other.example"})
        assert response.text == "ok"
        async with client.stream("GET", f"https://localhost:{port}/") as response:
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            assert tls.selected_alpn_protocol() == "http/1.1"
        with pytest.raises(httpx2.ConnectError, match="cannot be trusted"):
            await client.get(f"https://127.0.0.1:{port}/")
    async with secure_server(secure) as (port, _), ours(verify=False) as client:
        assert (await client.get(f"https://127.0.0.1:{port}/")).text == "ok"
    assert names[:2] == ["localhost", "other.example"]


async def test_a_unix_socket(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OKAY)
        await reader.read()
        writer.close()

    path = str(tmp_path / "socket")
    async with nothing_left(), await asyncio.start_unix_server(answer, path):
        async with ours(uds=path) as client:
            assert (await client.get("http://anything/")).text == "ok"
        await asyncio.sleep(0.01)


# -- proxies -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A tiny proxy: absolute requests are answered, CONNECT is a tunnel."""
    seen: list[bytes] = []
    running: set[Any] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head.split(b"\r\n")[0])
            if not head.startswith(b"CONNECT"):
                writer.write(OKAY)
                await reader.read()
                return
            host, port = head.split()[1].decode().split(":")
            there = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        finally:
            sink.transport.abort()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.wait(running) if running else None
        await asyncio.sleep(0.01)


async def test_the_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    secure = Secure("localhost")
    async with nothing_left(), proxy() as (url, seen), secure_server(secure) as (port, _), serve(APP) as direct:
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("https_proxy", url.removeprefix("http://"))
        monkeypatch.setenv("NO_PROXY", f"{direct.removeprefix('http://')}, .inside.example")
        async with ours(verify=secure.client) as client:
            assert (await client.get("http://outside.example/x")).text == "ok"
            assert (await client.get(f"https://localhost:{port}/")).text == "ok"
            assert (await client.get(f"{direct}/echo")).status_code == 200
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://a.inside.example/")
        assert seen == [b"GET http://outside.example/x HTTP/1.1", b"CONNECT localhost:%d HTTP/1.1" % port]
        async with ours(trust_env=False) as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://outside.invalid/")
        monkeypatch.delenv("HTTP_PROXY")
        monkeypatch.setenv("ALL_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "*")
        async with ours() as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://outside.invalid/")
        assert len(seen) == 2


# -- what is built on httpx2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["http_client", "DefaultAsyncHttpxClient"])
async def test_openai(how: str, tmp_path: Path) -> None:
    async with nothing_left(), serve(origin(tmp_path)) as url:
        http: Any = ours() if how == "http_client" else openai.DefaultAsyncHttpxClient(transport=Transport())
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", http_client=http, max_retries=0) as client:
            asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            told = (await client.chat.completions.create(**asked)).choices[0].message.content
            stream = await client.chat.completions.create(**asked, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert len(pieces) > 3
            assert told == "".join(pieces)
            cut = client.with_options(default_query={"cut_after": "3"})
            with pytest.raises(openai.APIConnectionError):
                async for _ in await cut.chat.completions.create(**asked, stream=True):
                    pass
        gone = openai.AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:1", http_client=ours(), max_retries=0)
        async with gone:
            with pytest.raises(openai.APIConnectionError):
                await gone.chat.completions.create(**asked)


START = """{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"m",
 "stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}"""
DELTA = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}'
END = '{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":2}}'
EVENTS = [
    ("message_start", START.replace("\n", "")),
    ("content_block_start", '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}'),
    ("content_block_delta", DELTA % "Hel"),
    ("content_block_delta", DELTA % "lo"),
    ("content_block_stop", '{"type":"content_block_stop","index":0}'),
    ("message_delta", END),
    ("message_stop", '{"type":"message_stop"}'),
]


async def messages(request: Request) -> Response:
    async def events() -> AsyncIterator[str]:
        for name, data in EVENTS:
            yield f"event: {name}\ndata: {data}\n\n"
            await asyncio.sleep(0)

    assert (await request.json())["stream"] is True
    return StreamingResponse(events(), media_type="text/event-stream")


async def test_anthropic() -> None:
    app = Starlette(routes=[Route("/v1/messages", messages, methods=["POST"])])
    async with nothing_left(), serve(app) as url:
        for http in (ours(), anthropic.DefaultAsyncHttpxClient(transport=Transport())):
            client = anthropic.AsyncAnthropic(api_key="k", base_url=url, http_client=http, max_retries=0)
            said: Any = [{"role": "user", "content": "hello"}]
            async with client, client.messages.stream(model="m", max_tokens=9, messages=said) as stream:
                assert [text async for text in stream.text_stream] == ["Hel", "lo"]
