"""On which line each key of a TOML document stands, which `tomllib` does not tell.

`tomllib` decides what is TOML and what it says; this only walks the same text again and notes where things are. So it
is given what `tomllib` has taken, believes that it is well-formed, and knows of values no more than where they end.

A path is keys and, for the elements of arrays, numbers from 0: ``("routes", 1, "limits", "max_streams")``.

The packages that keep positions were weighed and left: tomlkit keeps the text and not its lines, the others are small
and quiet, and none is worth a dependency of the core for what a hundred lines do.
"""

from __future__ import annotations

import tomllib
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]

_BLANK = " \t"
_SPACE = " \t\n"
_AFTER_BARE_KEY = " \t.=]\"'"
_AFTER_SCALAR = ",]}#\n"


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key, table and array element of a document.

    Args:
        text: What `tomllib.loads` has taken.
    """
    return _Walk(text.replace("\r\n", "\n")).lines


def shown_path(path: Path) -> str:
    """A path as one writes it: ``routes[1].limits.max_streams``."""
    result = ""
    for part in path:
        if isinstance(part, int):
            result += f"[{part}]"
        else:
            bare = part.replace("_", "").replace("-", "")
            word = part if bare.isascii() and bare.isalnum() else repr(part)
            result += f".{word}" if result else word
    return result


class _Walk:
    """One pass over the text."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0  # up to where newlines are counted
        self._tables: dict[Path, int] = {}  # arrays of tables, and how many each has
        self._document()

    def _document(self) -> None:
        table: Path = ()
        while self._skip(_SPACE):
            if self._text[self._at] != "[":
                self._pair(table)
                continue
            many = self._text.startswith("[[", self._at)
            line = self._here()
            self._at += 2 if many else 1
            table = self._header(self._keys(), many, line)
            self._at += 2 if many else 1

    def _header(self, keys: list[str], many: bool, line: int) -> Path:
        """The table that a header opens; of an array of tables it is the last one."""
        path: Path = ()
        for index, key in enumerate(keys):
            path += (key,)
            last = index == len(keys) - 1
            if last or path not in self.lines:
                self.lines.setdefault(path, line)
            if last and many:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path += (self._tables[path] - 1,)
                self.lines.setdefault(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._here()
        path = table
        for key in self._keys():
            path += (key,)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_BLANK)
        match self._text[self._at]:
            case '"' | "'":
                self._string()
            case "[":
                self._elements(path)
            case "{":
                self._pairs(path)
            case _:
                while self._at < len(self._text) and self._text[self._at] not in _AFTER_SCALAR:
                    self._at += 1

    def _elements(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._skip(_SPACE + ",") and self._text[self._at] != "]":
            self.lines[*path, index] = self._here()
            self._value((*path, index))
            index += 1
        self._at += 1

    def _pairs(self, path: Path) -> None:
        self._at += 1
        while self._skip(_SPACE + ",") and self._text[self._at] != "}":
            self._pair(path)
        self._at += 1

    def _keys(self) -> list[str]:
        """A dotted key, up to what follows it."""
        keys = []
        while True:
            self._skip(_BLANK)
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                keys.append(str(tomllib.loads(f"key = {self._text[start : self._at]}")["key"]))
            else:
                while self._text[self._at] not in _AFTER_BARE_KEY:
                    self._at += 1
                keys.append(self._text[start : self._at])
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            mark = quote * 3
        else:
            mark = quote
        self._at += len(mark)
        while not self._text.startswith(mark, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(mark)
        if len(mark) == 3:  # up to two more quotes before the closing ones are text
            while self._text.startswith(quote, self._at):
                self._at += 1

    def _skip(self, what: str) -> bool:
        """Go to what is neither of these nor, where lines may end, a comment; whether there is anything."""
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character == "#" and "\n" in what:
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif character in what:
                self._at += 1
            else:
                return True
        return False

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line
