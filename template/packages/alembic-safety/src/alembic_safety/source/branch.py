"""The base branch: the branch that this one is merged into, and its revisions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alembic_safety.errors import MigrationError
from alembic_safety.project import Project
from alembic_safety.source.git import find_commit, git, open_archive
from alembic_safety.source.revision_files import RevisionFile, decode, revision_folders

DEFAULT_BASE = "origin/main"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The revisions of a base branch."""

    name: str
    files: Mapping[str, RevisionFile]
    """By revision."""
    common: Mapping[str, RevisionFile]
    """The files of the merge base, the last commit that both branches have."""

    @property
    def heads(self) -> list[str]:
        """Revisions that no other one follows, sorted."""
        followed = {parent for file in self.files.values() for parent in file.parents}
        return sorted(set(self.files) - followed)


def read_branch(project: Project, name: str) -> Branch | None:
    """Return the revisions of a base branch.

    Args:
        project: the project of the repository.
        name: a branch or commit; empty for the remote's default branch.

    Returns:
        None if no name was given and there is no remote's default branch.

    Raises:
        MigrationError: there is no such branch, or it has no commit in common with this one.
    """
    base = (
        name or git("rev-parse", "--abbrev-ref", "origin/HEAD", folder=project.root) or DEFAULT_BASE
    )
    try:
        commit = find_commit(base, variable="BASE", folder=project.root)
    except MigrationError:
        if not name:
            return None
        raise
    common = git("merge-base", "HEAD", commit, folder=project.root)
    if not common:
        raise MigrationError(
            f"{base} and this branch have no commit in common here; fetch the history "
            "(git fetch --unshallow)"
        )
    return Branch(
        name=base, files=_read_commit(project, commit), common=_read_commit(project, common)
    )


def _read_commit(project: Project, commit: str) -> dict[str, RevisionFile]:
    folders = [folder.as_posix() for folder in revision_folders(project)]
    paths = [
        name for name in folders if git("ls-tree", commit, "--", f"{name}/", folder=project.root)
    ]
    if not paths:
        # Before the project was made from the template, its revisions were in another folder.
        every = git("ls-tree", "-r", "--name-only", commit, folder=project.root).splitlines()
        paths = [path for path in every if re.search(r"(^|/)versions/[^/\"]+\.py$", path)]
    if not paths:
        return {}
    files = {}
    with open_archive(commit, paths, folder=project.root) as archive:
        for member in archive:
            path = Path(member.name)
            opened = archive.extractfile(member)
            if opened is None or path.suffix != ".py":
                continue
            if file := RevisionFile.parse(path, decode(opened.read())):
                files[file.revision] = file
    return files
