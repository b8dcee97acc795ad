"""The relay's page and the reload example in a real browser, through a real relay, with what people do to them."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route

import penstock
from penstock.testing import serve
from tests.e2e.browser import Browser, chromium
from tests.e2e.process import PATIENCE, Server
from tests.relay.page.node import PAGE
from tests.relay.page.relayed import Relayed, relayed

# Marked as soak because a browser's journeys take more than a minute, and `make test` is to stay short.
pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(120)]

RELOAD = Path(__file__).parents[2] / "examples" / "reload"
TOKENS = 90
CHAT = f"/v1/chat/completions?tokens={TOKENS}&interval=0.05"
ENDLESS = "/v1/chat/completions?tokens=100000&interval=0.05"
QUESTION = "Why does a mill have a penstock?"

# The text of a reader, less what the page itself says in between.
READ = """[...document.querySelectorAll('.output')].map(
  (output) => [...output.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join(''))"""


@pytest.fixture(scope="module")
def relay(origin: Server) -> Iterator[Relayed]:
    with relayed(origin.url) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    kept = os.environ.get("PENSTOCK_SCREENSHOTS")
    with chromium(Path(kept) if kept else tmp_path_factory.mktemp("screenshots")) as browser:
        yield browser


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """The browser; what it says against the page afterwards, its security policy included, fails the test.

    That a stopped stream's connection is broken off is as it should be.
    """
    yield shared
    assert [each for each in shared.complaints() if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in each] == []


def answer(origin: Server, path: str = CHAT, question: str = QUESTION) -> str:
    """What the origin says, in one piece."""
    asked = {"model": "sample", "messages": [{"role": "user", "content": question}]}
    request = urllib.request.Request(origin.url + path, json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        text: str = json.load(response)["choices"][0]["message"]["content"]
    return text


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


def was_cut(browser: Browser, times: int) -> None:
    browser.until(lambda: figure(browser, "cuts") == times, f"{times} cuts")


# -- the journeys ------------------------------------------------------------------------------------------------


def test_a_connection_is_cut_three_times_and_nothing_is_lost(browser: Browser, relay: Relayed, origin: Server) -> None:
    before = {each["id"] for each in streams(relay)}
    load(browser, relay)
    begin(browser)
    for cut in (1, 2, 3):
        arrived(browser, 8 * cut)
        browser.click(".actions button", "Cut")
        was_cut(browser, cut)
        browser.until(lambda: states(browser) == ["open"], "a connection")
    browser.until(lambda: "Nothing lost" in browser.text(".verdict"), "an end")
    events = TOKENS + 3  # the role, the reason of the end, [DONE]
    assert browser.text(".verdict") == (
        f"Done: {events} events, 3 cuts, no gap. Nothing lost: the relay counted {events}."
    )
    assert browser.run(READ) == [answer(origin)]
    assert len(browser.all(".seam")) == 3
    [stream] = [each for each in streams(relay) if each["id"] not in before]
    assert (stream["events"], stream["reason"]) == (events, "done"), "and the upstream was asked once"
    browser.screenshot("cut")


def test_a_second_reader_has_the_same_from_the_start(browser: Browser, relay: Relayed, origin: Server) -> None:
    load(browser, relay)
    begin(browser)
    arrived(browser, 20)
    browser.click(".actions button", "Second reader")
    browser.until(lambda: states(browser) == ["done", "done"], "two ends")
    assert browser.run(READ) == [answer(origin)] * 2
    browser.until(lambda: browser.text("#gap-median").endswith("ms"), "how far the events are apart")
    browser.screenshot("two-readers")


def test_the_page_is_loaded_again_in_the_middle(browser: Browser, relay: Relayed, origin: Server) -> None:
    load(browser, relay)
    begin(browser)
    arrived(browser, 15)
    browser.driver.refresh()
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == [answer(origin)]


def test_a_stream_is_stopped_for_all_its_readers(browser: Browser, relay: Relayed) -> None:
    load(browser, relay)
    begin(browser, ENDLESS)
    arrived(browser, 3)
    browser.click(".actions button", "Second reader")
    arrived(browser, 3, reader=1)
    browser.click(".reader:first-child .actions button", "Stop")
    browser.until(lambda: states(browser)[0] == "stopped", "a stop")
    browser.until(lambda: states(browser)[1] in ("error", "done"), "an end of the other")
    browser.until(lambda: browser.text("#rows tr:first-child [data-state]") == "cancelled", "its line")
    browser.until(lambda: "cancelled" in browser.text(".reader:last-child .verdict"), "why")


def test_a_stream_of_the_table_is_read_and_stopped(browser: Browser, relay: Relayed) -> None:
    load(browser, relay)
    begin(browser, ENDLESS)
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
    assert not browser.one(f"{line} button[aria-label^='Stop']").is_enabled()
    browser.until(lambda: browser.text("#rate-now") not in ("", "–"), "a rate")
    assert browser.run("document.querySelector('#rate-chart .line').getAttribute('d')").startswith("M")
    assert "closed" in browser.text("#breakers")


def test_events_with_ids_of_their_own_are_neither_lost_nor_doubled(browser: Browser, relay: Relayed) -> None:
    load(browser, relay)
    browser.run("document.querySelector('#preset').focus()")
    browser.press("N")  # Numbered events
    browser.until(lambda: browser.one("#method").get_attribute("value") == "GET", "the preset")
    begin(browser, "/events?count=40&interval=0.05")
    for cut in (1, 2):
        arrived(browser, 8 * cut)
        browser.click(".actions button", "Cut")
        was_cut(browser, cut)
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == ["".join(f'{{"n":{n}}}\n' for n in range(1, 41))]


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


def test_it_is_used_by_keyboard_alone(browser: Browser, relay: Relayed) -> None:
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
    browser.press(ENDLESS, Keys.ENTER)
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


def test_what_a_stream_says_is_text(browser: Browser, relay: Relayed, origin: Server) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    load(browser, relay)
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": markup}]}
    browser.type("#body", json.dumps(asked))
    begin(browser)
    browser.until(lambda: states(browser) == ["done"], "an end")
    assert browser.run(READ) == [answer(origin, question=markup)]
    assert browser.all(".output img, .output script") == []


def test_a_breaker_that_opens_is_seen(shared: Browser, closed_port: str) -> None:
    with relayed(closed_port) as relay:
        load(shared, relay)
        begin(shared)
        shared.until(lambda: states(shared) == ["error"], "a refusal")
        shared.until(lambda: shared.text("#breakers b") == "open", "an open breaker")
        assert shared.text("#breakers") == f"breaker of {closed_port} open"
        shared.screenshot("breaker")
    assert all("status of 50" in message for message in shared.complaints())


def test_a_relay_that_goes_away_is_told(shared: Browser, origin: Server) -> None:
    with relayed(origin.url) as relay:
        load(shared, relay)
        shared.until(lambda: shared.one("#no-stream").is_displayed(), "a list")
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

TEXTS = "h1, h2, h3, p, dt, dd, label, button:enabled, input, textarea, select, th, td, figcaption, .hint, .seam"
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_can_be_read_in_every_width_and_light(browser: Browser, relay: Relayed, width: int, dark: bool) -> None:
    load(browser, relay, width=width, dark=dark)
    begin(browser)
    arrived(browser, 10)
    browser.click(".actions button", "Cut")
    browser.until(lambda: browser.all(".seam"), "a resume")
    browser.click(".actions button", "Second reader")
    browser.until(lambda: states(browser) == ["done", "done"], "two ends")
    browser.screenshot(f"{width}-{'dark' if dark else 'light'}")
    assert browser.run("document.documentElement.scrollWidth") == width
    measured = browser.run(CONTRAST, TEXTS)
    assert len(measured) > 30
    assert [(name, ratio) for name, ratio in measured if ratio < 4.5] == []


# -- the example -------------------------------------------------------------------------------------------------


@pytest.fixture
def example(origin: Server) -> Iterator[str]:
    """The reload example beside a route that streams an answer, and the relay's own addresses."""
    relay = penstock.Relay(origin.url, store="memory://")

    async def chat(request: Request) -> Response:
        question = (await request.json())["question"]
        asked = {"model": "sample", "stream": True, "messages": [{"role": "user", "content": question}]}
        return await relay.forward(request, "POST", CHAT, json=asked)

    app = Starlette(
        routes=[
            Route("/api/chat", chat, methods=["POST"]),
            Route("/_penstock/client.js", lambda request: FileResponse(PAGE / "client.js")),
            Route("/", lambda request: FileResponse(RELOAD / "index.html")),
            Route("/reload.{kind}", lambda request: FileResponse(RELOAD / f"reload.{request.path_params['kind']}")),
            Mount("/", relay),
        ],
        lifespan=relay.lifespan,
    )
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(serve(app)) as url:
        yield url


def test_the_reload_example_goes_on_after_a_reload(browser: Browser, example: str, origin: Server) -> None:
    browser.open(example)
    browser.click("#ask button", "Ask")
    browser.until(lambda: len(browser.text("#answer")) > 20, "an answer")
    browser.driver.refresh()
    browser.until(lambda: browser.text("#state") == "The answer is done.", "an end")
    assert browser.text("#answer") == answer(origin)
    browser.screenshot("reload")
