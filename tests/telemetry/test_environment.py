"""`penstock relay --telemetry otel`: real processes, set up by the environment alone."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from penstock.origin import app
from penstock.telemetry.opentelemetry.environment import exporters
from penstock.testing import serve
from tests.e2e.process import PENSTOCK, Running, penstock

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

EXPORTER = """
import os
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

def spans():
    return ConsoleSpanExporter(out=open(f"spans-{os.getpid()}", "w"))

def metrics():
    return ConsoleMetricExporter(out=open(f"metrics-{os.getpid()}", "w"))
"""
ENTRY_POINTS = """
[opentelemetry_traces_exporter]
files = files_exporter:spans
[opentelemetry_metrics_exporter]
files = files_exporter:metrics
"""


def install_exporter(folder: Path) -> None:
    """A package with an exporter, as others are installed: each process writes files of its own where it runs."""
    (folder / "files_exporter.py").write_text(EXPORTER)
    about = folder / "files_exporter-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: files-exporter\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)


def objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON values one after the other, as the console exporters write them."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:]


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        whole: bytes = response.read()
        return whole


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
async def test_what_is_left_is_sent_when_the_relay_ends(tmp_path: Path, workers: int) -> None:
    install_exporter(tmp_path)
    environment = {"OTEL_TRACES_EXPORTER": "files", "OTEL_METRICS_EXPORTER": "files", "PYTHONPATH": str(tmp_path)}
    store = f"sqlite:///{tmp_path / 'streams.db'}" if workers > 1 else "memory://"
    said = ("--telemetry", "otel", "--workers", str(workers), "--store", store, "--owner", "none")
    async with serve(app(tmp_path)) as origin:
        relay = Running(
            [*PENSTOCK, "relay", origin, "--listen", "127.0.0.1:0", *said],
            tmp_path / "relay",
            env={**os.environ, **environment},
            cwd=tmp_path,
        )
        try:
            url = (await to_thread.run_sync(relay.said, "penstock relay on ")).split()[3]
            assert (await to_thread.run_sync(read, f"{url}/events?count=3")).count(b"data: ") == 3
            relay.kill(signal.SIGTERM)
            assert await to_thread.run_sync(relay.ended) == 143
        finally:
            relay.end()
    spans = [each for file in tmp_path.glob("spans-*") for each in objects(file.read_text())]
    assert {(each["name"], each["kind"]) for each in spans} == {
        ("GET", "SpanKind.SERVER"),
        ("GET", "SpanKind.CLIENT"),
        ("penstock.stream", "SpanKind.INTERNAL"),
    }
    assert len({each["context"]["trace_id"] for each in spans}) == 1
    told = [
        (resource["resource"]["attributes"], {metric["name"] for metric in scope["metrics"]})
        for file in tmp_path.glob("metrics-*")
        for each in objects(file.read_text())
        for resource in each["resource_metrics"]
        for scope in resource["scope_metrics"]
    ]
    assert any({"http.server.request.duration", "penstock.relay.stream.duration"} <= names for _, names in told)
    assert {about["service.name"] for about, _ in told} == {"penstock-relay"}
    # Each worker is an instance; the process that holds the address has nothing to tell.
    assert len({about["service.instance.id"] for about, _ in told}) == workers
    assert len(list(tmp_path.glob("metrics-*"))) == workers


@pytest.mark.parametrize(
    ("exporter", "protocol", "package"),
    [
        ("otlp", "http/protobuf", "opentelemetry-exporter-otlp-proto-http"),
        ("otlp", "grpc", "opentelemetry-exporter-otlp-proto-grpc"),
        ("console,zipkin", "", "opentelemetry-exporter-zipkin"),
    ],
)
def test_an_exporter_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, exporter: str, protocol: str, package: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(ValueError, match=rf"^OTEL_TRACES_EXPORTER: no exporter .*pip install {package}, or set"):
        exporters()


def test_a_relay_that_could_tell_nobody_is_not_started() -> None:
    environment = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "nowhere"}
    done = penstock("relay", "http://127.0.0.1:9", "--telemetry", "otel", "--check-config", env=environment)
    assert done.code == 2
    assert "OTEL_METRICS_EXPORTER: no exporter 'nowhere' is installed" in done.err
