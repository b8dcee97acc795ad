"""A server for Penstock's ASGI applications: uvicorn's, with the signals, the log and the end taken over.

listen    HOST:PORT read, and the socket bound
protocol  uvicorn's HTTP/1.1 protocol, and the raw connection beneath it
lifespan  the application's start and end
serve     one server, from its first signal to its exit code
"""

from penstock.server.lifespan import StartupError
from penstock.server.listen import ListenError, address, bind, bound_to, parse_listen
from penstock.server.serve import Server, serve

__all__ = ["ListenError", "Server", "StartupError", "address", "bind", "bound_to", "parse_listen", "serve"]
