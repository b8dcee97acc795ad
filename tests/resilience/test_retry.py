from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from penstock.errors import (
    ConnectError,
    ContentTypeError,
    DecodeError,
    InBandError,
    PenstockError,
    ProtocolError,
    ReadError,
    RetriesExhausted,
    StatusError,
    StreamTruncated,
)
from penstock.resilience.backoff import Backoff
from penstock.resilience.budget import RetryBudget
from penstock.resilience.classify import RULES, Cause
from penstock.resilience.retry import FINAL, Retry

LOST = ReadError("lost")
REFUSED = ConnectError("refused", reason="refused")
BUSY = StatusError("busy", status=503)
TEN = Retry(retries=3, backoff=Backoff(initial=10, factor=1, jitter="none"))


def busy(retry_after: str) -> StatusError:
    return StatusError("busy", status=503, retry_after=retry_after)


def test_there_are_as_many_retries_as_allowed_and_not_one_more() -> None:
    pauses = [TEN.delay(LOST, attempt=attempt, may_repeat=True) for attempt in range(1, 6)]
    assert pauses == [10, 10, 10, None, None]
    assert Retry(retries=0).delay(LOST, attempt=1, may_repeat=True) is None


@pytest.mark.parametrize(
    ("error", "if_repeatable", "if_not"),
    [
        (LOST, 10, None),
        (StreamTruncated("cut"), 10, None),
        (REFUSED, 10, 10),
        (BUSY, 10, 10),
        (DecodeError("x"), None, None),
    ],
)
def test_what_may_not_be_repeated_is_only_sent_again_if_the_server_surely_did_nothing(
    error: PenstockError, if_repeatable: float | None, if_not: float | None
) -> None:
    assert TEN.delay(error, attempt=1, may_repeat=True) == if_repeatable
    assert TEN.delay(error, attempt=1, may_repeat=False) == if_not


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("3", 10),
        ("45", 45),
        ("60", 60),
        ("61", 60),
        ("999999999", 60),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 50),
        ("what", 10),
    ],
)
def test_retry_after_is_obeyed_up_to_a_bound_and_never_shortens_the_backoff(asked: str, pause: float) -> None:
    assert TEN.delay(busy(asked), attempt=1, may_repeat=False, now=50.0) == pause


def test_the_bound_of_retry_after_can_be_set() -> None:
    retry = Retry(backoff=Backoff(initial=0), retry_after_maximum=5)
    assert retry.delay(busy("30"), attempt=1, may_repeat=True) == 5
    assert retry.delay(busy("4"), attempt=1, may_repeat=True) == 4


def test_the_draw_is_the_jitter() -> None:
    assert [Retry().delay(LOST, attempt=2, may_repeat=True, draw=draw) for draw in (0.0, 0.25, 0.75)] == [0, 0.5, 1.5]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "get"])
def test_idempotent_methods_may_be_repeated(method: str) -> None:
    assert Retry().may_repeat(method)
    assert not Retry(idempotent=False).may_repeat(method, has_key=True)


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "BREW"])
def test_others_may_with_a_key_or_the_callers_word(method: str) -> None:
    assert not Retry().may_repeat(method)
    assert Retry().may_repeat(method, has_key=True)
    assert Retry(idempotent=True).may_repeat(method)


# -- per cause


def attempts(retry: Retry, *failures: PenstockError, may_repeat: bool = True) -> int:
    """How many of these failures, one after another, are followed by another attempt."""
    for attempt, failure in enumerate(failures, start=1):
        if retry.delay(failure, attempt=attempt, may_repeat=may_repeat) is None:
            return attempt - 1
    return len(failures)


def test_a_cause_may_have_fewer_retries_or_none() -> None:
    retry = Retry(retries=3, per_cause={"lost": 1, "unavailable": 0})
    assert attempts(retry, *[LOST] * 9) == 1
    assert attempts(retry, *[BUSY] * 9) == 0
    assert attempts(retry, *[REFUSED] * 9) == 3


def test_a_cause_may_have_more_than_all_others() -> None:
    retry = Retry(retries=3, per_cause={"throttled": 10})
    throttled = StatusError("slow down", status=429)
    assert attempts(retry, *[throttled] * 99) == 10
    assert attempts(retry, *[throttled] * 5, LOST) == 5, "five retries are more than the three of any other cause"
    assert attempts(retry, LOST, LOST, throttled, throttled) == 4


def test_all_retries_of_a_request_count() -> None:
    assert attempts(Retry(retries=3, per_cause={"lost": 1}), REFUSED, LOST) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("content_type", ContentTypeError("an error page", content_type="text/html")),
        ("tls", ConnectError("expired", reason="tls")),
        ("decode", DecodeError("half a value")),
        ("in_band", InBandError("overloaded")),
        ("status", StatusError("not found yet", status=404)),
        ("protocol", ProtocolError("garbage")),
    ],
)
def test_a_number_allows_what_is_not_retried_by_default(name: Cause, error: PenstockError) -> None:
    assert attempts(Retry(), error) == 0
    assert attempts(Retry(per_cause={name: 2}), *[error] * 9) == 2


def test_what_was_allowed_is_still_not_repeated_where_that_may_do_harm() -> None:
    error = ContentTypeError("an error page", content_type="text/html")
    assert attempts(Retry(per_cause={"content_type": 2}), error, may_repeat=False) == 0


def test_no_retries_are_none_whatever_is_said_of_causes() -> None:
    assert attempts(Retry(retries=0, per_cause={"lost": 5}), LOST) == 0


def test_retries_that_were_exhausted_count_by_their_last_failure() -> None:
    assert attempts(Retry(per_cause={"lost": 0}), RetriesExhausted("gave up", attempts=4, last=LOST)) == 0


@pytest.mark.parametrize("name", get_args(Cause))
def test_retries_for_a_cause_go_by_its_row_unless_a_number_is_given(name: Cause) -> None:
    assert Retry(retries=7).retries_for(name) == (7 if RULES[name].retried else 0)
    assert Retry(retries=7, per_cause={name: 0}).retries_for(name) == 0


def test_the_callers_mapping_may_change_afterwards() -> None:
    numbers: dict[Cause, int] = {"lost": 0}
    retry = Retry(per_cause=numbers)
    numbers["lost"] = 5
    assert retry.per_cause == {"lost": 0}
    assert hash(retry) == hash(Retry(per_cause={"lost": 0}))
    assert replace(retry, retries=9).per_cause == {"lost": 0}


# -- settings


def test_the_defaults_resume_and_share_a_budget() -> None:
    assert (Retry().after_first_event, Retry().budget) == ("resume", RetryBudget())
    assert Retry(budget=None).budget is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retries": -1}, "retries must be 0 or more, got -1"),
        ({"per_cause": {"lost": -1}}, "0 or more, got -1 for 'lost'"),
        ({"per_cause": {"loss": 1}}, "no cause 'loss'; there are dns, refused"),
        ({"per_cause": {"circuit_open": 1}}, "cannot mend 'circuit_open'"),
        ({"after_first_event": "replay"}, "'replay'"),
    ],
)
def test_what_is_no_policy_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Retry(**wrong)


@pytest.mark.parametrize("name", sorted(FINAL))
def test_what_nothing_can_mend_may_be_named_with_none(name: Cause) -> None:
    assert Retry(per_cause={name: 0}).retries_for(name) == 0
