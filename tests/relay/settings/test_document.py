from __future__ import annotations

from typing import Any

import pytest

from penstock.relay.settings.document import Document, Items, Key, Mistake, Names, Table, Tables, merged


def whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or value.startswith("!"):
        raise ValueError(f"{value!r} is not a word")
    return str(value)


def small(said: dict[str, Any]) -> tuple[int, ...]:
    if sum(said.values()) > 9:
        raise ValueError("is more than 9 in all")
    return tuple(said.values())


ROOT = Table(
    {
        "count": Key(whole),
        "word": Key(text),
        "words": Items(text, one_will_do=True),
        "pair": Table({"one": Key(whole), "two": Key(whole)}, build=small),
        "switch": Table({"depth": Key(whole)}, short=whole),
        "names": Names(lambda name, value: f"{name}={text(value)}", one_case=True),
        "rows": Tables(Table({"count": Key(whole)}, hints={"size": "is called count"})),
    },
    hints={"color": "is not settable"},
)


def read(document: str, **environ: str) -> tuple[dict[str, Any], list[str]]:
    found = Document(document, environ)
    said = found.read(ROOT) if found.lines else {}
    return said, [str(mistake) for mistake in found.mistakes]


def test_what_is_said_and_no_more() -> None:
    said, mistakes = read(
        """
        count = 3
        words = "one"
        pair.one = 4
        switch.depth = 5
        names = { A = "x" }
        rows = [{}, { count = 1 }]
        """
    )
    assert mistakes == []
    assert said == {
        "count": 3,
        "words": ("one",),
        "pair": (4,),
        "switch": {"depth": 5},
        "names": {"a": "A=x"},
        "rows": [{}, {"count": 1}],
    }
    assert read("switch = 7\nwords = ['a', 'b']") == ({"switch": 7, "words": ("a", "b")}, [])


def test_every_mistake_with_its_line_and_key_and_what_was_good() -> None:
    said, mistakes = read(
        """count = "x"
word = "good"
words = [
  "a",
  1,
  "!b",
]
cuont = 1
depth = 2
nonsense = 3
color = "red"
switch = { dept = 1 }
names = { A = 1, b = "x", B = "y" }
[pair]
one = 5
two = 6
[[rows]]
count = 1
[[rows]]
size = 2
count = true
"""
    )
    assert mistakes == [
        "line 1: count: 'x' is not a number",
        "line 5: words[1]: 1 is not a word",
        "line 6: words[2]: '!b' is not a word",
        "line 8: cuont: there is no such key here; is count meant?",
        "line 9: depth: there is no such key here; is switch.depth meant?",
        "line 10: nonsense: there is no such key here; there are count, word, words, pair, switch, names, rows",
        "line 11: color: is not settable",
        "line 12: switch.dept: there is no such key here; is depth meant?",
        "line 13: names.A: 1 is not a word",
        "line 13: names.B: is there twice: capitals make no difference",
        "line 14: pair: is more than 9 in all",
        "line 20: rows[1].size: is called count",
    ]
    assert said == {"word": "good", "switch": {}, "names": {"b": "b=x"}, "rows": [{"count": 1}, {"count": True}]}


def test_what_is_no_table_or_list() -> None:
    _, mistakes = read("pair = 1\nwords = 2\nnames = 3\nrows = 4\n")
    assert mistakes == [
        "line 1: pair: is a table: write [pair] and its keys below it",
        "line 2: words[0]: 2 is not a word",
        "line 3: names: is a table: write [names] and its names below it",
        "line 4: rows: there may be several: write [[rows]], in double brackets",
    ]
    found = Document("list = 'x'", {})
    found.read(Table({"list": Items(text)}))
    assert [mistake.message for mistake in found.mistakes] == ['is a list: write it in brackets, ["…", "…"]']
    assert read("[rows]\ncount = 1")[1] == ["line 1: rows: there may be several: write [[rows]], in double brackets"]
    assert read("rows = [1]")[1] == ["line 1: rows: there may be several: write [[rows]], in double brackets"]


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ("a = 1\nb = \n", 2),
        ("a = 1\na = 2\n", 2),
        ("[a]\n[a]\n", 2),
        ("a = [1,\n", 2),
        ("a = 1\nb = 2 3", 2),
    ],
)
def test_what_is_no_toml(document: str, line: int) -> None:
    (mistake,) = Document(document, {}).mistakes
    assert mistake.line == line
    assert mistake.message.startswith("not TOML: ")


