"""The reload example in a real browser: its page, and a route that streams a model's answer through Penstock."""

from __future__ import annotations

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
from tests.e2e.browser import Browser
from tests.e2e.held import EVENTS, Held, answer, held

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(120)]

RELOAD = Path(__file__).parents[2] / "examples" / "reload"
QUESTION = "Why does a mill have a penstock?"
ASKED = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/streams/')).length"


@pytest.fixture
def upstream() -> Iterator[Held]:
    with held() as running:
        yield running


@pytest.fixture
def example(upstream: Held) -> Iterator[str]:
    """The example beside its route, and the relay's own addresses."""
    relay = penstock.Relay(upstream.url, store="memory://")

    async def chat(request: Request) -> Response:
        question = (await request.json())["question"]
        asked = {"model": "sample", "stream": True, "messages": [{"role": "user", "content": question}]}
        return await relay.forward(request, "POST", "/v1/chat/completions", json=asked)

    app = Starlette(
        routes=[
            Route("/api/chat", chat, methods=["POST"]),
            Route("/", lambda request: FileResponse(RELOAD / "index.html")),
            Route("/reload.{kind}", lambda request: FileResponse(RELOAD / f"reload.{request.path_params['kind']}")),
            Mount("/", relay),
        ],
        lifespan=relay.lifespan,
    )
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(serve(app)) as url:
        yield url


def ask(browser: Browser, example: str, upstream: Held) -> str:
    """Ask, and wait for the first third of the answer."""
    third = answer(QUESTION)[: len(answer(QUESTION)) // 3]
    browser.open(example)
    browser.click("#ask button", "Ask")
    upstream.says(EVENTS // 2)
    browser.until(lambda: browser.text("#answer").startswith(third), "a third of the answer")
    return third


def test_after_a_reload_the_whole_answer_is_there_once(browser: Browser, example: str, upstream: Held) -> None:
    third = ask(browser, example, upstream)
    for _ in range(2):
        browser.driver.refresh()
        browser.until(lambda: browser.text("#answer").startswith(third), "what was there before")
    upstream.says(EVENTS)
    browser.until(lambda: browser.text("#state") == "The answer is done.", "an end")
    assert browser.text("#answer") == answer(QUESTION)
    browser.screenshot("reload")
    browser.driver.refresh()
    browser.until(lambda: browser.text("#state") == "The answer is done.", "the same end")
    assert browser.text("#answer") == answer(QUESTION)
    assert upstream.asked == 1


def test_stop_ends_the_answer_for_good(browser: Browser, example: str, upstream: Held) -> None:
    third = ask(browser, example, upstream)
    browser.driver.refresh()
    browser.until(lambda: browser.text("#answer").startswith(third), "what was there before")
    browser.click("#stop")
    browser.until(lambda: browser.text("#state") == "The answer is stopped.", "a stop")
    assert not browser.one("#stop").is_enabled()
    stopped = browser.text("#answer")
    assert len(stopped) < len(answer(QUESTION))
    upstream.says(EVENTS)
    browser.driver.refresh()
    browser.until(lambda: browser.text("#state") == "the stream was stopped", "what became of it")
    assert browser.text("#answer").startswith(stopped)
    assert answer(QUESTION).startswith(browser.text("#answer"))
    # A browser throws away what a page has not read when the connection breaks: the relay leaves it the time.
    assert browser.run(ASKED) <= 2
    assert upstream.asked == 1
