"""The decoder of client.js, on the cases that the project's own decoder is tested with."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.relay.operator.page.node import needs_node, node
from tests.wire.cases import CORPUS, raw, text

pytestmark = [pytest.mark.anyio, needs_node]

# Whole, byte by byte, at every single cut where there are few, and in pieces of seeded sizes, empty ones among them.
EVERY_SPLIT = """
function* splits(bytes) {
  yield [bytes];
  if (bytes.length <= 20000) yield Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
  if (bytes.length <= 200) {
    for (let cut = 0; cut <= bytes.length; cut++) yield [bytes.subarray(0, cut), bytes.subarray(cut)];
  }
  for (let round = 1, seed = bytes.length; round <= 20; round++) {
    const pieces = [];
    for (let at = 0; at < bytes.length; ) {
      seed = (seed * 48271 + round) % 2147483647;
      const size = seed % (2 + Math.ceil(bytes.length / 5));
      pieces.push(bytes.subarray(at, at + size));
      at += size;
    }
    yield pieces;
  }
}
for (const { name, input, before } of given.cases) {
  const outcomes = new Set();
  for (const pieces of splits(Buffer.from(input, "base64"))) {
    const decoder = new Decoder(before);
    const events = pieces.flatMap((piece) => decoder.feed(piece));
    decoder.close();
    outcomes.add(JSON.stringify([
      events.map(({ type, data, id }) => [type, data, id]), decoder.lastEventId, decoder.retry,
    ]));
  }
  say([name, [...outcomes].map((outcome) => JSON.parse(outcome))]);
}
"""


def encoded(case: dict[str, Any]) -> dict[str, Any]:
    body = base64.b64encode(raw(case["input"])).decode()
    return {"name": case["name"], "input": body, "before": case.get("before", "")}


async def test_every_split_of_every_case_gives_its_events() -> None:
    cases = json.loads((CORPUS / "sse.json").read_text(encoding="utf-8"))["cases"]
    outcomes = dict(await node(EVERY_SPLIT, cases=[encoded(case) for case in cases]))
    assert len(outcomes) == len(cases) > 50
    for case in cases:
        events = [list(map(text, event)) for event in case["events"]]
        expected = [events, text(case.get("last_event_id", case.get("before", ""))), case.get("retry_ms")]
        assert outcomes[case["name"]] == [expected], case["name"]


async def test_events_before_one_that_is_too_long_are_returned_first() -> None:
    program = """
    const bytes = (text) => new TextEncoder().encode(text);
    for (const [first, ...others] of given.bodies) {
      const decoder = new Decoder("", { maxEventLength: 100 });
      const events = decoder.feed(bytes(first));
      try {
        for (const piece of others) events.push(...decoder.feed(bytes(piece)));
        decoder.close();
        say([events.length, "no limit"]);
      } catch (error) {
        say([events.length, error.kind]);
      }
    }
    """
    line = "data: " + 60 * "x" + "\n"
    bodies = [
        ["data: 1\n\ndata: 2\n\n" + 2 * line, "data: 3\n\n"],  # the data of an event
        ["data: 1\n\n: " + 200 * "x", "\n\n"],  # an endless comment
        ["data: 1\n\n" + line, "\n" + line, "\n"],  # two that are short enough
        ["data: 1\n\n", *(50 * ["xxx"])],  # an endless line, little by little
    ]
    assert await node(program, bodies=bodies) == [[2, "limit"], [1, "limit"], [3, "no limit"], [1, "limit"]]


async def test_the_time_is_linear_in_the_size_of_an_event() -> None:
    program = """
    const piece = new TextEncoder().encode("x".repeat(1000));
    const took = (pieces) => {
      let best = Infinity;
      for (let round = 0; round < 5; round++) {
        const decoder = new Decoder("");
        const start = process.cpuUsage();
        decoder.feed(new TextEncoder().encode("data: "));
        for (let i = 0; i < pieces; i++) decoder.feed(piece);
        const [event] = decoder.feed(new TextEncoder().encode("\\n\\n"));
        if (event.data.length !== pieces * 1000) throw new Error("not whole");
        const { user, system } = process.cpuUsage(start);
        best = Math.min(best, user + system);
      }
      return best;
    };
    took(500);
    say(took(8000) / took(1000));
    """
    [ratio] = await node(program)
    assert ratio < 30, "eight times as much took more than thirty times as long"
