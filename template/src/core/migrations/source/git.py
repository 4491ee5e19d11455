"""The project's Git repository, where there is one and Git is installed."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from core.migrations.errors import MigrationError
from core.project import ROOT

_GIT = shutil.which("git") or "git"


def git(*arguments: str, folder: Path = ROOT) -> str:
    """Run a Git command; return its output, or an empty string if it fails or Git is missing."""
    try:
        done = subprocess.run(
            [_GIT, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_commit(name: str, *, variable: str, folder: Path = ROOT) -> str:
    """Return the commit that a branch, tag or commit name stands for.

    Args:
        name: the name.
        variable: the option that `name` was given as, for the message.
        folder: a folder of the repository.

    Raises:
        MigrationError: the repository has no such commit.
    """
    commit = git("rev-parse", "--verify", "--quiet", name + "^{commit}", folder=folder)
    if not commit:
        raise MigrationError(
            f"{variable}={name}: there is no such branch or commit here; fetch it first "
            f"(git fetch origin {name.removeprefix('origin/')}; in CI, check out with its history)"
        )
    return commit


def open_archive(commit: str, paths: Sequence[str] = (), *, folder: Path = ROOT) -> tarfile.TarFile:
    """Return an archive of the files of a commit, with paths relative to `folder`."""
    command = [_GIT, "archive", commit, "--", *paths]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return tarfile.open(fileobj=io.BytesIO(done.stdout))
