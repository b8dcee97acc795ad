"""Real causes, and our errors for them; `test_exchange` and `test_response` look at what is done about them."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import penstock
from penstock import AsyncClient, PenstockError, Timeout
from penstock.client import seam
from penstock.testing import close, pause, reset, script, wait_request
from penstock.testing.script import Step
from tests.client.peers import answer, chunked, free_port, retries

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
FAST = Timeout(connect=5, first_event=0.15, between_events=0.15)


async def failure(url: str, **settings: Any) -> PenstockError:
    settings.setdefault("timeout", Timeout(connect=10, first_event=20, between_events=20))
    async with AsyncClient(url, retry=0, **settings) as client:
        with pytest.raises(PenstockError) as caught:
            await client.get("/x").read()
    assert caught.value.url == url + "/x"
    assert str(caught.value).startswith(url + "/x")
    return caught.value


# -- no connection


async def test_refused() -> None:
    with free_port() as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert type(error) is penstock.ConnectError
    assert (error.reason, error.category) == ("refused", "network")
    assert "connection refused; is a server running there?" in str(error)


async def test_an_unknown_host() -> None:
    error = await failure("http://nowhere.invalid")
    assert type(error) is penstock.ConnectError
    assert (error.reason, error.category) == ("dns", "network")
    assert "there is no host 'nowhere.invalid'" in str(error)


async def test_a_server_that_does_not_speak_tls() -> None:
    async with script(b"HTTP/1.1 400 Bad Request\r\n\r\n", close()) as server:
        error = await failure(server.url.replace("http:", "https:"))
    assert type(error) is penstock.ConnectError
    assert (error.reason, error.category) == ("tls", "network")
    assert "is it an https server?" in str(error)


async def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    made = subprocess.run(
        [
            "openssl",
            *[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=localhost",
                "-days",
                "1",
                "-keyout",
                "key",
                "-out",
                "cert",
            ],
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl is not installed")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    async with server:
        error = await failure(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert type(error) is penstock.ConnectError
    assert error.reason == "tls"
    assert "its TLS certificate cannot be trusted" in str(error)


async def test_no_connection_in_time() -> None:
    async with script() as server:  # accepts and says nothing: the TLS handshake never ends
        error = await failure(server.url.replace("http:", "https:"), timeout=Timeout(connect=0.15))
    assert type(error) is penstock.ConnectTimeout
    assert isinstance(error, TimeoutError)
    assert (error.reason, error.category) == ("timeout", "network")


# -- no answer


@pytest.mark.parametrize(
    "steps",
    [[reset()], [wait_request(), reset()], [wait_request(), close()], [wait_request(), b"HTTP/1.1 200", close()]],
    ids=["reset at once", "reset", "closed", "closed in the status line"],
)
async def test_lost_before_the_headers(steps: list[Step]) -> None:
    async with script(*steps) as server:
        error = await failure(server.url)
    assert type(error) is penstock.ReadError
    assert error.category == "network"
    assert "closed the connection before it answered" in str(error)


async def test_silence_before_the_headers() -> None:
    async with script(wait_request(), b"HTTP/1.1 ") as server:
        error = await failure(server.url, timeout=FAST)
    assert type(error) is penstock.ReadTimeout
    assert isinstance(error, TimeoutError)


async def test_an_informational_response_does_not_end_the_waiting() -> None:
    async with (
        script(wait_request(), b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", answer(b"real")) as server,
        AsyncClient(server.url) as client,
    ):
        assert (await client.get("/").read()).content == b"real"


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"<html>hello</html>\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        OK + b"no colon here\r\n\r\n",
        OK + b"Content-Length: ten\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
    ],
    ids=lambda garbage: repr(garbage[:40]),
)
async def test_garbage_instead_of_http(garbage: bytes) -> None:
    async with script(wait_request(), garbage) as server:
        error = await failure(server.url)
    assert type(error) is penstock.ProtocolError
    assert error.category == "server"
    assert "does not speak HTTP properly" in str(error)


async def test_a_head_without_end() -> None:
    async with script(wait_request(), OK + b"X: " + b"x" * 200_000) as server:
        error = await failure(server.url)
    assert isinstance(error, penstock.LimitExceeded)
    assert error.limit == "max_head_bytes"
    assert str(error).startswith(server.url)


async def test_a_server_that_stops_reading() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 18)

    async with script(pause(60)) as server, AsyncClient(server.url, retry=0, timeout=FAST) as client:
        with pytest.raises(penstock.WriteTimeout, match="stopped reading the request") as caught:
            await client.post("/").content(endless()).read()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.category == "network"


# -- a body that breaks


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([answer(b"12345", length=100), close()], 5),
        ([answer(b"12345", length=100), reset()], 5),
        ([answer(b"", length=1), close()], 0),
        ([chunked(b"12345", end=False), close()], 5),
        ([chunked(b"12345", end=False), reset()], 5),
        ([chunked(end=False) + b"5\r\n123", close()], 3),
        ([chunked(b"12345", end=False) + b"0\r\n", close()], 5),
    ],
    ids=["length", "length, reset", "nothing", "chunks", "chunks, reset", "in a chunk", "in the last chunk"],
)
async def test_a_truncated_body(sent: list[Step], received: int) -> None:
    async with script(wait_request(), *sent) as server:
        error = await failure(server.url)
    assert type(error) is penstock.StreamTruncated
    assert error.category == "stream"
    assert f"the body broke off after {received} bytes" in str(error)


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with script(wait_request(), OK + b"\r\nall of it", close()) as server, AsyncClient(server.url) as client:
        assert (await client.get("/").read()).content == b"all of it"


@pytest.mark.parametrize("broken", [b"zz\r\nabc\r\n", b"-1\r\n", b"3\r\nabcdef\r\n"], ids=repr)
async def test_a_bad_chunk(broken: bytes) -> None:
    async with script(wait_request(), chunked(b"12345", end=False) + broken) as server:
        error = await failure(server.url)
    assert type(error) is penstock.ProtocolError
    assert error.category == "server"
    assert "framing is broken after" in str(error)


async def test_silence_in_the_body() -> None:
    async with script(wait_request(), chunked(b"12345", end=False)) as server:
        error = await failure(server.url, timeout=Timeout(between_events=0.15))
    assert type(error) is penstock.StreamStalled
    assert isinstance(error, TimeoutError)
    assert error.category == "stream"
    assert "went silent for 0.15 s after 5 bytes" in str(error)


async def test_a_coding_that_does_not_decode() -> None:
    async with script(wait_request(), answer(b"no gzip at all", "200 OK", "Content-Encoding: gzip")) as server:
        error = await failure(server.url)
    assert type(error) is penstock.DecodeError
    assert error.category == "application"


async def test_a_chain_of_redirects_that_never_ends() -> None:
    bad = answer(b"", "302 Found", "Location: ftp://elsewhere/")
    async with script(wait_request(), bad) as server:
        error = await failure(server.url)
    assert type(error) is penstock.ProtocolError, "whose fault it is"
    assert "redirects to what cannot be asked for: ftp://elsewhere/" in str(error)


@pytest.mark.parametrize("chunk_size", [1, 7])
async def test_how_the_bytes_were_split_changes_nothing(chunk_size: int) -> None:
    whole = chunked(b"one", b"two", end=True)
    steps: list[Step] = []
    for at in range(0, len(whole), chunk_size):
        steps += [whole[at : at + chunk_size], pause(0)]
    async with script(wait_request(), *steps) as server, AsyncClient(server.url) as client:
        assert (await client.get("/").read()).content == b"onetwo"


# -- other transports' exceptions


class Raising(httpx2.AsyncByteStream):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"123"
        raise self.error


class Transport(httpx2.AsyncBaseTransport):
    def __init__(self, error: Exception, *, in_body: bool) -> None:
        self.error = error
        self.in_body = in_body

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self.in_body:
            raise self.error
        return httpx2.Response(200, stream=Raising(self.error))


@pytest.mark.parametrize(
    ("error", "in_body", "ours"),
    [
        (httpx2.PoolTimeout("x"), False, penstock.TransportError),
        (httpx2.ProxyError("x"), False, penstock.ConnectError),
        (httpx2.WriteError("x"), False, penstock.WriteError),
        (httpx2.LocalProtocolError("x"), False, penstock.ProtocolError),
        (httpx2.CloseError("x"), False, penstock.ReadError),
        (httpx2.ReadTimeout("x"), True, penstock.StreamStalled),
        (httpx2.ReadError("x"), True, penstock.StreamTruncated),
        (TimeoutError("x"), True, penstock.StreamTruncated),
        (OSError("x"), True, penstock.StreamTruncated),
        (penstock.InBandError("http://h/x: x", url="http://h/x"), True, penstock.InBandError),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_any_transports_failures_are_ours(error: Exception, in_body: bool, ours: type[PenstockError]) -> None:
    async with httpx2.AsyncClient(transport=Transport(error, in_body=in_body)) as http:
        found = await failure("http://h", http_client=http, timeout=None)
    assert type(found) is ours
    assert found.__cause__ is (None if found is error else error)


# -- URLs


@pytest.mark.parametrize(
    ("base", "url", "whole"),
    [
        ("http://h", "/a", "http://h/a"),
        ("http://h/", "a", "http://h/a"),
        ("http://h/v1", "/a/b?c=d", "http://h/v1/a/b?c=d"),
        ("http://h/v1/", "a/", "http://h/v1/a/"),
        ("http://h/v1", "", "http://h/v1"),
        ("http://h/v1", "?q=1", "http://h/v1?q=1"),
        ("http://h/v1?key=1", "/a", "http://h/v1/a?key=1"),
        ("http://h?key=1", "a?b=/c", "http://h/a?key=1&b=/c"),
        ("http://h/v1?key=1", "?q=1", "http://h/v1?key=1&q=1"),
        ("http://h/v1?key=1", "", "http://h/v1?key=1"),
        ("http://h/v1?#top", "/a?#part", "http://h/v1/a#part"),
        ("http://h/v1", "https://other:8443/x", "https://other:8443/x"),
        ("http://h", "/go?to=http://elsewhere/", "http://h/go?to=http://elsewhere/"),
        ("http://h", "//elsewhere/x", "http://h/elsewhere/x"),
        ("", "http://u:p@h/", "http://u:p@h/"),
        ("", "http://[::1]:8080/x", "http://[::1]:8080/x"),
    ],
)
def test_paths_are_joined_to_the_base(base: str, url: str, whole: str) -> None:
    assert seam.absolute_url(base, url) == whole


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "not a full URL"),
        ("/path", "not a full URL"),
        ("localhost:8000/x", "not a full URL"),
        ("/x?u=http://h/", "not a full URL"),
        ("ftp://h/", "scheme 'ftp' is not spoken"),
        ("ws://h/", "scheme 'ws' is not spoken"),
        ("://h/", "scheme '' is not spoken"),
        ("http://", "has no host"),
        ("http:///x", "has no host"),
        ("http://:80/", "has no host"),
        ("http://h:99999/", "port"),
        ("http://h:0/", "port"),
        ("http://h:x/", "port"),
        ("http://[::1/", "is not a URL"),
        ("http://h/a b\x00", "is not a URL"),
        ("http://" + "h" * 70_000, "is not a URL"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_urls_are_refused_with_the_reason(url: str, says: str) -> None:
    with pytest.raises(penstock.InvalidURL, match=says) as caught:
        seam.absolute_url("", url)
    assert isinstance(caught.value, ValueError)
    assert caught.value.category == "application"


@pytest.mark.parametrize("url", ["ftp://me:secret@h/", "http://me:secret@h:0/", "http://me:secret@[::1/"])
def test_no_message_and_no_error_has_a_password(url: str) -> None:
    with pytest.raises(penstock.InvalidURL) as caught:
        seam.absolute_url("", url)
    assert "secret" not in f"{caught.value} {caught.value.url}"


@pytest.mark.parametrize(
    ("url", "shown", "origin"),
    [
        ("http://me:pw@h:8080/p?q=@#f", "http://h:8080/p?q=@#f", "http://h:8080"),
        ("http://h/a@b", "http://h/a@b", "http://h"),
        ("HTTP://Example.COM:80/P", "HTTP://Example.COM:80/P", "http://example.com"),
        ("https://h:443?x", "https://h:443?x", "https://h"),
        ("https://h:80/", "https://h:80/", "https://h:80"),
        ("http://a:b@c@h/", "http://h/", "http://h"),
        ("http://[::1]:80/", "http://[::1]:80/", "http://[::1]"),
    ],
)
def test_what_is_shown_of_a_url_and_what_a_breaker_guards(url: str, shown: str, origin: str) -> None:
    assert (seam.shown(url), seam.origin_of(url)) == (shown, origin)


async def test_credentials_in_a_url_are_used_and_never_shown() -> None:
    async with script([wait_request(), b"junk\r\n\r\n"], [wait_request(), answer()]) as server:
        url = server.url.replace("http://", "http://me:secret@")
        async with AsyncClient(url, retry=retries(0)) as client:
            with pytest.raises(penstock.ProtocolError) as caught:
                await client.get("/x").read()
            assert "secret" not in f"{caught.value} {caught.value.url}"
            response = await client.get("/x").read()
            assert response.url == server.url + "/x"
        assert b"Authorization: Basic bWU6c2VjcmV0" in server.requests[1]
