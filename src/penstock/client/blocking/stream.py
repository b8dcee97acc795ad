"""A response's items, for a thread that waits for them: a batch at a time, as the reads of the body brought them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from penstock.client import seam
from penstock.client.blocking.link import Face, Link, blocking
from penstock.client.blocking.response import BlockingResponse
from penstock.client.events import EventStream
from penstock.client.metrics import Metrics
from penstock.client.stream import ItemStream
from penstock.errors import StreamError

T = TypeVar("T")


class BlockingStream(Face[ItemStream[T]], Generic[T]):
    """Items as they arrive. Use as ``with`` and iterate; leaving early cancels the request."""

    def __init__(self, link: Link[ItemStream[T]]) -> None:
        super().__init__(link)
        self._rest: list[list[T]] = [[]]
        self._items: Generator[T, None, None] | None = None

    @property
    def response(self) -> BlockingResponse | None:
        """The response being read; None before the first attempt was answered."""
        response = self._link.inner.response
        return None if response is None else BlockingResponse(self._link.to(response), owned=False)

    @property
    def metrics(self) -> Metrics:
        """What this stream has seen so far; readable at any time, from any thread."""
        return self._link.inner.metrics

    def __iter__(self) -> Iterator[T]:
        # The generator does not know us: it is what a loop holds on to, so that leaving the loop lets go of the stream.
        self._link.inner._check_unbroken()
        if self._items is None:
            self._items = _each(self._link, self._rest)
        return self._items

    def __next__(self) -> T:
        return next(self._items or iter(self))

    def close(self) -> None:
        """Stop reading and let go of the connection. Safe to call twice, and while another thread reads.

        That thread gets a `StreamError`: an iteration that ends quietly means that all came.
        """
        self._rest[0].clear()
        self._link.close()

    def restart(self) -> None:
        """Let go of the connection and make another at once, from where the stream stands. It is no failure."""
        self._link.ask(self._link.inner.restart)

    collect = blocking(ItemStream[T].collect)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingEventStream(BlockingStream[T]):
    """Server-sent events as they arrive, or what a model makes of them."""

    @property
    def _events(self) -> EventStream:
        return cast("EventStream", self._link.inner)

    @property
    def last_event_id(self) -> str:
        """The id that a resume would begin after, "" while there is none."""
        return self._events.last_event_id

    @property
    def retry_ms(self) -> int | None:
        """The reconnection time that the server last asked for [ms], over all connections; None if it never did."""
        return self._events.retry_ms


def _each(link: Link[ItemStream[T]], rest: list[list[T]]) -> Generator[T, None, None]:
    """One way to the loop and back for each batch; nothing but the list's own iterator for each item.

    Args:
        link: To the stream.
        rest: Holds the batch that is being handed out, for whoever closes the stream to clear.
    """
    stream: ItemStream[Any] = link.inner
    try:
        while batch := link.wait(stream.next_batch):
            rest[0] = batch
            yield from batch
            if link.closed_by is not None:
                break
    except BaseException as error:
        if not (isinstance(error, RuntimeError) and link.closed_by_another):
            link.let_go()
            raise
    if link.closed_by_another and stream.metrics.reason != "complete":
        url = seam.shown(stream._request.url)
        raise StreamError(f"{url}: the stream was closed while it was being read", url=url)
