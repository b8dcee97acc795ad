"""The page's files as they are served: complete, by themselves, and within a strict security policy."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.relay.operator.page.node import PAGE

FILES = sorted(path.name for path in PAGE.iterdir() if path.is_file())
MODULES = [name for name in FILES if name.endswith(".js")]
IMPORT = re.compile(
    r"""^(?:import|export)\b[^"';]*?from "([^"]+)";|\bimport\("([^"]+)"\)|^import "([^"]+)";""", re.MULTILINE
)


class Markup(HTMLParser):
    """What a page refers to, and what of it a strict policy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()
        self.refused: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._within = tag
        for name, value in attributes:
            if name == "style" or name.startswith("on"):
                self.refused.append(f"{tag} {name}")
            elif name in ("href", "src") and value and not value.startswith("#"):
                self.files.add(value)

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.refused.append(f"inline {self._within}")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def imports(name: str) -> set[str]:
    text = re.sub(r"/\*.*?\*/", "", (PAGE / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return {next(filter(None, found)) for found in IMPORT.findall(text)}


def test_every_file_is_reached_from_the_page_and_every_name_is_a_file() -> None:
    markup = Markup()
    markup.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert markup.refused == []
    reached = {"index.html", *markup.files}
    for _ in MODULES:
        reached |= {each.removeprefix("./") for name in reached & set(MODULES) for each in imports(name)}
    assert reached == set(FILES)


def test_the_client_can_be_copied_alone() -> None:
    assert imports("client.js") == set()


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere_and_no_data_becomes_markup(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://|url\(|@import", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []


@pytest.mark.parametrize("name", FILES)
def test_lines_are_as_long_as_everywhere(name: str) -> None:
    lines = (PAGE / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.lstrip().startswith("<")] == []
