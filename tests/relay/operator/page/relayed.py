"""A relay with its page on the operator's listener, in this process, for a test that is not asynchronous."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from anyio.from_thread import start_blocking_portal
from starlette.middleware.cors import CORSMiddleware

import penstock
from penstock.relay.operator.admin import Admin
from penstock.relay.settings.cors import CORS_EXPOSED, CORS_HEADERS
from penstock.relay.settings.policy import Policy
from penstock.testing import serve


class Relayed(NamedTuple):
    """Where a relay is, for its readers and for its operator."""

    public: str
    admin: str


@contextlib.contextmanager
def relayed(upstream: str) -> Iterator[Relayed]:
    """Run a relay and its page until the block ends."""
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(_relayed(upstream)) as running:
        yield running


@contextlib.asynccontextmanager
async def _relayed(upstream: str) -> AsyncIterator[Relayed]:
    policy = Policy(upstream=upstream, breaker=penstock.Breaker(failure_threshold=1, recovery_timeout=3600.0))
    relay = penstock.Relay(upstream, store="memory://", policy=policy)
    # The page's origin is known when it is served, and its readers' when they ask: hence any.
    readers = CORSMiddleware(
        relay, ["*"], ["GET", "POST", "PUT", "DELETE"], [*CORS_HEADERS, "authorization"], expose_headers=CORS_EXPOSED
    )
    async with serve(readers) as public:
        assert relay.kept is not None
        admin = Admin(relay.kept, relay.routes, public=public, store="memory://")
        async with serve(admin) as operator:
            yield Relayed(public, operator)
