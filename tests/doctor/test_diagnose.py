"""Everything that is found but late arrivals: each rule with what sets it off, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.doctor.diagnose import diagnose
from penstock.doctor.findings import Examination, Finding
from penstock.doctor.probe import Item, Piece, Probe
from tests.doctor.heard import AT_ONCE, STEADY, events

GOOD = events(STEADY)
SILENT_THEN_CUT = events(STEADY[:5], ended="broken", ended_at=1.6, error="cut")


MISCODED = events(STEADY, headers={"content-encoding": "gzip"}, ended="miscoded", error="not gzip")
OUTGROWN = events(STEADY, ended="outgrown", error="a line is longer than 7 bytes")


def found(through: Probe, upstream: Probe | None = None, **others: Probe) -> list[str]:
    findings = diagnose(Examination(through, upstream=upstream, **others))
    return [f"{each.kind} {each.severity}" for each in findings]


def with_fields(**fields: str | None) -> Probe:
    return events(STEADY, headers={name.replace("_", "-"): value for name, value in fields.items()})


def test_a_good_stream_has_no_findings() -> None:
    assert found(GOOD) == []
    assert found(GOOD, GOOD, offered=GOOD, resumed=events([0.1], ids=False)) == []


RULES: dict[str, tuple[Probe, Probe | None, list[str]]] = {
    "broken off after a silence": (SILENT_THEN_CUT, None, ["timed-out problem"]),
    "broken off after a silence that the upstream survives": (SILENT_THEN_CUT, GOOD, ["timed-out problem"]),
    "broken off in the midst": (events(STEADY, ended="broken", ended_at=2.01), GOOD, ["cut-off problem"]),
    "bytes that are not of their coding": (MISCODED, None, ["miscoded problem", "compressed note"]),
    "bytes that are not of the upstream's coding": (MISCODED, GOOD, ["miscoded problem", "compressed note"]),
    "a limit outgrown": (OUTGROWN, None, ["outgrown problem"]),
    "nothing, and it says so": (events([], status=204, headers={"content-type": None}), None, ["cannot-tell note"]),
    "an end where the upstream goes on": (events(STEADY[:9]), GOOD, ["truncated problem"]),
    "an end where the upstream breaks off": (GOOD, replace(GOOD, ended="broken"), ["truncated problem"]),
    "504": (events([], status=504), GOOD, ["timed-out problem"]),
    "502": (events([], status=502), GOOD, ["refused problem"]),
    "a redirect of what may not be repeated": (events([], status=307), GOOD, ["refused problem"]),
    "coded though identity was asked for": (with_fields(content_encoding="br"), None, ["compressed note"]),
    "identity is no coding": (with_fields(content_encoding="identity"), None, []),
    "ended by closing": (with_fields(transfer_encoding=None), None, ["reframed warning"]),
    "ended by closing, chunked upstream": (with_fields(transfer_encoding=None), GOOD, ["reframed warning"]),
    "given a length": (with_fields(transfer_encoding=None, content_length="9"), GOOD, ["reframed problem"]),
    "another content type": (with_fields(content_type="text/plain"), GOOD, ["content-type problem"]),
    "another charset": (with_fields(content_type="text/event-stream; charset=utf-8"), GOOD, []),
    "events that do not say so": (with_fields(content_type="text/plain"), None, ["content-type problem"]),
    "a page": (
        events(STEADY, unit="line", headers={"content-type": "text/html; charset=utf-8"}),
        None,
        ["content-type warning"],
    ),
    "no cache-control": (with_fields(cache_control=None), None, ["cacheable note"]),
    "no cache-control any more": (with_fields(cache_control=None), GOOD, ["stripped problem"]),
    "less cache-control": (with_fields(cache_control="max-age=0"), GOOD, ["stripped warning"]),
    "more cache-control": (with_fields(cache_control="no-store, no-transform"), GOOD, []),
    "a field of its own": (GOOD, with_fields(x_request_id="1"), ["stripped warning"]),
    "fields of every hop": (GOOD, with_fields(server="x", date="y", x_accel_buffering="no", keep_alive="5"), []),
    "no ids": (events(STEADY, ids=False), None, ["no-ids note"]),
    "no ids any more": (events(STEADY, ids=False), GOOD, ["ids problem"]),
    "no ids anywhere": (events(STEADY, ids=False), events(STEADY, ids=False), ["no-ids note"]),
    "no comments any more": (GOOD, events(STEADY, comments=3), ["comments warning"]),
    "comments of its own": (events(STEADY, comments=3), GOOD, []),
    "an age": (with_fields(age="12"), None, ["cached problem"]),
    "no age": (with_fields(age="0"), None, []),
    "a hit": (with_fields(x_cache="Hit from cloudfront"), None, ["cached problem"]),
    "a miss": (with_fields(x_cache="Miss from cloudfront"), None, []),
    "silence": (events([0.1, 0.5, 8.0]), None, ["no-keep-alive note"]),
    "silence with keep-alives": (events([0.1, 0.5, 8.0], comments=1), None, []),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name: str) -> None:
    through, upstream, expected = RULES[name]
    assert found(through, upstream) == expected


def one(through: Probe, upstream: Probe | None = None, **others: Any) -> Finding:
    (finding,) = diagnose(Examination(through, upstream=upstream, **others))
    return finding


def test_who_breaks_a_stream_off() -> None:
    assert one(SILENT_THEN_CUT).says.startswith("somebody ")
    assert one(replace(SILENT_THEN_CUT, headers=(*GOOD.headers, ("server", "nginx"))), GOOD).says.startswith("nginx ")
    assert one(SILENT_THEN_CUT, SILENT_THEN_CUT).says.startswith("the server itself ")
    assert one(SILENT_THEN_CUT, GOOD).because["silence"] == pytest.approx(1.1)


def test_who_names_a_coding_that_is_not_there() -> None:
    def says(upstream: Probe | None, offered: Probe | None = None) -> str:
        through = GOOD if offered else MISCODED
        findings = diagnose(Examination(through, offered=offered, upstream=upstream))
        (said,) = (each.says for each in findings if each.kind == "miscoded")
        return said

    assert "the server, or a hop on the way, names gzip" in says(None)
    assert "the gateway names gzip, and sends something else after 20 events" in says(GOOD)
    assert "the server itself names gzip" in says(MISCODED)
    assert "for readers that accept gzip" in says(GOOD, MISCODED)


def test_an_unreadable_body_is_no_matter_of_a_proxys_patience() -> None:
    for through in (MISCODED, OUTGROWN):
        first, *_ = diagnose(Examination(through))
        assert through.error in f"{first.says} {first.because}"
        assert not any("imeout" in remedy.setting for remedy in first.mend)
    assert one(GOOD, offered=OUTGROWN).kind == "outgrown"


GZIP = {"content-encoding": "gzip"}


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        pytest.param(events(STEADY), [], id="not compressed"),
        pytest.param(events(STEADY, headers=GZIP), ["compressed note"], id="flushed with each event"),
        pytest.param(events(AT_ONCE, headers=GZIP), ["compressed problem"], id="never flushed"),
        pytest.param(
            events([], headers=GZIP, ended="bounded", ended_at=10.0), ["compressed problem"], id="nothing came at all"
        ),
        pytest.param(
            events(
                [], unit="piece", headers={"content-encoding": "br"}, pieces=(Piece(2.0, 400, 1),), items=(Item(2.0),)
            ),
            ["compressed problem"],
            id="a coding that cannot be undone",
        ),
    ],
)
def test_compression_for_those_who_accept_it(offered: Probe, expected: list[str]) -> None:
    assert found(GOOD, offered=offered) == expected
    assert found(GOOD, GOOD, offered=offered) == expected


def test_what_is_held_back_anyway_is_not_the_compressions_doing() -> None:
    assert found(events(AT_ONCE), GOOD, offered=events(AT_ONCE, headers=GZIP)) == [
        "buffered problem",
        "compressed note",
    ]


def test_a_coding_that_was_not_asked_for() -> None:
    coded = events(STEADY, headers=GZIP)
    assert found(coded, offered=coded) == ["compressed warning"]


AGAIN, AFTER = events([0.1]), events([0.1], items=(Item(0.1, "text 1", "2"),))


@pytest.mark.parametrize(
    ("resumed", "behind", "expected"),
    [
        (AFTER, AFTER, []),
        (events([], status=204), AFTER, []),
        (AGAIN, AFTER, ["last-event-id problem"]),
        (AGAIN, AGAIN, ["last-event-id warning"]),
        (AFTER, AGAIN, []),
    ],
)
def test_last_event_id(resumed: Probe, behind: Probe, expected: list[str]) -> None:
    assert found(GOOD, GOOD, resumed=resumed, upstream_resumed=behind) == expected


def test_last_event_id_alone() -> None:
    assert found(GOOD, resumed=AFTER) == []
    assert found(GOOD, resumed=AGAIN) == ["last-event-id warning"]


def test_the_gravest_comes_first_and_figures_are_round() -> None:
    through = events([at * 1.00001 for at in AT_ONCE], ids=False, headers={"server": "nginx", "x-cache": None})
    findings = diagnose(Examination(through, upstream=events(STEADY, comments=1)))
    assert [each.severity for each in findings] == ["problem", "problem", "warning"]
    assert {each.kind for each in findings} == {"buffered", "ids", "comments"}
    for value in findings[0].because.values():
        assert not isinstance(value, float) or value == round(value, 3)


def test_what_the_upstream_names_itself_does_not_stand_before_it() -> None:
    nginx = with_fields(server="nginx")
    held = replace(events(AT_ONCE), headers=nginx.headers)
    assert one(held, nginx).says.startswith("the gateway ")
    assert len(one(held, nginx).mend) > 5
    assert one(held, GOOD).says.startswith("nginx ")
    assert {remedy.software for remedy in one(held, GOOD).mend} == {"nginx", "any"}
