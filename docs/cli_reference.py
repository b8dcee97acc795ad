"""Writes the reference part of docs/cli.md from the commands themselves: `make docs`; a test keeps it true."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from penstock.cli.main import COMMANDS, app_with

PAGE = Path(__file__).with_name("cli.md")
MARK = "<!-- from here on written by `make docs` -->\n"


def reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    group = typer.main.get_group(app_with(*COMMANDS))
    return "\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"penstock {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## penstock {name}", "", f"`{usage}`", "", _paragraphs(command.help or ""), "", "| | |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    return "\n".join([*lines, ""])


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """The page as it should be."""
    written, _, _ = PAGE.read_text().partition(MARK)
    return written + MARK + "\n" + reference()


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name} is up to date", file=sys.stderr)
