"""What a logged stream begins with: its head, and what its request is recognised by when it is made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.requests import Request

from penstock.relay.streams.ends import Dialect, Kind
from penstock.relay.upstream.headers import Raw


@dataclass(frozen=True, slots=True)
class Head:
    """Record 0 of a stream: what whoever answers for it must know.

    Attributes:
        status: Of the answer.
        headers: Its fields.
        kind: What its records are.
        digest: Of the request that it answers; "" where that cannot be repeated.
        dialect: How its failures are told, where the route says so.
    """

    status: int
    headers: Raw
    kind: Kind
    digest: str = ""
    dialect: Dialect | None = None

    def encoded(self) -> bytes:
        """As the log keeps it."""
        fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        value = {"status": self.status, "headers": fields, "kind": self.kind, "digest": self.digest}
        return json.dumps({**value, "dialect": self.dialect}, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Head:
        """Out of the log."""
        value = json.loads(data)
        headers = [(name.encode("latin-1"), content.encode("latin-1")) for name, content in value["headers"]]
        return cls(value["status"], headers, value["kind"], value["digest"], value["dialect"])


class Digest:
    """What a request is recognised by when it is made again: its method, its target and its body.

    Args:
        request: The reader's.
        length: Of its body; None where only the body's end tells.
    """

    def __init__(self, request: Request, length: int | None) -> None:
        scope = request.scope
        target = (scope.get("raw_path") or scope["path"].encode()) + b"?" + scope.get("query_string", b"")
        self._hash = hashlib.sha256(scope["method"].encode() + b"\0" + target + b"\0")
        self._left = length
        self._ended = False

    @property
    def value(self) -> str:
        """Of the whole request; "" as long as some of its body has yet to come."""
        return self._hash.hexdigest() if self._ended or self._left == 0 else ""

    def over(self, body: Callable[[], AsyncIterator[bytes]]) -> Callable[[], AsyncIterator[bytes]]:
        """The body, added as it passes. It may be asked for again, and then goes on where it stood."""

        async def passing() -> AsyncIterator[bytes]:
            async for piece in body():
                self._hash.update(piece)
                if self._left is not None:
                    self._left -= len(piece)
                yield piece
            self._ended = True

        return passing

    async def read(self, body: Callable[[], AsyncIterator[bytes]]) -> str:
        """The value, with the body read to its end and thrown away."""
        async for _ in self.over(body)():
            pass
        return self.value
