"""Which requests are made, in which order.

================  ==================================================  ==============================================
request           asks for                                            made
================  ==================================================  ==============================================
upstream          identity                                            with an upstream: first, so that a slow start
                                                                      is the upstream's and not the gateway's
through           identity                                            always
offered           gzip, as browsers do                                when the method is GET
upstream_resumed  to continue after the upstream's first event        when it is GET and the events have ids
resumed           to continue after the first event                   as above
================  ==================================================  ==============================================

They are made one after another: a server with one worker would make the second wait for the first, and that would look
like a slow gateway. What is not a GET may do something, so it is sent once to each URL, offered gzip; who sets
Accept-Encoding gets just that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.client.builder import RequestBuilder
from penstock.client.client import AsyncClient
from penstock.client.events import AnyStream
from penstock.client.settings import Timeout
from penstock.doctor.findings import Examination
from penstock.doctor.probe import Probe, probe

BROWSERS = "gzip, deflate"
"""What is offered: of what browsers accept, that which can be undone here."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to examine.

    Attributes:
        url: The URL in question.
        upstream: The server behind it, where that can be reached.
        method: The requests' method.
        headers: Sent with each, to both URLs.
        content: Their body.
        content_type: The body's.
        seconds: How long each request is listened to.
        max_items: How many items are listened to.
    """

    url: str
    upstream: str | None = None
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str | None = None
    seconds: float = 10.0
    max_items: int = 1000


def _untold(what: str) -> None:
    """Nobody wants to know."""


async def examine(order: Order, *, tell: Callable[[str], None] = _untold) -> Examination:
    """Make the requests.

    Cancellation: the running one's connection is closed, no other is made.

    Args:
        order: What to examine.
        tell: Called before each request with what is being done.
    Raises:
        PenstockError: No connection or no answer; a failed status of the upstream, or of a URL examined alone.
    """
    connect = min(5.0, order.seconds)
    timeout = Timeout(connect=connect, first_event=None, between_events=None)
    async with AsyncClient(timeout=timeout, retry=0, keep_cookies=False) as client:
        return await _Examiner(order, client, tell).run()


class _Examiner:
    def __init__(self, order: Order, client: AsyncClient, tell: Callable[[str], None]) -> None:
        self._order = order
        self._client = client
        self._tell = tell
        self._sent = {name.lower() for name in order.headers}
        self._may_repeat = order.method.upper() == "GET"

    async def run(self) -> Examination:
        order = self._order
        for url in (order.url, order.upstream):
            if url is not None:
                self._request(url, BROWSERS)  # one that is none is refused before anything is sent
        apart = self._may_repeat and "accept-encoding" not in self._sent
        plain = "identity" if apart else BROWSERS
        direct = None
        if order.upstream is not None:
            direct = await self._ask(order.upstream, plain, "the upstream")
        through = await self._ask(order.url, plain, "the URL", heed_status=direct is None)
        offered = resumed = direct_resumed = None
        if apart:
            offered = await self._ask(order.url, BROWSERS, "the URL, offering gzip", heed_status=False)
        if self._may_repeat and "last-event-id" not in self._sent:
            if order.upstream is not None:
                direct_resumed = await self._resume(order.upstream, direct, plain, "the upstream")
            resumed = await self._resume(order.url, through, plain, "the URL")
        return Examination(through, offered, resumed, direct, direct_resumed)

    async def _ask(self, url: str, accept_encoding: str, what: str, *, heed_status: bool = True) -> Probe:
        order = self._order
        self._tell(f"listening to {what}, for at most {order.seconds:g} s")
        request = self._request(url, accept_encoding)
        return await probe(request, url, seconds=order.seconds, max_items=order.max_items, heed_status=heed_status)

    async def _resume(self, url: str, first: Probe | None, accept_encoding: str, what: str) -> Probe | None:
        """Ask for what follows the first event; None where its id cannot say so."""
        if first is None or not first.items:
            return None
        cursor = first.items[0].id
        if not cursor or sum(item.id == cursor for item in first.items) > 1 or not cursor.isprintable():
            return None
        self._tell(f"asking {what} to continue after event {cursor[:40]}")
        request = self._request(url, accept_encoding).header("Last-Event-ID", cursor)
        return await probe(request, url, seconds=self._order.seconds, max_items=1)

    def _request(self, url: str, accept_encoding: str) -> RequestBuilder:
        order = self._order
        request = self._client.request(order.method, url).headers(order.headers)
        wanted = {"Accept": AnyStream.accept, "Cache-Control": "no-cache", "Accept-Encoding": accept_encoding}
        for name, value in wanted.items():
            if name.lower() not in self._sent:
                request = request.header(name, value)
        if order.content is not None:
            request = request.content(order.content, content_type=order.content_type)
        return request
