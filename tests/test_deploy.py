"""What `deploy/` names is there, and what it configures can be served."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from penstock.relay.settings.config import load
from penstock.relay.settings.units import duration

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read(name: str) -> str:
    return (DEPLOY / name).read_text()


def test_the_relays_file_can_be_served() -> None:
    environ = {"PENSTOCK_STORE": "redis://ann:s3cret@redis:6379/0", "PENSTOCK_UPSTREAM": "http://origin:8000"}
    config = load(DEPLOY / "relay.toml", environ=environ)
    assert (config.store.kind, config.store.url) == ("redis", environ["PENSTOCK_STORE"])
    assert config.default is not None
    assert config.default.upstream == environ["PENSTOCK_UPSTREAM"]


def test_the_image_is_made_of_what_there_is() -> None:
    sources = [
        source
        for copied in re.findall(r"^COPY (?!--from)(.+)$", read("Dockerfile"), re.MULTILINE)
        for source in copied.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize(
    ("file", "names"),
    [("image.txt", ("redis", "hiredis", "prometheus-client", "uvicorn")), ("build.txt", ("hatchling",))],
)
def test_the_image_has_what_it_needs_in_the_versions_that_are_tested(file: str, names: tuple[str, ...]) -> None:
    def pinned(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))

    locked, tested = pinned(file), pinned("dev.txt")
    assert set(names) <= locked.keys()
    assert {name: tested[name] for name in locked} == locked


def test_relays_are_given_longer_than_they_take_to_drain() -> None:
    grace = duration(tomllib.loads(read("relay.toml"))["grace"])
    compose = re.search(r"stop_grace_period: (\d+)s", read("compose.yaml"))
    pods = re.search(r"terminationGracePeriodSeconds: (\d+)", read("kubernetes.yaml"))
    pause = re.search(r"time\.sleep\((\d+)\)", read("kubernetes.yaml"))
    assert compose is not None
    assert pods is not None
    assert pause is not None
    assert int(compose[1]) >= grace + 5
    assert int(pods[1]) >= int(pause[1]) + grace + 5


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes.yaml", "Dockerfile", "cluster.py", "haproxy.cfg"])
def test_all_ask_whether_a_relay_is_ready_or_well(file: str) -> None:
    if file == "compose.yaml":
        assert "dockerfile: deploy/Dockerfile" in read(file)  # which has it
    else:
        assert re.search(r"/_penstock/(ready|health)", read(file))
