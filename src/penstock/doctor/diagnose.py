"""Probes in, findings out.

What counts as what:

=============  =======================================================================================================
kind           found when
=============  =======================================================================================================
buffered       later events caught up on earlier ones (see `rhythm`): against the upstream, or against the times that
               the events carry; without either, when all came in one burst after a long silence, or with a
               Content-Length that no stream can know
coalesced      events come in bursts at regular gaps, or lines are cut where a buffer was full
compressed     a Content-Encoding; a problem where it holds events back, a note where it does not
reframed       the body's end is the connection's; or a length where the upstream sends chunks
timed-out      broken off after a silence, or 504 and 524
cut-off        broken off in the midst
miscoded       the bytes are not of the coding that the Content-Encoding names
outgrown       a line, an event or the whole outgrew a limit that readers have
truncated      ends as if it were whole, with fewer events than the upstream gives
refused        the gateway answers with a failure where the upstream does not
delayed        every event is late by the same, and by much
content-type   an event stream that does not say so, or something that is no stream
stripped       a field of the upstream's answer is missing
ids            the upstream's ids are missing
last-event-id  the stream begins anew in spite of the id
comments       the upstream's comments are missing
cached         a cache answered
cacheable, no-ids, no-keep-alive, cannot-tell   notes
=============  =======================================================================================================

A *problem* was measured; a *warning* is the likeliest reading of what was seen; a *note* is no fault. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.doctor.findings import Examination, Figures, Finding, Severity
from penstock.doctor.probe import Probe
from penstock.doctor.remedies import Kind
from penstock.doctor.rhythm import caught_up, lags, longest_silence
from penstock.doctor.timing import SHORTEST, is_late, timing

SILENCE = 0.5
"""Seconds of silence before a break that make it a timeout."""
QUIET = 5.0
"""Seconds of silence after which a keep-alive would have been due."""

_HOP_FIELDS = frozenset(
    {
        # Hop by hop, or each hop's own.
        *("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "date"),
        *("server", "via", "age", "alt-svc", "set-cookie", "content-encoding", "vary", "x-powered-by", "accept-ranges"),
        # Said to a proxy, and taken out by it.
        *("x-accel-buffering", "x-accel-redirect", "x-accel-expires", "x-accel-charset", "x-accel-limit-rate"),
        *("surrogate-control", "surrogate-key", "cdn-cache-control"),
    }
)
_TELLING = frozenset({"cache-control", "content-type", "location", "link"})


def diagnose(examination: Examination) -> list[Finding]:
    """Judge what was heard; the gravest first.

    Args:
        examination: The probes. None of them failed but, perhaps, the one through the gateway.
    """
    x = examination
    if x.through.status is None:
        return list(timing(x))
    if x.upstream is not None and not 200 <= x.through.status < 300:
        return [_refused(x, x.upstream)]
    rules = (
        timing,
        _endings,
        _unreadable,
        _compression,
        _framing,
        _content,
        _fields,
        _ids,
        _resuming,
        _comments,
        _caches,
    )
    found = [finding for rule in rules for finding in rule(x)]
    order: tuple[Severity, ...] = ("problem", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


# -- how it ended --------------------------------------------------------------------------------------------------


def _refused(x: Examination, direct: Probe) -> Finding:
    status = x.through.status or 0
    kind: Kind = "timed-out" if status in (408, 504, 524) else "refused"
    return x.finding(
        kind,
        "problem",
        f"{x.hop} answers {status} where the upstream answers {direct.status}"
        + (": it does not wait long enough for the server's first byte" if kind == "timed-out" else ""),
        status=status,
        upstream_status=direct.status or 0,
        after=x.through.headers_at,
    )


def _endings(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    if through.ended == "broken":
        silence = through.ended_at - (through.pieces[-1].at if through.pieces else through.headers_at)
        alike = direct is not None and direct.ended == "broken" and len(direct.items) == len(through.items)
        kind: Kind = "timed-out" if silence >= SILENCE else "cut-off"
        who = "the server itself" if alike else x.hop if direct is not None else "somebody"
        how = f"after {silence:.1f} s of silence" if kind == "timed-out" else "in the midst"
        yield x.finding(
            kind,
            "problem",
            f"{who} breaks the stream off {how}, {through.ended_at:.1f} s after the request"
            + ("; that is how an idle timeout looks" if kind == "timed-out" and not alike else ""),
            silence=silence,
            after=through.ended_at,
            items=len(through.items),
            upstream_items=len(direct.items) if direct is not None else "not asked",
            error=through.error,
        )
    elif direct is not None and through.ended == "complete" and x.same_stream and _lacks(through, direct):
        broke = direct.ended == "broken"
        yield x.finding(
            "truncated",
            "problem",
            f"the stream ends as if it were whole after {len(through.items)} {through.unit}s; the upstream "
            + ("breaks off there" if broke else f"gives {len(direct.items)}")
            + ": a break before the gateway comes out of it as an end",
            items=len(through.items),
            upstream_items=len(direct.items),
            upstream_ended=direct.ended,
        )
    elif through.is_events and not through.comments:
        silence = longest_silence([piece.at for piece in through.pieces], until=through.ended_at)
        if silence >= QUIET:
            yield x.finding(
                "no-keep-alive",
                "note",
                f"{silence:.0f} s passed in silence, without a keep-alive: many hops cut off after 30 to 100 s",
                silence=silence,
            )


def _unreadable(x: Examination) -> Iterator[Finding]:
    """Bytes that came, and that no reader can use: no hop's patience has to do with it."""
    through, offered, direct = x.through, x.offered, x.upstream
    for probe, whom in ((through, ""), (offered, " for readers that accept gzip, as browsers do")):
        if probe is None:
            continue
        if probe.ended == "miscoded":
            if direct is None or probe is offered:  # the upstream is not offered any
                who = f"the server, or {x.hop},"
            else:
                who = "the server itself" if direct.ended == "miscoded" else x.hop
            yield x.finding(
                "miscoded",
                "problem",
                f"the body is not what its Content-Encoding says: {who} names {probe.coding}{whom}, and sends "
                f"something else after {len(probe.items)} {probe.unit}{'' if len(probe.items) == 1 else 's'}",
                content_encoding=probe.coding,
                items=len(probe.items),
                error=probe.error,
            )
        elif probe.ended == "outgrown":
            yield x.finding(
                "outgrown",
                "problem",
                f"a limit that readers have is outgrown{whom}: {probe.error}",
                items=len(probe.items),
                bytes=sum(piece.size for piece in probe.pieces),
                after=probe.ended_at,
            )
        else:
            continue
        return  # the other request would say it again


