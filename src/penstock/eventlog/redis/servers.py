"""The servers that hold the log, and the connections to them: the only place where redis-py is imported.

redis-py's own timeout and retries are off: its timeout would end a read that is meant to block, and what is sent again
is ours to decide. Nor does it follow a cluster's redirections: a bucket is one slot, so `Servers` knows the place of
each, and looks again when it was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Disconnected

from penstock.errors import StoreError, Trouble
from penstock.eventlog.redis.address import Address, Place
from penstock.eventlog.redis.scripts import TAGS, Script
from penstock.resilience.backoff import Backoff

AGAIN = Backoff(initial=0.1, maximum=1.0, jitter="none")
"""How long to wait before a server that failed is asked again."""

FAILURES = (RedisError, OSError, TimeoutError)
"""What redis-py raises when a server does not answer, or refuses."""

T = TypeVar("T")
Wire = Connection | UnixDomainSocketConnection

FORBIDDEN = ResponseError
"""What it raises for a command that a server does not have, or that its user may not give."""

_REASONS: dict[str, tuple[Trouble, str]] = {
    "OOM": ("full", "its memory is full: raise maxmemory, or keep less; nothing is acknowledged meanwhile"),
    "MISCONF": ("full", "it cannot write to its disk, so it takes nothing"),
    "NOPERM": ("read-only", "its user may not do that: docs/eventlog.md has what it must be allowed"),
    "READONLY": ("read-only", "it is a replica: name the master, or the Sentinels"),
    "WRONGPASS": ("unavailable", "user or password are wrong"),
    "NOAUTH": ("unavailable", "it wants a password: write redis://USER:PASSWORD@HOST"),
    "LOADING": ("unavailable", "it is still loading its data"),
}


class Lane:
    """A connection on which commands wait for each other: all that are given while others are under way go as one.

    It has a task of its own for as long as it is open, and none for a command.

    Args:
        wire: Where to; it connects when it has to.
        timeout: Seconds that an answer may take.
    """

    def __init__(self, wire: Wire, timeout: float) -> None:
        self._wire = wire
        self._timeout = timeout
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._given = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = self._loop.create_task(self._run())

    def run(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; its answer, or a `FAILURES`. Whoever cancels that gets no answer; it is carried out."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        answer.add_done_callback(had)
        if self._task is None:
            answer.set_exception(OSError("the connection was closed"))
        else:
            self._waiting.append((command, answer))
            self._given.set()
        return answer

    def call(self, script: Script, base: str, *arguments: Any) -> asyncio.Future[Any]:
        """Run a script on a bucket."""
        return self.run(script, base, *arguments)

    def close(self) -> None:
        """Let go of the connection; what was not answered fails."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        under_way: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        try:
            while True:
                await self._given.wait()
                self._given.clear()
                under_way, self._waiting = self._waiting, []
                try:
                    answers = await self._send([command for command, _ in under_way])
                except FAILURES as error:
                    answers = [error] * len(under_way)
                except Exception as error:  # whatever it is: a lane that ends would leave all behind it waiting
                    answers = [OSError(repr(error))] * len(under_way)
                for (_, future), answer in zip(under_way, answers, strict=True):
                    if not future.done():
                        if isinstance(answer, Exception):
                            future.set_exception(answer)
                        else:
                            future.set_result(answer)
        finally:
            for _, future in (*under_way, *self._waiting):
                if not future.done():
                    future.set_exception(OSError("the connection was closed"))
            await self._wire.disconnect(nowait=True)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        answers = await self._pipe([_by_sha(command) for command in commands])
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # by this server; what was behind it has been done already, which is as if it had come first
            again = await self._pipe([_in_full(commands[at]) for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
        return answers

    async def _pipe(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        async with asyncio.timeout(self._timeout):
            was_connected = self._wire.is_connected
            try:
                answers = await converse(self._wire, commands)
            except (Disconnected, OSError):
                if not was_connected:
                    raise
                # The server has been started anew, it may be; and whatever is sent here may be done twice.
                answers = await converse(self._wire, commands)
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            await self._wire.disconnect(nowait=True)  # a name may lead to another server by now
        return answers


def _by_sha(command: tuple[Any, ...]) -> tuple[Any, ...]:
    name = command[0]
    return ("EVALSHA", name.sha, 1, *command[1:]) if isinstance(name, Script) else command


def _in_full(command: tuple[Any, ...]) -> tuple[Any, ...]:
    return ("EVAL", command[0].text, 1, *command[1:])


class Servers:
    """Where each bucket is, and connections to there.

    Args:
        address: What the URL says.
        timeout: Seconds that connecting, and an answer, may take.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        self._places: list[Place] = [address.places[0]] * len(TAGS)
        self._lanes: dict[Place, tuple[Lane, Lane]] = {}

    def writing(self, bucket: int) -> Lane:
        """The lane on which a bucket is written."""
        return self._lanes_to(self._places[bucket])[0]

    def reading(self, bucket: int) -> Lane:
        """The lane on which a bucket is read, so that a large page holds up no flush."""
        return self._lanes_to(self._places[bucket])[1]

    def place(self, bucket: int) -> Place:
        """Where a bucket is, as far as is known."""
        return self._places[bucket]

    @property
    def places(self) -> list[Place]:
        """All servers that have a bucket."""
        return list(dict.fromkeys(self._places))

    def wire(self, place: Place) -> Wire:
        """A connection of one's own, which connects when it is used; to be disconnected."""
        return self._wire(place, self.address.options)

    def lane(self, place: Place) -> Lane:
        """The lane to a server on which it is asked about itself."""
        return self._lanes_to(place)[1]

    async def locate(self) -> None:
        """Find out where the buckets are, and open connections to there.

        Raises:
            RedisError, OSError, TimeoutError: Nobody says so.
        """
        match self.address.kind:
            case "sentinel":
                self._places = [await self._ask_all(self._master, self.address.places)] * len(TAGS)
            case "cluster":
                slots = await self._ask_all(self._slots, (*self.address.places, *self._places))
                self._places = [_holder(slots, key_slot(tag.encode())) for tag in TAGS]
        for place in self._places:
            self._lanes_to(place)
        for gone in self._lanes.keys() - set(self._places):
            for lane in self._lanes.pop(gone):
                lane.close()

    def close(self) -> None:
        """Let go of all connections."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.close()
        self._lanes.clear()

    def told(self, error: BaseException) -> StoreError:
        """What a failure means to a user of the log."""
        if isinstance(error, StoreError):
            return error
        said = str(error) or type(error).__name__
        code = getattr(error, "status_code", None) or said.partition(" ")[0]
        if code in _REASONS:
            reason, advice = _REASONS[code]
            return StoreError(f"{self.address.shown}: {advice} (Redis: {said})", reason=reason)
        what = "no answer in time" if isinstance(error, TimeoutError) else said
        return StoreError(f"{self.address.shown}: it cannot be used ({what})", reason="unavailable")

    def _lanes_to(self, place: Place) -> tuple[Lane, Lane]:
        lanes = self._lanes.get(place)
        if lanes is None:
            lanes = self._lanes[place] = (
                Lane(self.wire(place), self._timeout),
                Lane(self.wire(place), self._timeout),
            )
        return lanes

    def _wire(self, place: Place, options: Mapping[str, Any]) -> Wire:
        given: dict[str, Any] = {
            **options,
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
        }
        if not place.port:
            return UnixDomainSocketConnection(path=place.host, **given)
        return (SSLConnection if self.address.secure else Connection)(host=place.host, port=place.port, **given)

    async def _ask_all(self, ask: Callable[[Place], Awaitable[T]], places: Sequence[Place]) -> T:
        """Ask all at once, so that one that hangs holds up nobody; the first answer, or the failure of the first."""
        asked = [asyncio.create_task(self._in_time(ask, place)) for place in dict.fromkeys(places)]
        try:
            for each in asyncio.as_completed(asked):
                with contextlib.suppress(*FAILURES):
                    return await each
            return await asked[0]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _in_time(self, ask: Callable[[Place], Awaitable[T]], place: Place) -> T:
        async with asyncio.timeout(self._timeout):
            return await ask(place)

    async def _master(self, place: Place) -> Place:
        login = {name: value for name, value in self.address.options.items() if name != "db"}
        plain = {name: value for name, value in login.items() if name not in ("username", "password")}
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.address.service)
        try:
            found = await self._ask(place, plain, *command)
        except AuthenticationError as error:
            if error.status_code != "NOAUTH":
                raise
            found = await self._ask(place, login, *command)
        if found is None:
            raise OSError(f"the Sentinel at {place} knows no {self.address.service!r}")
        return Place(found[0].decode(), int(found[1]))

    async def _slots(self, place: Place) -> list[tuple[int, int, Place]]:
        answer = await self._ask(place, self.address.options, "CLUSTER", "SLOTS")
        return [
            (start, end, Place((master[0] or place.host.encode()).decode(), master[1]))
            for start, end, master, *_ in answer
        ]

    async def _ask(self, place: Place, options: Mapping[str, Any], *command: Any) -> Any:
        wire = self._wire(place, options)
        try:
            return answered(await converse(wire, [command]))
        finally:
            await wire.disconnect(nowait=True)


async def converse(wire: Wire, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands all at once; their answers, of which some may be errors.

    Cancellation: The connection is closed.

    Raises:
        RedisError, OSError, TimeoutError: The server is not there, or went away.
    """
    answers: list[Any] = []
    try:
        await wire.send_packed_command(wire.pack_commands(commands))
        for _ in commands:
            try:
                answers.append(await wire.read_response())
            except ResponseError as error:
                answers.append(error)
    except RuntimeError as error:  # what a transport says that was closed beneath
        await wire.disconnect(nowait=True)
        raise OSError(str(error)) from error
    return answers


def answered(answers: Sequence[Any]) -> Any:
    """The only answer.

    Raises:
        ResponseError: The command was refused.
    """
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _holder(slots: Sequence[tuple[int, int, Place]], slot: int) -> Place:
    for start, end, place in slots:
        if start <= slot <= end:
            return place
    raise OSError(f"no node of the cluster has slot {slot}")


def had(done: asyncio.Future[Any]) -> None:
    """Whoever asked may have left: nobody needs to hear of a failure then."""
    if not done.cancelled():
        done.exception()
