from __future__ import annotations

import copy
import json
import pickle
from typing import Any, get_args

import pytest
from anthropic.types.shared.error_type import ErrorType
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from openai.types.responses.response_error import ResponseError

from penstock.wire.sse import Event
from penstock.wire.terminator import MAX_MESSAGE, PROFILES, Failure, Terminator
from tests.wire.cases import corpus, ratio

BLAME = {"server": (True, False), "throttled": (False, True), "request": (False, False)}
ANY_EVENT = st.builds(
    Event,
    st.sampled_from(["message", "error", "ping", "message_stop", "response.failed", "response.completed", "other"]),
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["error", "ping", "[DONE]"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "type", "code", "status", "message", "response", "object", "details"])
                | st.text(),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(json.dumps),
)


def spellings(data: Any) -> list[str]:
    """The text, or the ways in which servers write a JSON value."""
    if isinstance(data, str):
        return [data]
    return [json.dumps(data, separators=(",", ":")), json.dumps(data), json.dumps(data, indent=2, ensure_ascii=False)]


@pytest.mark.parametrize("case", corpus("terminators"))
def test_corpus(case: dict[str, Any]) -> None:
    type_, written = case["event"]
    for data in spellings(written):
        judged = Terminator.named(case["profile"]).judge(Event(type_, data, "7"))
        if case["is"] != "failure":
            assert judged == case["is"]
            continue
        server_class, throttled = BLAME[case["blame"]]
        assert judged == Failure(
            case["message"], case.get("kind", ""), case.get("code"), case.get("status"), server_class, throttled
        )


# ---------------------------------------------------------------------------------------------------- who is to blame


@pytest.mark.parametrize("case", corpus("terminators", "blame"))
@pytest.mark.parametrize("field", ["type", "code"])
def test_who_is_to_blame_by_name(case: dict[str, Any], field: str) -> None:
    for blamed, expected in BLAME.items():
        for name in case[blamed]:
            judged = Terminator.named("openai").judge(Event(data=json.dumps({"error": {field: name}})))
            assert isinstance(judged, Failure)
            assert (name, judged.server_class, judged.throttled) == (name, *expected)


def test_every_name_that_the_providers_document_is_placed() -> None:
    """A new one in their packages is to be looked at, not guessed."""
    anthropic, openai, _ = (parameter.values[0] for parameter in corpus("terminators", "blame"))
    placed = {name for case in (anthropic, openai) for blamed in BLAME for name in case[blamed]}
    assert {*get_args(ErrorType), *get_args(ResponseError.model_fields["code"].annotation)} - placed == set()


def test_every_end_that_the_providers_document_is_known() -> None:
    types = {get_args(event.model_fields["type"].annotation)[0] for event in get_args(get_args(ResponseStreamEvent)[0])}
    ends = {name for name in types if name.startswith("response.") and name.count(".") == 1}
    progress = {"response.created", "response.queued", "response.in_progress"}
    profile = Terminator.named("openai-responses")
    assert ends - progress == profile.event | (profile.error & types) - {"error"}
    assert "error" in types & profile.error


@pytest.mark.parametrize(
    ("status", "blamed"),
    [
        *((status, "request") for status in (400, 401, 404, 499)),
        *((status, "server") for status in (408, 500, 503, 529, 599)),
        (429, "throttled"),
    ],
)
def test_a_status_says_more_than_a_name(status: int, blamed: str) -> None:
    for written in (status, str(status)):
        for field in ("code", "status", "status_code"):
            data = json.dumps({"error": {field: written, "type": "rate_limit_server_error_invalid", "message": "m"}})
            judged = Terminator.named("openai").judge(Event(data=data))
            assert isinstance(judged, Failure)
            assert judged.status == status
            assert (judged.server_class, judged.throttled) == BLAME[blamed]


@pytest.mark.parametrize("number", [0, 200, 399, 600, 1011, -500, 503.0, True, "5 3", "５０３", "", None, [503], {}])
def test_what_is_no_status_is_none(number: object) -> None:
    judged = Terminator.named("openai").judge(Event(data=json.dumps({"error": {"code": number, "message": "m"}})))
    assert isinstance(judged, Failure)
    assert judged.status is None


# ------------------------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("name", PROFILES)
@given(text=st.text() | st.sampled_from(["error", '"error"', '{"error": "x"}', "[DONE]", '"type": "message_stop"']))
def test_what_a_model_writes_is_content(name: str, text: str) -> None:
    profile = Terminator.named(name)
    for value in (
        {"choices": [{"delta": {"content": text}}]},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
        {"type": "response.output_text.delta", "delta": text, "error": None},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": json.dumps({"error": text})}}]}}]},
    ):
        for data in spellings(value):
            assert profile.judge(Event(data=data)) == "content"


@pytest.mark.parametrize("name", PROFILES)
@given(event=ANY_EVENT)
def test_no_event_is_more_than_can_be_judged(name: str, event: Event) -> None:
    judged = Terminator.named(name).judge(event)
    if isinstance(judged, Failure):
        assert judged.message
        assert f"{judged}{judged.code}".isprintable()
        assert not (judged.server_class and judged.throttled)
    else:
        assert judged in ("content", "ping", "end")


