"""`penstock relay`: refused before it listens; how it relays is in tests/e2e."""

from __future__ import annotations

import socket

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
