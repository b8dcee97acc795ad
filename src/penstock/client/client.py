"""AsyncClient: connections, policies and metrics shared by the requests made through it."""

from __future__ import annotations

import http.cookiejar
from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Self

import httpx2

from penstock.client import seam
from penstock.client.body import Body
from penstock.client.builder import MultipartBuilder, RequestBuilder
from penstock.client.exchange import Exchange
from penstock.client.metrics import Metrics, Tally, Totals
from penstock.client.request import Middleware, Request
from penstock.client.response import Response
from penstock.client.settings import Limits, Timeout
from penstock.engine.transport import Transport
from penstock.resilience.breaker import Breaker, State
from penstock.resilience.retry import Retry
from penstock.wire import headers as fields


class AsyncClient:
    """A streaming HTTP client.

    Args:
        base_url: What paths are joined to.
        name: Prefixes the client's log lines, for a program with several.
        headers: Sent with every request. Accept-Encoding is `identity` unless set: a stream is worth more than its
            compression, and a coded one tells neither its length nor its pieces.
        retry: How often a failed request is tried again; a number keeps the defaults.
        breaker: When to stop asking a failing origin; None never stops.
        timeout: How long to wait; a number is the total.
        limits: The connection pool's bounds.
        http_client: An `httpx2.AsyncClient` to go through, with its transport, auth, cookies and hooks; it stays
            open when this client closes. Without one the client has its own.
        keep_cookies: Whether cookies that servers set are kept and sent back.
    """

    def __init__(
        self,
        base_url: str = "",
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        retry: Retry | int | None = None,
        breaker: Breaker | None = None,
        timeout: Timeout | float | None = Timeout(),  # noqa: B008 (frozen)
        limits: Limits | None = None,
        http_client: httpx2.AsyncClient | None = None,
        keep_cookies: bool = True,
    ) -> None:
        self.base_url = base_url and seam.absolute_url("", base_url)
        self.name = name
        self.retry = Retry(retries=retry) if isinstance(retry, int) else retry or Retry()
        self.timeout = Timeout.of(timeout)
        self._headers = dict(headers or {})
        for field, value in self._headers.items():
            fields.check_header(field, value)
        self._owns_http = http_client is None
        self._transport = None if http_client is not None else _transport(limits or Limits())
        self._http = http_client or _http_client(self._transport, keep_cookies=keep_cookies)
        self._totals = Totals()
        self.exchange = Exchange(self._http, breaker, self._headers, self.retry.budget)

    def use(self, *middleware: Middleware) -> Self:
        """Add middleware; the first added is the outermost. Each runs once per attempt."""
        self.exchange.middleware.extend(middleware)
        return self

    # -- requests ------------------------------------------------------------------------------------------------

    def request(self, method: str, url: str = "") -> RequestBuilder:
        """Describe a request; nothing is sent before a terminal verb.

        Args:
            method: Any method.
            url: A path under base_url, or a whole URL.
        Raises:
            InvalidURL: Not a URL, or one of a scheme that is not spoken.
        """
        return RequestBuilder(self, _checked_method(method), self.absolute_url(url))

    def get(self, url: str = "") -> RequestBuilder:
        """Describe a GET."""
        return self.request("GET", url)

    def head(self, url: str = "") -> RequestBuilder:
        """Describe a HEAD."""
        return self.request("HEAD", url)

    def post(self, url: str = "") -> RequestBuilder:
        """Describe a POST."""
        return self.request("POST", url)

    def put(self, url: str = "") -> RequestBuilder:
        """Describe a PUT."""
        return self.request("PUT", url)

    def patch(self, url: str = "") -> RequestBuilder:
        """Describe a PATCH."""
        return self.request("PATCH", url)

    def delete(self, url: str = "") -> RequestBuilder:
        """Describe a DELETE."""
        return self.request("DELETE", url)

    def multipart(self, url: str = "", *, method: str = "POST") -> MultipartBuilder:
        """Describe a multipart upload, its parts to be added with ``.field()`` and ``.file()``."""
        return MultipartBuilder(self, _checked_method(method), self.absolute_url(url))

    async def relay(
        self, method: str, url: str, *, headers: tuple[tuple[str, str], ...], body: Body | None, target: bytes
    ) -> Response:
        """Send exactly this, once: no default headers, cookies, redirects or retries. For gateways.

        Args:
            method: As it came.
            url: Where to connect to.
            headers: All of them, Host and framing included.
            body: What to carry.
            target: The request target as it goes on the wire, not normalised.
        """
        request = Request(method, url, headers, body, self.timeout, client=self.name, exact=True, target=target)
        return await self.exchange.attempt(request, None)

    def absolute_url(self, url: str) -> str:
        """The URL that a path or URL stands for.

        Raises:
            InvalidURL: It is none.
        """
        return seam.absolute_url(self.base_url, url)

    def can_splice_to(self, url: str) -> bool:
        """Whether a body to this URL may hold what the kernel is to move: by our engine, in plaintext, to no proxy."""
        return self._transport is not None and self._transport.goes_plainly_to(httpx2.URL(self.absolute_url(url)))

    # -- what was seen -------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """The sum over the streams that have ended; readable from any thread."""
        return self._totals.snapshot()

    def count(self, tally: Tally) -> None:
        """Add a stream that has ended; streams do it themselves."""
        self._totals.add(tally)

    def circuit_state(self, url: str = "") -> State | None:
        """The state of the breaker for a URL's origin; None without a breaker. From any thread."""
        return self.exchange.state(self.absolute_url(url))

    @property
    def circuits(self) -> dict[str, State]:
        """The state of the breaker for each origin that was asked of late. From any thread."""
        return self.exchange.states()

    # -- the end -------------------------------------------------------------------------------------------------

    async def aclose(self, *, grace: float = 0.0) -> None:
        """Begin nothing new, let what runs come to its end, then close the connections; what still runs breaks.

        Cancellation: as if the grace were over.

        Args:
            grace: Seconds that streams and responses under way may take.
        """
        try:
            await self.exchange.drain(grace)
        finally:
            await self.exchange.abort()
            if self._owns_http:
                await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _transport(limits: Limits) -> Transport:
    return Transport(
        limits=httpx2.Limits(
            max_connections=None,
            max_keepalive_connections=limits.max_idle,
            keepalive_expiry=limits.idle_timeout,
        ),
        max_idle_per_host=limits.max_idle_per_host,
    )


def _http_client(transport: Transport | None, *, keep_cookies: bool) -> httpx2.AsyncClient:
    defaults = {"User-Agent": f"penstock/{version('penstock')}", "Accept": "*/*", "Accept-Encoding": "identity"}
    jar = None
    if not keep_cookies:
        jar = http.cookiejar.CookieJar(policy=http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx2.AsyncClient(transport=transport, headers=defaults, cookies=jar, timeout=None)


def _checked_method(method: str) -> str:
    if not (method.isascii() and method.replace("-", "").isalnum()):
        raise ValueError(f"{method!r} is not an HTTP method")
    return method.upper()
