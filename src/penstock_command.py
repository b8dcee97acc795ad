"""The `penstock` command before the package is loaded: a signal ends it quietly from the first moment.

Loading takes a tenth of a second or two, and Ctrl-C within it would print the traceback of an import.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: os._exit(128 + number))
    from penstock.cli.main import main as run

    run()
