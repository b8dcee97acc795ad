"""Records side by side: how a store keeps many as one, and how many of them a page takes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from penstock.errors import ReplayGap

_BIG_ENDIAN = array("I", [1]).tobytes()[:1] == b"\0"


def sizes_of(records: Sequence[bytes]) -> bytes | None:
    """The sizes of a batch's records, as they are stored, 32 bits little-endian each; None for a single record."""
    if len(records) == 1:
        return None
    sizes = array("I", map(len, records))
    if _BIG_ENDIAN:
        sizes.byteswap()
    return sizes.tobytes()


def split(sizes: bytes | None, data: bytes) -> list[bytes]:
    """The records of a batch."""
    if sizes is None:
        return [data]
    lengths = array("I")
    lengths.frombytes(sizes)
    if _BIG_ENDIAN:
        lengths.byteswap()
    records, begin = [], 0
    for length in lengths:
        records.append(data[begin : begin + length])
        begin += length
    return records


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
