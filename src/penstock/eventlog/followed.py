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

    __slots__ = ("_followers", "_to_tell")

    def __init__(self, id: str, owner: str, key: str | None, epoch: int, head: bytes) -> None:
        super().__init__(id, owner, key, epoch, head)
        # In the order they came. One append can overtake them all: to leave must not cost more the more they are.
        self._followers: dict[Reader, None] = {}
        self._to_tell: tuple[Reader, ...] | None = ()  # the same, made anew once somebody has come or left

    def _add_follower(self, reader: Reader) -> None:
        self._followers[reader] = None
        self._to_tell = None

    def _unfollow(self, reader: Reader) -> None:
        self._followers.pop(reader, None)
        self._to_tell = None

    def _tell_records(self, records: Sequence[bytes], last: int) -> None:
        to_tell = self._to_tell
        if to_tell is None:
            to_tell = self._to_tell = tuple(self._followers)
        for reader in to_tell:
            if reader.following:  # one that another's callback has let go of is not called any more
                reader.cursor = last
                try:
                    reader._on_records(records, last)
                except Exception as error:
                    report(error)
                    reader.cursor = last - len(records)  # nobody knows what became of them: they are to be read
                    if reader.following:
                        reader.unfollow()
                        tell(reader._on_end, None)

    def _let_go(self, end: End | None = None) -> None:
        """There is nothing more to tell: it has ended, or what comes next has to be read."""
        followers, self._followers, self._to_tell = self._followers, {}, ()
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
