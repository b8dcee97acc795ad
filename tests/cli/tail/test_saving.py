"""--save, against real responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.cli.tail.saving import Saved, Saving
from penstock.cli.tail.tap import PieceStream, tapped
from penstock.client.client import AsyncClient
from penstock.client.notices import Connected, Notice
from penstock.client.recording import load
from penstock.errors import PenstockError
from penstock.resilience.backoff import Backoff
from penstock.resilience.retry import Retry
from penstock.testing import close, reset, script, wait_request
from penstock.testing.script import Step

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"


async def read(url: str, saving: Saving, **keywords: Any) -> None:
    """Read a stream to its end, recorded."""

    def notice(notice: Notice) -> None:
        if isinstance(notice, Connected):
            saving.connected(notice.response)

    async with AsyncClient(retry=Retry(retries=3, backoff=Backoff(maximum=0.01))) as client:
        kind = tapped(PieceStream, saving.piece)
        async with client.get(url).items(kind, on_notice=notice, **keywords) as stream:
            async for _ in stream:
                pass


async def test_a_recording_is_told_when_it_is_made(tmp_path: Path) -> None:
    saved: list[Saved] = []
    path = tmp_path / "a.jsonl"
    async with script(wait_request(), OK % 4, b"ab", b"\xff\n", close()) as server:
        with Saving(path, saved.append) as saving:
            assert not path.exists()
            await read(f"{server.url}/x?token=secret", saving)
            assert path.exists()
    assert saved == [Saved(path, 4, "complete")]
    recording = load(path)
    assert b"".join(piece.data for piece in recording.pieces()) == b"ab\xff\n"
    assert recording.url == f"{server.url}/x?token=REDACTED"
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


async def test_a_response_that_breaks_and_one_that_follows_have_a_file_each(tmp_path: Path) -> None:
    saved: list[Saved] = []
    refused: list[Step] = [wait_request(), b"HTTP/1.1 503 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n", close()]
    cut: list[Step] = [wait_request(), OK % 9, reset()]
    whole: list[Step] = [wait_request(), OK % 2, b"ok", close()]
    async with script(refused, cut, refused, whole) as server:
        with Saving(tmp_path / "a.b.jsonl", saved.append) as saving:
            await read(server.url, saving)
    assert [(each.path.name, each.bytes, each.end) for each in saved] == [
        ("a.b.jsonl", 0, "failed"),
        ("a.b.2.jsonl", 2, "complete"),
    ]
    assert "broke off" in load(tmp_path / "a.b.jsonl").end.error
    assert len(list(tmp_path.iterdir())) == 2


async def test_where_no_response_came_there_is_no_file_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    saved: list[Saved] = []
    async with script() as server:
        url = server.url
    with pytest.raises(PenstockError), Saving(path, saved.append) as saving:
        async with AsyncClient(retry=0) as client, client.get(url).items(tapped(PieceStream, saving.piece)) as stream:
            async for _ in stream:
                pass
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    assert saved == []


async def test_a_folder_that_is_not_there_is_told_by_the_users_own_name(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a"
    with pytest.raises(FileNotFoundError) as caught:
        Saving(path, lambda saved: None)
    assert caught.value.filename == str(path)


async def test_a_recording_that_cannot_get_its_name_fails_the_command_after_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "a"
    async with script(wait_request(), OK % 2, b"ok", close()) as server:
        with pytest.raises(IsADirectoryError) as caught, Saving(path, lambda saved: None) as saving:
            path.mkdir()  # meanwhile
            await read(server.url, saving)
            read_to_its_end = True
    assert read_to_its_end
    assert caught.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
