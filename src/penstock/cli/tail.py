"""`penstock tail`: a stream, read and shown as it arrives."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import options, output
from penstock.cli.run import run
from penstock.cli.stdin import stdin
from penstock.client.builder import RequestBuilder
from penstock.client.client import AsyncClient
from penstock.client.events import AnyStream
from penstock.client.metrics import Metrics
from penstock.client.middleware import Logging
from penstock.client.notices import Notice, Reconnecting
from penstock.client.settings import Timeout
from penstock.client.stream import ItemStream
from penstock.resilience.breaker import Breaker
from penstock.resilience.retry import Retry
from penstock.transfer.source import Source, open_source
from penstock.wire.headers import is_ndjson
from penstock.wire.sse import Event


class Format(StrEnum):
    """How a body is read."""

    auto = "auto"
    sse = "sse"
    ndjson = "ndjson"
    text = "text"


def tail(
    url: Annotated[str, typer.Argument(metavar="URL", help="The stream.")],
    method: Annotated[str | None, typer.Option("--request", "-X", metavar="METHOD", help="The method.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'Name: value'", help="A header field.")
    ] = None,
    body: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="BODY", help="A body, @FILE or @- for stdin; makes it a POST."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How the body is read; auto goes by its content type.")] = Format.auto,
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="Attempts after the first that fails.")] = 3,
    last_event_id: Annotated[str | None, typer.Option(metavar="ID", help="Go on after this event.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATA", help="Stop after the item that is just this.")] = None,
    timeout: Annotated[
        float | None, typer.Option(callback=options.seconds, metavar="SECONDS", help="For the whole, retries included.")
    ] = None,
    timeout_first: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="To the first byte.")
    ] = 30.0,
    timeout_between: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="Between two pieces.")
    ] = 60.0,
    collect: Annotated[bool, typer.Option("--collect", help="Tell everything again at the end, numbered.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write the body's bytes as they come, undecoded.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of requests, responses and ends.")] = False,
    json: options.Json = False,
) -> int:
    """Read a stream: server-sent events, NDJSON or lines of text, each item as it arrives.

    A stream that fails before its first item is asked for again; one that breaks later goes on after its last event's
    id where it has ids. Metrics are told at the end.
    """
    if raw and (json or collect or until is not None):
        raise typer.BadParameter("--raw writes bytes as they come: --json, --collect and --until are for items")
    if method is not None and not (method.isascii() and method.replace("-", "").isalnum()):
        raise typer.BadParameter(f"{method!r} is not an HTTP method")
    if verbose:
        output.show_log()
    patience = Timeout(first_event=timeout_first, between_events=timeout_between, total=timeout)
    retry = Retry(retries=retries)
    sent = options.headers(header or [])
    if last_event_id is not None:
        sent |= options.headers([f"Last-Event-ID: {last_event_id}"])

    async def read() -> None:
        content = None if body is None else await _content(body)
        async with AsyncClient(retry=retry, timeout=patience, breaker=Breaker()) as client:
            if verbose:
                client.use(Logging())
            request = client.request(method or ("GET" if content is None else "POST"), url).headers(sent)
            if content is not None:
                request = request.content(content, content_type=_content_type(content, sent))
            if raw:
                await _copy(request)
            else:
                await _Reading(format, until, collect=collect, json=json).read(request)

    run(read())
    return 0


async def _copy(request: RequestBuilder) -> None:
    async with request.send() as response:
        if not 200 <= response.status < 300:
            raise response.status_error(await response.beginning())
        async for piece in response:
            output.raw(piece)


class _Reading:
    """One stream being shown."""

    def __init__(self, format: Format, until: str | None, *, collect: bool, json: bool) -> None:
        self._format = format
        self._until = until
        self._collect = collect
        self._json = json
        self._collected: list[str] = []

    async def read(self, request: RequestBuilder) -> None:
        """Show every item, and the metrics whatever the end."""
        stream = self._stream(request)
        show = self._show_record if self._json else self._show_line
        try:
            async with stream:
                async for item in stream:
                    # A string is a line of text, or an NDJSON record: the response tells.
                    is_line = isinstance(item, str) and not self._has_records(stream)
                    shown = item if is_line else _text(item)
                    show(item, shown, is_line=is_line)
                    if self._collect:
                        self._collected.append(shown)
                    if shown == self._until:
                        break
        finally:
            # Also when it failed or was interrupted; but not to a reader who has left.
            if not isinstance(sys.exc_info()[1], output.ReaderLeft):
                self._sum_up(stream.metrics, completed=sys.exc_info()[1] is None)

    def _stream(self, request: RequestBuilder) -> ItemStream[Any]:
        tell = self._tell
        match self._format:
            case Format.auto:
                return request.items(AnyStream, on_notice=tell)
            case Format.sse:
                return request.events(on_notice=tell)
            case Format.ndjson:
                return request.records(on_notice=tell)
            case Format.text:
                return request.lines(on_notice=tell)

    def _has_records(self, stream: ItemStream[Any]) -> bool:
        if self._format is not Format.auto:
            return self._format is Format.ndjson
        return stream.response is not None and is_ndjson(stream.response.content_type)

    def _show_line(self, item: Any, shown: str, *, is_line: bool) -> None:
        output.data(shown)

    def _show_record(self, item: Any, shown: str, *, is_line: bool) -> None:
        if isinstance(item, Event):
            output.record({"event": {"type": item.type, "data": item.data, "id": item.id}})
        else:
            output.record({"line" if is_line else "record": item})

    def _tell(self, notice: Notice) -> None:
        if not isinstance(notice, Reconnecting):
            return
        failure, attempt, pause = notice.failure, notice.attempt, notice.pause
        if self._json:
            described = None if failure is None else output.error_record(failure, str(failure))["error"]
            output.record({"retry": {"attempt": attempt, "pause": round(pause, 3), "after": described}})
        else:
            output.note(f"penstock: {failure or 'the stream ended'}; attempt {attempt} in {pause:.1f} s")

    def _sum_up(self, metrics: Metrics, *, completed: bool) -> None:
        if self._json:
            if self._collect:
                output.record({"collected": self._collected})
            output.record({"metrics": metrics.to_dict()})
            return
        output.note(
            "\n=== Streaming Metrics ===\n"
            f"Duration: {metrics.duration:.2f}s\n"
            f"Total Events: {metrics.total}\n"
            f"Successful: {metrics.successful}\n"
            f"Failed: {metrics.failed}\n"
            f"Retries: {metrics.retries}\n"
            f"Success Rate: {metrics.success_rate:.1f}%\n"
            "======================="
        )
        if completed:
            output.note("Stream completed successfully")
        if self._collect:
            output.note("\n=== Collected Response Data ===")
            for number, line in enumerate(self._collected, 1):
                output.note(f"{number}: {line}")
            output.note(f"Total responses collected: {len(self._collected)}\n==============================")


def _text(item: Any) -> str:
    if isinstance(item, Event):
        return item.data
    return jsonlib.dumps(item, ensure_ascii=False, separators=(",", ":"))


async def _content(body: str) -> bytes:
    if body == "@-":
        return b"".join([piece async for piece in stdin()])
    if body.startswith("@"):
        async with AsyncClient() as client, await open_source(Source(Path(body[1:])), client) as file:
            return b"".join([piece async for piece in file.read()])
    return os.fsencode(body)


def _content_type(content: bytes, headers: dict[str, str]) -> str | None:
    if any(name.lower() == "content-type" for name in headers):
        return None
    return "application/json" if content.lstrip()[:1] in (b"{", b"[", b'"') else "text/plain; charset=utf-8"
