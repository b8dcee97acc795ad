"""The engine as an httpx2 transport: a drop-in for httpx2's own.

What httpx2 gives and wants is known here and nowhere else in the engine: its requests, its timeouts, its trace, its
exceptions. The engine's own errors stay as the cause of what is raised.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass

import httpx2

from penstock.engine.connection import BodyLengthError, Connection, Exchange, Outgoing, Patience
from penstock.engine.dial import Origin
from penstock.engine.framing import Framing
from penstock.engine.pool import Pool, PoolTimeout
from penstock.errors import (
    ConnectError,
    ConnectTimeout,
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteError,
    WriteTimeout,
)
from penstock.resilience.classify import IDEMPOTENT


class Transport(httpx2.AsyncBaseTransport):
    """An HTTP/1.1 transport for `httpx2.AsyncClient(transport=penstock.Transport())`, and for what is built on it.

    Redirects, auth, cookies and event hooks stay httpx2's. The proxy variables of the environment are honoured: such
    requests are handed to httpx2's own transport.

    Args:
        verify: The TLS settings; True for the system's certificates, False to check nothing.
        limits: httpx2's limits; by default 1,000 idle connections for 90 s and no bound on busy ones.
        trust_env: Whether SSL_CERT_FILE, SSL_CERT_DIR and the proxy variables count.
        uds: A Unix socket to connect to, whatever the URL's host.
        local_address: What to connect from.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | bool = True,
        limits: httpx2.Limits | None = None,
        max_idle_per_host: int | None = None,
        trust_env: bool = True,
        uds: str | None = None,
        local_address: str | None = None,
    ) -> None:
        limits = limits or httpx2.Limits(max_connections=None, max_keepalive_connections=1000, keepalive_expiry=90.0)
        most_idle = limits.max_keepalive_connections
        self._pool = Pool(
            max_connections=limits.max_connections,
            max_idle=10_000 if most_idle is None else most_idle,
            max_idle_per_host=max_idle_per_host,
            idle_timeout=limits.keepalive_expiry,
            local_address=local_address,
        )
        self._verify = verify
        self._limits = limits
        self._trust_env = trust_env
        self._uds = uds
        self._tls: ssl.SSLContext | None = None
        self._proxies = getproxies() if trust_env and uds is None else {}
        self._proxied: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()
        for transport in self._proxied.values():
            await transport.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return its response with the body still to come.

        Cancellation: the connection is closed.

        Raises:
            httpx2.TransportError: Of the kind that httpx2's own transport raises; the cause is the engine's error.
        """
        if self._proxies and (proxy := _proxy_for(request.url, self._proxies)) is not None:
            return await self._through(proxy).handle_async_request(request)
        exchange, network_stream = await self._exchange(request)
        head = exchange.head
        return httpx2.Response(
            status_code=head.status,
            headers=head.headers,
            stream=_Body(exchange, _Trace(request)),
            extensions={
                "http_version": b"HTTP/" + head.version.encode(),
                "reason_phrase": head.reason,
                "network_stream": network_stream,
                "penstock.exchange": exchange,
            },
        )

    def goes_plainly_to(self, url: httpx2.URL) -> bool:
        """Whether a request to this URL goes straight to its host, without TLS."""
        proxied = self._proxies and _proxy_for(url, self._proxies) is not None
        return url.scheme == "http" and not proxied

    async def _exchange(self, request: httpx2.Request) -> tuple[Exchange, _NetworkStream]:
        timeouts = request.extensions.get("timeout", {})
        origin = self._origin(request)
        outgoing, replayable = await _outgoing(request)
        trace = _Trace(request)
        fresh = False
        while True:
            with _as_httpx2():
                connection = await self._pool.acquire(
                    origin,
                    connect_timeout=timeouts.get("connect"),
                    pool_timeout=timeouts.get("pool"),
                    fresh=fresh,
                    dialing=trace(
                        "connection.connect_tcp" if origin.path is None else "connection.connect_unix_socket"
                    ),
                )
            patience = Patience(timeouts.get("write"), timeouts.get("read"), timeouts.get("read"))
            exchange = Exchange(connection, outgoing, patience)
            reused = connection.reused
            try:
                async with trace("http11.receive_response_headers") as step:
                    head = await exchange.start()
                    step.result = (b"HTTP/" + head.version.encode(), head.status, head.reason, head.headers)
            except BaseException as error:
                await exchange.close()
                if error is exchange.body_error or not isinstance(error, PenstockError):
                    raise
                # A connection that died while it was idle: the server closed it before it saw any of this.
                died_idle = reused and not exchange.answered and type(error) is ReadError
                if died_idle and ((replayable and request.method in IDEMPOTENT) or not exchange.written):
                    fresh = True
                    continue
                raise _mapped(error) from error
            return exchange, _NetworkStream(connection, exchange)

    def _origin(self, request: httpx2.Request) -> Origin:
        url = request.url
        if url.scheme not in ("http", "https"):
            raise httpx2.UnsupportedProtocol(f"the scheme {url.scheme!r} is not spoken here", request=request)
        if not url.host:
            raise httpx2.UnsupportedProtocol("the URL has no host", request=request)
        secure = url.scheme == "https"
        host = url.raw_host.decode("ascii").strip("[]")
        return Origin(
            host,
            url.port or (443 if secure else 80),
            self._tls_settings() if secure else None,
            request.extensions.get("sni_hostname") if secure else None,
            self._uds,
        )

    def _tls_settings(self) -> ssl.SSLContext:
        if self._tls is None:
            if isinstance(self._verify, ssl.SSLContext):
                self._tls = self._verify
            else:
                self._tls = httpx2.create_ssl_context(verify=self._verify, trust_env=self._trust_env)
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _through(self, proxy: str) -> httpx2.AsyncHTTPTransport:
        if proxy not in self._proxied:
            self._proxied[proxy] = httpx2.AsyncHTTPTransport(
                verify=self._verify, limits=self._limits, trust_env=self._trust_env, proxy=proxy
            )
        return self._proxied[proxy]


async def _outgoing(request: httpx2.Request) -> tuple[Outgoing, bool]:
    """The request for the wire, and whether it can be sent a second time."""
    method = request.method.encode("ascii")
    target = request.extensions.get("target", request.url.raw_path)
    head = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    length: int | None = 0
    expects = False
    chunked = "transfer-encoding" in request.headers
    for name, value in request.headers.raw:
        _check(name, value)
        lowered = name.lower()
        if chunked and lowered == b"content-length":
            continue  # httpx2 sets one beside the caller's Transfer-Encoding; who believes it reads another request
        head.append(b"%b: %b\r\n" % (name, value))
        if lowered == b"content-length":
            length = _length(value)
        elif lowered == b"expect":
            expects = value.lower() == b"100-continue"
    head.append(b"\r\n")
    if not method or not _TOKEN.issuperset(method):
        raise httpx2.LocalProtocolError(f"illegal method {method!r}")
    if not target or not _UNSAFE.isdisjoint(target):
        raise httpx2.LocalProtocolError(f"the request target {target!r} holds a character that no request line may")
    if chunked:
        length = None
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    if length == 0 or isinstance(request.stream, httpx2.ByteStream):
        body = b"".join([piece async for piece in request.stream])
        if length is not None and len(body) != length:
            raise httpx2.LocalProtocolError(f"the body has {len(body)} bytes, and its Content-Length says {length}")
        if length is None:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        if not expects or not body:
            return Outgoing(method, b"".join(head), body), True
    return Outgoing(method, b"".join(head), aiter(request.stream), length, expects), False


def _length(value: bytes) -> int:
    if not value.isdigit():
        raise httpx2.LocalProtocolError(f"the Content-Length {value[:80]!r} is not a number")
    return int(value)


_UNSAFE = frozenset(range(33)) | {127}
_UNSAFE_VALUE = frozenset(range(32)) - {9} | {127}
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _check(name: bytes, value: bytes) -> None:
    if not name or not _TOKEN.issuperset(name):
        raise httpx2.LocalProtocolError(f"illegal header name {name!r}")
    if not _UNSAFE_VALUE.isdisjoint(value):
        raise httpx2.LocalProtocolError(f"illegal character in the header {name.decode()}: {value[:80]!r}")


class _Body(httpx2.AsyncByteStream):
    """A response's body, pulled."""

    def __init__(self, exchange: Exchange, trace: _Trace) -> None:
        self.exchange = exchange
        self._trace = trace
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.exchange.head.framing is Framing.TUNNEL:
            return  # what follows is for the network stream
        read = self.exchange.read
        try:
            with _as_httpx2():
                async with self._trace("http11.receive_response_body"):
                    while data := await read():
                        yield data
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        try:
            if not self._closed:
                self._closed = True
                async with self._trace("http11.response_closed"):
                    await self.exchange.close()
        finally:
            await self.exchange.close()


