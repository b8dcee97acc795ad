from __future__ import annotations

import pytest

from penstock.eventlog.batch import page_of, sizes_of, split


@pytest.mark.parametrize("records", [[b"one"], [b"one", b"", b"three"], [b""], [b"", b""], [b"x" * 70_000, b"y"]])
def test_the_records_of_a_batch_are_found_again(records: list[bytes]) -> None:
    sizes = sizes_of(records)
    assert (sizes is None) == (len(records) == 1)
    assert split(sizes, b"".join(records)) == records


@pytest.mark.parametrize(
    ("skip", "max_records", "max_bytes", "page"),
    [
        (0, 9, 9, [b"one", b"two"]),
        (0, 9, 8, [b"one", b"two"]),
        (0, 9, 11, [b"one", b"two", b"three"]),
        (0, 2, 99, [b"one", b"two"]),
        (0, 1, 99, [b"one"]),
        (0, 9, 1, [b"one"]),
        (2, 9, 4, [b"e", b"two"]),
        (2, 1, 9, [b"e"]),
    ],
)
def test_a_page_keeps_its_bounds_but_for_its_first_record(
    skip: int, max_records: int, max_bytes: int, page: list[bytes]
) -> None:
    assert page_of([b"one", b"two", b"three"], skip, max_records, max_bytes) == page
    assert page_of([], skip, max_records, max_bytes) == []
