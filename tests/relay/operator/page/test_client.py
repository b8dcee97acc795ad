"""client.js before servers that do what they should, and servers that do not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from penstock.testing import close, pause, reset, script, serve, wait_request
from penstock.testing.script import Step
from tests.relay.operator.page.node import needs_node, node

pytestmark = [pytest.mark.anyio, needs_node]

ID = "Zm9vYmFyYmF6cXV4MTIzNA"
STREAM = f"/_penstock/streams/{ID}"
LAST_CHUNK = b"0\r\n\r\n"
NOTHING_FOLLOWS: list[Step] = [wait_request(), b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", close()]


def place(sequence: int, id: str = ID) -> str:
    return f"1{id}.1-{sequence}"


def head(*fields: str, status: str = "200 OK", type: str = "text/event-stream", id: str = ID) -> bytes:
    named = [f"Penstock-Stream: {id}"] if id else []
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {type}", "Transfer-Encoding: chunked"]
    return "\r\n".join([*lines, *named, *fields, "", ""]).encode()


def chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(first: int, last: int, *, ids: str = ID) -> bytes:
    """Numbered events, with ids of the relay's for that stream."""
    numbers = range(first, last + 1)
    return chunk("".join(f"id: {place(n, ids)}\ndata: {n}\n\n" if ids else f"data: {n}\n\n" for n in numbers))


def answered(*body: Step, fields: tuple[str, ...] = (), id: str = ID) -> list[Step]:
    """A connection whose answer comes whole."""
    return [wait_request(), head(*fields, "Connection: close", id=id), *body, LAST_CHUNK, close()]


def cut(*body: Step, fields: tuple[str, ...] = (), id: str = ID) -> list[Step]:
    """A connection that ends before its answer does."""
    return [wait_request(), head(*fields, id=id), *body, close()]


def refused(status: str, body: str = "", *fields: str) -> list[Step]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields, "", body]
    return [wait_request(), "\r\n".join(lines).encode(), close()]


def asked(request: bytes) -> tuple[str, dict[str, str]]:
    """A request's line and its fields."""
    line, *fields = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    pairs = (field.partition(": ") for field in fields)
    return line.removesuffix(" HTTP/1.1"), {name.lower(): value for name, _, value in pairs}


def lines(requests: list[bytes]) -> list[str]:
    return [asked(request)[0] for request in requests]


POST = "say(await read(penstock(given.url, { body: { n: 1 }, backoff: quick })))"
GET = "say(await read(penstock(given.url, { backoff: quick })))"


# -- from a beginning to an end ----------------------------------------------------------------------------------


async def test_a_body_goes_as_json_and_the_events_come_in_order() -> None:
    async with script(answered(events(1, 2), events(3, 3)), NOTHING_FOLLOWS) as server:
        program = """
        const events = penstock(given.url, { body: { question: "why?" }, headers: { Authorization: "Bearer x" } });
        for await (const event of events) say(event);
        say([events.id, events.url, events.lastEventId, events.state, await events.ended]);
        """
        *said, state = await node(program, url=f"{server.url}/chat")
    assert said == [{"type": "message", "data": str(n), "id": place(n)} for n in (1, 2, 3)]
    assert state == [ID, f"{server.url}{STREAM}", place(3), "ended", {"reason": "done"}]
    line, fields = asked(server.requests[0])
    assert line == "POST /chat"
    assert (fields["accept"], fields["content-type"]) == ("text/event-stream", "application/json")
    assert server.requests[0].endswith(b'\r\n\r\n{"question":"why?"}')


async def test_an_end_is_confirmed_by_one_question_that_the_upstream_never_hears() -> None:
    async with script(answered(events(1, 1)), NOTHING_FOLLOWS) as server:
        program = """
        const headers = { Authorization: "Bearer x", "Content-Type": "application/json" };
        say(await read(penstock(given.url, { headers, body: "{}" })));
        """
        assert await node(program, url=f"{server.url}/chat") == [{"data": ["1"], "end": "done"}]
    assert lines(server.requests) == ["POST /chat", f"GET {STREAM}"]
    fields = asked(server.requests[1])[1]
    assert (fields["last-event-id"], fields["authorization"]) == (place(1), "Bearer x")
    assert "content-type" not in fields


