"""The base branch: the branch that this one is merged into, and its revisions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.migrations.errors import MigrationError
from core.migrations.source.git import find_commit, git, open_archive
from core.migrations.source.revision_files import RevisionFile, decode, revision_folders
from core.project import ROOT

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


def read_branch(name: str) -> Branch | None:
    """Return the revisions of a base branch.

    Args:
        name: a branch or commit; empty for the remote's default branch.

    Returns:
        None if no name was given and there is no remote's default branch.

    Raises:
        MigrationError: there is no such branch, or it has no commit in common with this one.
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
    return Branch(name=base, files=_read_commit(commit), common=_read_commit(common))


def _read_commit(commit: str) -> dict[str, RevisionFile]:
    folders = [folder.as_posix() for folder in revision_folders()]
    paths = [name for name in folders if git("ls-tree", commit, "--", f"{name}/", folder=ROOT)]
    if not paths:
        # Before the project was made from the template, its revisions were in another folder.
        every = git("ls-tree", "-r", "--name-only", commit, folder=ROOT).splitlines()
        paths = [path for path in every if re.search(r"(^|/)versions/[^/\"]+\.py$", path)]
    if not paths:
        return {}
    files = {}
    with open_archive(commit, paths, folder=ROOT) as archive:
        for member in archive:
            path = Path(member.name)
            opened = archive.extractfile(member)
            if opened is None or path.suffix != ".py":
                continue
            if file := RevisionFile.parse(path, decode(opened.read())):
                files[file.revision] = file
    return files
