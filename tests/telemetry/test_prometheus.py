from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

import penstock
from penstock import AsyncClient, Breaker
from penstock.origin import app, streams
from penstock.telemetry.prometheus import COUNTERS, GAPS, Collector
from penstock.testing import close, reset, script, serve, wait_request
from tests.client.peers import SSE, answer, chunked, counting, free_port, once, retries

pytestmark = pytest.mark.anyio

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


def of(**labels: str) -> Labels:
    return frozenset(labels.items())


def registered(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)
    return registry


def scraped(registry: CollectorRegistry) -> Samples:
    """What a scrape gives, by the library's own writer and parser."""
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def counts(samples: Samples, name: str) -> dict[Labels, float]:
    """How often a histogram was told, by its labels."""
    return {labels: value for (sample, labels), value in samples.items() if sample == f"{name}_count"}


# -- counters


async def test_the_counters_are_the_clients_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_MS", 0)
    async with (
        serve(app(tmp_path)) as url,
        AsyncClient(url, name="answers", retry=retries(9)) as client,
    ):
        registry = registered(Collector(client))
        await client.get("/events?count=5&interval=0.01&cut_after=2").collect()
        metrics = client.metrics
        samples = scraped(registry)
    one = of(client="answers")
    assert metrics.total == metrics.successful == 5
    assert metrics.reconnects == 2
    assert samples["penstock_client_events_total", of(client="answers", outcome="successful")] == 5
    assert samples["penstock_client_events_total", of(client="answers", outcome="failed")] == 0
    assert samples["penstock_client_retries_total", one] == metrics.retries
    assert samples["penstock_client_reconnects_total", one] == 2
    assert samples["penstock_client_received_bytes_total", one] == metrics.bytes > 0
    assert samples["penstock_client_stream_seconds_total", one] == pytest.approx(metrics.duration)


async def test_an_event_that_was_cut_off_counts_as_failed() -> None:
    body = chunked(b"data: 1\n\n", b"data: 2\n", type=SSE, end=False)
    async with script(*once(body)) as server, AsyncClient(server.url, retry=0) as client:
        registry = registered(Collector(client))
        with pytest.raises(penstock.StreamTruncated):
            await client.get("/").collect()
        samples = scraped(registry)
    assert samples["penstock_client_events_total", of(client="", outcome="successful")] == 1
    assert samples["penstock_client_events_total", of(client="", outcome="failed")] == 1


async def test_a_scrape_changes_nothing_and_each_reads_anew() -> None:
    async def one_event(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\n", type=SSE))

    async with counting(one_event) as server, AsyncClient(server.url) as client:
        registry = registered(Collector(client))
        seen = []
        for _ in range(3):
            await client.get("/").collect()
            assert scraped(registry) == scraped(registry)
            seen.append(scraped(registry)["penstock_client_events_total", of(client="", outcome="successful")])
    assert seen == [1, 2, 3]


async def test_what_the_metrics_may_offer_is_told_when_they_do() -> None:
    """Each field that `Metrics` has is a series; one that it lacks is a family without any."""
    body = chunked(b"data: 1\n\n", b"data: 2\n\n", type=SSE)
    async with script(*once(body)) as server, AsyncClient(server.url) as client:
        await client.get("/").collect()
        metrics, samples = client.metrics, scraped(registered(Collector(client)))
    for name, _, field in COUNTERS:
        told = samples.get((f"penstock_client_{name}_total", of(client="")))
        assert told == pytest.approx(getattr(metrics, field, None)), name
    for quantile, field in GAPS:
        told = samples.get(("penstock_client_event_gap_seconds", of(client="", quantile=quantile)))
        assert told == pytest.approx(getattr(metrics, field, None)), field


async def test_several_clients_are_told_apart_by_their_names() -> None:
    async with (
        script(*once(chunked(b"data: 1\n\n", type=SSE))) as server,
        AsyncClient(server.url, name="a") as first,
        AsyncClient(server.url, name="b") as second,
    ):
        registry = registered(Collector(first, second, name="app", labels={"zone": "eu"}))
        await second.get("/").collect()
        samples = scraped(registry)
    assert samples["app_events_total", of(client="a", zone="eu", outcome="successful")] == 0
    assert samples["app_events_total", of(client="b", zone="eu", outcome="successful")] == 1
    assert {name.partition("_")[0] for name, _ in samples} == {"app"}


def test_clients_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="name of its own"):
        Collector(AsyncClient(), AsyncClient())


@pytest.mark.parametrize("label", ["client", "method", "le"])
def test_labels_of_the_collectors_own_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match=label):
        Collector(AsyncClient(), labels={label: "x"})


async def test_a_second_collector_of_the_same_names_is_refused_by_the_registry_and_another_name_is_not() -> None:
    async with AsyncClient() as client:
        registry = registered(Collector(client))
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            registry.register(Collector(client))
        registry.register(Collector(client, name="other"))
        names = {name for name, _ in scraped(registry)}
    assert {"penstock_client_retries_total", "other_retries_total"} <= names


