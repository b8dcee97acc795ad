from __future__ import annotations

import asyncio

import pytest

from penstock.errors import LimitExceeded, StoreError, Trouble
from penstock.relay.streams import store_breaker
from penstock.relay.streams.store_breaker import StoreBreaker

pytestmark = pytest.mark.anyio


async def well() -> str:
    return "well"


class Failing:
    """Fails whoever asks, and counts them."""

    def __init__(self, reason: Trouble) -> None:
        self.asked = 0
        self.reason = reason

    async def __call__(self) -> str:
        self.asked += 1
        raise StoreError("no", reason=self.reason)


async def test_who_comes_after_a_failure_is_told_at_once_and_one_after_a_while_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_breaker, "RECOVERY", 0.05)
    breaker, store = StoreBreaker(), Failing("unavailable")
    assert await breaker.ask(well) == "well"
    for _ in range(5):
        with pytest.raises(StoreError):
            await breaker.ask(store)
    assert (store.asked, breaker.away) == (1, True)
    await asyncio.sleep(0.06)
    with pytest.raises(StoreError):
        await breaker.ask(store)
    assert store.asked == 2
    await asyncio.sleep(0.06)
    assert await breaker.ask(well) == "well"
    assert not breaker.away


async def test_while_one_asks_the_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_breaker, "RECOVERY", 0.0)
    breaker = StoreBreaker()
    with pytest.raises(StoreError):
        await breaker.ask(Failing("unavailable"))
    hanging: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(breaker.ask(lambda: hanging))
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(StoreError, match="is not asked"):
            await breaker.ask(well)
    asking.cancel()  # its reader left: that says nothing of the store
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert breaker.away
    assert await breaker.ask(well) == "well"


@pytest.mark.parametrize("reason", ["full", "read-only"])
async def test_a_store_that_refuses_is_there(reason: Trouble) -> None:
    breaker, store = StoreBreaker(), Failing(reason)
    for _ in range(3):
        with pytest.raises(StoreError):
            await breaker.ask(store)
    assert (store.asked, breaker.away) == (3, False)


async def test_a_store_that_is_full_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_breaker, "RECOVERY", 0.0)
    breaker = StoreBreaker()
    with pytest.raises(StoreError):
        await breaker.ask(Failing("unavailable"))

    async def full() -> str:
        raise LimitExceeded("full", limit="max_streams")

    with pytest.raises(LimitExceeded):
        await breaker.ask(full)
    assert not breaker.away