@pytest.mark.parametrize(
    "confirmation", [[wait_request(), reset()], refused("404 Not Found"), refused("503 Busy"), answered()], ids=repr
)
async def test_an_end_stands_when_nobody_says_otherwise(confirmation: list[Step]) -> None:
    async with script(answered(events(1, 1)), confirmation) as server:
        assert await node(POST, url=server.url) == [{"data": ["1"], "end": "done"}]
    assert len(server.requests) == 2


async def test_more_may_follow_an_end() -> None:
    async with script(answered(events(1, 1)), answered(events(2, 2)), NOTHING_FOLLOWS) as server:
        assert await node(POST, url=server.url) == [{"data": ["1", "2"], "end": "done"}]
    assert len(server.requests) == 3


async def test_what_the_relay_does_not_keep_ends_with_its_body() -> None:
    async with script(answered(events(1, 2, ids=""), id="")) as server:
        assert await node(POST, url=server.url) == [{"data": ["1", "2"], "end": "done"}]
    assert len(server.requests) == 1


async def test_204_is_the_end() -> None:
    async with script(NOTHING_FOLLOWS) as server:
        assert await node(GET, url=server.url) == [{"data": [], "end": "done"}]


@pytest.mark.parametrize(
    ("body", "sent", "type"),
    [
        ('"as it is"', b"as it is", "text/plain;charset=UTF-8"),
        ("[1, 2]", b"[1,2]", "application/json"),
        ("new URLSearchParams({ a: 'b c' })", b"a=b+c", "application/x-www-form-urlencoded;charset=UTF-8"),
    ],
)
async def test_other_bodies_go_as_fetch_takes_them(body: str, sent: bytes, type: str) -> None:
    async with script(answered(id="")) as server:
        await node(f"say(await read(penstock(given.url, {{ method: 'put', body: {body} }})))", url=server.url)
    line, fields = asked(server.requests[0])
    assert (line, fields["content-type"]) == ("PUT /", type)
    assert server.requests[0].endswith(b"\r\n\r\n" + sent)


async def test_a_post_shows_that_its_reader_can_come_back() -> None:
    async with script(*[answered(id="")] * 6) as server:
        program = """
        await read(penstock(given.url, { body: {} }));
        await read(penstock(given.url, { body: {} }));
        await read(penstock(given.url, { body: {}, idempotencyKey: "mine" }));
        await read(penstock(given.url, { body: {}, headers: { "idempotency-key": "ours" } }));
        await read(penstock(given.url, { body: {}, idempotencyKey: null }));
        await read(penstock(given.url));
        """
        await node(program, url=server.url)
    keys = [asked(request)[1].get("idempotency-key") for request in server.requests]
    assert keys[2:] == ["mine", "ours", None, None]
    assert all(key and re.fullmatch(r"[0-9a-f]{32}", key) for key in keys[:2])
    assert keys[0] != keys[1]


async def test_the_states_in_their_order() -> None:
    async with script(cut(events(1, 1)), answered(events(2, 2)), NOTHING_FOLLOWS) as server:
        program = """
        const onState = (state, { again, failures, reason, error }) => say([state, again ?? null, failures ?? null,
          reason ?? error?.kind ?? null]);
        await stream(given.url, { body: {}, backoff: quick, onEvent: ({ data }) => say(data), onState }).ended;
        """
        said = await node(program, url=server.url)
    assert said == [
        ["connecting", False, 0, None],
        ["open", False, None, None],
        "1",
        ["waiting", None, 1, "network"],
        ["connecting", True, 1, None],
        ["open", True, None, None],
        "2",
        ["connecting", True, 0, None],
        ["ended", None, None, "done"],
    ]


