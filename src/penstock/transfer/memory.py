"""What this process holds in memory, as the kernel counts it."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

_STATUS = Path("/proc/self/status")


def resident_kib() -> int:
    """Resident memory now [KiB]; where the kernel does not tell, the peak."""
    return _from_proc("VmRSS:") or peak_kib()


def peak_kib() -> int:
    """The most resident memory so far [KiB]; 0 where the kernel does not tell.

    On Linux this is VmHWM and not ru_maxrss: the latter survives an exec, so that a small process started by a large
    one would report the large one's peak.
    """
    if peak := _from_proc("VmHWM:"):
        return peak
    if sys.platform == "win32":
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def _from_proc(field: str) -> int:
    try:
        status = _STATUS.read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0
