"""The sample servers, and their faults: something to stream from and to, that fails when it is told to.

app         the routes, as one ASGI application
content     generated lines, or a real file
conditions  ranges and conditional requests
streams     a generator, events, chat completions
upload      bodies to disk
exchange    refusals, parameters, and the reader that may leave
faults      breaking any of it on purpose
"""

from penstock.origin.app import app
from penstock.origin.content import OriginError
from penstock.origin.faults import FaultInjected
from penstock.origin.upload import Limits

__all__ = ["FaultInjected", "Limits", "OriginError", "app"]