@pytest.mark.parametrize("document", ["a = " + "9" * 5000, "a = " + "[" * 100_000])
def test_toml_that_nobody_means(document: str) -> None:
    (mistake,) = Document(document, {}).mistakes
    assert mistake.message.startswith("not TOML")


# -- the environment


def test_variables_are_put_in() -> None:
    document = 'word = "a ${A}-${_B2} $C $${D} ${"\nwords = ["${A}"]\nnames.x = "${A}"\n'
    said, mistakes = read(document, A="one", _B2="two", C="no")
    assert mistakes == []
    assert said == {"word": "a one-two $C ${D} ${", "words": ("one",), "names": {"x": "x=one"}}


def test_a_variable_is_put_in_once() -> None:
    assert read('word = "${A}"', A="${B}", B="no")[0] == {"word": "${B}"}


def test_variables_that_are_not_there() -> None:
    _, mistakes = read('word = "${A} ${B} ${A-b} ${}"\nwords = ["${A}"]\ncount = "${A}"', B="")
    assert mistakes == [
        "line 1: word: the environment variable A is not set, or empty: set it, or write $${A} for the text",
        "line 1: word: the environment variable B is not set, or empty: set it, or write $${B} for the text",
        "line 1: word: ${A-b} names no environment variable: write ${NAME}, or write $${A-b} for the text",
        "line 1: word: ${} names no environment variable: write ${NAME}, or write $${} for the text",
        "line 2: words[0]: the environment variable A is not set, or empty: set it, or write $${A} for the text",
        "line 3: count: the environment variable A is not set, or empty: set it, or write $${A} for the text",
    ]


def test_what_a_variable_holds_is_not_told() -> None:
    said, mistakes = read('word = "${A}"\ncount = "key ${B}"\n', A="!s3cret", B="s3cret")
    assert said == {}
    assert mistakes == ["line 1: word: '${A}' is not a word", "line 2: count: 'key ${B}' is not a number"]


def test_not_by_a_reader_that_does_not_know_of_variables_either() -> None:
    def refuse(value: str) -> None:
        raise ValueError(f"no {value.upper().lower()} here")

    found = Document('key = "a ${A}"', {"A": "s3cret"})
    found.read(Table({"key": Key(refuse)}))
    assert [mistake.message for mistake in found.mistakes] == ["no a ${A} here"]


# -- the whole


def test_what_is_bad() -> None:
    found = Document("count = 'x'\nword = 'a'\n[pair]\none = 'x'\n[[rows]]\n[[rows]]\ncount = 'x'\n", {})
    found.read(ROOT)
    for path in (("count",), ("pair",), ("pair", "one"), ("rows",), ("rows", 1), ("rows", 1, "count", "below")):
        assert found.is_bad(path), path
    for path in (("word",), ("rows", 0), ("pair", "two")):
        assert not found.is_bad(path), path


def test_a_mistake_is_noted_once_and_on_the_nearest_line() -> None:
    found = Document("[[rows]]\n[[rows]]\n", {})
    for _ in range(2):
        found.add(("rows", 1, "count"), "is missing")
    found.add(("else",), "is missing")
    found.add((), "is empty")
    assert found.mistakes == [
        Mistake(2, "rows[1].count", "is missing"),
        Mistake(None, "else", "is missing"),
        Mistake(None, "", "is empty"),
    ]
    assert [str(mistake) for mistake in found.mistakes] == [
        "line 2: rows[1].count: is missing",
        "else: is missing",
        "is empty",
    ]


def test_merging() -> None:
    under = {"a": 1, "t": {"x": 1, "y": {"z": 1}}, "l": (1, 2), "off": {"x": 1}}
    over = {"t": {"y": {"w": 2}}, "l": (3,), "off": None}
    assert merged(under, over) == {"a": 1, "t": {"x": 1, "y": {"z": 1, "w": 2}}, "l": (3,), "off": None}
    assert under["t"] == {"x": 1, "y": {"z": 1}}, "neither is changed"
    assert merged({"off": None}, {"off": {"x": 1}}) == {"off": {"x": 1}}
