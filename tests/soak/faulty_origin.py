"""An origin that fails on purpose, and at random: ``python -m tests.soak.faulty_origin PORT SEED``.

``GET /NAME?events=N`` is an event stream with the ids 1 to N, which goes on after Last-Event-ID. Each connection draws
what becomes of it, from the seed and a number of its own.
"""

from __future__ import annotations

import asyncio
import random
import sys
from urllib.parse import parse_qs, urlsplit

FATES = {"whole": 8, "cut": 4, "cut in an event": 4, "reset": 3, "stall": 1, "503": 3, "nothing": 2, "late": 2}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"


def event(name: str, number: int) -> bytes:
    return f"id: {number}\ndata: {name} {number} {'x' * (number % 97)}\n\n".encode()


class Origin:
    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answered(reader, writer):
                pass
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; whether the connection is good for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines if line)
        url = urlsplit(request.split(" ")[1])
        name, last = url.path[1:], int(parse_qs(url.query)["events"][0])
        after = int(fields.get("last-event-id", "0"))
        fate = self._chance.choices([*FATES], [*FATES.values()])[0]
        left = last - after
        if fate == "503":
            writer.write(BUSY)
            return True
        if fate == "nothing":
            return False
        if fate == "late":
            await asyncio.sleep(0.05)
        writer.write(HEAD)
        whole = fate in ("whole", "late")
        until = last if whole else after + self._chance.randrange(left + 1)
        for number in range(after + 1, until + 1):
            data = event(name, number)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            if self._chance.random() < 0.05:
                await writer.drain()
                await asyncio.sleep(0.002)
        if whole:
            writer.write(b"0\r\n\r\n")
            return True
        if fate == "cut in an event":
            writer.write(b"%x\r\n%b" % (100, event(name, until + 1)[: self._chance.randrange(1, 12)]))
        await writer.drain()
        if fate == "stall":
            await asyncio.sleep(3600)
        if fate == "reset":
            writer.transport.abort()
        return False


async def main(port: int, seed: int) -> None:
    server = await asyncio.start_server(Origin(seed).connected, "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
