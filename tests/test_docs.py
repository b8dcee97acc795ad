"""The documents say what is there: commands, options, names, links, figures of the set-up."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

import penstock
from penstock.cli.main import COMMANDS, app_with

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def options_of(command: str) -> set[str]:
    """Every spelling of a command's options."""
    found = typer.main.get_group(app_with(*COMMANDS)).commands[command]
    context = typer.Context(found, info_name=command)
    return {
        spelling for parameter in found.get_params(context) for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "cli_reference.py"))
    assert read("docs/cli.md") == made["page"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_documents_exist_with_their_options(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text()):
        if language not in ("sh", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ ").rstrip("&"), comments=True)
            if words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", read("Makefile"), re.MULTILINE), line
            if words[:1] == ["penstock"]:
                spelled = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-zA-Z]", word)}
                assert spelled <= options_of(words[1]), line


def test_every_public_name_is_in_the_guide() -> None:
    guide = read("docs/library.md")
    assert [name for name in penstock.__all__ if not re.search(rf"\b{name}\b", guide)] == []


def test_python_in_the_documents_compiles() -> None:
    blocks = 0
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "python":
                compile(block, f"{page.name}", "exec", flags=0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                blocks += 1
    assert blocks >= 5


def test_every_room_is_in_the_plan_of_the_house() -> None:
    plan = read("ARCHITECTURE.md")
    rooms = [path.name for path in (ROOT / "src" / "penstock").iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) >= 8
    for room in rooms:
        assert re.search(rf"^  {room}/", plan, re.MULTILINE), room


def test_every_target_of_the_makefile_is_told_by_help() -> None:
    makefile = read("Makefile")
    phony = re.search(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_tests_and_examples_that_the_documents_name_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"`((?:tests|examples)/[\w/]+\.py)`", page.read_text())}
    assert len(named) >= 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_example_is_in_the_documents() -> None:
    said = "".join(page.read_text() for page in PAGES)
    for example in (ROOT / "examples").glob("*.py"):
        assert f"examples/{example.name}" in said, example.name


def test_every_decision_has_its_parts() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for record in records:
        for part in ("## Context", "## Decision", "## Consequences"):
            assert part in record.read_text(), f"{record.name}: {part}"


def test_requirement_files_name_no_place_to_download_from() -> None:
    for path in (ROOT / "requirements").iterdir():
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|https?://", text), path.name
