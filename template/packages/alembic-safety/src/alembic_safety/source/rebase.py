"""Rebase of new revisions onto the head of the base branch."""

import ast
import io
import re
import tokenize
from pathlib import Path

from alembic_safety.errors import MigrationError
from alembic_safety.project import Project
from alembic_safety.source.branch import read_branch
from alembic_safety.source.revision_files import RevisionFile, assigned_literals, read_sources


def rebase(project: Project, base: str) -> list[str]:
    """Make the first of the new revisions follow the head of the base branch.

    Returns:
        A line for each file that was changed.

    Raises:
        MigrationError: there is no base branch, it has several heads, or its head is not merged.
    """
    branch = read_branch(project, base)
    if branch is None:
        raise MigrationError("there is no base branch here; name one: --base=<branch or commit>")
    if len(branch.heads) != 1:
        heads = ", ".join(branch.heads) or "none"
        raise MigrationError(f"{branch.name} needs to have one head, and has: {heads}")
    [head] = branch.heads
    sources = read_sources(project)
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
        _set_parent(project.root / file.path, sources[file.path], head)
    return [f"{file.path}: follows {head} now" for file in first] or [
        f"Every new revision follows {branch.name} already."
    ]


def _set_parent(path: Path, source: str, parent: str) -> None:
    """Write another `down_revision` into a revision's file; keep everything else in it."""
    found = [
        expression
        for name, _, expression in assigned_literals(ast.parse(source))
        if name == "down_revision"
    ]
    if len(found) != 1:
        raise MigrationError(
            f'{path.name}: set down_revision = "{parent}" by hand: it is not one literal there'
        )
    [old] = found
    lines = source.splitlines(keepends=True)
    # The parser counts columns in bytes.
    last = lines[(old.end_lineno or old.lineno) - 1].encode()
    before = lines[old.lineno - 1].encode()[: old.col_offset].decode()
    after = last[old.end_col_offset :].decode()
    lines[old.lineno - 1 : old.end_lineno] = [f'{before}"{parent}"{after}']
    text = re.sub(
        r"^Revises:[^\r\n]*", f"Revises: {parent}", "".join(lines), count=1, flags=re.MULTILINE
    )
    encoding, _ = tokenize.detect_encoding(io.BytesIO(path.read_bytes()).readline)
    path.write_bytes(text.encode(encoding))
