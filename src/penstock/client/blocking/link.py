"""Something of the loop's, and the way to it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from penstock.client.blocking.call import Caller
from penstock.client.blocking.portal import Closable, Portal

if TYPE_CHECKING:
    from penstock.client.blocking.client import Client


A = TypeVar("A", bound=Closable)
B = TypeVar("B", bound=Closable)
P = ParamSpec("P")
R = TypeVar("R")


class Link(Generic[A]):
    """A response or a stream on the loop, and how its face in another thread comes to it.

    Attributes:
        inner: What is on the loop.
        client: Kept alive for as long as something of it is open.
        closed_by: The thread that has closed it, if one has.
    """

    __slots__ = ("_caller", "_portal", "client", "closed_by", "inner")

    def __init__(self, client: Client, portal: Portal, inner: A, caller: Caller) -> None:
        self.client = client
        self.inner = inner
        self.closed_by: int | None = None
        self._portal = portal
        self._caller = caller
        portal.add(inner)

    def to(self, other: B) -> Link[B]:
        """The way to something that is part of it."""
        return Link(self.client, self._portal, other, self._caller)

    def wait(self, work: Callable[[], Awaitable[R]]) -> R:
        """Run it on the loop, and wait for it, doing what the exchange wants done meanwhile."""
        return self._portal.run(work, self._caller)

    def ask(self, work: Callable[[], Awaitable[R]]) -> R:
        """The same beside a thread that may be reading: what the exchange wants done is left to that one."""
        return self._portal.run(work)

    def close(self) -> None:
        """Close it, and wait until that is done. In a forked child this does nothing: it is the parent's."""
        if not self._portal.gone:
            self.closed_by = threading.get_ident()
            self._portal.run(self.inner.aclose)

    def let_go(self) -> None:
        """Have it closed, without waiting."""
        self._portal.let_go(self.inner.aclose)

    @property
    def closed_by_another(self) -> bool:
        """Whether a thread other than this one has closed it: who reads on must be told, for not all has come."""
        return self.closed_by not in (None, threading.get_ident())


class Face(Generic[A]):
    """What stands in a thread for something of the loop's."""

    def __init__(self, link: Link[A]) -> None:
        self._link = link


def blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Face[A], P], R]:
    """The method of a face that runs the one of the same name on the loop, and waits for it."""
    name = method.__name__

    @wraps(method)
    def waiting(self: Face[A], /, *args: P.args, **keywords: P.kwargs) -> R:
        work: Callable[[], Awaitable[R]] = partial(getattr(self._link.inner, name), *args, **keywords)
        return self._link.wait(work)

    return waiting
