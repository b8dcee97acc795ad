"""``POST /upload`` and ``PUT /upload/{name}``: bodies streamed to disk, in constant memory.

What arrives goes to a hidden temporary file in the same directory, hashed on the way; disk and hash work in a thread,
a piece behind the socket. Only when the whole request has come, well-formed and within its limits, do the temporary
files take their names, each by one atomic rename. At any other end (the sender left, a limit, a malformed body, a
cancel, a full disk) they are removed. SIGKILL alone leaves one behind.

====================================================  ======
not stored because                                    status
====================================================  ======
not multipart, or a coding that we do not undo         415
no boundary, malformed, cut short, no usable name      400
no file in it                                          422
a name that a directory, link or device has            409
over a limit                                           413
the disk is full                                       507
the directory cannot be written                        500
====================================================  ======
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from penstock.origin.content import in_thread
from penstock.origin.exchange import Refusal, logger, request_line
from penstock.wire.headers import media_type, safe_filename

_PIECE = 1 << 20  # bytes that are hashed and written at a time
_PREAMBLE = 64 * 1024  # bytes before the first boundary that are put up with
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Limits:
    """What an upload may cost; security limits.

    Attributes:
        max_body_bytes: The whole request body.
        max_parts: Parts of a multipart body.
        max_headers: Header lines of a part.
        max_header_bytes: One header line of a part.
        max_field_bytes: The value of one part that is not a file.
    """

    max_body_bytes: int = 16 << 30
    max_parts: int = 100
    max_headers: int = 8
    max_header_bytes: int = 4096
    max_field_bytes: int = 1 << 20


@dataclass(frozen=True)
class Saved:
    """A file that was stored."""

    filename: str
    bytes: int
    sha256: str


class Spool:
    """One file on its way to disk: hidden, hashed, written in a thread."""

    def __init__(self, directory: Path, filename: str) -> None:
        self.filename = filename
        self.size = 0
        self._target = directory / filename
        self._path = directory / f".penstock-{secrets.token_hex(8)}.part"
        fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666)
        self._file = os.fdopen(fd, "wb")
        self._hash = hashlib.sha256()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Take in data; wait only while the piece before the last is still being written.

        Raises:
            OSError: The disk's, now or from an earlier piece.
        """
        self.size += len(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _PIECE:
            await self._flush()

    async def finish(self) -> Saved:
        """Write what is left, and close the file; it still has its temporary name."""
        await self._flush()
        await self._settle()
        await in_thread(self._file.close)
        return Saved(self.filename, self.size, self._hash.hexdigest())

    def check_target(self) -> None:
        """Refuse a name that something other than a regular file has. Blocking.

        The rename itself follows no link: at worst a link that appears in between is replaced, not written through.
        """
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._target.lstat().st_mode):
                raise Refusal(409, f"{self.filename!r} is the name of something that is not a regular file")

    def commit(self) -> None:
        """Give the file its name, in place of a regular file that has it. Blocking; atomic."""
        self._path.replace(self._target)

    async def discard(self) -> None:
        """Close and remove what has not been committed.

        Cancellation: the removal is done first.
        """
        with contextlib.suppress(OSError):
            await self._settle()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _flush(self) -> None:
        await self._settle()
        held, self._held, self._held_bytes = self._held, [], 0
        self._writing = asyncio.create_task(in_thread(self._write, held))

    async def _settle(self) -> None:
        """Wait for the piece that is being written, also when cancelled: the file must not be closed under it."""
        writing = self._writing
        if writing is None:
            return
        cancelled = False
        while not writing.done():
            try:
                await asyncio.wait({writing})
            except asyncio.CancelledError:
                cancelled = True
        self._writing = None
        if cancelled:
            if not writing.cancelled():
                writing.exception()  # seen: asyncio need not report it
            raise asyncio.CancelledError
        writing.result()

    def _write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._hash.update(piece)
            self._file.write(piece)


