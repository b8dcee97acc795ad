from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate

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
    StreamStalled,
    StreamTruncated,
    WriteError,
    WriteTimeout,
)
from penstock.resilience.classify import not_handled, retry_after, retryable, verdict


def status(code: int) -> StatusError:
    return StatusError("s", status=code)


# error, may be retried, surely not handled, the breaker's verdict: the table of the module's docstring
TABLE: list[tuple[PenstockError, bool, bool, str]] = [
    (ConnectError("c", reason="refused"), True, True, "failure"),
    (ConnectError("c", reason="dns"), True, True, "failure"),
    (ConnectTimeout("c", reason="timeout"), True, True, "failure"),
    (ConnectError("c", reason="tls"), False, True, "failure"),
    (WriteError("w"), True, False, "failure"),
    (WriteTimeout("w"), True, False, "failure"),
    (ReadError("r"), True, False, "failure"),
    (ReadTimeout("r"), True, False, "failure"),
    (status(408), True, True, "neither"),
    (status(425), True, True, "neither"),
    (status(429), True, True, "neither"),
    (status(503), True, True, "failure"),
    (status(500), True, False, "failure"),
    (status(502), True, False, "failure"),
    (status(504), True, False, "failure"),
    (status(599), True, False, "failure"),
    (status(501), False, False, "failure"),
    (status(505), False, False, "failure"),
    (status(400), False, False, "success"),
    (status(401), False, False, "success"),
    (status(404), False, False, "success"),
    (status(409), False, False, "success"),
    (ContentTypeError("t", content_type="text/html"), False, False, "neither"),
    (StreamTruncated("t"), True, False, "failure"),
    (StreamStalled("t"), True, False, "failure"),
    (ProtocolError("p"), False, False, "failure"),
    (InBandError("i"), False, False, "success"),
    (DecodeError("d"), False, False, "success"),
    (LimitExceeded("l", limit="max_bytes"), False, False, "success"),
    (InvalidURL("u"), False, False, "success"),
    (CircuitOpenError("o", retry_after=1), False, False, "success"),
    (ReplayGap("g", requested=1, earliest=2), False, False, "success"),
]


@pytest.mark.parametrize(("error", "again", "untouched", "says"), TABLE, ids=lambda value: repr(value)[:40])
def test_the_table(error: PenstockError, again: bool, untouched: bool, says: str) -> None:
    assert (retryable(error), not_handled(error), verdict(error)) == (again, untouched, says)


def test_a_proper_end_speaks_for_the_server() -> None:
    assert verdict(None) == "success"


@pytest.mark.parametrize("error", [each[0] for each in TABLE], ids=lambda error: type(error).__name__)
def test_what_gave_up_is_as_retryable_as_its_last_failure(error: PenstockError) -> None:
    assert retryable(RetriesExhausted("x", attempts=2, last=error)) == retryable(error)


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
