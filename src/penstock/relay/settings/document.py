"""A TOML document, read by a table of its keys: all that is wrong with it is found in one go.

A `Table` says which keys there are, and how each one's value is read: by a function that returns what it means, or
raises a ValueError that says what is wrong and what to write. The key and its line are added here. What was read well
comes back as nested dicts of those keys that were given, so that a default can be told from a value that is the same.

In every string ``${NAME}`` stands for an environment variable, and ``$${NAME}`` for itself. What a variable held is
never in a mistake's message.

The module does not know what any key is for.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from penstock.relay.settings.toml_lines import Path, key_lines, shown_path

Read = Callable[[Any], Any]

_VARIABLE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_LEAST_VEILED = 4  # characters; a shorter value stands in messages by chance

_BAD: Any = object()


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong.

    Attributes:
        line: Where, from 1; None for what stands on none.
        key: Of what, as ``routes[1].limits.max_streams``.
        message: What is wrong, and what to do.
    """

    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key with a value.

    Attributes:
        read: What makes its meaning of the value.
    """

    read: Read


@dataclass(frozen=True, slots=True)
class Items:
    """A key with a list.

    Attributes:
        read: What makes its meaning of one of them.
        one_will_do: Whether one may stand there without the list around it.
    """

    read: Read
    one_will_do: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """A table whose keys are names of the user's choice, or of a long list.

    Attributes:
        read: What makes the meaning of a name and its value.
        one_case: Whether names that differ in their capitals are the same.
    """

    read: Callable[[str, Any], Any]
    one_case: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        keys: What may stand in it.
        short: What reads a value that is no table, where one may stand in its place.
        build: What makes one value of what was read; without it the keys stay apart.
        hints: What to tell of a key that is looked for here and is not.
    """

    keys: Mapping[str, Node]
    short: Read | None = None
    build: Callable[[dict[str, Any]], Any] | None = None
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tables:
    """An array of tables, ``[[name]]``."""

    each: Table


Node: TypeAlias = Key | Items | Names | Table | Tables


class Substituted(str):
    """Text with variables of the environment in it; its repr is as it was written."""

    __slots__ = ("template", "veiled")

    template: str
    veiled: dict[str, str]

    def __repr__(self) -> str:
        return repr(self.template)


