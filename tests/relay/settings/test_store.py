from __future__ import annotations

import pytest

from penstock.eventlog.base import Retention
from penstock.eventlog.memory import MemoryLog
from penstock.eventlog.redis.log import RedisLog
from penstock.relay.settings.store import Store


@pytest.mark.parametrize(
    ("url", "kind", "persistent"),
    [
        ("none", "none", False),
        ("memory://", "memory", False),
        ("sqlite:///streams.db", "sqlite", True),
        ("sqlite:////var/lib/streams.db", "sqlite", True),
        ("redis://localhost:6379/0", "redis", True),
        ("rediss://cache.test", "redis", True),
        ("redis+sentinel://one:26379,two/streams/1", "redis", True),
        ("rediss+cluster://one,two:6380", "redis", True),
        ("redis+unix:///run/redis.sock", "redis", True),
    ],
)
def test_stores(url: str, kind: str, persistent: bool) -> None:
    assert (Store(url).kind, Store(url).persistent, str(Store(url))) == (kind, persistent, url)


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory://x", "sqlite://", "sqlite:///", "sqlite://x", "sqlite:///f?mode=ro", "redi://host"],
)
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(ValueError, match="write none, memory://, sqlite:///FILE"):
        Store(url)


@pytest.mark.parametrize("url", ["redis://", "redis+mail://host", "redis://host/a", "redis://host:port"])
def test_what_is_no_redis(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis://HOST|no port"):
        Store(url)


def test_a_password_is_not_shown() -> None:
    store = Store("redis://:s3cret@localhost")
    assert store.url == "redis://:s3cret@localhost"
    assert "s3cret" not in repr(store) + str(store)
    assert "s3cret" not in str(Store("redis+cluster://ann:s3cret@one,two"))
    with pytest.raises(ValueError, match="names no Redis") as refused:
        Store("redis://ann:s3cret@host/0/0")
    assert "s3cret" not in str(refused.value)
    with pytest.raises(ValueError, match="is not a store") as refused:
        Store("reddis://:s3cret@localhost")
    assert "s3cret" not in str(refused.value)


def test_none_keeps_nothing_and_the_others_open_a_log_that_is_not_started() -> None:
    assert Store("none").log() is None
    retention = Retention(age=7)
    log = Store("memory://").log(retention)
    assert isinstance(log, MemoryLog)
    assert log.retention is retention
    log = Store("redis://:s3cret@localhost:1/2").log(retention, 7.0)
    assert isinstance(log, RedisLog)
    assert log.retention is retention
    assert "s3cret" not in repr(log.address)
