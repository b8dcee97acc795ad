"""`penstock doctor`: what happens to a stream on its way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from penstock.cli import body, options, output
from penstock.cli.run import run
from penstock.doctor.diagnose import diagnose
from penstock.doctor.examine import Order, examine
from penstock.doctor.findings import Examination, Finding
from penstock.doctor.hops import NAMES, hops
from penstock.doctor.probe import Probe
from penstock.doctor.remedies import Remedy
from penstock.doctor.rhythm import bursts

_TITLES = {"problem": "PROBLEM", "warning": "WARNING", "note": "NOTE"}
_INDENT = " " * 9


def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="The stream, as its readers get it.")],
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="The same stream from the server behind it, to compare with.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--request", "-X", callback=options.method, metavar="METHOD", help="The method."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'Name: value'", help="A header field, for both URLs.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="BODY", help="A body, @FILE or @- for stdin; makes it a POST."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="How long to listen to each request.")
    ] = 10.0,
    events: Annotated[int, typer.Option(min=1, metavar="N", help="How many events to listen to, at the most.")] = 1000,
    json: options.Json = False,
) -> int:
    """Say whether anything between here and a stream buffers, coalesces, compresses, re-frames, strips or cuts it off.

    Says in plain words what was found, the figures that show it, and the setting that mends it. A GET is made several
    times, one after another; anything else once to each URL. Exits 1 when something is wrong.
    """
    sent = options.headers(header or [])

    async def examined() -> Examination:
        content = None if data is None else await body.content(data)
        order = Order(
            url=url,
            upstream=upstream,
            method=(method or ("GET" if content is None else "POST")).upper(),
            headers=sent,
            content=content,
            content_type=None if content is None else body.content_type(content, sent),
            seconds=seconds,
            max_items=events,
        )
        return await examine(order, tell=_ignore if json else _progress)

    examination = run(examined())
    findings = diagnose(examination)
    if json:
        for finding in findings:
            output.record({"finding": _finding_record(finding)})
        output.record({"summary": _summary(examination, findings)})
    else:
        for line in _report(examination, findings):
            output.data(output.printable(line))
    return 1 if any(finding.severity != "note" for finding in findings) else 0


def _progress(what: str) -> None:
    output.note(output.printable(what))


def _ignore(what: str) -> None:
    """With --json only the end counts."""


# -- for a program -------------------------------------------------------------------------------------------------


def _finding_record(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "says": finding.says,
        "because": finding.because,
        "mend": [remedy._asdict() for remedy in finding.mend],
    }


def _summary(examination: Examination, findings: list[Finding]) -> dict[str, Any]:
    severities = [finding.severity for finding in findings]
    return {
        "url": examination.through.url,
        "upstream": None if examination.upstream is None else examination.upstream.url,
        "verdict": _verdict(findings),
        "problems": severities.count("problem"),
        "warnings": severities.count("warning"),
        "notes": severities.count("note"),
        "heard": {name: _probe_record(probe) for name, probe in _probes(examination)},
    }


def _probe_record(probe: Probe) -> dict[str, Any]:
    return {
        "status": probe.status,
        "http_version": probe.http_version,
        "framing": probe.framing,
        "content_type": probe.field("content-type"),
        "content_encoding": probe.coding,
        "hops": list(hops(probe.headers)),
        "unit": probe.unit,
        "items": len(probe.items),
        "pieces": len(probe.pieces),
        "bursts": len(bursts([item.at for item in probe.items])),
        "first": round(probe.items[0].at, 3) if probe.items else None,
        "last": round(probe.items[-1].at, 3) if probe.items else None,
        "ended": probe.ended,
        "ended_at": round(probe.ended_at, 3),
    }


def _probes(examination: Examination) -> Iterator[tuple[str, Probe]]:
    """What was heard for its rhythm, by name."""
    named = {"upstream": examination.upstream, "url": examination.through, "gzip": examination.offered}
    yield from ((name, probe) for name, probe in named.items() if probe is not None)


def _verdict(findings: list[Finding]) -> str:
    if any(finding.severity != "note" for finding in findings):
        return "wrong"
    return "cannot tell" if any(finding.kind == "cannot-tell" for finding in findings) else "fine"


# -- for a person --------------------------------------------------------------------------------------------------


def _report(examination: Examination, findings: list[Finding]) -> Iterator[str]:
    for name, probe in _probes(examination):
        yield f"{name:9}{_heard(probe)}"
    for finding in findings:
        yield ""
        yield f"{_TITLES[finding.severity]:9}{finding.kind}: {finding.says}"
        if finding.because:
            yield _INDENT + "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in finding.because.items())
        for remedy in finding.mend:
            yield _INDENT + "→ " + _remedy(remedy)
    yield ""
    yield _conclusion(findings)


def _heard(probe: Probe) -> str:
    if probe.status is None:
        return f"no answer within {probe.ended_at:.1f} s"
    seen = ", ".join(NAMES[software] for software in hops(probe.headers))
    head = [str(probe.status), probe.http_version, probe.framing, probe.coding, probe.field("content-type")]
    line = " ".join(part for part in head if part) + (f", {seen}" if seen else "")
    if not probe.items:
        return line + "; nothing in it"
    count = len(bursts([item.at for item in probe.items]))
    return (
        f"{line}; {len(probe.items)} {probe.unit}{'' if len(probe.items) == 1 else 's'} in {count} "
        f"burst{'' if count == 1 else 's'}, from {probe.items[0].at:.2f} s to {probe.items[-1].at:.2f} s, {probe.ended}"
    )


def _remedy(remedy: Remedy) -> str:
    who = "anywhere" if remedy.software == "any" else NAMES.get(remedy.software, remedy.software)
    return f"{who}: {remedy.setting}" + (f"  ({remedy.says})" if remedy.says else "")


def _conclusion(findings: list[Finding]) -> str:
    match _verdict(findings):
        case "wrong":
            counts = {
                name: sum(finding.severity == name for finding in findings) for name in ("problem", "warning", "note")
            }
            return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count)
        case "cannot tell":
            return "Nothing wrong was seen, but this stream does not show whether anything holds it back."
        case _:
            return "Nothing is wrong: what is sent comes when it is sent."
