"""A server for Penstock's ASGI applications: uvicorn's, with a protocol, the signals, the log and the end of our own.

listen    HOST:PORT read, and the socket bound
serve     one server, from its first signal to its exit code
lifespan  the application's start and end
protocol  one connection: its phases, deadlines and flow control
request   a request's head read strictly, and where its body ends
cycle     one request and its response, as ASGI has them
direct    a way around ASGI's messages, for whoever has bytes in a callback
raw       the connection itself, for an application that is to break it
log       what is said of a request
"""

from penstock.server.lifespan import StartupError
from penstock.server.listen import ListenError, address, bind, bound_to, parse_listen
from penstock.server.serve import Server, serve

__all__ = ["ListenError", "Server", "StartupError", "address", "bind", "bound_to", "parse_listen", "serve"]
