"""One request as it goes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from penstock.client.settings import Timeout

if TYPE_CHECKING:
    from penstock.client.body import Body
    from penstock.client.response import Response

Headers: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a middleware sees and may replace (with `dataclasses.replace`).

    Attributes:
        method: In capitals.
        url: Absolute.
        headers: Name and value pairs, in order; the same name may come twice.
        body: What it carries, or None.
        timeout: How long to wait for what.
        attempt: Which attempt this is, from 1.
        client: The client's name, "" if it has none.
        exact: Send these headers and no others: no defaults, no cookies, no redirects. For relaying.
        target: The request target as it goes on the wire, where it must not be normalised; None takes the URL's.
    """

    method: str
    url: str
    headers: Headers = ()
    body: Body | None = None
    timeout: Timeout = field(default_factory=Timeout)
    attempt: int = 1
    client: str = ""
    exact: bool = False
    target: bytes | None = None

    def has_header(self, name: str) -> bool:
        """Whether a field of that name is there, in any case."""
        name = name.lower()
        return any(key.lower() == name for key, _ in self.headers)


Send: TypeAlias = Callable[[Request], Awaitable["Response"]]
Middleware: TypeAlias = Callable[[Request, Send], Awaitable["Response"]]
"""``async def middleware(request, send) -> Response``: call ``await send(request)`` once, look at what comes back.

A middleware runs once per attempt. What must happen at the end of the body goes into ``response.on_end(...)``.
"""
