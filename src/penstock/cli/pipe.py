"""`penstock pipe`: from a source to a destination."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterable, Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options, output
from penstock.cli.run import run
from penstock.cli.stdin import stdin
from penstock.client.settings import Timeout
from penstock.transfer import pipe as transfer
from penstock.transfer.destination import Multipart, Put
from penstock.transfer.source import Source


def pipe(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A URL, a file, or - for stdin.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="The URL to upload to.")],
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'Name: value'", help="A header field for the destination."),
    ] = None,
    source_header: Annotated[
        list[str] | None, typer.Option(metavar="'Name: value'", help="A header field for the source.")
    ] = None,
    field: Annotated[str, typer.Option(metavar="NAME", help="The form field of the file.")] = "file",
    filename: Annotated[str | None, typer.Option(metavar="NAME", help="The file's name; else the source's.")] = None,
    form: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A further form field.")] = None,
    put: Annotated[bool, typer.Option("--put", help="PUT the bytes as the raw body, not as a form.")] = False,
    digest: Annotated[str | None, typer.Option(metavar="ALGORITHM", help="Digest the bytes, e.g. sha256.")] = None,
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="Requests for the source after the first.")] = 0,
    limit_rate: Annotated[str | None, typer.Option(metavar="RATE", help="Bytes per second at most, e.g. 5M.")] = None,
    timeout: Annotated[
        float | None, typer.Option(callback=options.seconds, metavar="SECONDS", help="For the whole of each side.")
    ] = None,
    timeout_first: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="To the source's first byte.")
    ] = 30.0,
    timeout_between: Annotated[
        float,
        typer.Option(callback=options.seconds, metavar="SECONDS", help="Between two pieces, on either side."),
    ] = 60.0,
    json: options.Json = False,
) -> int:
    """Stream a source into an upload, in constant memory.

    The upload has a Content-Length when the source's is known, and is chunked otherwise. A source that ends early
    breaks the upload off: the destination never sees a short file that looks whole.
    """
    if put and (form or filename or field != "file"):
        raise typer.BadParameter("--put sends a raw body: --field, --filename and --form are for a form")
    target: Multipart | Put
    sent = options.headers(header or [])
    if put:
        target = Put(destination, headers=sent)
    else:
        target = Multipart(destination, field, filename, options.pairs(form or []), sent)
    origin = Source(_source(source), options.headers(source_header or []), name="stdin")
    rate = options.size(limit_rate)
    patience = Timeout(first_event=timeout_first, between_events=timeout_between, total=timeout)
    if json:
        output.hide_log()
    else:
        output.show_log()

    async def transferred() -> transfer.Report:
        with _bar() as show:
            return await transfer.pipe(
                origin, target, retries=retries, digest=digest, rate=rate, timeout=patience, on_progress=show
            )

    try:
        report = run(transferred())
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from None
    if json:
        output.record(report.to_dict())
    else:
        for algorithm, value in report.digest.items():
            output.data(f"{algorithm}  {value}")
    return 0


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[transfer.Passage], None] | None]:
    """What shows the progress, on a terminal; elsewhere log lines do."""
    if not sys.stderr.isatty():
        yield None
        return
    from penstock.cli.progress import Bar

    with Bar() as bar:
        yield bar.show


def _source(text: str) -> str | Path | AsyncIterable[bytes]:
    if text == "-":
        return stdin()
    if "://" in text:
        return text
    if not text:
        raise typer.BadParameter("SOURCE is empty: name a URL, a file, or - for stdin")
    return Path(text)
