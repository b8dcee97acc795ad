"""What Penstock's own tests stand on, for everyone's: real servers and a clock that waits.

serve      a real server around an ASGI application, on a free port
script     a real server that plays raw bytes, silences and resets
clock      FakeClock
event_log  what every event log must do, as a suite
"""

from penstock.testing.clock import FakeClock
from penstock.testing.event_log import EVENT_LOG_CHECKS, LogBench, check_event_log
from penstock.testing.script import Script, close, pause, reset, script, wait_request
from penstock.testing.serve import serve

__all__ = [
    "EVENT_LOG_CHECKS",
    "FakeClock",
    "LogBench",
    "Script",
    "check_event_log",
    "close",
    "pause",
    "reset",
    "script",
    "serve",
    "wait_request",
]
