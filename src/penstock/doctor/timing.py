"""Whether what is sent comes when it is sent: the findings that rest on arrival times.

With an upstream its arrivals are the measure. Without one it is the times that the items carry, if they do. Without
either only the stream's own rhythm is left, in which a hop that collects cannot be told from a server that sends in
batches: such a finding is a warning, and says so. A stream of one item, or of many at once, tells nothing.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from penstock.doctor.findings import Examination, Figures, Finding
from penstock.doctor.probe import Probe
from penstock.doctor.rhythm import bursts, caught_up, held_mid_line, lags, per_burst, regular_gap
from penstock.doctor.stamps import Held, held

NOTICED = 0.3
"""Seconds that an event may be late before it counts: networks and busy machines stay below."""
SHARE = 0.35
"""The part of a stream's duration by which events have to catch up, for a short stream …"""
SURELY = 1.0
"""… and the seconds that are enough for any."""
SHORTEST = 0.25
"""Seconds over which a stream has to be spread for its rhythm to say anything."""
LONG_SILENCE = 1.0
"""Seconds before a burst that make it suspect."""


def is_late(caught: float, spread: float) -> bool:
    """Whether so much catching up, in a stream spread over so many seconds, is more than a machine's hiccup."""
    return caught >= min(max(NOTICED, SHARE * spread), SURELY)


def timing(x: Examination) -> Iterator[Finding]:
    """What holds the stream back, if anything does, or can be seen to."""
    if x.through.status == 204:
        yield x.finding("cannot-tell", "note", "there was nothing to judge: 204 says that nothing is sent", status=204)
        return
    if x.upstream is None:
        yield from _alone(x)
        return
    through, direct = x.through, x.upstream
    if not through.pieces and through.ended == "bounded" and direct.pieces:
        yield x.finding(
            "buffered",
            "problem",
            f"{x.hop} holds the stream back: nothing came within {through.ended_at:.1f} s, "
            f"while the upstream's first {direct.unit} came after {direct.pieces[0].at:.2f} s",
            upstream_first=direct.pieces[0].at,
            upstream_items=len(direct.items),
            listened=through.ended_at,
        )
    elif direct.spread < SHORTEST:
        yield _cannot_tell(x, direct, "from the upstream itself ")
    elif not x.same_stream:
        yield from _alone(x)
    else:
        yield from _against(x, direct)


def _against(x: Examination, direct: Probe) -> Iterator[Finding]:
    """The gateway's arrivals against the upstream's."""
    through = x.through
    late = lags(direct, through)
    caught = caught_up(late)
    groups = bursts([item.at for item in through.items])
    figures: Figures = {
        "items": len(late),
        "caught_up": caught,
        "upstream_first": direct.items[0].at,
        "first": through.items[0].at if through.items else through.ended_at,
        "upstream_spread": direct.spread,
        "spread": through.spread,
        "bursts": len(groups),
    }
    if is_late(caught, direct.spread):
        how = f"in {_bursts(len(groups))}"
        yield x.finding(
            "buffered",
            "problem",
            f"{x.hop} holds the stream back: what the upstream sends over {direct.spread:.1f} s "
            f"comes {how}, and up to {caught:.1f} s late",
            **figures,
        )
    elif _coalesces(x.through, direct):
        typical, once = per_burst(through.items), per_burst(direct.items)
        yield x.finding(
            "coalesced",
            "warning",
            f"{x.hop} coalesces: {through.unit}s come {typical:g} at once, from the upstream {once:g} at once",
            **figures,
            per_burst=typical,
            upstream_per_burst=once,
        )
    elif late and min(late) > max(SURELY, 2 * direct.items[0].at):
        yield x.finding(
            "delayed",
            "warning",
            f"through the gateway every {through.unit} is {min(late):.1f} s later or more, and none catches up: that "
            "is a slow start on the way, or the server's own from one request to the next, but no buffer",
            **figures,
            late=min(late),
        )


def _coalesces(through: Probe, direct: Probe) -> bool:
    groups = bursts([item.at for item in through.items])
    alike = direct.unit == through.unit != "piece"
    return alike and len(groups) >= 3 and per_burst(through.items) >= 3 * max(1.0, per_burst(direct.items))


