"""What readers are served of the relay itself, beside streams.

===========================  ==================================================================
``/_penstock/health``        200, as long as the process answers
``/_penstock/ready``         200; 503 once it drains, so that no new reader is sent here
``/_penstock/client.js``     the module that reads a stream in a browser, and comes back to it
===========================  ==================================================================
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from penstock.relay.downstream.reader import Downstream
from penstock.relay.upstream.headers import Raw

ROOT = "/_penstock/"
CLIENT = Path(__file__).parent / "operator" / "page" / "client.js"


async def serve_own(path: str, method: str, etag: str, downstream: Downstream, *, draining: bool) -> bool:
    """Answer what is asked of the relay itself; False if nothing is.

    Args:
        path: As the reader asked for it, below where we are mounted.
        method: In capitals.
        etag: What the request has in If-None-Match.
        downstream: The reader.
        draining: Whether no new stream begins any more.
    """
    name = path.removeprefix(ROOT)
    if not path.startswith(ROOT) or name not in ("health", "ready", "client.js"):
        return False
    if method not in ("GET", "HEAD"):
        await downstream.refuse(405, "this is read with GET", fields=[(b"allow", b"GET, HEAD")])
    elif name == "client.js":
        body, tag = _client()
        known = tag in (each.strip().removeprefix("W/") for each in etag.split(","))
        fields: Raw = [
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"cache-control", b"no-cache"),  # asked for again each time, and answered with 304: it is of our version
            (b"etag", tag.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        await _answer(downstream, 304 if known else 200, fields, body)
    else:
        late = draining and name == "ready"
        plain: Raw = [(b"content-type", b"text/plain"), (b"cache-control", b"no-store")]
        await _answer(downstream, 503 if late else 200, plain, b"draining\n" if late else b"ok\n")
    return True


async def _answer(downstream: Downstream, status: int, fields: Raw, body: bytes) -> None:
    if status != 304:
        fields = [*fields, (b"content-length", b"%d" % len(body))]
    await downstream.start(status, fields)
    if status != 304 and not downstream.head_only:
        await downstream.write(body)
    await downstream.finish()


@functools.cache
def _client() -> tuple[bytes, str]:
    body = CLIENT.read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:20]}"'
