"""A stream's bytes, seen on their way to the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from penstock.client.stream import Decoder, ItemStream

Tap = Callable[[bytes], None]


class Pieces:
    """A decoder that leaves the pieces of a body as they are."""

    dropped = 0

    def feed(self, data: bytes, /) -> list[bytes]:
        """The piece itself."""
        return [data]

    def close(self) -> list[bytes]:
        """Nothing: no piece is unfinished."""
        return []


class PieceStream(ItemStream[bytes]):
    """The pieces of a body, whatever its type, as they come; content codings are undone."""

    def accepts(self, content_type: str) -> bool:
        return True

    def decoder(self) -> Decoder[bytes]:
        return Pieces()


class _Tapped:
    """A decoder whose bytes somebody else sees first."""

    def __init__(self, decoder: Decoder[Any], taps: tuple[Tap, ...]) -> None:
        self._decoder = decoder
        self._taps = taps

    @property
    def dropped(self) -> int:
        return self._decoder.dropped

    def feed(self, data: bytes, /) -> list[Any]:
        for tap in self._taps:
            tap(data)
        return self._decoder.feed(data)

    def close(self) -> list[Any]:
        return self._decoder.close()


def tapped(kind: type[ItemStream[Any]], *taps: Tap) -> type[ItemStream[Any]]:
    """The same kind of stream, with each piece of its bodies shown to others before it is decoded.

    Args:
        kind: The kind.
        taps: Called with each piece; what they raise ends the stream.
    """
    if not taps:
        return kind

    def decoder(self: ItemStream[Any]) -> Decoder[Any]:
        return _Tapped(kind.decoder(self), taps)

    return cast("type[ItemStream[Any]]", type(kind.__name__, (kind,), {"decoder": decoder}))
