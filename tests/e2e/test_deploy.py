"""The proxies of docs/deploy.md: its very blocks, before two real relays, before a real origin.

What must come at once is asked for one after the other: the next event is sent when the last one has been received, so
nothing here goes by a clock but the silence that has to outlast the proxy's timeouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.e2e.process import PATIENCE, Running, Server
from tests.e2e.proxies import HOST, KEEP_ALIVE, PROXIES, SBIN, TIMEOUT, Proxy, started
from tests.relay.peers import CHUNKED, LAST_CHUNK, Peer, until
from tests.relay.readers import NDJSON, Call, Origin, fetch
from tests.relay.readers import origin as playing

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="two share a port in Linux's way"),
]

EVENTS = "Accept: text/event-stream\r\n"


@dataclass
class Deployed:
    """A proxy, two relays behind it, and what they ask."""

    name: str
    port: int
    trust: ssl.SSLContext
    ca: Path
    relays: dict[str, Server]
    played: Origin

    @property
    def proxy(self) -> Proxy:
        return PROXIES[self.name]

    @contextlib.asynccontextmanager
    async def asking(self, target: str, more: str = EVENTS, method: str = "GET") -> AsyncIterator[Peer]:
        """A reader of the proxy's whose request's head has been sent."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname=HOST, limit=1 << 20
        )
        peer = Peer(reader, writer)
        try:
            await peer.send(f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n".encode())
            yield peer
        finally:
            writer.transport.abort()

    def live(self, what: str) -> str:
        """A path at which the test itself is the upstream."""
        return f"/live/{self.name}/{what}"

    async def called(self, what: str) -> Call:
        """The upstream's side of a request, once it is there."""
        path = self.live(what).encode()

        def there() -> list[Call]:
            return [call for call in self.played.calls if call.peer.head.split(b" ")[1] == path]

        await until(lambda: bool(there()))
        return there()[-1]

    @contextlib.asynccontextmanager
    async def streaming(self, what: str, head: bytes = CHUNKED, more: str = EVENTS) -> AsyncIterator[tuple[Peer, Call]]:
        """A reader whose answer has begun, and the upstream's side of it."""
        async with self.asking(self.live(what), more) as reader:
            call = await self.called(what)
            await call.head(head)
            await reader.take_head()
            yield reader, call


async def seen(reader: Peer, text: bytes) -> bytes:
    """Read up to a text."""
    async with asyncio.timeout(PATIENCE):
        return await reader.reader.readuntil(text)


async def running_relays(folder: Path, real: Server, played: Origin, stack: contextlib.ExitStack) -> dict[str, Server]:
    relays = {}
    for which in "ab":
        config = folder / f"{which}.toml"
        config.write_text(
            f'store = "sqlite:///{folder / "streams.db"}"\ngrace = "60s"\n'
            f'[defaults]\nupstream = "{real.url}"\nowner = "none"\nids = "ours"\nkeep_alive = {KEEP_ALIVE}\n'
            f'trusted_proxies = ["127.0.0.0/8"]\nresponse_headers.add = {{ X-Relay = "{which}" }}\n'
            f'[[routes]]\npath = "/live"\nupstream = "{played.url}"\non_disconnect = "cancel"\n'
        )
        relays[which] = Server("relay", "--config", config, folder=folder / which)
        stack.callback(relays[which].end)
    for relay in relays.values():
        await asyncio.to_thread(relay.started)
    return relays


async def test_streams_go_through_as_the_page_says(origin: Server, tmp_path: Path, subtests: pytest.Subtests) -> None:
    missing = [name for name in PROXIES if not shutil.which(name, path=SBIN)]
    authority = trustme.CA()
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(tmp_path / "relay.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with contextlib.ExitStack() as stack:
        async with playing(reads_body=False) as played:
            relays = await running_relays(tmp_path, origin, played, stack)
            here = []
            for name in PROXIES.keys() - missing:
                port, process = started(name, tmp_path, relays, stack)
                here.append((Deployed(name, port, trust, tmp_path / "ca.pem", relays, played), process))
            # They mostly wait, so they do it together.
            timeouts = asyncio.gather(*(has_its_timeouts(*each) for each in here), return_exceptions=True)
            try:
                outcomes = [await asyncio.gather(*(goes_through(*each) for each in here), return_exceptions=True)]
                if not any(outcomes[0]):
                    outcomes.append(await one_that_drains_is_left([each for each, _ in here]))
                outcomes.append(await timeouts)
            finally:
                timeouts.cancel()
                await asyncio.wait({timeouts})
    failures = {each.name: next(filter(None, failed), None) for (each, _), *failed in zip(here, *outcomes, strict=True)}
    for name in PROXIES:
        with subtests.test(name):
            if name in missing:
                pytest.skip(f"{name} is not installed")
            if (failure := failures[name]) is not None:
                raise failure


async def goes_through(here: Deployed, process: Running) -> None:
    """All that the page promises of a proxy, but what takes its time."""
    await serves(here, process)
    await each_event_comes_before_the_next_is_sent(here)
    await lines_too(here)
    await a_readers_leave_reaches_the_upstream(here)
    await an_upload_is_passed_on_as_it_comes(here)
    await a_reader_resumes_at_whichever_relay(here)
    await many_streams_share_a_connection(here)


async def has_its_timeouts(here: Deployed, process: Running) -> None:
    """Which streams they cut, and which they do not."""
    await serves(here, process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outlasts_the_timeouts(here))
        if here.proxy.has_timeouts:
            tasks.create_task(is_cut_by_them(here))


async def serves(here: Deployed, process: Running) -> None:
    """Wait until the proxy serves, and both relays behind it."""
    found: set[str] = set()
    async with asyncio.timeout(PATIENCE):
        while len(found) < 2:
            assert process.process.poll() is None, process.err
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with here.asking("/generate?chunks=1", "") as reader:
                    await reader.take_head()
                    found.update(reader.all("x-relay"))
            await asyncio.sleep(0.02)


async def each_event_comes_before_the_next_is_sent(here: Deployed) -> None:
    async with here.streaming("rhythm") as (reader, call):
        assert call.peer.all("x-forwarded-for") == ["127.0.0.1, 127.0.0.1"], "the reader, and the proxy"
        assert call.peer.all("x-forwarded-proto") == ["https"]
        assert [value.partition(":")[0] for value in call.peer.all("x-forwarded-host")] == [HOST]
        assert reader.all("content-type") == ["text/event-stream"]
        assert not reader.has("content-encoding")
        for number in range(20):
            await call.send(b"data: %d\n\n" % number)
            await seen(reader, b"data: %d\n\n" % number)
        await call.end()
        await seen(reader, LAST_CHUNK)


async def lines_too(here: Deployed) -> None:
    async with here.streaming("lines", NDJSON, "") as (reader, call):
        for number in range(20):
            await call.send(b'{"n": %d}\n' % number)
            await seen(reader, b'{"n": %d}\n' % number)
        call.reset()
        assert b'{"error":' in await seen(reader, b"}}\n"), "said, whatever the proxy makes of a body that breaks"
        if here.proxy.breaks_off:
            assert LAST_CHUNK not in await reader.rest()


async def a_readers_leave_reaches_the_upstream(here: Deployed) -> None:
    async with asyncio.timeout(0.8 * TIMEOUT):  # and not only when the proxy has had enough of the silence
        async with here.asking(here.live("leaves-before")):
            call = await here.called("leaves-before")
        await call.cancelled()
    async with asyncio.timeout(0.8 * TIMEOUT):
        async with here.streaming("leaves-after", NDJSON, "") as (reader, call):
            await call.send(b"1\n")
            await seen(reader, b"1\n")
        await call.cancelled()


async def an_upload_is_passed_on_as_it_comes(here: Deployed) -> None:
    piece, pieces = b"x" * 65536, 64
    async with here.asking(here.live("upload"), f"Content-Length: {len(piece) * pieces}\r\n", "POST") as reader:
        await reader.send(piece)
        call = await here.called("upload")  # nothing else has been sent yet
        await reader.send(piece * (pieces - 1))
        await call.head(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        call.over.set()
        await reader.take_head()
        assert reader.status == 200


async def a_reader_resumes_at_whichever_relay(here: Deployed) -> None:
    target = "/events?count=40&interval=0.02"
    async with here.asking(target) as reader:
        await reader.take_head()
        id_ = re.findall(rb"id: (\S+)", await seen(reader, b'"n":4'))[-1].decode()
    for _ in range(3):
        async with here.asking(target, f"{EVENTS}Connection: close\r\nLast-Event-ID: {id_}\r\n") as reader:
            await reader.take_head()
            numbers = [int(number) for number in re.findall(rb'"n":(\d+)', await reader.rest())]
            assert numbers == list(range(5, 41))


async def many_streams_share_a_connection(here: Deployed) -> None:
    """More than the six connections that a browser makes to one host over HTTP/1.1."""
    names = [f"many-{number}" for number in range(9)]
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sNZ", "--http2", "--max-time", str(PATIENCE), "--cacert", str(here.ca),
        "--resolve", f"{HOST}:{here.port}:127.0.0.1", "-H", "Accept: text/event-stream",
        "-w", "%{stderr}over %{http_version} on %{num_connects}\n",
        *(f"https://{HOST}:{here.port}{here.live(name)}" for name in names),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    calls = [await here.called(name) for name in names]  # all at once
    for number, call in enumerate(calls):
        await call.head()
        await call.send(b"data: many %d\n\n" % number)
        await call.end()
    out, err = await curl.communicate()
    assert curl.returncode == 0, err
    assert sorted(re.findall(rb"data: many (\d)", out)) == [b"%d" % number for number in range(9)]
    told = re.findall(rb"over (\S+) on (\d+)", err)
    assert [version for version, _ in told] == [b"2"] * 9
    assert sum(int(connections) for _, connections in told) == 1


async def outlasts_the_timeouts(here: Deployed) -> None:
    now = asyncio.get_running_loop().time
    async with here.streaming("silent") as (reader, call):
        await call.send(b"data: 1\n\n")
        await seen(reader, b"data: 1\n\n")
        over = now() + 1.2 * TIMEOUT
        while now() < over:
            await seen(reader, b": keep-alive\n")
        await call.send(b"data: 2\n\n")
        await seen(reader, b"data: 2\n\n")
        await call.end()
        await seen(reader, LAST_CHUNK)


async def is_cut_by_them(here: Deployed) -> None:
    async with here.streaming("stuck", NDJSON, "") as (reader, call):
        await call.send(b"1\n")
        await seen(reader, b"1\n")
        assert LAST_CHUNK not in await reader.rest()
        await call.cancelled()


async def one_that_drains_is_left(proxies: list[Deployed]) -> list[BaseException | None]:
    """A relay that ends gets no new readers from any proxy, and keeps those that it has."""
    leaving = proxies[0].relays["a"]
    async with contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(reading_from(each, "a")) for each in proxies]
        leaving.kill(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            while (await fetch(leaving.url, "/_penstock/ready")).status != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        outcomes = await asyncio.gather(*(moves_on(each) for each in proxies), return_exceptions=True)
        for reader, call in kept:
            await call.send(b"data: still here\n\n")
            await seen(reader, b"data: still here\n\n")
            await call.end()
            await seen(reader, LAST_CHUNK)
    assert await asyncio.to_thread(leaving.ended) == 143
    gone = await asyncio.gather(*(moves_on(each) for each in proxies), return_exceptions=True)
    return [first or last for first, last in zip(outcomes, gone, strict=True)]


@contextlib.asynccontextmanager
async def reading_from(here: Deployed, which: str) -> AsyncIterator[tuple[Peer, Call]]:
    """A reader of one of the relays'."""
    async with contextlib.AsyncExitStack() as others:
        for number in range(20):
            reader, call = await others.enter_async_context(here.streaming(f"drain-{number}"))
            if reader.all("x-relay") == [which]:
                yield reader, call
                return
    raise AssertionError(f"{here.name} sent nobody to {which}")


async def moves_on(here: Deployed) -> None:
    """Wait until all new readers come to b: whoever has no probes asks on behalf of each."""
    moved = 0
    async with asyncio.timeout(PATIENCE):
        while moved < 8:
            async with here.asking("/generate?chunks=1", "") as new:
                await new.take_head()
                moved = moved + 1 if (new.status, new.all("x-relay")) == (200, ["b"]) else 0
