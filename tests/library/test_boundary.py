"""The structure of the library: what it imports, and how its folders depend on each other."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.support import ROOT

PACKAGE = ROOT / "template" / "packages" / "alembic-safety" / "src" / "alembic_safety"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 300
PROJECT = {"core", "apps", "api", "main"}
NAMES_A_MODULE = re.compile(r"\b(core|apps)\.[a-z_]+\b|\bfrom (core|apps|main|api) import\b")


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def folder_of(module: str) -> str:
    """Return the folder of a module in the library; a module at the top stands for itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_neither_imports_nor_names_a_project(file: Path) -> None:
    assert not PROJECT & {name.partition(".")[0] for name in imports(file)}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not NAMES_A_MODULE.search(node.value), node.value


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_is_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("group", [module_of, lambda file: folder_of(module_of(file))])
def test_neither_modules_nor_folders_depend_on_each_other_in_a_circle(group: object) -> None:
    assert callable(group)
    graph: dict[str, set[str]] = {}
    for file in FILES:
        if file == PACKAGE / "__init__.py":
            continue  # the public names, which no module inside imports from here
        used = {name for name in imports(file) if name.startswith("alembic_safety.")}
        assert "alembic_safety" not in set(imports(file)), file
        names = used if group is module_of else {folder_of(name) for name in used}
        graph.setdefault(group(file), set()).update(names - {group(file)})
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_one_module_uses_private_parts_of_alembic() -> None:
    private = re.compile(
        r"\b(context|migrations|script|revision|item)\._(?!mapping)[a-z]\w*", re.IGNORECASE
    )
    found = [
        f"{module_of(file)}: {match[0]}"
        for file in FILES
        for match in private.finditer(file.read_text(encoding="utf-8"))
        if file.name != "alembic_internals.py"
    ]
    # The trial runs in the project's own Python, whose Alembic may be any.
    assert [line for line in found if not line.startswith("alembic_safety.ini.trial")] == []
