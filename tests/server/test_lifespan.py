from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn import Config

from penstock.errors import PenstockError
from penstock.server.lifespan import Lifespan, StartupError

pytestmark = pytest.mark.anyio


def lifespan(app: Any) -> Lifespan:
    config = Config(app, log_config=None, interface="asgi3", proxy_headers=False)
    config.load()
    return Lifespan(config)


class App:
    """Says what it is told to, and notes what it hears."""

    def __init__(self, *answers: str | Exception, message: str = "") -> None:
        self.answers = list(answers)
        self.message = message
        self.heard: list[str] = []
        self.ended = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["key"] = "value"
        try:
            for answer in self.answers:
                self.heard.append((await receive())["type"])
                if isinstance(answer, Exception):
                    await send({"type": f"{self.heard[-1]}.failed", "message": self.message})
                    raise answer
                await send({"type": f"{self.heard[-1]}.{answer}", "message": self.message})
        finally:
            self.ended = True


async def test_start_and_stop() -> None:
    app = App("complete", "complete")
    one = lifespan(app)
    await one.startup()
    assert (app.ended, one.state) == (False, {"key": "value"})
    await one.shutdown()
    assert (app.heard, app.ended) == (["lifespan.startup", "lifespan.shutdown"], True)
    await one.shutdown()
    assert len(app.heard) == 2


async def test_a_failed_start_raises_the_applications_own_error() -> None:
    error = PenstockError("no store at redis://x")
    with pytest.raises(PenstockError) as raised:
        await lifespan(App(error)).startup()
    assert raised.value is error


async def test_a_failed_start_without_an_error_has_its_message() -> None:
    with pytest.raises(StartupError, match="cannot start: no disk"):
        await lifespan(App("failed", message="no disk")).startup()


async def test_an_application_without_a_lifespan_is_served_without_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError(scope["type"])

    one = lifespan(app)
    await one.startup()
    await one.shutdown()


async def test_a_named_error_before_any_word_is_a_failed_start() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise PenstockError("no")

    with pytest.raises(PenstockError, match="no"):
        await lifespan(app).startup()


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_wait_can_be_given_up(when: str) -> None:
    app = App("complete") if when == "shutdown" else App()
    hangs = asyncio.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        try:
            if app.answers:
                app.heard.append((await receive())["type"])
                await send({"type": "lifespan.startup.complete"})
            await hangs.wait()
        finally:
            app.ended = True

    one = lifespan(hanging)
    if when == "shutdown":
        await one.startup()
    task = asyncio.create_task(getattr(one, when)())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.ended


@pytest.mark.parametrize(
    ("app", "line"),
    [
        (App("complete", PenstockError("not flushed")), "the application did not stop cleanly: not flushed"),
        (App("complete", "failed", message="why"), "the application did not stop cleanly: why"),
        (App("complete", ZeroDivisionError()), "the application did not stop cleanly"),
    ],
)
async def test_a_bad_end_is_logged(caplog: pytest.LogCaptureFixture, app: App, line: str) -> None:
    one = lifespan(app)
    await one.startup()
    await one.shutdown()
    assert [record.getMessage() for record in caplog.records] == [line]
