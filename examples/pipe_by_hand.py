"""The same transfer with nothing but the standard library, for comparison.

One socket to read from, one to write to, and between them one piece at a time: the multipart framing, the
Content-Length, the check that the source came to its end, all by hand. What it has not: retries, a resume, a digest,
progress, timeouts for each phase, or a word on which side failed.

    python examples/pipe_by_hand.py http://127.0.0.1:8080/file http://127.0.0.1:8081/upload
"""

from __future__ import annotations

import http.client
import secrets
import sys
from urllib.parse import SplitResult, urlsplit

PIECE = 256 * 1024


def connection_to(url: SplitResult) -> http.client.HTTPConnection:
    """A connection to the URL's host."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=60)


def target_of(url: SplitResult) -> str:
    """The request target of a URL."""
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def pipe(source: str, destination: str, filename: str = "large.txt") -> tuple[int, int, str]:
    """Stream the source into a multipart upload; the bytes moved, the status and the answer."""
    origin, target = urlsplit(source), urlsplit(destination)
    download, upload = connection_to(origin), connection_to(target)
    try:
        download.request("GET", target_of(origin))
        response = download.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise SystemExit(f"{source} answered {response.status} {response.reason}")
        if response.length is None:
            raise SystemExit(f"{source} does not tell its length, and this program knows no chunked upload")
        boundary = secrets.token_hex(16)
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        expected = response.length
        upload.putrequest("POST", target_of(target))
        upload.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
        upload.putheader("Content-Length", str(len(head) + expected + len(tail)))
        upload.endheaders()
        upload.send(head)
        moved = 0
        while piece := response.read(PIECE):
            upload.send(piece)
            moved += len(piece)
        if moved != expected:  # closing now leaves the destination with a broken request, not with a short file
            raise SystemExit(f"{source} ended after {moved:,} of {expected:,} bytes")
        upload.send(tail)
        answer = upload.getresponse()
        return moved, answer.status, answer.read().decode("utf-8", "replace").strip()
    finally:
        download.close()
        upload.close()


if __name__ == "__main__":
    from_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/file"
    to_url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8081/upload"
    bytes_moved, status, said = pipe(from_url, to_url)
    print(f"{bytes_moved:,} bytes, {status}: {said}")