class Document:
    """What a document says, and every mistake in it.

    Args:
        text: All of it.
        environ: The environment's variables.

    Attributes:
        mistakes: So far.
        lines: Where each key stands.
    """

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.mistakes: list[Mistake] = []
        self.lines: dict[Path, int] = {}
        self._environ = environ
        self._bad: set[Path] = set()
        self._data: dict[str, Any] = {}
        try:
            self._data = tomllib.loads(text)
            self.lines = key_lines(text)
        except ValueError as error:  # TOMLDecodeError is one, and a number of five thousand digits raises another
            place = _PLACE.search(str(error))
            line = int(place[1]) if place is not None and place[1] else text.count("\n") + 1
            message = _PLACE.sub("", str(error))
            self.mistakes.append(Mistake(line, "", f"not TOML: {message}; what else there is, is told once this is"))
        except RecursionError:
            self.mistakes.append(Mistake(None, "", "not TOML that can be read: it is nested too deeply"))

    def read(self, table: Table) -> dict[str, Any]:
        """What the document says, key by key; what is wrong in it is left out, and noted."""
        said: dict[str, Any] = self._table(table, self._data, ())
        return said

    def has(self, path: Path) -> bool:
        """Whether something is written there."""
        return path in self.lines

    def is_bad(self, path: Path) -> bool:
        """Whether what is written there, in it, or around it, is a mistake."""
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self._bad)

    def add(self, path: Path, message: str) -> None:
        """Note a mistake; a key that is not there is told on the line of what it is missing in."""
        mistake = Mistake(self._line(path), shown_path(path), message)
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    def _line(self, path: Path) -> int | None:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    # -- reading -------------------------------------------------------------------------------------------------

    def _node(self, node: Node, value: Any, path: Path) -> Any:
        match node:
            case Key():
                return self._value(node.read, value, path)
            case Items():
                return self._items(node, value, path)
            case Table():
                return self._table(node, value, path)
            case Names():
                return self._names(node, value, path)
            case Tables():
                return self._tables(node, value, path)

    def _value(self, read: Read, value: Any, path: Path) -> Any:
        if isinstance(value, str) and "${" in value:
            value = self._substituted(value, path)
            if value is _BAD:
                return _BAD
        try:
            return read(value)
        except ValueError as error:
            return self._refuse(path, _veiled(str(error), value))

    def _items(self, node: Items, value: Any, path: Path) -> Any:
        if node.one_will_do and not isinstance(value, list):
            value = [value]
        if not isinstance(value, list):
            return self._refuse(path, 'is a list: write it in brackets, ["…", "…"]')
        items = tuple(self._value(node.read, each, (*path, index)) for index, each in enumerate(value))
        return _BAD if any(each is _BAD for each in items) else items

    def _table(self, table: Table, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            if table.short is not None:
                return self._value(table.short, value, path)
            return self._refuse(path, f"is a table: write [{_header(path)}] and its keys below it")
        result = {}
        for key, inner in value.items():
            node = table.keys.get(key)
            if node is None:
                self._refuse((*path, key), _unknown(key, table))
            elif (meaning := self._node(node, inner, (*path, key))) is not _BAD:
                result[key] = meaning
        if table.build is None:
            return result
        try:
            return table.build(result)
        except ValueError as error:
            return self._refuse(path, str(error))

    def _names(self, node: Names, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            return self._refuse(path, f"is a table: write [{_header(path)}] and its names below it")
        result: dict[str, Any] = {}
        for name, inner in value.items():
            known = name.lower() if node.one_case else name
            if known in result:
                self._refuse((*path, name), "is there twice: capitals make no difference")
                continue
            meaning = self._value(partial(node.read, name), inner, (*path, name))
            if meaning is not _BAD:
                result[known] = meaning
        return result

    def _tables(self, node: Tables, value: Any, path: Path) -> Any:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            return self._refuse(path, f"there may be several: write [[{_header(path)}]], in double brackets")
        return [self._table(node.each, inner, (*path, index)) for index, inner in enumerate(value)]

    def _refuse(self, path: Path, message: str) -> Any:
        self._bad.add(path)
        self.add(path, message)
        return _BAD

    # -- the environment -----------------------------------------------------------------------------------------

    def _substituted(self, text: str, path: Path) -> Any:
        veiled: dict[str, str] = {}
        missing: list[str] = []

        def held(match: re.Match[str]) -> str:
            literal, name = match.groups()
            if literal:
                return match[0][1:]
            found = self._environ.get(name, "") if _NAME.fullmatch(name) else ""
            if not found:
                missing.append(name)
            veiled[name] = found
            return found

        result = Substituted(_VARIABLE.sub(held, text))
        if not missing:
            result.template, result.veiled = text, veiled
            return result
        for name in missing:
            wrong = f"the environment variable {name} is not set, or empty: set it"
            if not _NAME.fullmatch(name):
                wrong = f"${{{name}}} names no environment variable: write ${{NAME}}"
            self._refuse(path, f"{wrong}, or write $${{{name}}} for the text")
        return _BAD


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two readings of one table: what the second one says goes before the first, key by key in tables too."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = merged(before, value) if both and isinstance(before, dict) else value
    return result


def _header(path: Path) -> str:
    """A path as a table's header has it: without the numbers, for the last element is meant."""
    return shown_path(tuple(part for part in path if isinstance(part, str)))


def _unknown(key: str, table: Table) -> str:
    if key in table.hints:
        return table.hints[key]
    inner = [(name, key) for name, node in table.keys.items() if isinstance(node, Table) and key in node.keys]
    near = [(name,) for name in difflib.get_close_matches(key, table.keys, 1)]
    if inner or near:
        return f"there is no such key here; is {shown_path((inner or near)[0])} meant?"
    return f"there is no such key here; there are {', '.join(table.keys)}"


def _veiled(message: str, value: Any) -> str:
    """The message without what a variable held."""
    if isinstance(value, Substituted):
        for name, held in value.veiled.items():
            if len(held) >= _LEAST_VEILED:
                for told in (held, repr(held)[1:-1]):
                    message = message.replace(told, f"${{{name}}}")
    return message
