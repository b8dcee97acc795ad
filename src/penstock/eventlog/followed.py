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

    __slots__ = ("_followers", "_lone", "_others")

    def __init__(self, id: str, owner: str, key: str | None, epoch: int, head: bytes) -> None:
        super().__init__(id, owner, key, epoch, head)
        # In the order they came. One append can overtake them all: to leave must not cost more the more they are.
        self._followers: dict[Reader, None] = {}
        # The only one of them, where there is nobody else to tell; and whether there is anybody else.
        self._lone: Reader | None = None
        self._others = False

    def _add_follower(self, reader: Reader) -> None:
        self._followers[reader] = None
        self._look_who_is_here()

    def _unfollow(self, reader: Reader) -> None:
        self._followers.pop(reader, None)
        self._look_who_is_here()

    def _look_who_is_here(self) -> None:
        count, is_awaited = len(self._followers), self._is_awaited()
        self._lone = next(iter(self._followers)) if count == 1 and not is_awaited else None
        self._others = self._lone is None and (count > 0 or is_awaited)

    def _is_awaited(self) -> bool:
        """Whether there is somebody to tell beside those who follow."""
        return False

    def _tell_records(self, records: Sequence[bytes], last: int) -> None:
        lone = self._lone
        if not records or (lone is None and not self._followers):
            return
        data = records[0] if len(records) == 1 else b"".join(records)
        for reader in tuple(self._followers) if lone is None else (lone,):
            if reader.following:  # one that another's callback has let go of is not called any more
                reader.cursor = last
                try:
                    reader._on_data(data)
                except Exception as error:
                    self._failed(reader, last - len(records), error)

    def _failed(self, reader: Reader, before: int, error: Exception) -> None:
        """It was told, and nobody knows what became of that: it is to be read."""
        report(error)
        reader.cursor = before
        if reader.following:
            reader.unfollow()
            tell(reader._on_end, None)

    def _let_go(self, end: End | None = None) -> None:
        """There is nothing more to tell: it has ended, or what comes next has to be read."""
        followers, self._followers = self._followers, {}
        self._look_who_is_here()
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
