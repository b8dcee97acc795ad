"""Pages out of what Redis answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from penstock.eventlog.batch import page_of
from penstock.eventlog.redis.scripts import Row, unpack


class Found(NamedTuple):
    """Records that were read, and where they end; `row` is None for a stream that is gone."""

    row: Row | None
    records: list[bytes]
    after: int
    offset: int

    @classmethod
    def of(
        cls, id: str, answer: Sequence[Any], after: int, offset: int | None, max_records: int, max_bytes: int
    ) -> Found:
        """The answer of `lua/read.lua` to these very arguments."""
        row = Row.of(id, answer[0]) if answer else None
        if row is None:
            return cls(None, [], after, 0)
        if not answer[1]:
            return cls(row, [], after if offset is None else row.last, row.offset)
        records: list[bytes] = []
        begin = skip = 0
        for sequence, batch in zip(answer[1][::2], answer[1][1::2], strict=True):
            end, pieces = unpack(batch)
            if not records:
                begin = end - sum(map(len, pieces))
                before = int(sequence) - len(pieces)
                while (after > before) if offset is None else (begin + len(pieces[0]) <= offset):
                    begin += len(pieces.pop(0))
                    before += 1
                after = before
                skip = 0 if offset is None else offset - begin
            records += pieces
        records = page_of(records, skip, max_records, max_bytes)
        return cls(row, records, after + len(records), begin + skip + sum(map(len, records)))
