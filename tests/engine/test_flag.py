"""A flag is an event: the same is done to both, and the same comes of it."""

from __future__ import annotations

import asyncio

import pytest

from penstock.engine.flag import Flag

pytestmark = pytest.mark.anyio


async def waiting(flag: Flag, tasks: int) -> list[asyncio.Task[None]]:
    """So many tasks that wait."""
    made = [asyncio.create_task(flag.wait()) for _ in range(tasks)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in made)
    return made


async def test_a_flag_that_is_set_keeps_nobody() -> None:
    flag = Flag(up=True)
    assert flag.is_set()
    await flag.wait()
    flag.clear()
    assert not flag.is_set()
    [task] = await waiting(flag, 1)
    flag.set()
    await task


async def test_all_who_wait_are_woken_though_it_is_taken_back_at_once() -> None:
    flag = Flag()
    tasks = await waiting(flag, 3)
    flag.set()
    flag.set()
    flag.clear()
    await asyncio.gather(*tasks)
    assert not flag.is_set()


async def test_who_gives_up_is_forgotten_and_keeps_nobody_else() -> None:
    flag = Flag()
    gone, stays = await waiting(flag, 2)
    gone.cancel()
    flag.set()  # before the one that is cancelled has run
    await stays
    with pytest.raises(asyncio.CancelledError):
        await gone
    flag.clear()
    [again] = await waiting(flag, 1)
    flag.set()
    await again
