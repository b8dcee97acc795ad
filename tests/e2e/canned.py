"""A server with prepared answers that remembers what it was asked, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request, as it came."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Canned:
    """The server: `answers` by path are (content type, body) or (content type, body, status)."""

    url: str
    answers: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, path: str, content_type: str, body: bytes, status: int = 200) -> str:
        """Prepare an answer; its URL."""
        self.answers[path] = (content_type, body, status)
        return self.url + path


@contextmanager
def canned() -> Iterator[Canned]:
    """Serve on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _any(self) -> None:
            here.asked.append(Asked(self.command, self.path, self.headers, self._body()))
            content_type, body, status = here.answers.get(self.path, ("text/plain", b"not here\n", 404))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

    for method in ("GET", "POST", "PUT", "REPORT"):
        setattr(Handler, f"do_{method}", Handler._any)  # noqa: SLF001 – our own, three lines up

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    here = Canned(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
