"""The app, and how every command ends.

====  ========================================================================================
code  meaning
====  ========================================================================================
0     done; also when whoever reads stdout has left (``| head -1``)
1     the stream or transfer failed; one line on stderr says what, where and what to do
2     wrong usage
130   SIGINT
143   SIGTERM
====  ========================================================================================
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.run import SIGNALS, Interrupted
from penstock.errors import InvalidURL, PenstockError

# typer keeps its copy of click to itself; this is the root of its errors of usage.
UsageError: Any = typer.BadParameter.__mro__[1]

COMMANDS = ("demo", "origin", "relay", "tail", "pipe", "doctor")
"""In the order of the help; each is a function of its name in a module of its name."""


def app_with(*commands: str) -> typer.Typer:
    """The app with some of its commands, and only their modules loaded: a pipe needs no server in its memory."""
    app = typer.Typer(
        name="penstock",
        help="Stream-first HTTP: consume, relay and pipe HTTP streams, in constant memory and without losing them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in commands:
        app.command(command)(getattr(import_module(f"penstock.cli.{command}"), command))
    return app


def _version(wanted: bool) -> None:
    if wanted:
        output.data(f"penstock {version('penstock')}")
        raise typer.Exit


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with its exit code."""
    arguments = sys.argv[1:]
    output.prepare()
    if sys.platform != "win32":  # for what comes before an event loop
        for signum in SIGNALS:
            signal.signal(signum, _interrupted)
    try:
        code = run(arguments, as_json="--json" in arguments)
    except output.ReaderLeft:
        output.silence(sys.stdout)
        code = 0
    except OSError as error:  # of stdout itself, so that it cannot be told there
        output.note(f"penstock: {_os_error(error)}")
        output.silence(sys.stdout)
        code = 1
    if sys.platform != "win32":
        for signum in SIGNALS:  # all is told: whoever has not the patience for the rest need not wait
            signal.signal(signum, _at_once)
    if not sys.warnoptions:
        # What is left dies with the process. To look through it all for garbage first is a tenth of a short command's
        # time; who asks for warnings gets those of that last look.
        gc.freeze()
    sys.exit(code)


def _interrupted(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def _at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def run(arguments: list[str], *, as_json: bool) -> int:
    """Run the command line; its exit code.

    Args:
        arguments: Without the program's name.
        as_json: Whether a failure is told as an object on stdout.
    Raises:
        ReaderLeft: Whoever reads stdout has left.
        OSError: Stdout cannot be written to.
    """
    wanted = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    try:
        # Typer returns what a command returned, or the code of a typer.Exit.
        app = app_with(*wanted)
        return int(app(arguments, prog_name="penstock", standalone_mode=False) or 0)
    except output.ReaderLeft:
        raise
    except SystemExit:  # Typer's way with a help text that nobody reads to its end
        raise output.ReaderLeft from None
    except UsageError as error:
        if not arguments:
            output.note(error.format_message())  # the help
            return 2
        return _failed(error, _usage(error), 2, as_json=as_json)
    except InvalidURL as error:
        return _failed(error, str(error), 2, as_json=as_json)
    except PenstockError as error:
        return _failed(error, str(error), 1, as_json=as_json)
    except Interrupted as error:
        return _failed(error, str(error), error.exit_code, as_json=as_json)
    except OSError as error:
        if error.filename == "stdout":
            raise
        return _failed(error, _os_error(error, *arguments[:1]), 1, as_json=as_json)
    except Exception as error:
        return _failed(error, _bug(error), 1, as_json=as_json)


def _failed(error: BaseException, message: str, code: int, *, as_json: bool) -> int:
    line = output.printable(" ".join(message.split()))
    if as_json:
        output.record(output.error_record(error, line))
    else:
        output.note(f"penstock: {line}")
    return code


def _usage(error: Any) -> str:
    """Typer's message, and where to read what is right."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "penstock"
    return f"{message}; see `{command} --help`"


def _os_error(error: OSError, command: str = "") -> str:
    what = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    if command == "pipe" and error.errno == errno.ENOENT:  # whose arguments are files or URLs
        advice = "check the path, or write a URL with http:// or https://"
    if advice:
        what += f"; {advice}"
    return f"{error.filename}: {what}" if error.filename else what


def _bug(error: Exception) -> str:
    """What nobody foresaw, in one line, with the place that a report of it should name."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"a bug in penstock: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}); please report it"


_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "its permissions do not allow it",
    errno.ENOSPC: "make room, or write elsewhere",
}