def _alone(x: Examination) -> Iterator[Finding]:
    """The stream's own rhythm, and what its items say of themselves."""
    through = x.through
    items = through.items
    groups = bursts([item.at for item in items])
    clocked = held(items)
    if clocked is not None and clocked.spread >= SHORTEST:
        yield from _by_their_times(x, clocked)
        return
    if not through.pieces:
        yield _silent(x)
        return
    first = items[0].at if items else through.pieces[0].at
    figures: Figures = {"items": len(items), "first": first, "spread": through.spread, "bursts": len(groups)}
    filled = held_mid_line(through, longer_than=0.1)
    regular = regular_gap(groups)
    if through.is_events and through.framing == "length" and len(items) > 1:
        yield x.finding(
            "buffered",
            "warning",
            f"somebody had the whole stream before its first byte came: it has a Content-Length of "
            f"{through.field('content-length')}, which no live stream can know",
            **figures,
            content_length=through.field("content-length"),
        )
    elif len(items) >= 3 and len(groups) == 1 and first >= LONG_SILENCE and through.spread <= 0.05 * first:
        yield x.finding(
            "buffered",
            "warning",
            f"{x.hop} probably holds the stream back: {len(items)} {through.unit}s came at once after {first:.1f} s "
            "of silence; a server that makes them all at once would look the same (--upstream tells the two apart)",
            **figures,
        )
    elif filled >= 2:
        yield x.finding(
            "coalesced",
            "warning",
            f"{x.hop} collects the stream in a buffer and passes it on when that is full: {filled} times a piece ended "
            "in the middle of a line, and the rest came later",
            **figures,
            cut_pieces=filled,
        )
    elif len(groups) >= 3 and per_burst(items) >= 3 and regular is not None and regular >= 0.1:
        typical = median(group.size for group in groups)
        yield x.finding(
            "coalesced",
            "warning",
            f"{x.hop} probably coalesces: about every {regular:.2f} s, {typical:g} {through.unit}s come at once; "
            "a server that sends in batches would look the same (--upstream tells the two apart)",
            **figures,
            gap=regular,
            per_burst=typical,
        )
    elif through.spread < SHORTEST:
        yield _cannot_tell(x, through, "")


def _by_their_times(x: Examination, clocked: Held) -> Iterator[Finding]:
    """The items' arrivals against the times that they carry."""
    through = x.through
    groups = bursts([item.at for item in through.items])
    figures: Figures = {
        "items": clocked.items,
        "sent_over": clocked.spread,
        "spread": through.spread,
        "caught_up": clocked.by,
        "bursts": len(groups),
    }
    sent = f"by the times that they carry, the {through.unit}s were sent over {clocked.spread:.1f} s"
    if is_late(clocked.by, clocked.spread):
        yield x.finding(
            "buffered",
            "problem",
            f"{x.hop} holds the stream back: {sent}; they came in {_bursts(len(groups))}, "
            f"up to {clocked.by:.1f} s late",
            **figures,
        )
    elif clocked.by >= NOTICED / 3 and len(groups) >= 3 and per_burst(through.items) >= 3:
        typical = per_burst(through.items)
        yield x.finding(
            "coalesced",
            "warning",
            f"{x.hop} coalesces: {sent}, one by one; they came {typical:g} at once",
            **figures,
            per_burst=typical,
        )


def _silent(x: Examination) -> Finding:
    through = x.through
    if through.ended != "bounded":
        return x.finding(
            "cannot-tell", "note", "the body is empty: nothing came that could be held back", ended=through.ended
        )
    came = "not even the answer's headers" if through.status is None else "the headers, but nothing of the body"
    return x.finding(
        "buffered",
        "warning",
        f"within {through.ended_at:.1f} s came {came}: a hop holds the stream back, or the server has nothing to send "
        "(--upstream tells the two apart, --seconds waits longer)",
        listened=through.ended_at,
        headers_at=through.headers_at if through.status is not None else "never",
    )


def _cannot_tell(x: Examination, probe: Probe, whence: str) -> Finding:
    count = len(probe.items)
    what = {0: f"no {probe.unit}", 1: f"one {probe.unit}"}.get(count, f"all {count} {probe.unit}s at once")
    return x.finding(
        "cannot-tell",
        "note",
        f"whether anything is held back cannot be told: {whence}came {what}; ask for a stream that lasts some seconds",
        items=count,
        spread=probe.spread,
    )


def _bursts(count: int) -> str:
    return "one burst" if count <= 1 else f"{count} bursts"
