"""A download streamed into a multipart upload, as one writes it by hand.

`pipes.py httpx2|aiohttp SOURCE DESTINATION`
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop

BOUNDARY = "bench-0123456789abcdef"
HEAD = (
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="file"; filename="file"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


async def with_httpx2(source: str, destination: str) -> None:
    """httpx2 takes no asynchronous source in a form, so the form is framed here."""
    import httpx2

    async with (
        httpx2.AsyncClient(timeout=None, trust_env=False) as client,
        client.stream("GET", source) as download,
    ):

        async def form() -> AsyncIterator[bytes]:
            yield HEAD
            async for piece in download.aiter_raw():
                yield piece
            yield TAIL

        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        if (length := download.headers.get("content-length")) is not None:
            headers["Content-Length"] = str(len(HEAD) + int(length) + len(TAIL))
        answer = await client.post(destination, content=form(), headers=headers)
        answer.raise_for_status()
        print(answer.text)


async def with_aiohttp(source: str, destination: str) -> None:
    """With aiohttp's own form, which takes the response's body as it is."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
        session.get(source) as download,
    ):
        form = aiohttp.FormData()
        form.add_field("file", download.content, filename="file", content_type="application/octet-stream")
        async with session.post(destination, data=form) as answer:
            print(await answer.text())


if __name__ == "__main__":
    kind, download_from, upload_to = sys.argv[1:]
    uvloop.run({"httpx2": with_httpx2, "aiohttp": with_aiohttp}[kind](download_from, upload_to))