def _lacks(through: Probe, direct: Probe) -> bool:
    """Whether a complete body is not all that there was: bytes may come in other pieces, events are events."""
    counted = through.unit == direct.unit != "piece"
    return direct.ended == "broken" or (counted and len(through.items) < len(direct.items))


# -- what was done to it -------------------------------------------------------------------------------------------


def _compression(x: Examination) -> Iterator[Finding]:
    plain, offered = x.through, x.offered
    if plain.coding:
        asked = offered is not None  # for identity, by the other request
        yield x.finding(
            "compressed",
            "warning" if asked else "note",
            f"the stream is coded as {plain.coding}" + (", though identity was asked for" if asked else ""),
            content_encoding=plain.coding,
        )
        return
    if offered is None or not offered.coding or offered.ended == "miscoded":
        return
    who = f"{x.hop}, or the server,"  # the upstream is not offered any
    caught = caught_up(lags(plain, offered))
    figures: Figures = {
        "content_encoding": offered.coding,
        "caught_up": caught,
        "pieces": len(offered.pieces),
        "plain_pieces": len(plain.pieces),
        "spread": offered.pieces[-1].at - offered.pieces[0].at if offered.pieces else 0.0,
        "plain_spread": plain.spread,
    }
    silent = bool(plain.items) and not offered.items and offered.ended == "bounded"
    late = plain.spread >= SHORTEST and is_late(caught, plain.spread)
    if silent or late:
        yield x.finding(
            "compressed",
            "problem",
            f"{who} compresses for readers that accept {offered.coding}, as browsers do, and holds {plain.unit}s back "
            "until there is enough to compress: "
            + ("nothing came at all" if silent else f"up to {caught:.1f} s late, in {len(offered.pieces)} pieces"),
            **figures,
        )
    else:
        effect = "here that holds nothing back" if plain.spread >= SHORTEST else "what that does cannot be told here"
        yield x.finding(
            "compressed",
            "note",
            f"{who} compresses for readers that accept {offered.coding}, as browsers do; {effect}",
            **figures,
        )


