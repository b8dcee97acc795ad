"""The proxies of docs/deploy.md: their blocks as they stand there, filled in, and run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.process import Running, Server

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
HOST = "relay.example.com"
SBIN = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
TIMEOUT, KEEP_ALIVE = 3, 0.2  # seconds: what the proxies' 360 s and the relay's 15 s are here


@dataclass(frozen=True)
class Proxy:
    """A proxy of the page.

    Attributes:
        replaced: What of its block is filled in, beside what all have in common.
        around: What a block needs around it to be a whole configuration.
        command: Runs it.
        has_timeouts: Whether it has any that the page sets.
        breaks_off: Whether a body that the relay breaks off is broken off by it, in all versions that are about.
    """

    replaced: dict[str, str]
    around: str
    command: Callable[[str, Path], list[str]]
    has_timeouts: bool = True
    breaks_off: bool = True


PROXIES = {
    "nginx": Proxy(
        {"listen 443": "listen 127.0.0.1:{port}"},
        "daemon off; error_log stderr notice; pid {folder}/pid; events {{ worker_connections 256; }}\n"
        "http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        "fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n{block}\n}}\n",
        lambda program, config: [program, "-p", str(config.parent), "-c", str(config), "-e", "stderr"],
    ),
    "haproxy": Proxy(
        {"bind :443": "bind 127.0.0.1:{port}"},
        "global\n    maxconn 256\n{block}",
        lambda program, config: [program, "-db", "-f", str(config)],
    ),
    "caddy": Proxy(
        {f"{HOST} {{": f"https://{HOST}:{{port}} {{"},
        "{{\n admin off\n auto_https disable_redirects\n}}\n{block}",
        lambda program, config: [program, "run", "--adapter", "caddyfile", "--config", str(config)],
        has_timeouts=False,
        breaks_off=False,
    ),
}


def block(name: str) -> str:
    found = re.search(rf"^<!-- tested: {name} -->\n```\w+\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page has no block for {name}"
    return found[1]


def configuration(proxy: Proxy, name: str, folder: Path, port: int, relays: list[Server]) -> str:
    certificate = folder / "relay.pem"
    values = {
        **{before: after.replace("{port}", str(port)) for before, after in proxy.replaced.items()},
        "127.0.0.1:8081": relays[0].url.removeprefix("http://"),
        "127.0.0.1:8082": relays[1].url.removeprefix("http://"),
        f"/etc/ssl/{HOST}.pem": str(certificate),
        **({f"/etc/ssl/{HOST}.key": str(certificate)} if f"/etc/ssl/{HOST}.key" in block(name) else {}),
        **({"360s": f"{TIMEOUT}s"} if proxy.has_timeouts else {}),
    }
    text = block(name)
    for before, after in values.items():
        assert before in text, f"{before!r} is no longer in the block for {name}"
        text = text.replace(before, after)
    return proxy.around.format(folder=folder, block=text)


@contextlib.contextmanager
def held_port() -> Iterator[socket.socket]:
    """A port that is surely free for whoever may share it; nobody listens on it yet."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock


def started(name: str, folder: Path, relays: dict[str, Server], stack: contextlib.ExitStack) -> tuple[int, Running]:
    """The proxy's port, and its process."""
    program = shutil.which(name, path=SBIN)
    assert program is not None
    sock = stack.enter_context(held_port())
    port = sock.getsockname()[1]
    config = folder / f"{name}.conf"
    config.write_text(configuration(PROXIES[name], name, folder, port, list(relays.values())))
    own = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
    environment = {**os.environ, **own}
    options: dict[str, Any] = {}
    if name == "nginx":  # takes the socket itself
        sock.listen(64)
        sock.setblocking(False)
        environment["NGINX"] = f"{sock.fileno()};"
        options["pass_fds"] = [sock.fileno()]
    process = Running(PROXIES[name].command(program, config), folder / name, env=environment, **options)
    stack.callback(process.end)
    return port, process
