"""The sample servers, as one ASGI application."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from penstock.origin.conditions import select
from penstock.origin.content import MAX_LINES, Content, Lines, OriginError, RealFile
from penstock.origin.exchange import Refusal, Stream, Watch, logger, request_line, whole
from penstock.origin.faults import Faults
from penstock.origin.streams import chat_completions, generate, sequence, trigger_invocation
from penstock.origin.upload import Limits, Uploads
from penstock.wire.headers import attachment

DEFAULT_LINES = 10_000_000

INDEX = """\
Penstock's sample servers

GET  /file?lines=10000000                a large text file, generated as it is sent; ETag, Range
POST /upload                             stores the files of a multipart form
PUT  /upload/NAME                        stores the body
GET  /generate?chunks=100&interval=0.1   one line of text per interval
POST /trigger_invocation                 {"query": "..."} gives five server-sent events
GET  /events?count=10&interval=0.1       server-sent events with ids; Last-Event-ID continues
POST /v1/chat/completions                OpenAI's format, streamed with "stream": true; ?tokens=20&interval=0.02

Every one can be told to fail, by query:
cut_after=N  stall_after=N  truncate_after=N  malformed_after=N  rate=BYTES_PER_SECOND  delay=SECONDS
status=503&times=2&retry_after=1
"""


def app(directory: Path, file: Path | None = None, *, limits: Limits | None = None) -> ASGIApp:
    """Make the sample servers' application.

    Args:
        directory: Where uploads are stored.
        file: Served by ``/file`` instead of the generated lines.
        limits: What an upload may cost.
    Raises:
        OriginError: The directory is none or cannot be written to, or the file cannot be read.
    """
    _check_directory(directory)
    if file is not None:
        RealFile(file).close()
    uploads = Uploads(directory, limits or Limits())

    async def download(request: Request) -> Response:
        return _download(request, file)

    routes = [
        Route("/", _index),
        Route("/file", download),
        Route("/upload", uploads.post, methods=["POST"]),
        Route("/upload/{name}", uploads.put, methods=["PUT"]),
        Route("/generate", generate),
        Route("/trigger_invocation", trigger_invocation, methods=["POST"]),
        Route("/events", sequence),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    ]
    handlers = {Refusal: _refuse, HTTPException: _no_such, ClientDisconnect: _sender_left}
    served = Starlette(routes=routes, exception_handlers=handlers)
    served.router.redirect_slashes = False  # a redirect would have an upload sent twice
    return Faults(Watch(served))


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise OriginError(
            f"cannot store uploads in {directory}: it {what}; create it or choose another with --directory"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OriginError(
            f"cannot store uploads in {directory}: no permission to write; choose another with --directory"
        )


async def _index(request: Request) -> Response:
    return PlainTextResponse(INDEX)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _sender_left(request: Request, error: Exception) -> Response:
    logger.info("%s: the sender left before its request was complete", request_line(request.scope))
    return Response(status_code=400)  # to nobody


async def _no_such(request: Request, error: Exception) -> Response:
    """404 and 405: what went wrong, and where to look."""
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path}: {error.detail}; GET / tells what is served"
    response = Refusal(error.status_code, reason).response()
    response.headers.update(error.headers or {})
    return response


def _download(request: Request, file: Path | None) -> Response:
    content: Content
    if file is None:
        content = Lines(whole(request.query_params, "lines", DEFAULT_LINES, high=MAX_LINES))
        disposition = f"attachment; filename={content.name}"
    else:
        try:
            content = RealFile(file)
        except OriginError as error:
            raise Refusal(500, str(error)) from error
        disposition = attachment(content.name)
    asked = request.headers
    part = select(
        content.length,
        content.etag,
        range_=asked.get("range") if request.method == "GET" else None,
        if_range=asked.get("if-range"),
        if_none_match=asked.get("if-none-match"),
    )
    headers = {"etag": content.etag, "accept-ranges": "bytes", "cache-control": "no-cache"}
    if part.status == 304:
        content.close()
        return Response(status_code=304, headers=headers)
    if part.status == 416:
        content.close()
        refused = Refusal(416, f"the range is outside of the {content.length} bytes").response()
        refused.headers["content-range"] = f"bytes */{content.length}"
        return refused
    headers |= {"content-disposition": disposition, "content-length": str(part.end - part.start)}
    if part.status == 206:
        headers["content-range"] = f"bytes {part.start}-{part.end - 1}/{content.length}"
    pieces = content.pieces(part.start, part.end)
    return Stream(pieces, media_type=content.media_type, status_code=part.status, headers=headers, close=content.close)