class _NetworkStream:
    """What httpx2 calls the network stream: facts about the connection, and the raw bytes of an upgraded one.

    Its errors are httpcore2's, as those of httpx2's own are: who speaks another protocol on it waits for them.
    """

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange
        self._held = b""

    def get_extra_info(self, info: str) -> Any:
        known = {"client_addr": "sockname", "server_addr": "peername", "socket": "socket", "ssl_object": "ssl_object"}
        return self._connection.transport.get_extra_info(known[info]) if info in known else None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        import httpcore2  # 80 ms, which httpx2 too spends only when it must

        if self._exchange.head.framing is not Framing.TUNNEL:
            raise httpcore2.ReadError("the connection was not upgraded")
        if not self._held:
            try:
                async with asyncio.timeout(timeout):
                    self._held = await self._exchange.read()
            except PenstockError as error:
                raise httpcore2.ReadError(str(error)) from error
            except TimeoutError:
                raise httpcore2.ReadTimeout("nothing came in time") from None
        data, self._held = self._held[:max_bytes], self._held[max_bytes:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        import httpcore2

        try:
            self._connection.write(buffer)
            await self._connection.drained(timeout)
        except WriteTimeout as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        if self._connection.closed:
            raise httpcore2.WriteError("the connection is closed")

    async def aclose(self) -> None:
        await self._exchange.close()


class _Trace:
    """httpx2's trace extension: an async callback told of the beginning and the end of each step."""

    def __init__(self, request: httpx2.Request) -> None:
        self._request = request
        self._callback = request.extensions.get("trace")

    def __call__(self, name: str) -> _Step:
        return _Step(self._callback, name, self._request)


class _Step:
    """One step of a trace.

    Attributes:
        result: What the callback is told at the end.
    """

    def __init__(self, callback: Any, name: str, request: httpx2.Request) -> None:
        self._callback = callback
        self._name = name
        self._request = request
        self.result: Any = None

    async def __aenter__(self) -> Self:
        if self._callback is not None:
            await self._callback(f"{self._name}.started", {"request": self._request})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._callback is not None:
            if error is None:
                await self._callback(f"{self._name}.complete", {"return_value": self.result})
            else:
                await self._callback(f"{self._name}.failed", {"exception": error})


_MAPPED: list[tuple[type[PenstockError], type[httpx2.TransportError]]] = [
    (ConnectTimeout, httpx2.ConnectTimeout),
    (ConnectError, httpx2.ConnectError),
    (PoolTimeout, httpx2.PoolTimeout),
    (ReadTimeout, httpx2.ReadTimeout),
    (StreamStalled, httpx2.ReadTimeout),
    (WriteTimeout, httpx2.WriteTimeout),
    (WriteError, httpx2.WriteError),
    (ReadError, httpx2.ReadError),
    (StreamTruncated, httpx2.RemoteProtocolError),
    (BodyLengthError, httpx2.LocalProtocolError),
    (ProtocolError, httpx2.RemoteProtocolError),
    (LimitExceeded, httpx2.RemoteProtocolError),
    (TransportError, httpx2.ReadError),
]


@contextmanager
def _as_httpx2() -> Iterator[None]:
    try:
        yield
    except PenstockError as error:
        raise _mapped(error) from error


def _mapped(error: PenstockError) -> Exception:
    if isinstance(error, ReadError) and not isinstance(error, TimeoutError) and error.__cause__ is None:
        return httpx2.RemoteProtocolError(str(error))  # closed in good order, and without a word
    if isinstance(error, StreamTruncated) and error.__cause__ is not None:
        return httpx2.ReadError(str(error))
    for ours, theirs in _MAPPED:
        if isinstance(error, ours):
            return theirs(str(error))
    return error


def _proxy_for(url: httpx2.URL, proxies: dict[str, str]) -> str | None:
    """The environment's proxy for a URL, as urllib understands the variables."""
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
