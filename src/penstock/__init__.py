"""Stream-first HTTP: consume, relay and pipe HTTP streams, in constant memory and without losing them.

This is the only door: what is not named here is inside, and may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock.client.blocking import (
    BlockingEventStream,
    BlockingMultipartBuilder,
    BlockingRequestBuilder,
    BlockingResponse,
    BlockingStream,
    Client,
)
from penstock.client.builder import MultipartBuilder, RequestBuilder
from penstock.client.client import AsyncClient
from penstock.client.decode import AsyncEvents, EitherEvents, Events, events
from penstock.client.events import EventStream, LineStream, ModelStream, RecordStream
from penstock.client.metrics import Metrics
from penstock.client.middleware import ConcurrencyLimit, Logging, Progress
from penstock.client.notices import Comment, Connected, Interrupted, Malformed, Notice, Reconnecting, Replayed
from penstock.client.request import Middleware, Request
from penstock.client.response import BufferedResponse, End, Response
from penstock.client.settings import Limits, Timeout
from penstock.client.stream import Collected
from penstock.engine.transport import Transport
from penstock.errors import (
    CircuitOpenError,
    ConnectError,
    ConnectTimeout,
    ContentTypeError,
    DecodeError,
    InBandError,
    InvalidURL,
    LimitExceeded,
    PenstockError,
    ProducerLost,
    ProtocolError,
    ReadError,
    ReadTimeout,
    ReplayGap,
    RetriesExhausted,
    StatusError,
    StoreError,
    StreamError,
    StreamGone,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteError,
    WriteTimeout,
)
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker, State
from penstock.resilience.budget import RetryBudget
from penstock.resilience.retry import Retry
from penstock.transfer.destination import Multipart, Put
from penstock.transfer.pipe import Report, pipe
from penstock.transfer.source import Source
from penstock.wire.sse import Event
from penstock.wire.terminator import Failure, Terminator

if TYPE_CHECKING:
    from penstock.relay.app import Relay
    from penstock.relay.settings.config import ConfigError
    from penstock.relay.settings.cors import Cors
    from penstock.relay.settings.match import Match
    from penstock.relay.settings.policy import OnDisconnect, OwnerFrom, Policy, RelayLimits
    from penstock.relay.settings.rules import HeaderRules
    from penstock.relay.streams.ends import StreamEnd

__all__ = [
    "AsyncClient",
    "AsyncEvents",
    "Backoff",
    "BlockingEventStream",
    "BlockingMultipartBuilder",
    "BlockingRequestBuilder",
    "BlockingResponse",
    "BlockingStream",
    "Breaker",
    "BufferedResponse",
    "CircuitOpenError",
    "Client",
    "Collected",
    "Comment",
    "ConcurrencyLimit",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "Connected",
    "ContentTypeError",
    "Cors",
    "DecodeError",
    "EitherEvents",
    "End",
    "Event",
    "EventStream",
    "Events",
    "Failure",
    "HeaderRules",
    "InBandError",
    "Interrupted",
    "InvalidURL",
    "LimitExceeded",
    "Limits",
    "LineStream",
    "Logging",
    "Malformed",
    "Match",
    "Metrics",
    "Middleware",
    "ModelStream",
    "Multipart",
    "MultipartBuilder",
    "Notice",
    "OnDisconnect",
    "OwnerFrom",
    "PenstockError",
    "Policy",
    "ProducerLost",
    "Progress",
    "ProtocolError",
    "Put",
    "ReadError",
    "ReadTimeout",
    "Reconnecting",
    "RecordStream",
    "Relay",
    "RelayLimits",
    "ReplayGap",
    "Replayed",
    "Report",
    "Request",
    "RequestBuilder",
    "Response",
    "RetriesExhausted",
    "Retry",
    "RetryBudget",
    "Source",
    "State",
    "StatusError",
    "StoreError",
    "StreamEnd",
    "StreamError",
    "StreamGone",
    "StreamStalled",
    "StreamTruncated",
    "Terminator",
    "Timeout",
    "Transport",
    "TransportError",
    "WriteError",
    "WriteTimeout",
    "events",
    "pipe",
]


_RELAY = {
    "ConfigError": "penstock.relay.settings.config",
    "Cors": "penstock.relay.settings.cors",
    "HeaderRules": "penstock.relay.settings.rules",
    "Match": "penstock.relay.settings.match",
    "OnDisconnect": "penstock.relay.settings.policy",
    "OwnerFrom": "penstock.relay.settings.policy",
    "Policy": "penstock.relay.settings.policy",
    "Relay": "penstock.relay.app",
    "RelayLimits": "penstock.relay.settings.policy",
    "StreamEnd": "penstock.relay.streams.ends",
}
"""Loaded when they are asked for: whoever consumes or pipes needs no Starlette in memory."""


def __getattr__(name: str) -> Any:
    if name not in _RELAY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_RELAY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
