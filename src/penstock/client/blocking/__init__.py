"""The blocking face: `Client`, which is `AsyncClient` for threads that have no event loop.

Nothing of what a client does is done here. An `AsyncClient` lives on an event loop in a thread of its own, one for the
process; what is called here is run there, and waited for.

portal    the loop's thread: begun at the first use, and begun again after a fork
loop      uvloop's, without what a fork would break
call      one thing to be run there, and the thread that waits for it
body      a request's body that is an iterable or a file: its pieces are asked of the thread that waits
link      something of the loop's, and the way to it
response  BlockingResponse
stream    BlockingStream, BlockingEventStream
builder   BlockingRequestBuilder, BlockingMultipartBuilder
client    Client
"""

from penstock.client.blocking.builder import BlockingMultipartBuilder, BlockingRequestBuilder
from penstock.client.blocking.client import Client
from penstock.client.blocking.response import BlockingResponse
from penstock.client.blocking.stream import BlockingEventStream, BlockingStream

__all__ = [
    "BlockingEventStream",
    "BlockingMultipartBuilder",
    "BlockingRequestBuilder",
    "BlockingResponse",
    "BlockingStream",
    "Client",
]
