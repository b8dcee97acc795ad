"""Where keys stand, against a writer that knows where it put them, and against what tomllib reads."""

from __future__ import annotations

import json
import string
import tomllib
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.relay.settings.toml_lines import Path, key_lines, shown_path

TRICKY = (File(__file__).parents[2] / "corpus" / "tricky.toml").read_text()


def paths_of(value: Any, path: Path = ()) -> set[Path]:
    """Every path in what tomllib read."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path} - {()} | {found for key, each in inner for found in paths_of(each, (*path, key))}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_document_of_everything(newline: str) -> None:
    text = TRICKY.replace("\n", newline)
    lines = key_lines(text)
    assert set(lines) == paths_of(tomllib.loads(text))
    said = {shown_path(path): line for path, line in lines.items()}
    assert said == {
        "a": 2,
        "'b c'": 3,
        "'b c'.d": 3,
        "t": 7,
        "t.arr": 8,
        "t.arr[0]": 9,
        "t.arr[1]": 10,
        "t.arr[1].k": 10,
        "t.arr[1].l": 10,
        "t.arr[1].l[0]": 10,
        "t.arr[2]": 11,
        "t.x": 14,
        "t.x.y": 14,
        "t.x.y.z": 14,
        r"t.'lit\\'": 15,
        "r": 16,
        "r[0]": 16,
        "r[0].q": 17,
        "r[0].sub": 18,
        "r[0].sub.z": 19,
        "r[1]": 20,
        "r[1].deep": 21,
        "r[1].deep[0]": 21,
        "r[1].deep[0].k": 22,
        "r[1].deep[0].k.v": 22,
        "r[1].deep[1]": 23,
        "r2": 24,
        "r2.x": 24,
        "r2.x.'é'": 25,
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "  \t"])
def test_nothing(text: str) -> None:
    assert key_lines(text) == {}


# -- a writer that knows

KEYS = st.text(string.ascii_letters + string.digits + "_-. \"'#[]é", min_size=1, max_size=4)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-9, 99),
    st.text(string.ascii_letters + "\"'#[]{}=,\\\n ", max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=3),
    lambda inner: st.dictionaries(
        KEYS, st.one_of(VALUES, inner, st.lists(inner.filter(bool), min_size=1, max_size=3)), max_size=3
    ),
    max_leaves=8,
)


class Writer:
    """Writes a document in one of the many ways there are, and notes on which line each key comes."""

    def __init__(self, draw: Any) -> None:
        self.text = ""
        self.lines: dict[Path, int] = {}
        self._draw = draw

    def write(self, table: dict[str, Any], path: Path = (), header: str = "") -> None:
        tables = []
        for key, value in table.items():
            if isinstance(value, dict) and self._maybe():
                tables.append((key, [value], False))
            elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value) and self._maybe():
                tables.append((key, value, True))
            else:
                self._note((*path, key))
                self.text += f"{self._blank()}{self._key(key)}{self._blank()}={self._blank()}"
                self._value(value, (*path, key))
                self._end()
        for key, values, many in tables:
            name = f"{header}{self._key(key)}"
            for index, value in enumerate(values):
                self._note((*path, key))
                if many:
                    self._note((*path, key, index))
                self.text += f"[[{name}]]" if many else f"[{name}]"
                self._end()
                self.write(value, (*path, key, index) if many else (*path, key), f"{name} .{self._blank()}")

    def _value(self, value: Any, path: Path) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for index, (key, inner) in enumerate(value.items()):
                self.text += ", " if index else ""
                self._note((*path, key))
                self.text += f"{self._key(key)} = "
                self._value(inner, (*path, key))
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, inner in enumerate(value):
                self._space()
                self._note((*path, index))
                self._value(inner, (*path, index))
                self.text += ","
            self._space()
            self.text += "]"
        elif isinstance(value, str) and "'''" not in value and not value.endswith("'") and self._maybe():
            self.text += f"'''\n{value}'''"
        else:
            self.text += json.dumps(value)

    def _key(self, key: str) -> str:
        bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
        if bare and self._maybe():
            return key
        return f"'{key}'" if "'" not in key and self._maybe() else json.dumps(key)

    def _note(self, path: Path) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def _end(self) -> None:
        self.text += self._draw(st.sampled_from(["\n", "  # [x] = {\n", "\n\n", '\n# ] "\n']))

    def _space(self) -> None:
        self.text += self._draw(st.sampled_from(["", " ", "\n", " # ] }\n\t"]))

    def _blank(self) -> str:
        return str(self._draw(st.sampled_from(["", " ", "\t"])))

    def _maybe(self) -> bool:
        return bool(self._draw(st.booleans()))


@given(st.data())
def test_every_key_is_found_on_the_line_it_was_written_on(data: st.DataObject) -> None:
    table = data.draw(TABLES)
    writer = Writer(data.draw)
    writer.write(table)
    assert tomllib.loads(writer.text) == table, "the writer writes TOML"
    assert key_lines(writer.text) == writer.lines