async def test_a_scraper_in_another_thread_over_http() -> None:
    async with script(*once(chunked(b"data: 1\n\n", type=SSE))) as server, AsyncClient(server.url) as client:
        collector = Collector(client)
        registry = registered(collector)
        await client.use(collector.observe).get("/").collect()
        http, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
        try:
            url = f"http://127.0.0.1:{http.server_port}/metrics"
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read().decode())
        finally:
            http.shutdown()
            http.server_close()
            thread.join()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["penstock_client_events"].samples[0].value == 1
    assert families["penstock_client_attempt_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


async def test_it_is_openmetrics_too() -> None:
    async with (
        script(*once(chunked(b"data: 1\n\n", type=SSE))) as server,
        AsyncClient(server.url, breaker=Breaker()) as client,
    ):
        collector = Collector(client)
        await client.use(collector.observe).get("/").collect()
        text = generate_openmetrics(registered(collector)).decode()  # type: ignore[no-untyped-call]
    families = {family.name: family.type for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["penstock_client_events"] == "counter"
    assert families["penstock_client_circuit"] == "gauge"


# -- the breaker


async def test_the_breaker_of_the_base_url_is_told() -> None:
    def states(samples: Samples) -> dict[str, float]:
        found = {labels: value for (name, labels), value in samples.items() if name == "penstock_client_circuit"}
        assert {dict(labels)["origin"] for labels in found} == {server.url}
        return {dict(labels)["state"]: value for labels, value in found.items()}

    async with (
        script([wait_request(), reset()]) as server,
        AsyncClient(server.url + "/v1", retry=0, breaker=Breaker(failure_threshold=1)) as client,
    ):
        registry = registered(Collector(client))
        assert states(scraped(registry)) == {"closed": 1, "open": 0, "half_open": 0}
        with pytest.raises(penstock.ReadError):
            await client.get("/").read()
        assert states(scraped(registry)) == {"closed": 0, "open": 1, "half_open": 0}


@pytest.mark.parametrize("options", [{"base_url": "http://127.0.0.1:1"}, {"breaker": Breaker()}])
async def test_without_a_breaker_or_a_base_url_there_is_no_state(options: Mapping[str, object]) -> None:
    async with AsyncClient(**options) as client:  # type: ignore[arg-type]
        assert not [name for name, _ in scraped(registered(Collector(client))) if "circuit" in name]


# -- histograms


async def test_an_attempt_is_observed_at_the_end_of_its_body() -> None:
    gate = asyncio.Event()

    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"12", end=False))
        await gate.wait()
        writer.write(b"0\r\n\r\n")

    async with counting(slow) as server, AsyncClient(server.url, name="a") as client:
        collector = Collector(client)
        registry = registered(collector)
        async with client.use(collector.observe).get("/secret/path?key=1").send() as response:
            async for _ in response:
                assert counts(scraped(registry), "penstock_client_attempt_seconds") == {}
                gate.set()
        samples = scraped(registry)
    common = {"client": "a", "method": "GET", "status": "2xx"}
    assert counts(samples, "penstock_client_attempt_seconds") == {of(**common, end="complete"): 1}
    assert counts(samples, "penstock_client_time_to_first_byte_seconds") == {of(**common): 1}
    whole = samples["penstock_client_attempt_seconds_sum", of(**common, end="complete")]
    assert 0 < samples["penstock_client_time_to_first_byte_seconds_sum", of(**common)] < whole
    assert samples["penstock_client_attempt_seconds_bucket", of(**common, end="complete", le="+Inf")] == 1


async def test_every_attempt_is_observed_once_with_its_end() -> None:
    last = "Connection: close"
    async with (
        script(
            once(answer(b"no", "503 Busy", last)),
            once(answer(b"12", "200 OK", last)),
            once(answer(b"no", "404 Not Found", last)),
            [wait_request(), answer(b"1", length=5), close()],
            once(reset()),
            [wait_request(), chunked(b"1", end=False)],
            once(answer(b"", "302 Found", "Location: /there", last)),
            once(answer(b"12", "200 OK", last)),
        ) as server,
        AsyncClient(server.url, retry=retries(1)) as client,
    ):
        collector = Collector(client)
        registry = registered(collector)
        client.use(collector.observe)
        await client.get("/").read()  # after a 503
        await client.get("/").read()
        for _ in range(2):
            with pytest.raises(penstock.PenstockError):
                await client.post("/").retry(0).read()
        async with client.get("/").send() as response:
            async for _ in response:
                break
        await client.get("/").read()  # by a redirect
        samples = scraped(registry)
        assert server.connections == 8
    assert counts(samples, "penstock_client_attempt_seconds") == {
        of(client="", method="GET", status="5xx", end="cancelled"): 1,  # let go of, to try again
        of(client="", method="GET", status="2xx", end="complete"): 2,
        of(client="", method="GET", status="4xx", end="complete"): 1,
        of(client="", method="POST", status="2xx", end="failed"): 1,
        of(client="", method="POST", status="none", end="failed"): 1,
        of(client="", method="GET", status="2xx", end="cancelled"): 1,
    }
    assert sum(counts(samples, "penstock_client_time_to_first_byte_seconds").values()) == 5


async def test_a_refused_connection_is_a_failed_attempt_without_a_status() -> None:
    with free_port() as port:
        async with AsyncClient(f"http://127.0.0.1:{port}", retry=retries(2)) as client:
            collector = Collector(client)
            with pytest.raises(penstock.RetriesExhausted):
                await client.use(collector.observe).get("/").read()
            samples = scraped(registered(collector))
    assert counts(samples, "penstock_client_attempt_seconds") == {
        of(client="", method="GET", status="none", end="failed"): 3
    }
    assert counts(samples, "penstock_client_time_to_first_byte_seconds") == {}


async def test_whatever_is_asked_for_the_labels_stay_the_same() -> None:
    async def ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    async with counting(ok) as server, AsyncClient(server.url) as client:
        collector = Collector(client)
        client.use(collector.observe)
        for number in range(30):
            await client.request(f"M{number}", f"/{number}").param("q", number).read()
        samples = scraped(registered(collector))
    (series,) = counts(samples, "penstock_client_attempt_seconds").items()
    assert series == (of(client="", method="_OTHER", status="2xx", end="complete"), 30)
