"""An upstream that says so many events of a stream, and the rest when the test has it go on.

What a browser's user does takes its time; here no stream is over before they have done it, however slow the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from penstock.testing import serve

TOKENS = 60
EVENTS = TOKENS + 3  # the role, the reason of the end, [DONE]
INTERVAL = 0.02


class Held:
    """The upstream.

    Args:
        portal: Of the loop that it is served in.

    Attributes:
        url: Where it is.
        asked: How many streams were asked for.
    """

    def __init__(self, portal: BlockingPortal) -> None:
        self.url = ""
        self.asked = 0
        self._most = 0
        self._more = asyncio.Event()
        self._portal = portal
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/events", self._numbers),
            ]
        )

    def says(self, events: int) -> None:
        """Let each stream have its first events; for the test's thread."""
        self._portal.call(self._says, events)

    def _says(self, events: int) -> None:
        self._most = events
        self._more.set()
        self._more = asyncio.Event()

    async def _chat(self, request: Request) -> Response:
        question = (await request.json())["messages"][-1]["content"]
        deltas = [{"role": "assistant"}, *({"content": token} for token in tokens(question))]
        chunks = [_chunk(delta) for delta in deltas]
        return self._stream([*chunks, _chunk({}, "stop"), "data: [DONE]\n\n"])

    async def _numbers(self, request: Request) -> Response:
        """Numbered events with ids of their own."""
        return self._stream([f'id: {n}\ndata: {{"n":{n}}}\n\n' for n in range(1, EVENTS + 1)])

    def _stream(self, events: list[str]) -> Response:
        self.asked += 1

        async def said() -> AsyncIterator[str]:
            for number, event in enumerate(events):
                while number >= self._most:
                    await self._more.wait()
                yield event
                await asyncio.sleep(INTERVAL)

        return StreamingResponse(said(), media_type="text/event-stream")


def tokens(question: str) -> list[str]:
    """What is answered, token by token."""
    words = f"You asked: {question} And this is the answer, the same each time.".split(" ")
    return [f"{word} " for word in itertools.islice(itertools.cycle(words), TOKENS)]


def answer(question: str) -> str:
    """What is answered, in one piece."""
    return "".join(tokens(question))


def _chunk(delta: dict[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """Serve on a free port, until the block ends."""
    with start_blocking_portal("asyncio") as portal:
        upstream = Held(portal)
        with portal.wrap_async_context_manager(serve(upstream.app)) as upstream.url:
            yield upstream