# -- a connection that breaks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [close(), reset()], ids=["closed", "reset"])
async def test_a_stream_that_is_cut_goes_on_and_the_upstream_is_asked_once(ending: Step) -> None:
    first: list[Step] = [wait_request(), head(), events(1, 2), chunk("data: half an"), ending]
    async with script(
        first, [wait_request(), reset()], cut(events(3, 3)), answered(events(4, 5)), NOTHING_FOLLOWS
    ) as server:
        assert await node(POST, url=f"{server.url}/chat") == [{"data": ["1", "2", "3", "4", "5"], "end": "done"}]
    assert lines(server.requests) == ["POST /chat", *[f"GET {STREAM}"] * 4]
    places = [asked(request)[1].get("last-event-id") for request in server.requests]
    assert places == [None, place(2), place(2), place(3), place(5)]


async def test_before_the_first_event_it_is_read_from_the_start() -> None:
    async with script(cut(), answered(events(1, 1)), NOTHING_FOLLOWS) as server:
        assert await node(POST, url=server.url) == [{"data": ["1"], "end": "done"}]
    assert lines(server.requests) == ["POST /", f"GET {STREAM}?after=0", f"GET {STREAM}"]


@pytest.mark.parametrize("own", ["upstream", ""], ids=["ids of the upstream's own", "no ids"])
async def test_without_ids_of_the_relay_what_was_there_is_passed_over(own: str) -> None:
    body = [
        chunk("".join(f"id: {own}{n}\ndata: {n}\n\n" if own else f"data: {n}\n\n" for n in (a, a + 1)))
        for a in (1, 3, 5)
    ]
    scripts = [cut(body[0]), cut(body[0]), cut(body[0], body[1]), answered(*body)]
    async with script(*scripts) as server:
        assert await node(POST, url=server.url) == [{"data": ["1", "2", "3", "4", "5", "6"], "end": "done"}]
    assert lines(server.requests) == ["POST /", *[f"GET {STREAM}?after=0"] * 3]


