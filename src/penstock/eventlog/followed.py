"""A stream whose records come to this process by themselves: those who follow are told, in the callback that has them.

They are told by whoever produces it here, or by the tail of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVarTuple, Unpack

from penstock.eventlog.base import End, Stream
from penstock.eventlog.reader import Reader

Args = TypeVarTuple("Args")


class Followed(Stream):
    """Tells its followers."""

    __slots__ = ("_followers",)

    def __init__(self, id: str, owner: str, key: str | None, epoch: int, head: bytes) -> None:
        super().__init__(id, owner, key, epoch, head)
        # Made anew when somebody comes or leaves, so that a fan-out in progress is not disturbed.
        self._followers: tuple[Reader, ...] = ()

    def _unfollow(self, reader: Reader) -> None:
        self._followers = tuple(each for each in self._followers if each is not reader)

    def _tell_records(self, records: Sequence[bytes], last: int) -> None:
        for reader in self._followers:
            if reader.following:  # one that another's callback has let go of is not called any more
                reader.cursor = last
                try:
                    reader._on_records(records, last)
                except Exception as error:
                    reader.unfollow()
                    report(error)

    def _let_go(self, end: End | None = None) -> None:
        """There is nothing more to tell: it has ended, or what comes next has to be read."""
        followers, self._followers = self._followers, ()
        for reader in followers:
            if reader.following:
                reader.following = False
                tell(reader._on_end, end)


def tell(callback: Callable[[Unpack[Args]], None] | None, *arguments: *Args) -> None:
    """Call somebody whose failure is not ours."""
    if callback is not None:
        try:
            callback(*arguments)
        except Exception as error:
            report(error)


def report(error: Exception) -> None:
    """Tell the event loop of such a failure."""
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a callback of the event log raised", "exception": error}
    )
