"""From one server's download into another server's upload, in constant memory, step by step.

What `penstock pipe` does in one call, with the fluent builders, a log line for each step, and a limit on how many
exchanges run at a time::

    penstock origin --listen 127.0.0.1:8080
    penstock origin --listen 127.0.0.1:8081 --directory /tmp
    python examples/fluent_pipe.py http://127.0.0.1:8080 http://127.0.0.1:8081
"""

from __future__ import annotations

import asyncio
import logging
import sys

import penstock

logger = logging.getLogger("example")


async def main(server1: str, server2: str, lines: int) -> None:
    """Stream the file from the first server to the second."""
    limit = penstock.ConcurrencyLimit(2)
    async with (
        penstock.AsyncClient(server1, name="server1").use(limit, penstock.Logging(), progress()) as client1,
        penstock.AsyncClient(server2, name="server2").use(limit, penstock.Logging()) as client2,
    ):
        async with client1.get("/file").param("lines", lines).timeout(120).send() as file:
            file.raise_for_status()
            upload = client2.multipart("/upload").field("owner", "me").file("file", file.filename, file)
            response = await upload.timeout(120).send()
        answer = await response.raise_for_status().text()
        logger.info('Data streamed bytes=%d megabytes="%.2f MB"', file.bytes_received, file.bytes_received / 2**20)
        logger.info('Upload successful response="%s"', answer.strip())


def progress() -> penstock.Progress:
    """Tell how far a body has come."""
    return penstock.Progress(lambda update: logger.info("%s: %d bytes", update.url, update.bytes))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y/%m/%d %H:%M:%S")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    arguments = dict(enumerate(sys.argv))
    first = arguments.get(1, "http://127.0.0.1:8080")
    second = arguments.get(2, "http://127.0.0.1:8081")
    asyncio.run(main(first, second, int(arguments.get(3, "10000000"))))