async def test_a_post_that_nobody_keeps_is_not_sent_twice() -> None:
    async with script(cut(events(1, 2, ids="upstream"), id="")) as server:
        [told] = await node(POST, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1", "2"], "cut")
    assert "cannot be resumed" in told["end"]["message"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"), [([wait_request(), reset()], "network"), (refused("503 Busy", "", "Retry-After: 0"), "refused")]
)
async def test_a_post_without_an_answer_is_not_sent_twice(answer: list[Step], kind: str) -> None:
    async with script(answer) as server:
        [told] = await node(POST, url=server.url)
    assert (told["data"], told["end"]["kind"]) == ([], kind)
    assert len(server.requests) == 1


async def test_a_get_that_nobody_keeps_goes_on_by_the_ids_of_its_upstream() -> None:
    async with script(cut(events(1, 2, ids="u"), id=""), answered(events(3, 3, ids="u"), id="")) as server:
        assert await node(GET, url=f"{server.url}/events") == [{"data": ["1", "2", "3"], "end": "done"}]
    assert lines(server.requests) == ["GET /events"] * 2
    assert asked(server.requests[1])[1]["last-event-id"] == place(2, "u")


async def test_a_get_that_has_brought_nothing_is_sent_again() -> None:
    async with script(
        [wait_request(), reset()], refused("429 Slowly"), cut(id=""), answered(events(1, 1), id="")
    ) as server:
        assert await node(GET, url=server.url) == [{"data": ["1"], "end": "done"}]
    assert len(server.requests) == 4


async def test_a_get_without_ids_is_not_sent_again_behind_an_event() -> None:
    async with script(cut(events(1, 1, ids=""), id="")) as server:
        [told] = await node(GET, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1"], "cut")


async def test_an_attempt_in_vain_is_counted_and_an_event_starts_anew() -> None:
    vain: list[Step] = [wait_request(), reset()]
    async with script(cut(events(1, 1)), vain, cut(events(2, 2)), vain, vain) as server:
        program = "say(await read(penstock(given.url, { body: {}, backoff: quick, retries: 2 })))"
        [told] = await node(program, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1", "2"], "network")
    assert len(server.requests) == 5


async def test_a_connection_that_falls_silent_is_taken_for_dead() -> None:
    asked_for: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        asked_for.append(scope["method"] + dict(scope["headers"]).get(b"last-event-id", b"").decode())
        fields = [(b"content-type", b"text/event-stream"), (b"penstock-stream", ID.encode())]
        number = len(asked_for)
        await send({"type": "http.response.start", "status": 200 if number < 3 else 204, "headers": fields})
        data = f"id: {place(number)}\ndata: {number}\n\n".encode() if number < 3 else b""
        await send({"type": "http.response.body", "body": data, "more_body": number == 1})
        while number == 1 and (await receive())["type"] != "http.disconnect":
            pass

    async with serve(app) as url:
        program = "say(await read(penstock(given.url, { body: {}, backoff: quick, silence: 200 })))"
        assert await node(program, url=url) == [{"data": ["1", "2"], "end": "done"}]
    assert asked_for == ["POST", f"GET{place(1)}", f"GET{place(2)}"]


async def test_keep_alives_are_no_silence_and_a_reader_that_waits_is_none_either() -> None:
    beats: list[Step] = [step for _ in range(20) for step in (pause(0.05), chunk(": keep-alive\n"))]
    async with script(answered(events(1, 2), *beats, events(3, 3)), NOTHING_FOLLOWS) as server:
        program = """
        const events = penstock(given.url, { body: {}, silence: 500 });
        for await (const { data } of events) {
          if (data === "1") await new Promise((resolve) => setTimeout(resolve, 1200));
          say(data);
        }
        """
        assert await node(program, url=server.url) == ["1", "2", "3"]
    assert len(server.requests) == 2


# -- what a server asks for --------------------------------------------------------------------------------------


async def test_the_time_to_wait() -> None:
    program = """
    say([1, 2, 3, 10].map((failures) => backoff(failures, null, {}, 1)));
    say([1, 2, 3, 10].map((failures) => backoff(failures, 500, { initial: 10, maximum: 100 }, 0.5)));
    say([backoff(3, null, {}, 0), backoff(1, 0)]);
    const drawn = Array.from({ length: 1000 }, () => backoff(1, null));
    say([Math.min(...drawn) >= 0, Math.max(...drawn) < 1000, new Set(drawn).size > 900]);
    """
    assert await node(program) == [
        [1000, 2000, 4000, 30_000],
        [500, 510, 520, 550],
        [0, 0],
        [True, True, True],
    ]


async def test_retry_and_retry_after_are_waited_for() -> None:
    scripts = [
        cut(chunk("retry: 7\n"), events(1, 1)),
        refused("503 Busy", "", "Retry-After: 1"),
        cut(events(2, 2)),
        answered(events(3, 3)),
        NOTHING_FOLLOWS,
    ]
    async with script(*scripts) as server:
        program = """
        const onState = (state, { delay }) => state === "waiting" && say(delay);
        say(await read(penstock(given.url, { body: {}, backoff: quick, onState })));
        """
        *delays, told = await node(program, url=server.url)
    assert (told["data"], delays) == (["1", "2", "3"], [7, 1000, 7])


async def test_an_answer_that_ends_in_retry_is_an_invitation_to_come_back() -> None:
    scripts = [
        answered(events(1, 1), chunk("retry: 3\n")),
        answered(chunk("retry: 4\n")),
        answered(events(2, 2)),
        NOTHING_FOLLOWS,
    ]
    async with script(*scripts) as server:
        program = """
        const onState = (state, { delay }) => state === "waiting" && say(delay);
        say(await read(penstock(given.url, { body: {}, onState, backoff: { initial: 0 } })));
        """
        assert await node(program, url=server.url) == [3, 4, {"data": ["1", "2"], "end": "done"}]


async def test_a_gap_is_told() -> None:
    gap = chunk('event: penstock.gap\ndata: {"requested":3,"earliest":8}\n\n')
    async with script(cut(events(1, 2)), answered(gap, events(8, 9)), NOTHING_FOLLOWS) as server:
        program = "say(await read(penstock(given.url, { body: {}, backoff: quick, onGap: say })))"
        said = await node(program, url=server.url)
    assert said == [{"requested": 3, "earliest": 8}, {"data": ["1", "2", "8", "9"], "end": "done"}]


async def test_a_gap_that_nobody_wants_to_hear_of_is_an_error() -> None:
    gap = chunk('event: penstock.gap\ndata: {"requested":3,"earliest":8}\n\n')
    async with script(cut(events(1, 2)), answered(gap, events(8, 9))) as server:
        [told] = await node(POST, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1", "2"], "gap")


async def test_a_gap_before_what_was_to_be_passed_over_is_an_error() -> None:
    gap = chunk('event: penstock.gap\ndata: {"requested":1,"earliest":2}\n\n')
    async with script(cut(events(1, 2, ids="")), answered(gap, events(2, 3, ids=""))) as server:
        program = "say(await read(penstock(given.url, { body: {}, backoff: quick, onGap: say })))"
        [told] = await node(program, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1", "2"], "gap")


@pytest.mark.parametrize("code", ["upstream_error", "cancelled", "producer_lost"])
async def test_a_stream_that_says_that_it_failed_is_not_asked_for_again(code: str) -> None:
    said = json.dumps({"error": {"type": code, "message": "the stream broke off"}})
    async with script(cut(events(1, 1), chunk(f"id: {place(2)}\nevent: penstock.error\ndata: {said}\n\n"))) as server:
        assert await node(POST, url=server.url) == [
            {"data": ["1"], "end": {"kind": "stream", "status": 0, "code": code, "message": "the stream broke off"}}
        ]
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
async def test_a_stream_that_is_gone_is_not_asked_for_again(status: str) -> None:
    problem = json.dumps({"title": "Gone", "status": 410, "detail": "it is no longer kept", "earliest": 4})
    async with script(cut(events(1, 1)), refused(status, problem)) as server:
        [told] = await node(POST, url=server.url)
    assert (told["data"], told["end"]["kind"], told["end"]["status"]) == (["1"], "gone", int(status[:3]))
    assert told["end"]["message"] == f"GET {server.url}{STREAM} answered {status[:3]}: it is no longer kept"


@pytest.mark.parametrize("program", [GET, POST], ids=["GET", "POST"])
@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        ("400 Bad Request", '{"error":{"message":"no model"}}', ": no model"),
        ("401 Unauthorized", "", ""),
        ("404 Not Found", "<html>no such page</html>", ""),
        ("422 Unprocessable", "plainly wrong", ": plainly wrong"),
    ],
)
async def test_a_refusal_is_final_and_says_why(program: str, status: str, body: str, detail: str) -> None:
    async with script(refused(status, body)) as server:
        [told] = await node(program, url=server.url)
    assert (told["end"]["kind"], told["end"]["status"]) == ("refused", int(status[:3]))
    assert told["end"]["message"].endswith(f"{server.url}/ answered {status[:3]}{detail}")
    assert len(server.requests) == 1


async def test_an_endless_refusal_is_not_read_to_its_end() -> None:
    endless: list[Step] = [wait_request(), head(status="403 Forbidden", type="text/plain"), *[chunk("no " * 1000)] * 10]
    async with script(endless) as server:
        [told] = await node(GET, url=server.url)
    assert told["end"]["kind"] == "refused"
    assert len(told["end"]["message"]) < 300


async def test_what_is_no_event_stream_is_refused() -> None:
    async with script([wait_request(), head(type="text/html"), chunk("<html>"), LAST_CHUNK, close()]) as server:
        [told] = await node(GET, url=server.url)
    assert told["end"]["kind"] == "type"
    assert told["end"]["message"] == f"GET {server.url}/ is no event stream: text/html"


async def test_an_event_that_is_too_long_ends_it_behind_those_before() -> None:
    async with script(answered(events(1, 2), chunk("data: " + 200 * "x"))) as server:
        program = "say(await read(penstock(given.url, { body: {}, maxEventLength: 100 })))"
        [told] = await node(program, url=server.url)
    assert (told["data"], told["end"]["kind"]) == (["1", "2"], "limit")


# -- where a stream is -------------------------------------------------------------------------------------------


async def test_a_relay_behind_a_prefix_says_where_the_stream_is() -> None:
    at = f"/api{STREAM}"
    async with script(cut(events(1, 1), fields=(f"Location: {at}",)), NOTHING_FOLLOWS) as server:
        assert await node(POST, url=f"{server.url}/api/chat") == [{"data": ["1"], "end": "done"}]
    assert lines(server.requests) == ["POST /api/chat", f"GET {at}"]


@pytest.mark.parametrize(
    "location", [f"https://elsewhere.test{STREAM}", "/somewhere/else", "//elsewhere.test/x"], ids=str
)
async def test_a_location_of_the_upstreams_is_not_followed(location: str) -> None:
    async with script(cut(events(1, 1), fields=(f"Location: {location}",)), NOTHING_FOLLOWS) as server:
        assert await node(POST, url=f"{server.url}/chat") == [{"data": ["1"], "end": "done"}]
    assert lines(server.requests) == ["POST /chat", f"GET {STREAM}"]


@pytest.mark.parametrize("id", ["../../admin", "short", ID + "x", "Zm9vYmFyYmF6cXV4MTIz%2f"])
async def test_what_is_no_stream_id_names_no_stream(id: str) -> None:
    async with script(cut(events(1, 1), id=id)) as server:
        [told] = await node(POST, url=server.url)
    assert told["end"]["kind"] == "cut"
    assert len(server.requests) == 1


# -- a reader that leaves ----------------------------------------------------------------------------------------

LEAVING = """
const how = new AbortController();
const leave = { signal: () => how.abort(), close: () => events.close() }[given.by];
const events = penstock(given.url, { body: {}, signal: how.signal, backoff: { initial: 1e8 }, onState });
function onState(state, { reason }) {
  if (state === given.state) setTimeout(leave, 10);
  if (state === "ended") say(reason);
}
say(await read(events));
say(await events.ended);
"""


@pytest.mark.parametrize("by", ["signal", "close"])
@pytest.mark.parametrize(
    ("state", "answer", "data"),
    [
        ("connecting", [wait_request()], []),
        ("open", [wait_request(), head(), events(1, 1)], ["1"]),
        ("waiting", cut(events(1, 1)), ["1"]),
    ],
)
async def test_leaving_is_silent_in_every_state(by: str, state: str, answer: list[Step], data: list[str]) -> None:
    async with script(answer) as server:
        said = await node(LEAVING, url=server.url, by=by, state=state)
    assert said == ["closed", {"data": data, "end": "done"}, {"reason": "closed"}]
    assert len(server.requests) <= 1


async def test_a_signal_that_is_aborted_already_asks_nothing() -> None:
    async with script([reset()]) as server:
        program = "say(await read(penstock(given.url, { signal: AbortSignal.abort() })))"
        assert await node(program, url=server.url) == [{"data": [], "end": "done"}]
    assert len(server.requests) == 0


async def test_leaving_from_within_a_callback_ends_the_wait() -> None:
    async with script(cut(events(1, 1))) as server:
        program = """
        const onState = (state) => state === "waiting" && events.close();
        const events = stream(given.url, { body: {}, backoff: { initial: 1e8 }, onState, onEvent() {} });
        say(await events.ended);
        """
        assert await node(program, url=server.url) == [{"reason": "closed"}]


async def test_a_loop_that_is_left_closes_the_connection() -> None:
    async with script([wait_request(), head(), events(1, 5)]) as server:
        program = """
        const events = penstock(given.url, { body: {} });
        for await (const { data } of events) if (data === "3") break;
        say([events.lastEventId, await events.ended]);
        """
        assert await node(program, url=server.url) == [[place(3), {"reason": "closed"}]]


async def test_a_handler_that_throws_ends_the_reading_with_its_error() -> None:
    async with script([wait_request(), head(), events(1, 5)]) as server:
        program = """
        const onEvent = ({ data }) => { say(data); if (data === "2") throw new RangeError("enough"); };
        const { reason, error } = await stream(given.url, { body: {}, onEvent }).ended;
        say([reason, String(error)]);
        """
        assert await node(program, url=server.url) == ["1", "2", ["error", "RangeError: enough"]]


@pytest.mark.parametrize("callback", ["onGap", "onState"])
async def test_a_callback_that_throws_is_not_taken_for_a_broken_connection(callback: str) -> None:
    gap = chunk('event: penstock.gap\ndata: {"requested":1,"earliest":2}\n\n')
    async with script([wait_request(), head(), gap]) as server:
        program = """
        const thrown = (state) => {
          if (given.callback === "onGap" || state === "open") throw new RangeError("enough");
        };
        const { reason, error } = await stream(given.url, { onEvent() {}, [given.callback]: thrown }).ended;
        say([reason, String(error)]);
        """
        assert await node(program, url=server.url, callback=callback) == [["error", "RangeError: enough"]]
    assert len(server.requests) == 1


async def test_a_stream_is_read_once() -> None:
    async with script(answered(id="")) as server:
        program = """
        const events = penstock(given.url);
        say(await read(events));
        try { events[Symbol.asyncIterator](); } catch (error) { say(String(error)); }
        """
        said = await node(program, url=server.url)
    assert said[1].startswith("TypeError: this stream is being read already")


# -- stop --------------------------------------------------------------------------------------------------------

STOP = """
const headers = { Authorization: "Bearer x" };
const events = penstock(given.url, { body: {}, headers });
const data = [];
for await (const event of events) {
  data.push(event.data);
  if (event.data === "2") await events.stop().then(() => say("stopped"), (error) => say(told(error)));
}
say([data, await events.ended]);
"""


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "409 Conflict"])
async def test_a_stream_is_stopped_at_the_relay(status: str) -> None:
    async with script([wait_request(), head(), events(1, 5)], refused(status)) as server:
        assert await node(STOP, url=f"{server.url}/chat") == ["stopped", [["1", "2"], {"reason": "stopped"}]]
    assert lines(server.requests) == ["POST /chat", f"DELETE {STREAM}"]
    fields = asked(server.requests[1])[1]
    assert fields["authorization"] == "Bearer x"
    assert "content-type" not in fields


async def test_a_stop_that_is_refused_says_so() -> None:
    async with script([wait_request(), head(), events(1, 5)], refused("403 Forbidden")) as server:
        told, (data, ended) = await node(STOP, url=server.url)
    assert (told["kind"], told["status"]) == ("refused", 403)
    assert (data, ended) == (["1", "2"], {"reason": "stopped"})


async def test_a_stop_before_the_answer_leaves() -> None:
    async with script([wait_request()]) as server:
        program = """
        const onState = () => setTimeout(() => events.stop(), 10);
        const events = stream(given.url, { body: {}, onEvent() {}, onState });
        say(await events.ended);
        """
        assert await node(program, url=server.url) == [{"reason": "stopped"}]
    assert len(server.requests) <= 1


# -- after a reload ----------------------------------------------------------------------------------------------

RELOADED = """
const storage = new Kept();
const before = stream(given.url, { body: {}, headers: { Authorization: "Bearer x" }, key: "chat", storage,
  onEvent: ({ data }) => { if (data === "2") before.close(); } });
await before.ended;
say([...storage].map(([key, kept]) => [key, JSON.parse(kept)]));
const after = resume("chat", { storage, ...given.options });
say(await read(after));
"""


async def test_a_page_that_is_loaded_again_has_the_whole_stream_again() -> None:
    scripts: list[list[Step]] = [[wait_request(), head(), events(1, 3)], answered(events(1, 4)), NOTHING_FOLLOWS]
    async with script(*scripts) as server:
        [[(key, kept)], told] = await node(RELOADED, url=server.url, options={})
    assert told == {"data": ["1", "2", "3", "4"], "end": "done"}
    assert lines(server.requests) == ["POST /", f"GET {STREAM}?after=0", f"GET {STREAM}"]
    assert (key, kept) == (
        "penstock:chat",
        {"id": ID, "url": f"{server.url}{STREAM}", "last": place(2), "events": 2},
    ), "and nothing of the request, for it may hold what is secret"


async def test_a_page_that_keeps_its_events_has_those_that_follow() -> None:
    async with script([wait_request(), head(), events(1, 3)], answered(events(3, 4)), NOTHING_FOLLOWS) as server:
        _, told = await node(RELOADED, url=server.url, options={"replay": False})
    assert told == {"data": ["3", "4"], "end": "done"}
    assert asked(server.requests[1])[1]["last-event-id"] == place(2)


async def test_a_page_that_keeps_its_events_has_those_that_follow_without_ids_too() -> None:
    first: list[Step] = [wait_request(), head(), events(1, 3, ids="")]
    async with script(first, answered(events(1, 4, ids=""))) as server:
        _, told = await node(RELOADED, url=server.url, options={"replay": False})
    assert told == {"data": ["3", "4"], "end": "done"}


async def test_a_stream_that_is_gone_after_a_reload_is_forgotten() -> None:
    async with script([wait_request(), head(), events(1, 3)], refused("404 Not Found")) as server:
        program = RELOADED + "say(resume('chat', { storage }));"
        _, told, kept = await node(program, url=server.url, options={})
    assert (told["end"]["kind"], kept) == ("gone", None)


async def test_a_stream_is_stopped_after_a_reload() -> None:
    async with script([wait_request(), head(), events(1, 3)], refused("204 No Content")) as server:
        program = RELOADED.replace("say(await read(after));", "await after.stop(); say(await after.ended);")
        assert (await node(program, url=server.url, options={}))[1] == {"reason": "stopped"}
    assert lines(server.requests) == ["POST /", f"DELETE {STREAM}"]


async def test_what_is_kept_is_forgotten_when_told_and_never_believed_blindly() -> None:
    program = """
    const storage = new Kept();
    for (const kept of given.kept) {
      storage.setItem("penstock:chat", kept);
      say(resume("chat", { storage }) === null);
      forget("chat", { storage });
      say(storage.size);
    }
    say(resume("chat"));
    """
    sound: dict[str, Any] = {"id": ID, "url": "http://relay.test/", "last": "", "events": 0}
    kept = [json.dumps(value) for value in (sound, sound | {"id": "../x"}, sound | {"url": 1}, sound | {"events": "x"})]
    said = await node(program, kept=[*kept, "{", "null", "7"])
    assert said == [False, 0, *[True, 0] * 6, None]


async def test_a_page_that_may_not_store_reads_all_the_same() -> None:
    async with script(cut(events(1, 1)), NOTHING_FOLLOWS) as server:
        program = """
        const storage = { getItem() { throw new Error("no"); }, setItem() { throw new Error("no"); } };
        say(await read(penstock(given.url, { body: {}, key: "chat", storage, backoff: quick })));
        say(resume("chat", { storage }));
        """
        assert await node(program, url=server.url) == [{"data": ["1"], "end": "done"}, None]
