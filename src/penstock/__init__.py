"""Stream-first HTTP: consume, relay and pipe HTTP streams, in constant memory and without losing them.

This is the only door: what is not named here is inside, and may change.
"""

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
    ProtocolError,
    ReadError,
    ReadTimeout,
    ReplayGap,
    RetriesExhausted,
    StatusError,
    StreamError,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteError,
    WriteTimeout,
)
from penstock.relay.app import Relay
from penstock.resilience.backoff import Backoff
from penstock.resilience.breaker import Breaker, State
from penstock.resilience.budget import RetryBudget
from penstock.resilience.retry import Retry
from penstock.transfer.destination import Multipart, Put
from penstock.transfer.pipe import Report, pipe
from penstock.transfer.source import Source
from penstock.wire.sse import Event
from penstock.wire.terminator import Failure, Terminator

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
    "ConnectError",
    "ConnectTimeout",
    "Connected",
    "ContentTypeError",
    "DecodeError",
    "EitherEvents",
    "End",
    "Event",
    "EventStream",
    "Events",
    "Failure",
    "InBandError",
    "Interrupted",
    "InvalidURL",
    "LimitExceeded",
    "Limits",
    "LineStream",
    "Logging",
    "Malformed",
    "Metrics",
    "Middleware",
    "ModelStream",
    "Multipart",
    "MultipartBuilder",
    "Notice",
    "PenstockError",
    "Progress",
    "ProtocolError",
    "Put",
    "ReadError",
    "ReadTimeout",
    "Reconnecting",
    "RecordStream",
    "Relay",
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
    "StreamError",
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
