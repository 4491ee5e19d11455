"""Revisions as files: read from their text, without importing them."""

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory

from core.migrations.config import make_config
from core.project import ROOT

_FIELD = re.compile(r"%\((\w+)\)[\d.]*[sd]")
# Linters move imports between these modules, and remove those that only annotations need.
_ANNOTATION_MODULES = {"collections.abc", "typing"}


@dataclass(frozen=True, kw_only=True)
class RevisionFile:
    """A revision, as the text of its file declares it."""

    path: Path
    """Relative to the project."""
    revision: str
    parents: tuple[str, ...]
    digest: str
    """Hash of the code. Comments, the docstring, formatting, annotations and the order of imports
    don't change it."""

    @classmethod
    def parse(cls, path: Path, source: str) -> "RevisionFile | None":
        """Parse a file; return None if it is not Python, or its identifiers are not literals."""
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):
            return None
        values = {name: value for name, value, _ in assigned_literals(module)}
        revision, parents = values.get("revision"), values.get("down_revision")
        if not isinstance(revision, str) or "down_revision" not in values:
            return None
        return cls(
            path=path,
            revision=revision,
            parents=(parents,) if isinstance(parents, str) else tuple(parents or ()),
            digest=hashlib.sha256(_normalize(module).encode()).hexdigest(),
        )


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        value = node.value
        return ast.Assign(targets=[node.target], value=value) if value else ast.Pass()

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module in _ANNOTATION_MODULES else node


def _normalize(module: ast.Module) -> str:
    """Return a text that two modules share if they do the same; modifies `module`."""
    if ast.get_docstring(module) is not None:
        module.body = module.body[1:]
    body = _WithoutAnnotations().visit(module).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [node for node in body if node not in imports]
    return "\n".join([*sorted(map(ast.dump, imports)), *map(ast.dump, others)])


def assigned_literals(module: ast.Module) -> Iterator[tuple[str, Any, ast.expr]]:
    """Yield the module's variables that are assigned a literal: name, value and expression."""
    for statement in module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                continue
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, value, statement.value


def revision_folders() -> list[Path]:
    """Return the folders of revisions that are in the project, relative to it."""
    script = ScriptDirectory.from_config(make_config())
    folders = [Path(folder).resolve() for folder in script._version_locations]  # noqa: SLF001 - no public one
    return [folder.relative_to(ROOT) for folder in folders if folder.is_relative_to(ROOT)]


def read_sources() -> dict[Path, str]:
    """Return the text of each Python file in the folders of revisions, by path."""
    recursive = ScriptDirectory.from_config(make_config()).recursive_version_locations
    return {
        path.relative_to(ROOT): decode(path.read_bytes())
        for folder in revision_folders()
        for path in sorted((ROOT / folder).glob("**/*.py" if recursive else "*.py"))
        if path.name != "__init__.py"
    }


def decode(content: bytes) -> str:
    """Decode a source as Python does; return a text that does not parse if that fails."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return "not Python"


def name_pattern(template: str, revision: str) -> re.Pattern[str]:
    """Return a pattern of the file names, without suffix, that `file_template` gives a revision."""
    pieces = []
    end = 0
    for found in _FIELD.finditer(template):
        pieces.append(re.escape(template[end : found.start()]))
        fields = {"rev": re.escape(revision), "slug": r"\w*"}
        pieces.append(fields.get(found[1], r"\d+"))
        end = found.end()
    return re.compile("".join([*pieces, re.escape(template[end:])]))
