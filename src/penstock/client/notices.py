"""What happens to a stream besides its items, for whoever asks with ``on_notice=``.

==============  ====================================================================================
notice          when
==============  ====================================================================================
`Connected`     a response was accepted as the stream: the first time, and after each reconnect
`Interrupted`   the stream broke, or could not be had; what follows says whether it is tried again
`Reconnecting`  before the pause that ends in another attempt
`Replayed`      the server played again what had been delivered; it was left out
`Malformed`     a payload does not fit the model; it was left out, and counts as failed
`Comment`       a comment line of an event stream, such as a keep-alive
==============  ====================================================================================

A clean end is the end of the iteration, and a failure that ends the stream is raised: neither is a notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.client.response import Response
from penstock.errors import PenstockError
from penstock.wire.sse import Event


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open.

    Attributes:
        response: Its response: status, headers, URL.
        attempt: Which attempt brought it, from 1.
    """

    response: Response
    attempt: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An attempt failed, or a stream broke.

    Attributes:
        failure: Why.
    """

    failure: PenstockError


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """Another attempt is coming.

    Attributes:
        attempt: Its number.
        pause: Seconds until then.
        failure: What it is to mend; None after a clean end.
        last_event_id: Where the stream will be asked to go on, "" for its beginning.
    """

    attempt: int
    pause: float
    failure: PenstockError | None
    last_event_id: str = ""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The server ignored Last-Event-ID, and played events again that had been delivered.

    Attributes:
        events: How many were left out.
    """

    events: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A payload that does not fit the model.

    Attributes:
        event: The event that carries it.
        reason: What is wrong, in one line.
    """

    event: Event
    reason: str


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment line.

    Attributes:
        text: What follows the colon, less one leading space.
    """

    text: str


Notice: TypeAlias = Connected | Interrupted | Reconnecting | Replayed | Malformed | Comment

OnNotice = Callable[[Notice], None]
