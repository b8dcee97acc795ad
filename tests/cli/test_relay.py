"""`penstock relay`: refused before it listens; how it relays is in tests/e2e."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("upstream", ["", "localhost", "ftp://localhost", "http://", "http://localhost:x"])
def test_an_upstream_that_cannot_be_asked(run: Run, upstream: str) -> None:
    done = run("relay", upstream, "--listen", ":0", "--json")
    assert (done.code, done.error["type"]) == (2, "InvalidURL")


def test_a_busy_port(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        busy = f"127.0.0.1:{held.getsockname()[1]}"
        done = run("relay", "http://localhost", "--listen", busy)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"penstock: cannot listen on {busy}: the address is already in use")


# -- what is refused before anything is bound


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "write the UPSTREAM's URL, or --config FILE"),
        (["http://x", "--workers", "2"], "several processes cannot share memory://: use sqlite:///FILE, redis"),
        (["http://x", "--store", "postgres://db"], "'postgres://db' is not a store: write none, memory://"),
        (["http://x", "--store", "redis://user:s3cret@db/0/0"], "'redis://db/0/0' names no Redis: write redis://HOST"),
        (["http://x", "--on-disconnect", "later"], "'later' is not what happens on a disconnect: write auto"),
        (["http://x", "--ids", "mine"], "'mine' is not one of auto, ours, upstream"),
        (["http://x", "--owner", "user"], "write header:NAME"),
        (["http://x", "--admin-listen", "9090x"], "'9090x' is not HOST:PORT"),
        (["http://x?a=b"], "has a query or a fragment after it"),
        (["http://x", "--store", "none", "--ids", "ours"], "--ids: ids of ours would lead nowhere"),
        (["http://x", "--store", "none", "--on-disconnect", "grace:5s"], "--on-disconnect: nobody could come back"),
        (["http://x", "--store", "none", "--early-headers"], "--early-headers: there is no stream to begin before"),
        (["http://x", "--store", "sqlite:///x.db", "--owner", "header:X-User"], "PENSTOCK_SECRET is not set in the"),
        (["http://x", "--listen", "127.0.0.1:81", "--admin-listen", "127.0.0.1:81"], "--admin-listen is what readers"),
        (
            ["http://x", "--workers", "2", "--store", "none", "--admin-listen", ":0"],
            "the operator's page shows one process, and there would be 2",
        ),
        (["--config", "any.toml", "--ids", "ours"], "--ids and --config do not go together"),
        (["--config", "any.toml", "--early-headers"], "--early-headers and --config do not go together"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.delenv("PENSTOCK_SECRET", raising=False)
    done = run("relay", *options)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert "s3cret" not in done.err
    assert len(done.err.splitlines()) == 1


def test_a_secret_that_is_too_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET", "short")
    done = run("relay", "http://x", "--owner", "header:X-User")
    assert done.code == 2
    assert "PENSTOCK_SECRET is too short" in done.err


# -- a file

GOOD = """
listen = "127.0.0.1:0"
grace = "7s"
[[routes]]
path = "/v1"
upstream = "http://models.example"
on_disconnect = "grace:1m"
"""

BAD = """
workers = 2
[[routes]]
path = "/v1"
upstream = "http://x"
on_disconect = "detach"
keep_alive = "soon"
"""


def test_a_good_file_is_told_in_words_and_nothing_is_served(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(GOOD)
    done = run("relay", "--config", file, "--check-config")
    assert (done.code, done.err) == (0, "")
    assert "/v1 → http://models.example" in done.out
    assert "has 1 min to come back" in done.out
    assert "everything else is answered with 404" in done.out
    summary = run("relay", "--config", file, "--check-config", "--json", "--grace", "9").records
    assert summary == [
        {
            "config": {
                "listen": "127.0.0.1:0",
                "admin_listen": None,
                "store": "memory://",
                "workers": 1,
                "grace": 9.0,
                "routes": [{"match": "/v1", "upstream": "http://models.example"}],
                "default": None,
            }
        }
    ]


def test_a_bad_file_is_told_with_every_mistake_and_its_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(BAD)
    done = run("relay", "--config", file)
    assert (done.code, done.out) == (2, "")
    first, *rest = done.err.splitlines()
    assert first == f"penstock: {file} has 3 mistakes:"
    assert [line.split(":")[0] for line in rest] == ["  line 2", "  line 6", "  line 7"]
    error = run("relay", "--config", file, "--json").error
    assert error["type"] == "ConfigError"
    assert [(each["line"], each["key"]) for each in error["mistakes"]] == [
        (2, "workers"),
        (6, "routes[0].on_disconect"),
        (7, "routes[0].keep_alive"),
    ]


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run("relay", "--config", tmp_path / "none.toml")
    assert done.code == 2
    assert "cannot be read: No such file" in done.err


def test_an_option_that_contradicts_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(GOOD)
    done = run("relay", "--config", file, "--workers", "2")
    assert done.code == 2
    assert "several processes cannot share memory://" in done.err
