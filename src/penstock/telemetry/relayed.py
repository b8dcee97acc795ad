"""What is read of a relay, and of what it tells: the two rooms are strangers, so each says what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request

from penstock.client.request import Middleware
from penstock.resilience.breaker import State


class Ended(Protocol):
    """The end of a stream, as the log has it."""

    @property
    def reason(self) -> str: ...


class Kept(Protocol):
    """A stream that is kept."""

    @property
    def id(self) -> str: ...
    @property
    def ended(self) -> Ended | None: ...


class Answer(Protocol):
    """An answer that is over."""

    @property
    def route(self) -> str | None: ...
    @property
    def status(self) -> int | None: ...
    @property
    def stream(self) -> Kept | None: ...
    @property
    def gaps(self) -> int: ...
    @property
    def whole(self) -> bool: ...


class StreamEnd(Protocol):
    """The end of a stream that was produced here."""

    @property
    def id(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def event_count(self) -> int: ...
    @property
    def byte_count(self) -> int: ...
    @property
    def first_event(self) -> float | None: ...
    @property
    def duration(self) -> float: ...
    @property
    def ended_at(self) -> float: ...
    @property
    def usage(self) -> Mapping[str, Any] | None: ...


class Producing(Protocol):
    """A stream that is produced here."""

    @property
    def readers(self) -> int: ...


class Streams(Protocol):
    """The streams that are kept."""

    @property
    def sessions(self) -> Sequence[Producing]: ...


class Guarded(Protocol):
    """What an upstream is reached through."""

    def circuit_state(self) -> State | None: ...


class Route(Protocol):
    """An upstream of the configuration."""

    @property
    def upstream(self) -> str: ...
    @property
    def client(self) -> Guarded: ...


class Relayed(Protocol):
    """A relay."""

    @property
    def kept(self) -> Streams | None: ...
    @property
    def routes(self) -> Sequence[Route]: ...
    def use(self, *middleware: Middleware) -> object: ...
    def watch(
        self,
        *,
        asked: Callable[[Request], Callable[[Answer, BaseException | None], None]],
        settled: Callable[[StreamEnd], None],
    ) -> object: ...
