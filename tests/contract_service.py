"""The service through which public contract tests drive our event stream client.

``python -m tests.contract_service --port N``. A harness creates streams here and plays the server that they are read
from; what the client makes of it is called back, so that any client in any language can be held to the same contract.

==================  ==============================================  ===================================================
request             body                                            answer
==================  ==============================================  ===================================================
GET /                                                               200 and the capabilities
POST /              an `Order`: what to read, where to call back    201 and the stream's Location
POST the Location   ``{"command": "restart"}`` or                   202
                    ``{"command": "listen", …}``
DELETE the Location                                                 204, after which nothing is called back any more
DELETE /                                                            204, and the process ends with 0
==================  ==============================================  ===================================================

What cannot be read, or makes no request, is 400; a stream that is not there is 404. The callbacks of a stream are
``POST <callbackUrl>/<n>``, n = 1, 2, 3 … without gaps, each after the answer to the one before: an event, a comment, or
an error for each connection that failed. A clean end is no failure, and neither is a restart.

``listen`` changes nothing: the client hears every type of event. ``server-directed-shutdown-request`` is the 204 that
ends a stream for good.

Source:
    launchdarkly/sse-contract-tests, docs/service_spec.md and docs/optional_features.md
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pydantic
from pydantic.alias_generators import to_camel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penstock import AsyncClient, Backoff, EventStream, PenstockError, Retry, Timeout
from penstock.client.notices import Comment, Interrupted, Notice
from penstock.server.listen import bind, bound_to
from penstock.server.serve import Server

CAPABILITIES = [
    "bom",
    "comments",
    "event-type-listeners",
    "headers",
    "last-event-id",
    "post",
    "read-timeout",
    "report",
    "restart",
    "server-directed-shutdown-request",
]

INITIAL_DELAY_MS = 100
"""Before the first reconnect, where the order does not say: a harness that waits has better things to do."""

FOR_EVER = sys.maxsize


class Order(pydantic.BaseModel):
    """What a stream is to be; null is as good as absent."""

    model_config = pydantic.ConfigDict(alias_generator=to_camel, strict=True)

    stream_url: str
    callback_url: str
    tag: str | None = None
    initial_delay_ms: pydantic.NonNegativeInt | None = None
    read_timeout_ms: pydantic.PositiveInt | None = None
    last_event_id: str | None = None
    headers: dict[str, str] | None = None
    method: str | None = None
    body: str | None = None

    @property
    def timeout(self) -> Timeout:
        """The read timeout, for the headers too; without one any silence is waited out."""
        silence = None if self.read_timeout_ms is None else self.read_timeout_ms / 1000
        return Timeout(first_event=silence, between_events=silence)

    @property
    def retry(self) -> Retry:
        """For ever, soon, and whatever the method: who orders a stream here has marked it as safe."""
        delay = self.delay_ms / 1000
        backoff = Backoff(initial=max(delay, 0.001), maximum=max(delay, 1.0), jitter="none")
        return Retry(FOR_EVER, backoff, idempotent=True, budget=None)

    @property
    def delay_ms(self) -> int:
        """The reconnection time until the server names another."""
        return INITIAL_DELAY_MS if self.initial_delay_ms is None else self.initial_delay_ms


class Stream:
    """One stream under test: read to its end, every step of it called back.

    Raises:
        ValueError, PenstockError: The order makes no request.
    """

    def __init__(self, order: Order) -> None:
        self._client = AsyncClient()
        self._callback_url = order.callback_url.rstrip("/")
        self._client.absolute_url(self._callback_url)
        self._untold: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        request = self._client.request(order.method or "GET", order.stream_url).headers(order.headers or {})
        if order.body:
            request = request.content(order.body)
        self._events = (
            request.timeout(order.timeout)
            .retry(order.retry)
            .items(
                EventStream,
                reconnect="strict",
                last_event_id=order.last_event_id or "",
                retry_ms=order.delay_ms,
                on_notice=self._noticed,
            )
        )

    async def run(self) -> None:
        """Read and call back until the stream ends for good, or nobody answers the calls any more."""
        async with self._client:
            try:
                async with asyncio.TaskGroup() as both:
                    telling = both.create_task(self._tell())
                    await self._read()
                    await self._untold.join()
                    telling.cancel()
            except* PenstockError as unanswered:
                sys.stderr.write(f"contract service: a callback failed: {unanswered.exceptions[0]}\n")

    async def restart(self) -> None:
        """Connect anew."""
        await self._events.restart()

    async def _read(self) -> None:
        try:
            async with self._events:
                async for event in self._events:
                    self._untold.put_nowait({"kind": "event", "event": event._asdict()})
                    await self._untold.join()  # a slow harness is a slow reader
        except PenstockError:
            pass  # told by the notice of it, like every failure before it

    def _noticed(self, notice: Notice) -> None:
        match notice:
            case Comment(text):
                self._untold.put_nowait({"kind": "comment", "comment": text})
            case Interrupted(failure):
                self._untold.put_nowait({"kind": "error", "error": str(failure)})

    async def _tell(self) -> None:
        for number in itertools.count(1):
            message = await self._untold.get()
            async with self._client.post(f"{self._callback_url}/{number}").json(message).send() as answer:
                answer.raise_for_status()
            self._untold.task_done()


class Service:
    """The streams, and the application that they are ordered from.

    Args:
        tasks: What the streams run in.
        stop: Ends the service.
    """

    def __init__(self, tasks: asyncio.TaskGroup, stop: Callable[[], None]) -> None:
        self._tasks = tasks
        self._stop = stop
        self._numbers = itertools.count(1)
        self._running: dict[int, tuple[Stream, asyncio.Task[None]]] = {}
        self.app = Starlette(
            routes=[
                Route("/", self._capabilities, methods=["GET"]),
                Route("/", self._create, methods=["POST"]),
                Route("/", self._quit, methods=["DELETE"]),
                Route("/streams/{number:int}", self._command, methods=["POST"]),
                Route("/streams/{number:int}", self._delete, methods=["DELETE"]),
            ]
        )

    async def close(self) -> None:
        """End every stream."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _capabilities(self, request: Request) -> Response:
        return JSONResponse({"capabilities": CAPABILITIES})

    async def _create(self, request: Request) -> Response:
        try:
            stream = Stream(Order.model_validate_json(await request.body()))
        except (ValueError, PenstockError) as error:
            return _bad(str(error))
        number = next(self._numbers)
        self._running[number] = (stream, self._tasks.create_task(stream.run(), name=f"stream {number}"))
        return Response(status_code=201, headers={"Location": f"/streams/{number}"})

    async def _command(self, request: Request) -> Response:
        found = self._running.get(request.path_params["number"])
        if found is None:
            return _missing()
        try:
            order = await request.json()
        except ValueError as error:
            return _bad(f"a command is JSON: {error}")
        match order:
            case {"command": "restart"}:
                await found[0].restart()
            case {"command": "listen"}:
                pass  # it always does
            case _:
                return _bad('a command is {"command": "restart"} or {"command": "listen", …}')
        return Response(status_code=202)

    async def _delete(self, request: Request) -> Response:
        found = self._running.pop(request.path_params["number"], None)
        if found is None:
            return _missing()
        found[1].cancel()
        await asyncio.wait({found[1]})
        return Response(status_code=204)

    async def _quit(self, request: Request) -> Response:
        return Response(status_code=204, background=BackgroundTask(self._stop))


def _bad(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 400)


def _missing() -> Response:
    return PlainTextResponse("there is no such stream\n", 404)


async def serve(host: str, port: int) -> int:
    """Serve until ``DELETE /`` or a signal; the exit code."""
    sock = bind(host, port)
    where = bound_to(sock)
    async with asyncio.TaskGroup() as tasks:
        service = Service(tasks, lambda: server.stop())  # noqa: PLW0108 – there is none yet
        server = Server(service.app, sock, grace=1.0)
        try:
            with server.signals_handled():
                await server.run_until_stopped(lambda: _listening(where))
        finally:
            await service.close()
    return 0 if server.signal is None else 128 + server.signal


def _listening(where: str) -> None:
    sys.stdout.write(f"contract service on http://{where}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service."""
    parser = argparse.ArgumentParser("python -m tests.contract_service", description="Drives our event stream client.")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free one")
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args(arguments)
    return asyncio.run(serve(options.host, options.port))


if __name__ == "__main__":
    sys.exit(main())