@pytest.mark.parametrize("data", ["[" * 200_000 + '"error"', '{"error":' * 100_000, '{"error": ' + "9" * 5000 + "}"])
def test_what_json_cannot_hold_is_content(data: str) -> None:
    assert Terminator.named("openai").judge(Event(data=data)) == "content"


def test_content_is_not_parsed() -> None:
    numbers = list(range(50_000))
    quick = [json.dumps({"choices": numbers}), json.dumps({"error": None, "choices": numbers})]
    profile = Terminator.named("openai")

    def work(which: int) -> object:
        events = [Event(data=data) for data in quick]
        return [profile.judge(event) if which == 1 else json.loads(event.data) for event in events]

    # The work for 2 is to parse, which takes many times as long as to search.
    assert ratio(work, 1, 2) > 4


def test_a_message_is_bounded() -> None:
    judged = Terminator.named("openai").judge(Event("error", "x" * 1_000_000))
    assert isinstance(judged, Failure)
    assert len(judged.message) == MAX_MESSAGE + 1


# ------------------------------------------------------------------------------------------------------------ one's own


def test_by_data() -> None:
    own = Terminator(data="stop")
    assert own.judge(Event(data="stop")) == own.judge(Event("any", "\tstop ")) == "end"
    assert own.judge(Event(data="stop it")) == own.judge(Event(data="")) == "content"
    assert own.judge(Event("error", '{"error": "x"}')) == "content"


def test_by_empty_data() -> None:
    assert Terminator(data="").judge(Event("any", "")) == "end"
    assert Terminator(data="").judge(Event(data="x")) == "content"


def test_by_type() -> None:
    own = Terminator(event="end", error={"failed", "aborted"}, ping=["tick", "tock"])
    assert own.judge(Event("end", "bye")) == "end"
    assert own.judge(Event("end", "")) == "end"
    assert own.judge(Event("failed", "no disk")) == Failure("no disk")
    assert isinstance(own.judge(Event("aborted", "")), Failure)
    assert own.judge(Event("tick", "")) == own.judge(Event("tock", "")) == "ping"
    assert own.judge(Event("message", '{"type": "end"}')) == "content"
    assert own.judge(Event("endless", "end")) == "content"


def test_by_either() -> None:
    own = Terminator(data="[DONE]", event=("end", "finish"))
    assert [own.judge(event) for event in (Event(data="[DONE]"), Event("end"), Event("finish", "[DONE]"))] == [
        "end"
    ] * 3


def test_by_type_in_the_payload() -> None:
    own = Terminator(event='the "end"', error="failed", payload="type")
    assert own.judge(Event(data=json.dumps({"type": 'the "end"'}))) == "end"
    assert own.judge(Event(data='{"type": "failed", "message": "m", "code": 7}')) == Failure("m", "failed", "7")
    assert own.judge(Event(data='{"type": ["failed"]}')) == own.judge(Event("other", '{"type": "failed"}')) == "content"


def test_the_mark_is_no_payload() -> None:
    openai = Terminator.named("openai")
    assert openai.is_mark(Event(data="[DONE]"))
    assert not openai.is_mark(Event(data='{"choices": []}'))
    assert not Terminator.named("anthropic").is_mark(Event("message_stop", '{"type": "message_stop"}'))
    assert not Terminator.named("none").is_mark(Event(data=""))


def test_only_what_has_an_end_requires_one() -> None:
    assert {name for name, profile in PROFILES.items() if profile.required} == {*PROFILES} - {"none"}
    assert not Terminator(error="error", ping="ping", payload="error").required
    assert Terminator(data="").required
    assert Terminator() == Terminator.named("none")


def test_an_unknown_name_is_told_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no terminator profile 'gpt': .* openai, openai-responses, anthropic, none$"):
        Terminator.named("gpt")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="'end' is given twice"):
        Terminator(event="end", error=["end"])
    with pytest.raises(ValueError, match=r"write '\[DONE\]', not"):
        Terminator(data="[DONE]\n")
    with pytest.raises(ValueError, match="payload is"):
        Terminator(payload="xml")  # type: ignore[arg-type]


def test_a_terminator_is_a_value() -> None:
    one, other = Terminator(event=["a", "b"], data="x"), Terminator(event={"b", "a"}, data="x")
    assert one == other
    assert hash(one) == hash(other)
    assert one != Terminator(event="a", data="x")
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert pickle.loads(pickle.dumps(one)).judge(Event("a")) == "end"
    assert "data='x'" in repr(one)
    with pytest.raises(AttributeError):
        one.data = "y"  # type: ignore[misc]


def test_a_failure_reads_well() -> None:
    assert str(Failure("Overloaded", "overloaded_error")) == "Overloaded (overloaded_error)"
    assert str(Failure("no", "same", "same", 400)) == "no (same)"
    assert str(Failure("no", "kind", "code")) == "no (kind, code)"
    assert str(Failure("no")) == "no"
