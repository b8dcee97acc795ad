from __future__ import annotations

import pytest

from penstock.eventlog.redis.read import Found
from penstock.eventlog.redis.scripts import pack, unpack

RECORDS = [b"one ", b"two ", b"three ", b"four ", b"five "]
ROW = [
    b"lease", b"token", b"owner", b"", b"epoch", b"1", b"head", b"", b"started", b"1", b"last", b"5", b"offset", b"24",
    b"dropped", b"0", b"dropped_offset", b"0", b"opened", b"1",
]  # fmt: skip
BOUNDS = [[(1, 5)], [(1, 2), (3, 5)], [(1, 1), (2, 4), (5, 5)]]


def batches(*bounds: tuple[int, int]) -> list[bytes]:
    """Batches of the records between these sequences, as the script answers them."""
    answer = []
    for first, last in bounds:
        answer += [b"%d" % last, pack(RECORDS[first - 1 : last], sum(map(len, RECORDS[:last])))]
    return answer


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_page_begins_behind_the_cursor(bounds: list[tuple[int, int]], after: int, size: int) -> None:
    wanted = [bound for bound in bounds if bound[1] > after]  # where the script begins
    found = Found.of("id", [ROW, batches(*wanted)], after, None, size, 1000)
    assert found.records == RECORDS[after : after + size]
    assert (found.after, found.offset) == (min(after + size, 5), sum(map(len, RECORDS[: after + size])))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_page_begins_at_the_offset(bounds: list[tuple[int, int]], size: int) -> None:
    body = b"".join(RECORDS)
    for offset in range(len(body)):
        wanted = [bound for bound in bounds if sum(map(len, RECORDS[: bound[1]])) > offset]
        found = Found.of("id", [ROW, batches(*wanted)], 0, offset, 100, size)
        got = b"".join(found.records)
        assert got
        assert len(got) <= max(size, len(found.records[0]))
        assert body[offset:].startswith(got)
        assert found.offset == offset + len(got) == sum(map(len, RECORDS[: found.after]))


@pytest.mark.parametrize("records", [[b"one"], [b"one", b"", b"three"], [b""], [b"", b""], [b"x" * 70_000, b"y"]])
def test_the_records_of_a_batch_are_found_again(records: list[bytes]) -> None:
    assert unpack(pack(records, 1 << 40)) == (1 << 40, records)
