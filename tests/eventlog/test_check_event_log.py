"""The suite finds the mistakes that it is there for: logs that are wrong in one way each do not pass."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from penstock.errors import ReplayGap
from penstock.eventlog.base import (
    DEFAULT_RETENTION,
    Page,
    Producer,
    Promise,
    Reason,
    Retention,
    Stream,
    StreamInfo,
)
from penstock.eventlog.memory import MemoryLog, MemoryStream
from penstock.testing import FakeClock, LogBench, check_event_log

pytestmark = pytest.mark.anyio


class Altered(MemoryLog):
    """A log whose streams are of another kind."""

    kind: type[MemoryStream] = MemoryStream

    async def open(
        self,
        key: str | None,
        owner: str,
        head: bytes,
        *,
        id: str | None = None,
        promise: Promise = "fast",
        replacing: str | None = None,
    ) -> tuple[Stream, Producer | None]:
        stream, producer = await super().open(key, owner, head, id=id, promise=promise, replacing=replacing)
        if producer is not None:
            stream.__class__ = self.kind
        return stream, producer


class NeverJoins(Altered):
    async def open(
        self,
        key: str | None,
        owner: str,
        head: bytes,
        *,
        id: str | None = None,
        promise: Promise = "fast",
        replacing: str | None = None,
    ) -> tuple[Stream, Producer | None]:
        return await super().open(None, owner, head, id=id, promise=promise)


class TakesAnyKey(Altered):
    async def open(
        self,
        key: str | None,
        owner: str,
        head: bytes,
        *,
        id: str | None = None,
        promise: Promise = "fast",
        replacing: str | None = None,
    ) -> tuple[Stream, Producer | None]:
        found = await self.find(key, owner) if key is not None else None
        taken = found.id if found is not None and replacing is not None else None
        return await super().open(key, owner, head, id=id, promise=promise, replacing=taken)


class SkipsInSilence(Altered):
    class kind(MemoryStream):  # noqa: N801 - it overrides an attribute
        __slots__ = ()

        async def _read(self, after: int, max_records: int, max_bytes: int) -> Page:
            return await super()._read(max(after, self.earliest), max_records, max_bytes)


class EndsTwice(Altered):
    class kind(MemoryStream):  # noqa: N801
        __slots__ = ()

        def end(self, reason: Reason, detail: bytes = b"") -> bool:
            super().end(reason, detail)
            return True


class TellsCopies(Altered):
    class kind(MemoryStream):  # noqa: N801
        __slots__ = ()

        def append(self, records: Sequence[bytes]) -> int:
            return super().append([bytes(bytearray(record)) for record in records])


class StopsTwice(Altered):
    class kind(MemoryStream):  # noqa: N801
        __slots__ = ()

        async def request_stop(self) -> bool:
            self.stop_requested = False
            return await super().request_stop()


class CountsOffsetsFromTheHead(Altered):
    class kind(MemoryStream):  # noqa: N801
        __slots__ = ()

        async def _read_bytes(self, offset: int, max_records: int, max_bytes: int) -> Page:
            return await super()._read_bytes(max(offset - len(self.head), 0), max_records, max_bytes)


class NeverPauses(Altered):
    class kind(MemoryStream):  # noqa: N801
        __slots__ = ()

        def _fastest(self) -> None:
            return None


class ListsEverybodys(Altered):
    async def streams(self, owner: str | None = None) -> list[StreamInfo]:
        return await super().streams()


@pytest.mark.parametrize(
    "wrong",
    [
        NeverJoins,
        TakesAnyKey,
        SkipsInSilence,
        EndsTwice,
        TellsCopies,
        StopsTwice,
        CountsOffsetsFromTheHead,
        NeverPauses,
        ListsEverybodys,
    ],
)
async def test_a_log_that_is_wrong_does_not_pass(wrong: Callable[..., MemoryLog]) -> None:
    clock = FakeClock()

    @contextlib.asynccontextmanager
    async def bench() -> AsyncIterator[LogBench]:
        def make(*, retention: Retention = DEFAULT_RETENTION) -> MemoryLog:
            return wrong(retention=retention, clock=clock)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        yield LogBench(make, advance)

    with pytest.raises((AssertionError, ReplayGap, TimeoutError)):
        await check_event_log(bench)