class _Batch:
    """The files of one request: all take their names, or none is left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._spools: list[Spool] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spool in self._spools:
            await spool.discard()

    def open(self, name: str) -> Spool:
        """Begin a file.

        Raises:
            Refusal: 400, nothing of the name is usable.
        """
        safe = safe_filename(name)
        if safe is None:
            raise Refusal(400, f"nothing of the filename {name[:100]!r} can be used as a name", close=True)
        spool = Spool(self._directory, safe)
        self._spools.append(spool)
        return spool

    async def commit(self) -> None:
        await in_thread(self._commit)

    def _commit(self) -> None:
        for spool in self._spools:
            spool.check_target()
        for spool in self._spools:
            spool.commit()
        self._spools.clear()


class Uploads:
    """The two endpoints, over one directory."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits

    async def post(self, request: Request) -> Response:
        """``POST /upload``: every part of a form that has a filename is stored under it."""
        boundary = _boundary(request)
        with _disk(self._directory):
            async with _Batch(self._directory) as batch, aclosing(self._body(request)) as body:
                files = await self._store_parts(batch, boundary, body)
                if not files:
                    raise Refusal(422, "there is no file in this form: no part has a filename")
                await batch.commit()
        return _answer(request, files)

    async def put(self, request: Request) -> Response:
        """``PUT /upload/{name}``: the body is the file."""
        if "content-range" in request.headers:
            raise Refusal(400, "a PUT of a part of a file (Content-Range) is not supported", close=True)
        with _disk(self._directory):
            async with _Batch(self._directory) as batch, aclosing(self._body(request)) as body:
                spool = batch.open(request.path_params["name"])
                async for data in body:
                    await spool.write(data)
                files = [await spool.finish()]
                await batch.commit()
        return _answer(request, files)

    async def _body(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The request's body, within its limit; it ends only where the request does."""
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(415, "the body must be sent as it is, without a Content-Encoding", close=True)
        limit = self._limits.max_body_bytes
        too_large = Refusal(413, f"the body is larger than {limit} bytes (max_body_bytes)", close=True)
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
        received = 0
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            data, more = message.get("body", b""), message.get("more_body", False)
            received += len(data)
            if received > limit:
                raise too_large
            if data:
                yield data

    async def _store_parts(self, batch: _Batch, boundary: str, body: AsyncIterator[bytes]) -> list[Saved]:
        limits = self._limits
        files: list[Saved] = []
        spool: Spool | None = None
        begun, received, field_bytes = False, 0, 0
        try:
            parser = PushMultipartParser(
                boundary,
                max_header_size=limits.max_header_bytes,
                max_header_count=limits.max_headers,
                max_segment_count=limits.max_parts,
            )
            async for data in body:
                received += len(data)
                for event in parser.parse(data):
                    if isinstance(event, MultipartSegment):
                        begun = True
                        spool = batch.open(event.filename) if event.filename else None
                        field_bytes = 0
                    elif event is None:
                        if spool is not None:
                            files.append(await spool.finish())
                    elif spool is not None:
                        await spool.write(event)
                    else:
                        field_bytes += len(event)
                        if field_bytes > limits.max_field_bytes:
                            raise Refusal(
                                413,
                                f"a field is larger than {limits.max_field_bytes} bytes (max_field_bytes)",
                                close=True,
                            )
                if not begun and received > _PREAMBLE:
                    raise Refusal(400, f"no boundary in the first {_PREAMBLE} bytes of the body", close=True)
            parser.close()  # type: ignore[no-untyped-call]
        except ParserLimitReached as error:
            raise Refusal(413, f"{error} (max_parts, max_headers, max_header_bytes)", close=True) from error
        except MultipartError as error:
            raise Refusal(400, f"malformed multipart body: {error}", close=True) from error
        return files


def _boundary(request: Request) -> str:
    value = request.headers.get("content-type", "")
    if media_type(value).essence != "multipart/form-data":
        raise Refusal(415, f"the body must be multipart/form-data, not {value[:100] or 'untyped'!r}", close=True)
    options: dict[str, str] = parse_options_header(value)[1]  # type: ignore[no-untyped-call]
    boundary = options.get("boundary", "")
    if not (0 < len(boundary) <= 200 and boundary.isprintable() and boundary.isascii()):
        raise Refusal(400, "the Content-Type has no usable boundary", close=True)
    return boundary


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Turn the disk's errors into refusals, and tell them to the operator too."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in _FULL
        logger.error("cannot store an upload in %s: %s", directory, why)
        raise Refusal(507 if full else 500, f"the upload cannot be stored: {why}", close=True) from error


def _answer(request: Request, files: list[Saved]) -> Response:
    for file in files:
        logger.info("%s: %s saved, %d bytes", request_line(request.scope), file.filename, file.bytes)
    accepted = (media_type(each).essence for each in request.headers.get("accept", "").split(","))
    if "application/json" in accepted:
        return JSONResponse({"files": [{"filename": f.filename, "bytes": f.bytes, "sha256": f.sha256} for f in files]})
    return PlainTextResponse("".join(f"File {f.filename} uploaded and saved\n" for f in files))
