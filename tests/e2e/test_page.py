"""The relay's page in a real browser, through a real relay, with what people do to it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from tests.e2e.browser import Browser
from tests.e2e.held import EVENTS, Held, answer, held
from tests.e2e.process import PATIENCE
from tests.relay.operator.page.relayed import Relayed, relayed

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(120)]

CHAT = "/v1/chat/completions"
QUESTION = "Why does a mill have a penstock?"

# The text of a reader, less what the page itself says in between.
READ = """[...document.querySelectorAll('.output')].map(
  (output) => [...output.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join(''))"""


@pytest.fixture(scope="module")
def serving() -> Iterator[tuple[Held, Relayed]]:
    with held() as upstream, relayed(upstream.url) as running:
        yield upstream, running


@pytest.fixture
def upstream(serving: tuple[Held, Relayed]) -> Held:
    """The upstream, which says nothing until it is told to."""
    serving[0].says(0)
    return serving[0]


@pytest.fixture
def relay(serving: tuple[Held, Relayed]) -> Relayed:
    return serving[1]


def streams(relay: Relayed) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"{relay.admin}/_penstock/streams", timeout=PATIENCE) as response:
        listed: list[dict[str, object]] = json.load(response)["streams"]
    return listed


def load(browser: Browser, relay: Relayed, **how: object) -> None:
    browser.open(f"{relay.admin}/_penstock/", **how)  # type: ignore[arg-type]
    browser.until(lambda: browser.text("#public") == relay.public, "where the relay is")


def begin(browser: Browser, path: str = CHAT) -> None:
    browser.type("#path", path)
    browser.click("#start button")


def figure(browser: Browser, name: str, reader: int = 0) -> int:
    pairs = browser.run(
        "[...document.querySelectorAll('.reader')[arguments[0]]?.querySelectorAll('.figures div') ?? []]"
        ".map((pair) => [...pair.children].map((each) => each.textContent))",
        reader,
    )
    return int(dict(pairs).get(name, "0").replace(",", ""))


def states(browser: Browser) -> list[str]:
    said: list[str] = browser.run("[...document.querySelectorAll('.reader .state')].map((each) => each.dataset.state)")
    return said


def arrived(browser: Browser, events: int, reader: int = 0) -> None:
    browser.until(lambda: figure(browser, "events", reader) >= events, f"{events} events")


def cut(browser: Browser, times: int) -> None:
    """Cut the first reader's connection, and wait until it has another."""
    browser.click(".actions button", "Cut")
    browser.until(lambda: figure(browser, "cuts") == times, f"{times} cuts")
    browser.until(lambda: states(browser)[0] == "open", "a connection")


# -- the journeys ------------------------------------------------------------------------------------------------


def test_a_connection_is_cut_three_times_and_nothing_is_lost(browser: Browser, relay: Relayed, upstream: Held) -> None:
    before, asked = {each["id"] for each in streams(relay)}, upstream.asked
    load(browser, relay)
    browser.screenshot("empty")
    begin(browser)
    for times in (1, 2, 3):
        upstream.says(8 * times)
        arrived(browser, 8 * times)
        cut(browser, times)
    upstream.says(EVENTS)
    browser.until(lambda: "Nothing lost" in browser.text(".verdict"), "an end")
    assert browser.text(".verdict") == (
        f"Done: {EVENTS} events, 3 cuts, no gap. Nothing lost: the relay counted {EVENTS}."
    )
    assert browser.run(READ) == [answer(QUESTION)]
    assert len(browser.all(".seam")) == 3
    [stream] = [each for each in streams(relay) if each["id"] not in before]
    assert (stream["events"], stream["reason"]) == (EVENTS, "done")
    assert upstream.asked == asked + 1
    assert stream["first_event"] is not None
    browser.until(lambda: browser.text(f"tr[data-stream='{stream['id']}'] [data-label='first event']") != "–", "it")
    browser.screenshot("cut")


def test_a_second_reader_has_the_same_from_the_start(browser: Browser, relay: Relayed, upstream: Held) -> None:
    load(browser, relay)
    begin(browser)
    upstream.says(20)
    arrived(browser, 20)
    browser.click(".actions button", "Second reader")
    arrived(browser, 20, reader=1)
    upstream.says(EVENTS)
    browser.until(lambda: states(browser) == ["done", "done"], "two ends")
    assert browser.run(READ) == [answer(QUESTION)] * 2
    browser.until(lambda: browser.text("#gap-median").endswith("ms"), "how far the events are apart")
    browser.screenshot("two-readers")


def test_the_page_is_loaded_again_in_the_middle(browser: Browser, relay: Relayed, upstream: Held) -> None:
    load(browser, relay)
    begin(browser)
    upstream.says(15)
    arrived(browser, 15)
    browser.driver.refresh()
    arrived(browser, 15)
    upstream.says(EVENTS)
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == [answer(QUESTION)]


def test_a_stream_is_stopped_for_all_its_readers(browser: Browser, relay: Relayed, upstream: Held) -> None:
    load(browser, relay)
    begin(browser)
    upstream.says(3)
    arrived(browser, 3)
    browser.click(".actions button", "Second reader")
    arrived(browser, 3, reader=1)
    browser.click(".reader:first-child .actions button", "Stop")
    browser.until(lambda: states(browser)[0] == "stopped", "a stop")
    browser.until(lambda: states(browser)[1] in ("error", "done"), "an end of the other")
    browser.until(lambda: browser.text("#rows tr:first-child [data-state]") == "cancelled", "its line")
    browser.until(lambda: "cancelled" in browser.text(".reader:last-child .verdict"), "why")


def test_a_stream_of_the_table_is_read_and_stopped(browser: Browser, relay: Relayed, upstream: Held) -> None:
    load(browser, relay)
    begin(browser)
    upstream.says(3)
    arrived(browser, 3)
    stream = browser.run("document.querySelector('.reader').dataset.stream")
    line = f"#rows tr[data-stream='{stream}']"
    browser.until(lambda: browser.text(f"{line} [data-state]") == "running", "its line")
    browser.click(".reader header button", "Close")
    browser.until(lambda: browser.text(f"{line} [data-label='readers']") == "0", "no reader")
    browser.click(f"{line} button", "Read")
    arrived(browser, 3)
    assert len(browser.all(".reader")) == 1
    browser.click(f"{line} button", "Stop")
    browser.until(lambda: browser.text(f"{line} [data-state]") == "cancelled", "its end")
    assert not browser.one(f"{line} button[aria-label^='Stop']").is_displayed()
    assert browser.run("document.activeElement.textContent") == "Read", "the focus is not lost with the button"
    browser.until(lambda: browser.text("#rate-now") not in ("", "–"), "a rate")
    browser.until(lambda: browser.run("document.querySelector('#rate-chart .line').getAttribute('d')"), "its line")
    assert "closed" in browser.text("#breakers")


def test_events_with_ids_of_their_own_are_neither_lost_nor_doubled(
    browser: Browser, relay: Relayed, upstream: Held
) -> None:
    load(browser, relay)
    browser.run("document.querySelector('#preset').focus()")
    browser.press("N")  # Numbered events
    browser.until(lambda: browser.one("#method").get_attribute("value") == "GET", "the preset")
    begin(browser, "/events")
    for times in (1, 2):
        upstream.says(8 * times)
        arrived(browser, 8 * times)
        cut(browser, times)
    upstream.says(EVENTS)
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == ["".join(f'{{"n":{n}}}\n' for n in range(1, EVENTS + 1))]


# -- how it is used ----------------------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_told_where_it_is_wrong(browser: Browser, relay: Relayed) -> None:
    load(browser, relay)
    for field, wrong, right, told in [
        ("path", "//elsewhere.test/x", CHAT, "begins with one /"),
        ("path", "chat", CHAT, "begins with one /"),
        ("headers", "no header", "X-Right: 1", "“no header” is no header"),
        ("body", "{", "{}", "not JSON"),
    ]:
        browser.type(f"#{field}", wrong)
        browser.click("#start button")
        assert told in browser.text(f"#{field}-error")
        assert browser.run("document.activeElement.id") == field
        assert browser.one(f"#{field}").get_attribute("aria-invalid") == "true"
        browser.type(f"#{field}", right)
    assert browser.all(".reader") == []


def test_it_is_used_by_keyboard_alone(browser: Browser, relay: Relayed, upstream: Held) -> None:
    from selenium.webdriver.common.keys import Keys

    load(browser, relay)
    names = []
    for _ in range(7):
        browser.press(Keys.TAB)
        names.append(browser.run("document.activeElement.id || document.activeElement.textContent"))
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", names[-1]
    assert names == ["Skip to the readers", "preset", "method", "path", "headers", "body", "Start"]
    browser.run("document.querySelector('#path').focus()")
    browser.press(Keys.CONTROL + "a")
    browser.press(CHAT, Keys.ENTER)
    upstream.says(3)
    arrived(browser, 3)
    browser.run("document.querySelector('#start button').focus()")
    order = []
    for _ in range(5):
        browser.press(Keys.TAB)
        order.append(browser.run("document.activeElement.textContent.slice(0, 18)"))
    assert order[0] == "Close"
    assert order[2:] == ["Cut the connection", "Second reader", "Stop"]
    browser.press(Keys.SPACE)
    browser.until(lambda: states(browser) == ["stopped"], "a stop")


def test_what_a_stream_says_is_text(browser: Browser, relay: Relayed, upstream: Held) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    load(browser, relay)
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": markup}]}
    browser.type("#body", json.dumps(asked))
    upstream.says(EVENTS)
    begin(browser)
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == [answer(markup)]
    assert browser.all(".output img, .output script") == []


def test_a_breaker_that_opens_is_seen(shared: Browser, closed_port: str) -> None:
    with relayed(closed_port) as relay:
        load(shared, relay)
        begin(shared)
        shared.until(lambda: states(shared) == ["error"], "a refusal")
        assert "is it running?" in shared.text(".verdict")
        shared.until(lambda: shared.text("#breakers b") == "open", "an open breaker")
        assert shared.text("#breakers") == f"breaker of {closed_port} open"
        shared.screenshot("breaker")
    assert all("status of 50" in message for message in shared.complaints())


def test_a_relay_that_goes_away_is_told(shared: Browser, upstream: Held) -> None:
    with relayed(upstream.url) as relay:
        load(shared, relay)
        shared.until(lambda: shared.one("#no-stream").is_displayed(), "a list")
        assert relay.public in shared.text("#no-stream"), "what to do"
    shared.until(lambda: "The list of streams did not come" in shared.text("#trouble"), "the trouble")
    assert shared.one("#trouble").get_attribute("role") == "alert"
    shared.complaints()


def test_a_path_that_is_not_there_is_told(relay: Relayed, shared: Browser) -> None:
    load(shared, relay)
    begin(shared, "/no/such/path")
    shared.until(lambda: states(shared) == ["error"], "an end")
    assert "answered 404" in shared.text(".verdict")
    assert all("404" in message for message in shared.complaints())


# -- how it looks ------------------------------------------------------------------------------------------------

TEXTS = (
    "h1, h2, h3, b, code, p, dt, dd, label, button:enabled, input, textarea, select, th, td, figcaption, .hint, .seam"
)
CONTRAST = """[...document.querySelectorAll(arguments[0])]
.filter((each) => each.checkVisibility() && `${each.textContent}${each.value ?? ''}`.trim() !== '')
.map((each) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const grounds = [];
  for (let at = each; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
  const painted = (...colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const light = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
  };
  const ground = painted(...grounds), ink = painted(getComputedStyle(each).color);
  const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
  return [`${each.tagName}.${each.className} ${each.textContent.trim().slice(0, 20)}`, ratio];
})"""


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_can_be_read_in_every_width_and_light(browser: Browser, relay: Relayed, upstream: Held, width: int) -> None:
    load(browser, relay, width=width)
    looked_at(browser, f"{width}-empty", width)
    begin(browser)
    upstream.says(20)
    arrived(browser, 20)
    cut(browser, 1)
    browser.click(".actions button", "Second reader")
    upstream.says(40)
    arrived(browser, 40, reader=1)
    browser.until(lambda: browser.all(".seam"), "a resume")
    looked_at(browser, f"{width}-live", width)
    upstream.says(EVENTS)
    browser.until(lambda: browser.text(".reader:last-child .verdict").count("Nothing lost"), "an end")
    browser.type("#path", "chat")
    browser.click("#start button")
    looked_at(browser, f"{width}-done", width)


def looked_at(browser: Browser, name: str, width: int) -> None:
    """In both lights: nothing is cut off at the side, and all that is written stands out from its ground."""
    for light in ("light", "dark"):
        browser.light(dark=light == "dark")
        browser.screenshot(f"{name}-{light}")
        assert browser.run("document.documentElement.scrollWidth") == width
        measured = browser.run(CONTRAST, TEXTS)
        assert len(measured) > 30
        assert [(name, ratio) for name, ratio in measured if ratio < 4.5] == []
    browser.light(dark=False)
