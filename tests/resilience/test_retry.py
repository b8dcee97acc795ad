from __future__ import annotations

import pytest

from penstock.errors import ConnectError, DecodeError, PenstockError, ReadError, StatusError, StreamTruncated
from penstock.resilience.backoff import Backoff
from penstock.resilience.retry import Retry

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


def test_a_negative_number_of_retries_is_refused() -> None:
    with pytest.raises(ValueError, match="retries must be 0 or more, got -1"):
        Retry(retries=-1)
