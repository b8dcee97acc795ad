"""The retry budget that all requests and streams of a client share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import penstock
from penstock import AsyncClient, Backoff, Retry
from penstock.resilience.budget import RetryBudget
from tests.client.peers import SSE, answer, chunk, chunked, counting

pytestmark = pytest.mark.anyio

WINDOW = 3600.0  # longer than any test takes on any machine: nothing comes back


def policy(retries: int, *, share: float = 0.0, allowed: float = 0.0) -> Retry:
    """A policy whose budget is a share of the requests, or so many retries in all."""
    budget = RetryBudget(share=share, floor=allowed / WINDOW, window=WINDOW)
    return Retry(retries=retries, backoff=Backoff(initial=0), budget=budget)


async def outage(head: bytes, writer: asyncio.StreamWriter) -> None:
    raise ConnectionAbortedError


async def failures_of(client: AsyncClient, count: int) -> list[BaseException]:
    """What becomes of so many streams and requests at once."""
    streams: list[Any] = [client.get("/").collect() for _ in range(count // 2)]
    sends: list[Any] = [client.get("/").read() for _ in range(count - len(streams))]
    found = await asyncio.gather(*streams, *sends, return_exceptions=True)
    return [each for each in found if isinstance(each, BaseException)]


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 7), (0.2, 0), (0.2, 3), (0.0, 0)])
async def test_an_outage_makes_no_more_retries_than_the_budget_has(share: float, allowed: int) -> None:
    count = 40
    async with counting(outage) as server:
        async with AsyncClient(server.url, retry=policy(3, share=share, allowed=allowed)) as client:
            failures = await failures_of(client, count)
        assert len(failures) == count
        retried = server.served - count
        assert retried == max(allowed, share * count)
    assert client.metrics.retries <= retried, "of the streams only"
    refused = [failure for failure in failures if "the client's retry budget is spent" in str(failure)]
    assert len(refused) == count, "three retries each would have been 120"
    for failure in refused:
        assert isinstance(failure, penstock.RetriesExhausted)
        assert (failure.category, failure.url) == ("network", f"{server.url}/")


async def test_a_budget_that_is_not_spent_refuses_nobody() -> None:
    async with counting(outage) as server:
        async with AsyncClient(server.url, retry=policy(2, allowed=80)) as client:
            failures = await failures_of(client, 40)
        assert server.served == 3 * 40
    assert all("gave up after 3 attempts: " in str(failure) for failure in failures)


async def test_resumes_are_retries_like_any_other() -> None:
    served = 0

    async def breaking(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        writer.write(chunked(type=SSE, end=False) + chunk(b"id: %d\ndata: x\n\n" % served))
        await writer.drain()
        raise ConnectionAbortedError

    async with counting(breaking) as server:
        async with AsyncClient(server.url, retry=policy(5, allowed=4)) as client:
            with pytest.raises(
                penstock.RetriesExhausted, match="gave up after 5 attempts, for the client's retry budget"
            ):
                await client.get("/").collect()
            assert client.metrics.reconnects == 4
            with pytest.raises(penstock.RetriesExhausted, match="gave up after 1 attempt, for") as caught:
                await client.get("/").collect()
            assert len(caught.value.collected) == 1
        assert server.served == 4 + 2


async def test_a_refusal_whose_retry_is_refused_is_returned_to_be_looked_at() -> None:
    async def busy(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"later", "503 Busy", "Retry-After: 0"))

    async with counting(busy) as server, AsyncClient(server.url, retry=policy(3)) as client:
        assert (await client.get("/").read()).status == 503
        with pytest.raises(penstock.RetriesExhausted, match="503 Busy") as caught:
            await client.get("/").collect()
        assert isinstance(caught.value.last, penstock.StatusError)
        assert server.served == 2


async def test_clients_do_not_share_theirs() -> None:
    async with counting(outage) as server:
        for served in (3, 6):
            async with AsyncClient(server.url, retry=policy(2, allowed=2)) as client:
                with pytest.raises(penstock.RetriesExhausted):
                    await client.get("/").collect()
            assert server.served == served
