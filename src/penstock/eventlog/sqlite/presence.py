"""A lock file that lasts as long as its process: the quick way to learn that a producer is gone.

The kernel lets go of the lock when the process ends, however it ends, and in whatever container it ran. Without such
locks (on Windows), or where the file is missing, nothing is known, and a lease has to run out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class Presence:
    """Says for one epoch at a time that its process lives.

    Args:
        path: The log's file; the lock files lie beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None
        self._file: Path | None = None

    def show(self, epoch: int) -> None:
        """Be present until `leave`, or the end of the process."""
        self.leave()
        if sys.platform == "win32":
            return
        self._file = self._of(epoch)
        self._held = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def leave(self, *, tidy: bool = True) -> None:
        """Be present no more.

        Args:
            tidy: Whether to remove the file, which says that there is nothing left to mend.
        """
        if self._held is not None and self._file is not None:
            if tidy:
                self._file.unlink(missing_ok=True)
            os.close(self._held)
            self._held = self._file = None

    def is_gone(self, epoch: int) -> bool:
        """Whether the process of an epoch has surely ended."""
        if sys.platform == "win32":
            return False
        try:
            found = os.open(self._of(epoch), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(found)

    def tidy(self, epoch: int) -> None:
        """Remove the file of a process that is gone."""
        self._of(epoch).unlink(missing_ok=True)

    def _of(self, epoch: int) -> Path:
        return self._path.with_name(f"{self._path.name}-producer-{epoch}")
