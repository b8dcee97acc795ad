"""The ways to Redis: over TLS, through a socket, by Sentinels, in a cluster; and what of it goes away."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from penstock.errors import StoreError
from penstock.eventlog.redis.address import Address
from penstock.eventlog.redis.log import RedisLog
from penstock.eventlog.redis.scripts import BUCKETS
from tests.eventlog.redis_server import PATIENCE, RedisServer, needs_redis, running, running_cluster, running_sentinels

pytestmark = [pytest.mark.anyio]


async def works(url: str) -> None:
    """Two processes on that store hear of each other."""
    prefix = secrets.token_hex(4)
    async with RedisLog(url, prefix=prefix) as log, RedisLog(url, prefix=prefix) as other:
        for number in range(3):
            stream, producer = await log.open(f"{number}", "ann", b"head")
            assert producer is not None
            producer.start()
            there = await other.get(stream.id)
            assert there is not None
            waiting = asyncio.create_task(there.wait(0))
            producer.append([b"x"])
            await waiting
            assert (await there.read(0)).records == [b"x"]
            producer.end("done")
            await producer.stored(2)
        assert len(await other.streams("ann")) == 3


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "places", "service", "db", "login"),
    [
        ("redis://host", "", ["host:6379"], "", 0, (None, None)),
        ("redis://ann:p%40ss@host:1/2", "", ["host:1"], "", 2, ("ann", "p@ss")),
        ("redis://:pass@[::1]:7", "", ["::1:7"], "", 0, (None, "pass")),
        ("rediss+sentinel://a,b:2/streams/3", "sentinel", ["a:26379", "b:2"], "streams", 3, (None, None)),
        ("redis+cluster://a:1,b", "cluster", ["a:1", "b:6379"], "", 0, (None, None)),
        ("redis+unix:///run/redis.sock?db=4", "unix", ["/run/redis.sock"], "", 4, (None, None)),
    ],
)
def test_what_a_url_names(
    url: str, kind: str, places: list[str], service: str, db: int, login: tuple[str | None, str | None]
) -> None:
    address = Address.parse(url)
    assert (address.kind, [str(place) for place in address.places], address.service) == (kind, places, service)
    assert (address.options["db"], address.options.get("username"), address.options.get("password")) == (db, *login)
    assert address.secure == url.startswith("rediss")
    assert "pass" not in repr(address)
    assert "p@ss" not in address.shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://a,b",
        "redis://a/0/1",
        "redis://a/first",
        "redis://a?x=1",
        "redis://a#1",
        "redis+cluster://a/1",
        "redis+mail://a",
        "rediss+unix:///a",
        "redis://u:s3cret@[::1",
        "http://a",
    ],
)
def test_what_names_none(url: str) -> None:
    with pytest.raises(ValueError, match="write redis://HOST") as raised:
        RedisLog(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["redis://a:port", "redis://a:0", "redis+cluster://a:99999,b"])
def test_what_is_no_port(url: str) -> None:
    with pytest.raises(ValueError, match="is no port"):
        RedisLog(url)


# -- one server --------------------------------------------------------------------------------------------------------


@needs_redis
async def test_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    secure = socket.create_server(("127.0.0.1", 0))
    port = secure.getsockname()[1]
    secure.close()
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem")
    options = [str(tmp_path / each) if each.endswith(".pem") else each for each in files]
    with running(tmp_path / "redis", "--tls-port", str(port), "--tls-auth-clients", "no", *options):
        await works(f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}")
        with pytest.raises(StoreError, match="certificate"):
            async with RedisLog(f"rediss://127.0.0.1:{port}"):
                pass


@needs_redis
async def test_through_a_socket(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--unixsocket", str(tmp_path / "s")):
        await works(f"redis+unix://{tmp_path / 's'}?db=1")


# -- Sentinels ---------------------------------------------------------------------------------------------------------


@needs_redis
@pytest.mark.soak
async def test_sentinels_tell_the_master_and_a_new_one(tmp_path: Path) -> None:
    """After a failover, what the new master has of a stream goes on; who waits elsewhere hears of it."""
    with running_sentinels(tmp_path) as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/streams"
        with pytest.raises(StoreError, match="knows no 'rivers'"):
            async with RedisLog(f"redis+sentinel://127.0.0.1:{sentinel.port}/rivers"):
                pass
        async with RedisLog(url, lease=60) as log, RedisLog(url, lease=60) as other:
            stream, producer = await log.open("a", "", b"")
            assert producer is not None
            producer.start()
            there = await other.get(stream.id)
            assert there is not None
            producer.append([b"one"])
            await producer.stored(1)
            assert (await there.read(0)).records == [b"one"]
            await eventually(lambda: replica.offset() == master.offset(), "a replica that has it all")
            assert sentinel.ask("SENTINEL", "FAILOVER", "streams") == "+OK"
            await eventually(lambda: "role:master" in replica.info("replication"), "a new master")
            master.end()
            producer.append([b"two"])
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(StoreError):
                        await producer.stored(2)
                        break
                    await asyncio.sleep(0.05)
                await there.wait(1)
                assert (await there.read(0)).records == [b"one", b"two"]
            producer.end("done")
            await producer.stored(3)
            assert log.trouble is None


async def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"no {what}"
        await asyncio.sleep(0.02)


# -- a cluster ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, 3, "--cluster-require-full-coverage", "no") as servers:
        yield servers


def url_of(cluster: list[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster[:2])


@needs_redis
async def test_a_cluster_has_equal_parts(cluster: list[RedisServer]) -> None:
    async with RedisLog(url_of(cluster), prefix=secrets.token_hex(4)) as log:
        ports = [log._servers.place(bucket).port for bucket in range(BUCKETS)]  # noqa: SLF001
        assert sorted(ports.count(server.port) for server in cluster) == [5, 5, 6]
        producers = []
        for _ in range(60):
            _, producer = await log.open(None, "", b"")
            assert producer is not None
            producer.start()
            producer.append([b"x"])
            producers.append(producer)
        await asyncio.gather(*(producer.stored(1) for producer in producers))
        assert len(await log.streams()) == 60


@needs_redis
async def test_a_node_that_goes_away_holds_up_no_other(cluster: list[RedisServer]) -> None:
    prefix = secrets.token_hex(4)
    async with (
        RedisLog(url_of(cluster), prefix=prefix, lease=60, timeout=1.0) as log,
        RedisLog(url_of(cluster), prefix=prefix) as other,
    ):
        producers = []
        for _ in range(40):
            stream, producer = await log.open(None, "", b"")
            assert producer is not None
            producer.start()
            producer.append([b"1"])
            producers.append((stream, producer))
        await asyncio.gather(*(producer.stored(1) for _, producer in producers))
        cluster[2].kill(signal.SIGSTOP)
        try:
            for _, producer in producers:
                producer.append([b"2"])
            await eventually(
                lambda: sum(producer.stored_sequence == 2 for _, producer in producers) >= 10, "stream on the others"
            )
            assert not all(producer.stored_sequence == 2 for _, producer in producers)
        finally:
            cluster[2].end()
            cluster[2].start()
        for stream, producer in producers:
            await eventually(lambda producer=producer: producer.stored_sequence == 2, "record after the outage")  # type: ignore[misc]
            there = await other.get(stream.id)
            assert there is not None
            assert (await there.read(0)).records == [b"1", b"2"]


@needs_redis
async def test_a_slot_that_is_moved_is_followed(cluster: list[RedisServer]) -> None:
    prefix = secrets.token_hex(4)
    async with (
        RedisLog(url_of(cluster), prefix=prefix, lease=60) as log,
        RedisLog(url_of(cluster), prefix=prefix) as other,
    ):
        stream, producer = await log.open("a", "", b"")
        assert producer is not None
        producer.start()
        producer.append([b"1"])
        await producer.stored(1)
        there = await other.get(stream.id)
        assert there is not None
        waiting = asyncio.create_task(there.wait(1))
        base = log._buckets[0].base  # noqa: SLF001
        for bucket in log._buckets:  # noqa: SLF001
            if stream.id in bucket.live:
                base = bucket.base
        slot = cluster[0].ask("CLUSTER", "KEYSLOT", base)[1:]
        ports = [server.port for server in cluster]
        source = cluster[ports.index(log._servers.place(int(slot) // 1024).port)]  # noqa: SLF001
        target = next(server for server in cluster if server is not source)
        move(slot, source, target, cluster)
        producer.append([b"2"])
        async with asyncio.timeout(PATIENCE):
            await waiting
            assert (await there.read(0)).records == [b"1", b"2"]
        await eventually(lambda: producer.stored_sequence == 2, "record after the move")
        assert await other.find("a", "") is there


def move(slot: str, source: RedisServer, target: RedisServer, cluster: list[RedisServer]) -> None:
    """Move a slot with all its keys, as a resharding does."""
    ids = {server: server.ask("CLUSTER", "MYID", whole=True).split()[1] for server in (source, target)}
    assert target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source]) == "+OK"
    assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target]) == "+OK"
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, "100", whole=True).split("\r\n")[2::2]:
        answer = source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
        assert answer in ("+OK", "+NOKEY")
    for server in (target, source, *cluster):
        server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
