"""The door: what it names is there, documented, and light to open."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import penstock


def test_the_door_names_what_it_exports_in_order() -> None:
    assert penstock.__all__ == sorted(penstock.__all__)
    assert len(set(penstock.__all__)) == len(penstock.__all__)


@pytest.mark.parametrize("name", penstock.__all__)
def test_every_export_is_documented(name: str) -> None:
    exported = getattr(penstock, name)
    if inspect.isclass(exported) or inspect.isfunction(exported):
        assert inspect.getdoc(exported), name


@pytest.mark.parametrize(
    "kind",
    [kind for name in penstock.__all__ if inspect.isclass(kind := getattr(penstock, name))],
    ids=lambda kind: kind.__name__,
)
def test_public_methods_are_documented(kind: type) -> None:
    for name, member in vars(kind).items():
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        if kind.__module__.startswith("penstock."):
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_every_error_is_exported() -> None:
    def below(error: type[Exception]) -> set[str]:
        return {error.__name__}.union(*(below(kind) for kind in error.__subclasses__()))

    public = {name for name in below(penstock.PenstockError) if getattr(penstock.errors, name, None) is not None}
    assert public <= set(penstock.__all__)


def test_the_library_does_not_load_the_command_line_or_a_server() -> None:
    script = (
        "import penstock, sys; print(sorted({'typer', 'rich', 'uvicorn', 'fastapi', 'starlette'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
