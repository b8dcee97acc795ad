"""What Penstock's own tests stand on, for everyone's: real servers and a clock that waits.

serve   a real server around an ASGI application, on a free port
script  a real server that plays raw bytes, silences and resets
clock   FakeClock
"""

from penstock.testing.clock import FakeClock
from penstock.testing.script import Script, close, pause, reset, script, wait_request
from penstock.testing.serve import serve

__all__ = ["FakeClock", "Script", "close", "pause", "reset", "script", "serve", "wait_request"]
