"""Failing on purpose: what any endpoint's query can ask for.

=====================================  =============================================================================
parameter                              effect
=====================================  =============================================================================
``cut_after=N``                        the connection is reset after N chunks; 0: before the response headers
``stall_after=N``                      silence after N chunks, for as long as the reader stays; 0: before the headers
``truncate_after=N``                   a clean close after N chunks, short of the length or without the last chunk
``malformed_after=N``                  events: a broken one after N, and on; other bodies: a broken chunk header
``rate=B``                             the body is paced to B bytes a second, in small writes
``delay=S``                            S seconds before the response headers
``status=503&times=2&retry_after=1``   the first 2 requests (by method, path and query) get that; without times all
=====================================  =============================================================================

A chunk is what an endpoint sends at once (a line, an event), and at most 64 KiB: a body like ``/file``'s is counted in
pieces of 64 KiB. Of an upload the chunks of the *request* count for cut_after, stall_after and rate. N is exact: what
was sent before a reset is waited for until the reader has it. A body that ends before N is not harmed; one whose
length is told and that would end with chunk N loses its last byte.

The middleware breaks connections through ``scope["extensions"]["penstock.connection"]`` (see `penstock.server`). On a
server without it an exception is raised, and the server drops the connection in its own way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import PenstockError
from penstock.origin.exchange import Refusal, Watch, request_line, seconds, whole

logger = logging.getLogger("penstock.origin")

CHUNK = 64 * 1024
EXTENSION = "penstock.connection"
_NAMES = frozenset(
    ("cut_after", "stall_after", "truncate_after", "malformed_after", "rate", "delay", "status", "times", "retry_after")
)
_IN_QUERY = tuple(name.encode() for name in _NAMES)
_MAX_COUNTERS = 1024
_WRITES_PER_SECOND = 20
_BROKEN_EVENT = b'data: {"Count": 1, "Data": "\xff\n\n'
_BROKEN_CHUNK = b"this is no chunk size\r\n"


class FaultInjected(PenstockError):
    """The response was broken on purpose, and the server has to drop the connection."""


@dataclass(frozen=True)
class Plan:
    """The faults that one request asks for; None (and 0 for delay) where not."""

    cut_after: int | None = None
    stall_after: int | None = None
    truncate_after: int | None = None
    malformed_after: int | None = None
    rate: int | None = None
    delay: float = 0.0
    status: int | None = None
    times: int | None = None
    retry_after: int | None = None

    @classmethod
    def read(cls, query: QueryParams) -> Plan:
        """Read the query.

        Raises:
            Refusal: 422, a value that is not what it should be, given twice, or without what it belongs to.
        """
        for name in _NAMES:
            if len(query.getlist(name)) > 1:
                raise Refusal(422, f"{name} is given more than once")
        plan = cls(
            cut_after=whole(query, "cut_after", None),
            stall_after=whole(query, "stall_after", None),
            truncate_after=whole(query, "truncate_after", None),
            malformed_after=whole(query, "malformed_after", None),
            rate=whole(query, "rate", None, low=1, high=10**12),
            delay=seconds(query, "delay", 0.0),
            status=whole(query, "status", None, low=400, high=599),
            times=whole(query, "times", None),
            retry_after=whole(query, "retry_after", None),
        )
        if plan.status is None and (plan.times, plan.retry_after) != (None, None):
            raise Refusal(422, "times and retry_after belong to a status, e.g. status=503&times=2&retry_after=1")
        return plan


class Faults:
    """ASGI middleware, the outermost: it breaks what the application inside believes to be whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refused: OrderedDict[tuple[str, str, bytes], int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope.get("query_string", b"")
        if scope["type"] != "http" or not any(name in query for name in _IN_QUERY):
            await self._app(scope, receive, send)
            return
        try:
            plan = Plan.read(QueryParams(query))
        except Refusal as refusal:
            await Watch(refusal.response())(scope, receive, send)
            return
        app = self._app
        if plan.status is not None and self._refuses(plan, scope):
            app = Watch(_status(plan, scope))
        await _Faulty(plan, scope, receive, send).run(app)

    def _refuses(self, plan: Plan, scope: Scope) -> bool:
        """Count the request; whether it is among the first `times`. The counters longest unused are forgotten."""
        if plan.times is None:
            return True
        key = (scope["method"], scope["path"], scope["query_string"])
        count = self._refused.pop(key, 0) + 1
        self._refused[key] = count
        if len(self._refused) > _MAX_COUNTERS:
            self._refused.popitem(last=False)
        return count <= plan.times


def _status(plan: Plan, scope: Scope) -> ASGIApp:
    headers = {} if plan.retry_after is None else {"retry-after": str(plan.retry_after)}
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
        headers["connection"] = "close"  # its body is not read
    assert plan.status is not None
    return PlainTextResponse(f"{plan.status} on purpose\n", plan.status, headers)


class _Faulty:
    """One exchange that goes wrong: wrapped receive and send count, and one of them ends the application."""

    def __init__(self, plan: Plan, scope: Scope, receive: Receive, send: Send) -> None:
        self._plan = plan
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection: Any = scope.get("extensions", {}).get(EXTENSION)
        self._upload = scope["method"] in ("POST", "PUT") and scope["path"].startswith("/upload")
        self._ends = {
            "cut_after": plan.cut_after,
            "stall_after": plan.stall_after,
            "truncate_after": plan.truncate_after,
            "malformed_after": plan.malformed_after,
        }
        self._fault: FaultInjected | None = None
        self._kind = ""
        self._chunks = 0  # that count: of the response, or of an upload's request
        self._pending: list[bytes] = []  # pieces of the request body that were received and not yet handed on
        self._more = True
        self._events = False
        self._length: int | None = None
        self._sent = 0
        self._paced_from: float | None = None
        self._paced = 0

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self.receive if self._upload else self._receive, self.send)
        except FaultInjected as fault:
            if fault is not self._fault:
                raise
        if self._fault is not None:
            logger.info("%s", self._fault)
            await self._finish()

    # -- the request's side: uploads

    async def receive(self) -> Message:
        self._break_if("cut_after", "stall_after", reached=self._chunks)
        if not self._pending:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("body"):
                return message
            body, self._more = message["body"], message.get("more_body", False)
            self._pending = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
        piece = self._pending.pop(0)
        await self._pace(len(piece))
        self._chunks += 1
        self._break_if("cut_after", "stall_after", reached=self._chunks)
        return {"type": "http.request", "body": piece, "more_body": bool(self._pending) or self._more}

    # -- the response's side

    async def send(self, message: Message) -> None:
        if self._fault is not None:
            raise self._fault
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body = message.get("body", b"")
        for at in range(0, len(body), CHUNK):
            await self._send_chunk(body[at : at + CHUNK])
        if not message.get("more_body", False):
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, message: Message) -> None:
        if self._upload:
            self._break_if("cut_after", "stall_after", reached=self._chunks)
            self._ends |= {
                "cut_after": None,
                "stall_after": None,
            }  # they were the request's; from here it is the answer
            self._chunks = 0
        if self._plan.delay:
            await asyncio.sleep(self._plan.delay)
        self._break_if("cut_after", "stall_after", reached=0)
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        self._events = headers.get("content-type", "").startswith("text/event-stream")
        bodiless = self._scope["method"] == "HEAD" or message["status"] in (204, 304)
        if bodiless:
            self._ends.clear()
        elif self._ends["malformed_after"] is not None and not self._events:
            del headers["content-length"]  # so that the server sends it chunked
        if "content-length" in headers:
            self._length = int(headers["content-length"])
        await self._send({**message, "headers": headers.raw})
        await self._after_chunk()

    async def _send_chunk(self, chunk: bytes) -> None:
        last = self._length is not None and self._sent + len(chunk) >= self._length
        if last and self._chunks + 1 in self._ends.values():
            chunk = chunk[:-1]
        await self._write(chunk)
        self._sent += len(chunk)
        self._chunks += 1
        await self._after_chunk()

    async def _after_chunk(self) -> None:
        if self._events and self._ends.get("malformed_after") == self._chunks:
            await self._write(_BROKEN_EVENT)
        elif not self._events:
            self._break_if("malformed_after", reached=self._chunks)
        self._break_if("cut_after", "stall_after", "truncate_after", reached=self._chunks)

    async def _write(self, chunk: bytes) -> None:
        rate = self._plan.rate
        size = len(chunk) if rate is None or self._upload else max(rate // _WRITES_PER_SECOND, 1)
        for at in range(0, len(chunk), size or 1):
            part = chunk[at : at + size]
            if not self._upload:
                await self._pace(len(part))
            await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def _pace(self, size: int) -> None:
        """Wait until so many more bytes are due."""
        if self._plan.rate is None:
            return
        now = asyncio.get_running_loop().time()
        if self._paced_from is None:
            self._paced_from = now
        await asyncio.sleep(max(self._paced_from + self._paced / self._plan.rate - now, 0))
        self._paced += size

    # -- the end

    def _break_if(self, *kinds: str, reached: int) -> None:
        for kind in kinds:
            if self._ends.get(kind) == reached:
                self._kind = kind
                plural = "" if reached == 1 else "s"
                self._fault = FaultInjected(
                    f"{request_line(self._scope)}: broken on purpose after {reached} chunk{plural} ({kind}={reached})"
                )
                raise self._fault

    async def _finish(self) -> None:
        """Do to the connection what was asked for; the application has ended and been cleaned up."""
        assert self._fault is not None
        connection = self._connection
        if self._kind == "stall_after":
            if self._upload and connection is not None:
                while not connection.left():  # noqa: ASYNC110 – without reading: the sender must feel it
                    await asyncio.sleep(0.1)
                connection.abort()
            await self._gone()
            logger.info("%s: the reader left after %d chunks, stalled", request_line(self._scope), self._chunks)
            return
        if connection is None:
            raise self._fault
        if self._kind == "cut_after":
            while connection.unsent() and not connection.left():  # noqa: ASYNC110 – the kernel tells nobody
                await asyncio.sleep(0.002)
            connection.abort()
        else:
            if self._kind == "malformed_after":
                connection.write(_BROKEN_CHUNK)
            connection.close()
        await self._gone()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
