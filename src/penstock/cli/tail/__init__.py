"""`penstock tail`: a stream, read and shown as it arrives.

The command is here, and what its options mean together. Around it::

    reading   one stream, read and shown to its end
    show      to a person, or to a program
    chat      the text of a chat stream
    tap       the bytes on their way to the decoder
    saving    --save
    replay    --replay
    status    the line at the bottom of a terminal
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import body, options, output
from penstock.cli.run import run
from penstock.cli.stdout import Stdout
from penstock.cli.tail.reading import Format, Wanted, read
from penstock.cli.tail.show import Plain, Records, logger
from penstock.client import seam
from penstock.client.client import AsyncClient
from penstock.client.middleware import Logging
from penstock.client.recording import load
from penstock.client.settings import Timeout
from penstock.resilience.retry import Retry

# What is between us and a server, and so nothing to a recording.
_FOR_A_SERVER = ("method", "header", "data", "retries", "reconnect", "breaker", "last_event_id", "save")
_TIMERS = ("timeout", "timeout_first", "timeout_between", "content_only")


class Reconnect(StrEnum):
    """When an event stream is connected to again; see `penstock.client.events.Reconnect`."""

    strict = "strict"
    resilient = "resilient"
    never = "never"


def tail(
    context: typer.Context,
    url: Annotated[str | None, typer.Argument(metavar="URL", help="The stream.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option("--request", "-X", callback=options.method, metavar="METHOD", help="The method."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'Name: value'", help="A header field.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="BODY", help="A body, @FILE or @- for stdin; makes it a POST."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How the body is read; auto goes by its content type.")] = Format.auto,
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="Attempts after the first that fails.")] = 3,
    reconnect: Annotated[
        Reconnect,
        typer.Option(help="When an event stream is connected to again: strict is a browser's EventSource."),
    ] = Reconnect.resilient,
    breaker: Annotated[
        str, typer.Option(metavar="N[/SECONDS]", help="Failures in a row after which a server is left alone so long.")
    ] = "3/30",
    last_event_id: Annotated[str | None, typer.Option(metavar="ID", help="Go on after this event.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATA", help="Stop after the item that is just this.")] = None,
    terminator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What must end an event stream: openai, openai-responses, anthropic, none, data:[DONE], event:TYPE.",
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(callback=options.seconds, metavar="SECONDS", help="For the whole, retries included.")
    ] = None,
    timeout_first: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="To the first byte.")
    ] = 30.0,
    timeout_between: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="Between two pieces.")
    ] = 60.0,
    content_only: Annotated[
        bool, typer.Option("--content-only", help="Keep-alives do not count for those two: only items do.")
    ] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Tell everything again at the end, numbered.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Write a chat's text as it arrives, and nothing else.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write the body's bytes as they come, undecoded.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Record it, with its timing.")] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show a recording as if it came now, in place of a URL.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve the recording instead of showing it; port 0 is free.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell of connections, of each line, and all that was measured.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Read a stream: server-sent events, NDJSON or lines of text, each item as it arrives.

    A stream that fails before its first item is asked for again; one that breaks later goes on after its last event's
    id where it has ids. Metrics are told at the end.
    """
    if raw and (json or collect or text or until is not None):
        raise typer.BadParameter("--raw writes bytes as they come: --json, --collect, --text and --until are for items")
    if text and (collect or until is not None or format not in (Format.auto, Format.sse)):
        raise typer.BadParameter("--text writes one text: --collect, --until and other formats are for items")
    events = not raw and format in (Format.auto, Format.sse)
    if not events and (terminator is not None or reconnect is not Reconnect.resilient):
        raise typer.BadParameter("--terminator and --reconnect are for event streams")
    _check_source(context, url, replay, listen)
    recording = None if replay is None else load(replay)
    if recording is not None and listen is not None:
        from penstock.cli.tail.replay import serve_until_stopped

        return serve_until_stopped(recording, *options.listen(listen), json=json)
    wanted = Wanted(
        format=format,
        reconnect="never" if recording is not None else reconnect.value,
        terminator=None if terminator is None else options.terminator(terminator),
        last_event_id=_checked_id(last_event_id),
        until=until,
        collect=collect,
        raw=raw,
        text=text,
        lines=verbose,
        save=save,
    )
    headers = options.headers(header or [])
    given = options.breaker(breaker)
    patience = Timeout(
        first_event=timeout_first, between_events=timeout_between, total=timeout, content_only=content_only
    )
    retry = Retry(retries=retries)
    if verbose and not json:
        output.show_log(logging.DEBUG)
    else:
        output.hide_log()
    stdout = Stdout()
    show = (Records if json else Plain)(stdout, verbose=verbose)

    async def follow(address: str) -> None:
        content = None if data is None else await body.content(data)
        async with AsyncClient(retry=retry, timeout=patience, breaker=given) as client:
            request = client.request(method or ("GET" if content is None else "POST"), address).headers(headers)
            if content is not None:
                request = request.content(content, content_type=body.content_type(content, headers))
            if verbose and not json:
                client.use(Logging())
                logger.info("Starting stream to %s", seam.shown(client.absolute_url(address)))
                if sys.stderr.isatty():
                    output.note("Press Ctrl+C to stop")
            await read(request, wanted, stdout, show)

    async def play() -> None:
        from penstock.cli.tail.replay import served

        assert recording is not None
        async with served(recording) as address, AsyncClient(retry=0, timeout=None) as client:
            await read(client.get(address), wanted, stdout, show)

    run(play() if url is None else follow(url))
    return 0


def _check_source(context: typer.Context, url: str | None, replay: Path | None, listen: str | None) -> None:
    """Whether there is one thing to read, and no option that is for another."""
    if replay is None:
        if url is None:
            raise typer.BadParameter("Missing argument 'URL': name a stream, or a recording with --replay FILE")
        if listen is not None:
            raise typer.BadParameter("--listen serves a recording: name it with --replay FILE")
        return
    if url is not None:
        raise typer.BadParameter("--replay takes the place of a URL: give one of them")
    for name in (*_FOR_A_SERVER, *_TIMERS):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = {"method": "--request"}.get(name, "--" + name.replace("_", "-"))
            raise typer.BadParameter(f"--replay reads a file: {option} is for a server")


def _checked_id(last_event_id: str | None) -> str:
    if last_event_id:
        options.headers([f"Last-Event-ID: {last_event_id}"])
    return last_event_id or ""
