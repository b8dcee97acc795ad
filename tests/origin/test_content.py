from __future__ import annotations

import asyncio
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.origin.content import PIECE, FileShrank, Lines, OriginError, RealFile, length_of, line_at

pytestmark = pytest.mark.anyio


def naive(lines: int) -> bytes:
    return b"".join(b"Line %d: This is a line in the large file.\n" % i for i in range(1, lines + 1))


WHOLE = naive(12_345)


def test_length_of_the_seed() -> None:
    assert length_of(10_000_000) == 478_888_897


@given(st.integers(0, 12_345))
@example(0)
@example(9)
@example(10)
@example(999)
@example(1000)
@example(10_000)
def test_length_is_that_of_a_naive_generator(lines: int) -> None:
    assert length_of(lines) == len(naive(lines))


@given(st.integers(1, 10**12))
def test_each_line_is_its_digits_longer(line: int) -> None:
    assert length_of(line) - length_of(line - 1) == 41 + len(str(line))


@given(st.integers(1, 10**13), st.data())
def test_line_at_inverts_length_of(line: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(length_of(line - 1), length_of(line) - 1))
    assert line_at(offset) == line


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@example(0, len(WHOLE))
@example(length_of(999), length_of(1000))
@example(length_of(999) - 1, length_of(1000) + 1)
def test_any_slice_is_that_of_the_whole(start: int, end: int) -> None:
    assert b"".join(Lines(12_345).blocks(start, end)) == WHOLE[start:end]


async def test_pieces_are_of_one_size_from_the_start_on() -> None:
    pieces = [piece async for piece in Lines(12_345).pieces(7, len(WHOLE))]
    assert b"".join(pieces) == WHOLE[7:]
    assert {len(piece) for piece in pieces[:-1]} == {PIECE}
    assert 0 < len(pieces[-1]) <= PIECE


async def test_others_have_their_turn_between_the_pieces() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    pieces = [len(piece) async for piece in Lines(12_345).pieces(0, len(WHOLE))]
    task.cancel()
    assert turns >= len(pieces) - 1 >= 2


def test_a_far_offset_costs_what_a_near_one_costs() -> None:
    far = length_of(10**12) - 50
    block = b"".join(Lines(10**12).blocks(far, far + 50))
    assert block.endswith(b"large file.\n")
    began = time.perf_counter()
    for _ in range(100):
        next(Lines(10**12).blocks(far, far + 50))
    assert time.perf_counter() - began < 5, "a scan from the beginning would take hours"


def test_generating_is_constant_in_memory() -> None:
    def peak(lines: int) -> int:
        content = Lines(lines)
        tracemalloc.start()
        for _ in content.blocks(0, content.length):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10_000)
    assert peak(1_000_000) < 2 * peak(10_000) + 200_000


async def test_a_real_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "données.txt"
    path.write_bytes(WHOLE)
    content = RealFile(path)
    try:
        assert (content.name, content.length, content.media_type) == ("données.txt", len(WHOLE), "text/plain")
        assert b"".join([piece async for piece in content.pieces(5, 400_000)]) == WHOLE[5:400_000]
    finally:
        content.close()


def test_the_etag_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    one = RealFile(path)
    replacement = tmp_path / "new"
    replacement.write_bytes(b"two")
    replacement.replace(path)
    two = RealFile(path)
    again = RealFile(path)
    for content in (one, two, again):
        content.close()
    assert one.etag != two.etag == again.etag


async def test_a_file_that_shrinks_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (2 * PIECE))
    content = RealFile(path)
    try:
        got = 0
        with pytest.raises(FileShrank, match="shrank"):
            async for piece in content.pieces(0, content.length):
                got += len(piece)
                path.write_bytes(b"x" * (PIECE + 10))
        assert got == PIECE
    finally:
        content.close()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(OriginError, match=r"cannot serve .*it: .*--file"):
        RealFile(path)
