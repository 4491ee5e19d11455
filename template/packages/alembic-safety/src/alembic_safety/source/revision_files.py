"""Revisions as files: those of this folder, and those of the branch that it is merged into."""

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory

from alembic_safety.config import make_config
from alembic_safety.errors import MigrationError
from alembic_safety.source.git import find_commit, git, open_archive
from core.project import ROOT

DEFAULT_BASE = "origin/main"


@dataclass(frozen=True, kw_only=True)
class RevisionFile:
    """What the text of a revision's file says, without running it."""

    path: Path
    """Relative to the project."""
    revision: str
    parents: tuple[str, ...]
    digest: str
    """Of what its code does: comments, the message, the format, annotations and the order of
    imports may change."""

    @classmethod
    def parse(cls, path: Path, source: str) -> "RevisionFile | None":
        """Return what the file says; None if it is no Python, or does not say it in literals."""
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):
            return None
        values = {name: value for name, value, _ in _assigned(module)}
        revision, parents = values.get("revision"), values.get("down_revision")
        if not isinstance(revision, str) or "down_revision" not in values:
            return None
        return cls(
            path=path,
            revision=revision,
            parents=(parents,) if isinstance(parents, str) else tuple(parents or ()),
            digest=hashlib.sha256(_describe(module).encode()).hexdigest(),
        )


# A linter moves what annotations need from one to the other, and drops it.
_FOR_ANNOTATIONS = {"collections.abc", "typing"}


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
        return None if node.module in _FOR_ANNOTATIONS else node


def _describe(module: ast.Module) -> str:
    """Return what a revision's code does, as text; the module is changed by it."""
    if ast.get_docstring(module) is not None:
        module.body = module.body[1:]
    body = _WithoutAnnotations().visit(module).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [node for node in body if node not in imports]
    return "\n".join([*sorted(map(ast.dump, imports)), *map(ast.dump, others)])


def _assigned(module: ast.Module) -> Iterator[tuple[str, Any, ast.expr]]:
    """Yield the names of a module that are given literals, with value and place."""
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


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The revisions of the branch that this one is merged into, the base."""

    name: str
    files: Mapping[str, RevisionFile]
    """By revision."""
    common: Mapping[str, RevisionFile]
    """Those of the last commit that both have."""

    @property
    def heads(self) -> list[str]:
        """The revisions that none follows."""
        followed = {parent for file in self.files.values() for parent in file.parents}
        return sorted(set(self.files) - followed)


def revision_folders() -> list[Path]:
    """Return the folders that hold revisions, relative to the project where they are in it."""
    script = ScriptDirectory.from_config(make_config())
    folders = [Path(folder).resolve() for folder in script._version_locations]  # noqa: SLF001
    return [folder.relative_to(ROOT) for folder in folders if folder.is_relative_to(ROOT)]


def read_files() -> dict[Path, str]:
    """Return the text of each Python file in the folders of revisions."""
    recursive = ScriptDirectory.from_config(make_config()).recursive_version_locations
    return {
        path.relative_to(ROOT): _decode(path.read_bytes())
        for folder in revision_folders()
        for path in sorted((ROOT / folder).glob("**/*.py" if recursive else "*.py"))
        if path.name != "__init__.py"
    }


def _decode(content: bytes) -> str:
    """Return a source as Python reads it; what is no source becomes one that does not parse."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return "not Python"


def read_branch(name: str) -> Branch | None:
    """Return the revisions of a branch; None where no branch was named, and there is no main.

    Raises:
        MigrationError: there is no such branch or commit here, or no git.
    """
    base = name or git("rev-parse", "--abbrev-ref", "origin/HEAD", folder=ROOT) or DEFAULT_BASE
    try:
        commit = find_commit(base, variable="BASE", folder=ROOT)
    except MigrationError:
        if not name:
            return None
        raise
    common = git("merge-base", "HEAD", commit, folder=ROOT)
    if not common:
        raise MigrationError(
            f"{base} and this branch have no commit in common here; fetch the history "
            "(git fetch --unshallow)"
        )
    return Branch(name=base, files=_read(commit), common=_read(common))


def rebase(base: str) -> list[str]:
    """Let the first of the new revisions follow the head of the base; return what was done.

    Raises:
        MigrationError: there is no base, or it has several heads, or not all of it is here.
    """
    branch = read_branch(base)
    if branch is None:
        raise MigrationError("there is no base branch here: BASE=<branch or commit> names one")
    if len(branch.heads) != 1:
        heads = ", ".join(branch.heads) or "none"
        raise MigrationError(f"{branch.name} has not one head but: {heads}")
    [head] = branch.heads
    sources = read_files()
    here = [file for path in sources if (file := RevisionFile.parse(path, sources[path]))]
    if head not in {file.revision for file in here}:
        raise MigrationError(f"{branch.name} is at {head}, which is not here: merge it first")
    new = {file.revision: file for file in here if file.revision not in branch.files}
    first = [
        file
        for file in new.values()
        if not any(parent in new for parent in file.parents) and file.parents != (head,)
    ]
    for file in first:
        _follow(file, sources[file.path], head)
    return [f"{file.path}: follows {head} now" for file in first] or [
        f"Every new revision follows {branch.name} already."
    ]


def _follow(file: RevisionFile, source: str, parent: str) -> None:
    """Write another parent into a revision's file; nothing else of it changes."""
    named = [place for name, _, place in _assigned(ast.parse(source)) if name == "down_revision"]
    if len(named) != 1:
        raise MigrationError(
            f'{file.path}: set down_revision = "{parent}" by hand: it is not one literal there'
        )
    [place] = named
    lines = source.splitlines(keepends=True)
    last = lines[(place.end_lineno or place.lineno) - 1].encode()
    before = lines[place.lineno - 1].encode()[: place.col_offset].decode()
    after = last[place.end_col_offset :].decode()
    lines[place.lineno - 1 : place.end_lineno] = [f'{before}"{parent}"{after}']
    text = re.sub(
        r"^Revises:[^\r\n]*", f"Revises: {parent}", "".join(lines), count=1, flags=re.MULTILINE
    )
    path = ROOT / file.path
    encoding, _ = tokenize.detect_encoding(io.BytesIO(path.read_bytes()).readline)
    path.write_bytes(text.encode(encoding))


def _read(commit: str) -> dict[str, RevisionFile]:
    # git knows paths from its own top; in the archive they are relative to the current folder.
    folders = [folder.as_posix() for folder in revision_folders()]
    there = [name for name in folders if git("ls-tree", commit, "--", f"{name}/", folder=ROOT)]
    if not there:
        # Before it was made from the template, the project had them in another folder.
        paths = git("ls-tree", "-r", "--name-only", commit, folder=ROOT).splitlines()
        there = [path for path in paths if re.search(r"(^|/)versions/[^/\"]+\.py$", path)]
    if not there:
        return {}
    files = {}
    with open_archive(commit, there, folder=ROOT) as archive:
        for member in archive:
            path = Path(member.name)
            opened = archive.extractfile(member)
            if opened is None or path.suffix != ".py":
                continue
            if file := RevisionFile.parse(path, _decode(opened.read())):
                files[file.revision] = file
    return files
