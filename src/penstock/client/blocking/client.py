"""Client: AsyncClient, for threads that wait."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial, wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self

import httpx2

from penstock.client.blocking.builder import BlockingMultipartBuilder, BlockingRequestBuilder
from penstock.client.blocking.portal import Portal, current
from penstock.client.builder import MultipartBuilder, RequestBuilder
from penstock.client.client import AsyncClient
from penstock.client.metrics import Metrics
from penstock.client.request import Middleware
from penstock.client.settings import Limits, Timeout
from penstock.resilience.breaker import Breaker, State
from penstock.resilience.retry import Retry

P = ParamSpec("P")


def _request(
    method: Callable[Concatenate[AsyncClient, P], RequestBuilder],
) -> Callable[Concatenate[Client, P], BlockingRequestBuilder]:
    """The client's method that describes a request as the asynchronous one's does."""

    @wraps(method)
    def described(self: Client, /, *args: P.args, **keywords: P.kwargs) -> BlockingRequestBuilder:
        return BlockingRequestBuilder(self, method(self._inner, *args, **keywords))

    return described


def _multipart(
    method: Callable[Concatenate[AsyncClient, P], MultipartBuilder],
) -> Callable[Concatenate[Client, P], BlockingMultipartBuilder]:
    @wraps(method)
    def described(self: Client, /, *args: P.args, **keywords: P.kwargs) -> BlockingMultipartBuilder:
        return BlockingMultipartBuilder(self, method(self._inner, *args, **keywords))

    return described


class Client:
    """A streaming HTTP client that blocks: `AsyncClient`, for scripts, workers and frameworks without an event loop.

    Safe to share between threads. After a fork it works in the child too, with connections of its own; what had been
    opened stays the parent's.

    Args:
        base_url: What paths are joined to.
        name: Prefixes the client's log lines, for a program with several.
        headers: Sent with every request. Accept-Encoding is `identity` unless set: a stream is worth more than its
            compression, and a coded one tells neither its length nor its pieces.
        retry: How often a failed request is tried again; a number keeps the defaults.
        breaker: When to stop asking a failing origin; None never stops.
        timeout: How long to wait; a number is the total.
        limits: The connection pool's bounds.
        http_client: An `httpx2.AsyncClient` to go through, with its transport, auth, cookies and hooks. It is handed
            over: its connections live on a loop that nobody else has, so it is closed with this client.
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
        self._make = partial(
            AsyncClient,
            base_url,
            name=name,
            headers=None if headers is None else dict(headers),
            retry=retry,
            breaker=breaker,
            timeout=timeout,
            limits=limits,
            http_client=http_client,
            keep_cookies=keep_cookies,
        )
        self._http_client = http_client
        self._middleware: list[Middleware] = []
        self._closed = False
        self._inners: dict[Portal, AsyncClient] = {}
        inner = self._inner
        self.base_url = inner.base_url
        self.name = inner.name
        self.retry = inner.retry
        self.timeout = inner.timeout

    @property
    def _inner(self) -> AsyncClient:
        """The client on the loop of this process."""
        portal = current()
        return self._inners.get(portal) or self._begin(portal)

    def _begin(self, portal: Portal) -> AsyncClient:
        if self._inners and self._http_client is not None:
            raise RuntimeError(
                "the http_client holds connections of the parent process: make it, and this client, after the fork"
            )
        made = self._make()
        made.exchange.middleware = self._middleware
        made.exchange.closing = self._closed
        inner = self._inners.setdefault(portal, made)  # of two threads that come at once, one is the first
        if inner is made:
            portal.add(inner)
            weakref.finalize(self, portal.let_go, partial(_close, inner, self._http_client)).atexit = False
        return inner

    def use(self, *middleware: Middleware) -> Self:
        """Add middleware; the first added is the outermost. Each runs once per attempt, in the loop's thread."""
        self._middleware.extend(middleware)
        return self

    # -- requests ------------------------------------------------------------------------------------------------

    request = _request(AsyncClient.request)
    get = _request(AsyncClient.get)
    head = _request(AsyncClient.head)
    post = _request(AsyncClient.post)
    put = _request(AsyncClient.put)
    patch = _request(AsyncClient.patch)
    delete = _request(AsyncClient.delete)
    multipart = _multipart(AsyncClient.multipart)

    def absolute_url(self, url: str) -> str:
        """The URL that a path or URL stands for.

        Raises:
            InvalidURL: It is none.
        """
        return self._inner.absolute_url(url)

    # -- what was seen -------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """The sum over the streams that have ended, in this process; readable from any thread."""
        return self._inner.metrics

    def circuit_state(self, url: str = "") -> State | None:
        """The state of the breaker for a URL's origin; None without a breaker. From any thread."""
        return self._inner.circuit_state(url)

    @property
    def circuits(self) -> dict[str, State]:
        """The state of the breaker for each origin that was asked of late. From any thread."""
        return self._inner.circuits

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, *, grace: float = 0.0) -> None:
        """Begin nothing new, let what runs come to its end, then close the connections; what still runs breaks.

        Cancellation: as if the grace were over.

        Args:
            grace: Seconds that streams and responses under way, in whatever threads, may take.
        """
        self._closed = True
        portal = current()
        inner = self._inners.get(portal)
        if inner is not None and not portal.gone:
            portal.run(partial(_close, inner, self._http_client, grace))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _close(inner: AsyncClient, http_client: httpx2.AsyncClient | None, grace: float = 0.0) -> None:
    try:
        await inner.aclose(grace=grace)
    finally:
        if http_client is not None:
            await http_client.aclose()
