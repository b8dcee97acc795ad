"""`--replay FILE`: a recording served again, each piece at its time, to whoever asks.

Any request gets the whole of it: method, path and fields are not looked at. How the body is framed, and coded, is the
server's own affair, so those fields of the recording are left out. Where the recorded body failed, the connection is
broken off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.cli import output
from penstock.cli.run import run_server
from penstock.client.recording import Recording
from penstock.client.recording import replay as pieces_in_time
from penstock.origin.exchange import Watch
from penstock.server.listen import bind, bound_to
from penstock.server.serve import Server, serve
from penstock.wire.headers import end_to_end

_OURS = frozenset({b"content-length", b"content-encoding", b"date"})


class Replay:
    """An ASGI application that answers every request with a recording, and raises where that failed.

    The server breaks the connection off then. A reader that leaves is noticed by whoever stands around it.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in recording.headers]
        self._headers = [pair for pair in end_to_end(fields) if pair[0] not in _OURS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": self._recording.status, "headers": self._headers})
        if scope["method"] != "HEAD":
            async with contextlib.aclosing(pieces_in_time(self._recording)) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def url_of(recording: Recording, where: str) -> str:
    """The URL that the recording is served at: the recorded one, but for its origin."""
    recorded = urlsplit(recording.url)
    return f"http://{where}{recorded.path or '/'}" + (f"?{recorded.query}" if recorded.query else "")


@contextlib.asynccontextmanager
async def served(recording: Recording) -> AsyncIterator[str]:
    """Serve a recording in the running loop, for ourselves; yields its URL.

    Cancellation: no task and no socket stays.
    """
    sock = bind("127.0.0.1", 0)
    url = url_of(recording, bound_to(sock))
    server = Server(Replay(recording), sock, grace=0)
    task = asyncio.create_task(server.run_until_stopped(lambda: None), name="penstock replay")
    try:
        yield url  # the socket takes connections already, and the server comes to them
    finally:
        server.stop()
        server.stop()
        await task


def serve_until_stopped(recording: Recording, host: str, port: int, *, json: bool) -> int:
    """Serve a recording until a signal comes; the exit code."""
    app: ASGIApp = Watch(Replay(recording))
    if json:
        output.hide_log()

    def listening(where: str) -> None:
        url = url_of(recording, where)
        end = recording.end
        if json:
            about = {"bytes": recording.bytes, "seconds": end.at, "end": end.reason}
            output.record({"listening": {"url": url, "recording": str(recording.path), **about}})
            return
        how = {"complete": "", "failed": ", then the connection breaks", "cancelled": ", as far as it was read"}
        output.note(
            f"penstock tail on {url}: {recording.path}, {recording.bytes:,} bytes in {end.at:.1f} s{how[end.reason]}"
        )

    return run_server(serve(app, bind(host, port), grace=0, on_listening=listening))
