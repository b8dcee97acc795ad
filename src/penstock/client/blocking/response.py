"""One response as it comes in, for a thread that waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from penstock.client.blocking.link import Face, Link, blocking
from penstock.client.response import End, Response
from penstock.errors import PenstockError, StatusError, StreamError


class BlockingResponse(Face[Response]):
    """A streaming response: iterate it for its bytes, or `read` it whole; close it if you do neither.

    As ``with`` it closes itself. A body that breaks raises, always: a loop that ends means that all came.

    Attributes:
        status: The status code.
        reason: The reason phrase, possibly "".
        headers: The header fields, case-insensitive.
        url: The URL that answered, after redirects.
        request: The request that it answers.
    """

    def __init__(self, link: Link[Response], *, owned: bool) -> None:
        super().__init__(link)
        response = link.inner
        self._owned = owned
        self.status = response.status
        self.reason = response.reason
        self.http_version = response.http_version
        self.headers = response.headers
        self.url = response.url
        self.request = response.request

    def __repr__(self) -> str:
        return repr(self._link.inner)

    @property
    def end(self) -> End | None:
        """How the body ended; None before."""
        return self._link.inner.end

    @property
    def bytes_received(self) -> int:
        """Body bytes so far."""
        return self._link.inner.bytes_received

    @property
    def content_type(self) -> str:
        """The Content-Type field as it came, "" if none did."""
        return self._link.inner.content_type

    @property
    def content_length(self) -> int | None:
        """Bytes that iterating will give; None when that is not known beforehand."""
        return self._link.inner.content_length

    @property
    def is_framed(self) -> bool:
        """Whether anything but the connection's close says where the body ends."""
        return self._link.inner.is_framed

    @property
    def filename(self) -> str:
        """A safe name for the body: Content-Disposition's, else the URL's last segment, else "file"."""
        return self._link.inner.filename

    def raise_for_status(self) -> Self:
        """Return self.

        Raises:
            StatusError: The status is 400 or above.
        """
        self._link.inner.raise_for_status()
        return self

    def status_error(self, body: bytes = b"") -> StatusError:
        """The error for this status, with the beginning of the body to explain it."""
        return self._link.inner.status_error(body)

    # -- the body ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        """The body's bytes as they arrive, content codings undone. Once."""
        return self._pieces(self._link.inner.__aiter__)

    def raw(self) -> Iterator[bytes]:
        """The body's bytes as they are on the wire, content codings left as they are. Once."""
        return self._pieces(self._link.inner.raw)

    def _pieces(self, opened: Callable[[], AsyncIterator[bytes]]) -> Iterator[bytes]:
        """One way there and back for each piece: no more is taken than is asked for, so that backpressure holds."""
        link = self._link

        async def body() -> AsyncIterator[bytes]:
            return opened()

        async def piece() -> bytes | None:
            return await anext(pieces, None)

        try:
            pieces = link.wait(body)
            while (data := link.wait(piece)) is not None:
                yield data
            error = None
        except (PenstockError, RuntimeError) as broken:
            error = broken
        except BaseException:
            link.let_go()
            raise
        try:
            end = link.inner.end
            if link.closed_by_another and end is not None and end.reason == "cancelled":
                message = f"{self.url}: the response was closed while it was being read"
                raise StreamError(message, url=self.url) from error
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame

    read = blocking(Response.read)
    beginning = blocking(Response.beginning)
    text = blocking(Response.text)
    json = blocking(Response.json)

    # -- the end -------------------------------------------------------------------------------------------------

    def on_end(self, callback: Callable[[End], None]) -> None:
        """Call back once when the body has ended, however it did; at once if it already has. In the loop's thread."""
        self._link.ask(partial(_told, self._link.inner.on_end, callback))

    def on_first_byte(self, callback: Callable[[], None]) -> None:
        """Call back once when the body's first byte has come. In the loop's thread."""
        self._link.ask(partial(_told, self._link.inner.on_first_byte, callback))

    conclude = blocking(Response.conclude)
    fail = blocking(Response.fail)

    def close(self) -> None:
        """Let go of the connection; an unfinished body is cancelled. Safe to call twice, and from another thread.

        A thread that reads gets an error: an iteration that ends quietly means that all came.
        """
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._owned and self._link.inner.end is None:
            self._link.let_go()

    def _give_away(self) -> None:
        """A request carries it: that one reads it to its end, with or without this face."""
        self._owned = False


async def _told(tell: Callable[[Callable[..., None]], None], callback: Callable[..., None]) -> None:
    tell(callback)