def _framing(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    version = through.http_version
    if through.framing == "close":
        itself = direct is not None and direct.framing == "close"
        who = "the server" if itself else x.hop if direct is not None else "somebody"
        yield x.finding(
            "reframed",
            "warning",
            f"{who} ends the body with the connection ({version}, neither chunks nor a length): "
            "a stream that breaks looks the same as one that ends",
            http_version=version,
            framing="close",
            upstream_framing=direct.framing if direct is not None else "not asked",
        )
    elif direct is not None and through.framing == "length" and direct.framing in ("chunked", "close"):
        yield x.finding(
            "reframed",
            "problem",
            f"{x.hop} turns the stream into a body with a Content-Length, which it can know only after the last byte",
            content_length=through.field("content-length"),
            upstream_framing=direct.framing,
        )


def _content(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    kind = through.field("content-type")
    if direct is not None and direct.field("content-type") and not _same_type(kind, direct.field("content-type")):
        yield x.finding(
            "content-type",
            "problem",
            f"{x.hop} makes the content type {kind or 'nothing'} of the upstream's {direct.field('content-type')}",
            content_type=kind,
            upstream_content_type=direct.field("content-type"),
        )
    elif not through.is_events and through.unit == "event" and through.items:
        yield x.finding(
            "content-type",
            "problem",
            f"the body is an event stream, and its content type is {kind or 'missing'}: a browser's EventSource "
            "refuses it, and hops do not know that it must flow",
            content_type=kind,
        )
    elif _same_type(kind, "text/html"):
        yield x.finding(
            "content-type",
            "warning",
            "this is an HTML page, not a stream: an error page, a login or an application's front page may have come "
            "in its place",
            content_type=kind,
        )


def _same_type(one: str, other: str) -> bool:
    return one.partition(";")[0].strip().lower() == other.partition(";")[0].strip().lower()


def _fields(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    if direct is None:
        return
    here = {name for name, _ in through.headers}
    gone = [name for name in dict(direct.headers) if name not in here and name not in _HOP_FIELDS]
    gone = [name for name in gone if name != "content-type"]  # told apart
    if gone:
        yield x.finding(
            "stripped",
            "problem" if _TELLING.intersection(gone) else "warning",
            f"{x.hop} strips {', '.join(gone)} from the answer",
            **{name: direct.field(name) for name in gone},
        )
    lost = _directives(direct) - _directives(through) if "cache-control" in here else set()
    if lost & {"no-store", "no-cache", "no-transform", "private"}:
        yield x.finding(
            "stripped",
            "warning",
            f"{x.hop} takes {', '.join(sorted(lost))} out of Cache-Control",
            cache_control=through.field("cache-control"),
            upstream_cache_control=direct.field("cache-control"),
        )


def _directives(probe: Probe) -> set[str]:
    return {part.partition("=")[0].strip().lower() for part in probe.field("cache-control").split(",")} - {""}


# -- what is in it -------------------------------------------------------------------------------------------------


def _ids(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    if through.unit != "event" or not through.items:
        return
    given = sum(bool(item.id) for item in through.items)
    if direct is not None and any(item.id for item in direct.items) and not given:
        yield x.finding(
            "ids",
            "problem",
            f"{x.hop} strips the events' ids: a reader that comes back cannot say where it was",
            upstream_ids=sum(bool(item.id) for item in direct.items),
            ids=0,
        )
    elif not given:
        yield x.finding(
            "no-ids",
            "note",
            "the events have no ids: a reader that loses its connection cannot continue where it was",
            ids=0,
        )


def _resuming(x: Examination) -> Iterator[Finding]:
    again, behind = _begins_anew(x.through, x.resumed), _begins_anew(x.upstream, x.upstream_resumed)
    if not again:
        return
    if behind is False:
        yield x.finding(
            "last-event-id",
            "problem",
            f"{x.hop} does not pass Last-Event-ID on: the upstream continues after it, through the gateway the stream "
            "begins anew, and a reader that comes back gets everything twice",
            last_event_id=x.through.items[0].id,
        )
    else:
        who = "the server" if behind else "the server, or a hop that drops the field,"
        yield x.finding(
            "last-event-id",
            "warning",
            f"the events have ids, but {who} pays no heed to Last-Event-ID: the stream begins anew, and a reader that "
            "comes back gets everything twice",
            last_event_id=x.through.items[0].id,
        )


def _begins_anew(first: Probe | None, resumed: Probe | None) -> bool | None:
    """Whether the stream began again at the event that was named as the last; None where that was not asked."""
    if first is None or resumed is None or not first.items:
        return None
    return bool(resumed.items) and resumed.items[0].id == first.items[0].id


def _comments(x: Examination) -> Iterator[Finding]:
    through, direct = x.through, x.upstream
    if direct is not None and direct.comments and not through.comments and through.items:
        yield x.finding(
            "comments",
            "warning",
            f"{x.hop} strips comments, and so keep-alives: what stands after it may take the stream for dead",
            upstream_comments=direct.comments,
            comments=0,
        )


def _caches(x: Examination) -> Iterator[Finding]:
    through = x.through
    age = through.field("age")
    state = through.field("cf-cache-status") or through.field("x-cache") or through.field("x-cache-status")
    if (age.isascii() and age.isdigit() and int(age[:9]) > 0) or "hit" in state.lower():
        yield x.finding(
            "cached",
            "problem",
            f"{x.hop} answers from a cache: this is somebody else's stream, or an old one",
            age=age,
            cache=state,
        )
    elif through.is_events and not through.field("cache-control") and not (x.upstream and _directives(x.upstream)):
        yield x.finding(
            "cacheable",
            "note",
            "there is no Cache-Control: a cache may keep the stream, and a hop may compress it",
        )
