from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import (
    CircuitOpenError,
    ConnectError,
    ConnectTimeout,
    ContentTypeError,
    DecodeError,
    InBandError,
    InvalidURL,
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    ReplayGap,
    RetriesExhausted,
    StatusError,
    StreamError,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteError,
    WriteTimeout,
)
from penstock.resilience import classify
from penstock.resilience.classify import RULES, Cause, cause, not_handled, retry_after, retryable, verdict


def status(code: int) -> StatusError:
    return StatusError("s", status=code)


ERRORS: list[tuple[PenstockError, Cause]] = [
    (ConnectError("c", reason="dns"), "dns"),
    (ConnectError("c", reason="refused"), "refused"),
    (ConnectError("c", reason="reset"), "refused"),
    (ConnectError("c", reason="unreachable"), "unreachable"),
    (ConnectError("c"), "unreachable"),
    (ConnectError("c", reason="tls"), "tls"),
    (ConnectTimeout("c", reason="timeout"), "connect_timeout"),
    (ConnectTimeout("c"), "connect_timeout"),
    (ConnectError("c", reason="timeout"), "connect_timeout"),
    (ReadTimeout("r"), "timeout"),
    (WriteTimeout("w"), "timeout"),
    (ReadError("r"), "lost"),
    (WriteError("w"), "lost"),
    (TransportError("t"), "lost"),
    (status(408), "request_timeout"),
    (status(425), "too_early"),
    (status(429), "throttled"),
    (status(503), "unavailable"),
    (status(500), "server_error"),
    (status(502), "server_error"),
    (status(504), "server_error"),
    (status(599), "server_error"),
    (status(501), "unsupported"),
    (status(505), "unsupported"),
    (status(302), "status"),
    (status(400), "status"),
    (status(401), "status"),
    (status(404), "status"),
    (status(409), "status"),
    (ContentTypeError("t", content_type="text/html"), "content_type"),
    (StreamTruncated("t"), "truncated"),
    (StreamStalled("t"), "stalled"),
    (InBandError("i"), "in_band"),
    (InBandError("i", server_class=True), "in_band_server"),
    (InBandError("i", server_class=True, throttled=True), "in_band_throttled"),
    (ProtocolError("p"), "protocol"),
    (DecodeError("d"), "decode"),
    (LimitExceeded("l", limit="max_bytes"), "limit"),
    (ReplayGap("g", requested=1, earliest=2), "replay_gap"),
    (CircuitOpenError("o", retry_after=1), "circuit_open"),
    (InvalidURL("u"), "url"),
    (StreamError("the request's own body"), "other"),
    (PenstockError("?"), "other"),
]
YES = {"yes": True, "no": False}
CAUSES = get_args(Cause)


@pytest.mark.parametrize(("error", "name"), ERRORS, ids=lambda value: repr(value)[:40])
def test_every_error_has_a_cause_and_goes_by_its_row(error: PenstockError, name: Cause) -> None:
    assert cause(error) == name
    assert (retryable(error), not_handled(error), verdict(error)) == RULES[name]


def test_every_cause_has_a_row_and_an_error() -> None:
    assert tuple(RULES) == CAUSES
    assert {name for _, name in ERRORS} == set(CAUSES)


def test_the_table_of_the_module_is_what_it_does() -> None:
    assert classify.__doc__ is not None
    rows = [re.split(r"\s{2,}", line) for line in classify.__doc__.splitlines()]
    table = [(row[0], (YES[row[2]], YES[row[3]], row[4])) for row in rows if len(row) == 5 and row[2] in YES]
    assert table == list(RULES.items())


def test_the_table_of_the_guide_is_what_it_does() -> None:
    guide = Path(__file__).parents[2] / "docs" / "resilience.md"
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| (yes|no) \| (yes|no) \| (\w+) \|$", guide.read_text("utf-8"), re.MULTILINE
    )
    assert [(row[0], (YES[row[1]], YES[row[2]], row[3])) for row in rows] == list(RULES.items())


@pytest.mark.parametrize("name", ["tls", "in_band", "in_band_server", "decode", "content_type", "status", "other"])
def test_what_would_only_fail_again_is_not_retried_by_default(name: Cause) -> None:
    assert not RULES[name].retried


def test_nothing_but_what_was_refused_or_never_sent_is_surely_unhandled() -> None:
    assert {name for name, rule in RULES.items() if rule.unhandled} == {
        *("dns", "refused", "unreachable", "tls", "connect_timeout"),
        *("request_timeout", "too_early", "throttled", "unavailable"),
    }


def test_a_proper_end_speaks_for_the_server() -> None:
    assert verdict(None) == "success"


@pytest.mark.parametrize("error", [error for error, _ in ERRORS], ids=lambda error: repr(error)[:40])
def test_what_gave_up_is_as_its_last_failure_but_never_surely_unhandled(error: PenstockError) -> None:
    exhausted = RetriesExhausted("x", attempts=2, last=error)
    assert cause(exhausted) == cause(error)
    assert (retryable(exhausted), verdict(exhausted)) == (retryable(error), verdict(error))
    assert not not_handled(exhausted), "an attempt before the last may have been worked on"


# -- Retry-After ---------------------------------------------------------------------------------------------------

NOON = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XYZ+07:30")
    if hasattr(time, "tzset"):
        time.tzset()
    yield
    monkeypatch.undo()
    if hasattr(time, "tzset"):
        time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        (" 120 ", 120.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 60.0),
        ("Sun Nov  6 08:49:37 1994", 60.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 60.0),
        ("Sun, 06 Nov 1994 00:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("١", None),
        ("²", None),
        ("9" * 65, None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
    ],
)
def test_retry_after_in_seconds_and_in_the_three_forms_of_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOON - 60) == seconds


@given(st.integers(0, 4_000_000_000), st.integers(0, 4_000_000_000))
def test_a_date_asks_for_the_time_until_then(now: int, then: int) -> None:
    assert retry_after(formatdate(then, usegmt=True), now) == max(0, then - now)


@given(st.text(max_size=80) | st.from_regex(r"[A-Za-z]{3}, \d{1,3} [A-Za-z]{3} \d{1,5} [\d:]{1,9} [A-Z+-]{0,5}\d{0,6}"))
def test_nothing_in_a_retry_after_raises(value: str) -> None:
    asked = retry_after(value, 0.0)
    assert asked is None or asked >= 0
