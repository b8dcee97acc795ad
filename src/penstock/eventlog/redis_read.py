"""Pages out of what Redis answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from penstock.errors import ReplayGap
from penstock.eventlog.redis_scripts import Row, unpack


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


def page_of(records: Iterable[bytes], skip: int, max_records: int, max_bytes: int) -> list[bytes]:
    """As many records as a page takes, and one at least; the first without so many of its bytes."""
    page: list[bytes] = []
    room = max_bytes
    for record in records:
        if skip:
            record, skip = record[skip:], 0
        if page and (len(page) >= max_records or len(record) > room):
            break
        page.append(record)
        room -= len(record)
    return page


def gap_in_bytes(offset: int, earliest: int) -> ReplayGap:
    """What to raise for an offset before which all is gone."""
    return ReplayGap(
        f"the bytes from {offset} on were evicted; read from {earliest} on", requested=offset, earliest=earliest
    )
