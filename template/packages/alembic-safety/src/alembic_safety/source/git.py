"""The project's history, where there is a repository and git is installed."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from alembic_safety.errors import MigrationError

_GIT = shutil.which("git") or "git"


def git(*arguments: str, folder: Path = ROOT) -> str:
    """Return what git prints; nothing where it fails, or is not installed."""
    try:
        done = subprocess.run(
            [_GIT, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_commit(name: str, *, variable: str, folder: Path = ROOT) -> str:
    """Return the commit that a branch or revision names.

    Raises:
        MigrationError: there is none here; the message names the `variable` that it was given as.
    """
    commit = git("rev-parse", "--verify", "--quiet", name + "^{commit}", folder=folder)
    if not commit:
        raise MigrationError(
            f"{variable}={name}: there is no such branch or commit here; fetch it first "
            f"(git fetch origin {name.removeprefix('origin/')}; in CI, check out with its history)"
        )
    return commit


def open_archive(commit: str, paths: Sequence[str] = (), *, folder: Path = ROOT) -> tarfile.TarFile:
    """Return the files of a commit, with paths that are relative to the project's folder."""
    command = [_GIT, "archive", commit, "--", *paths]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return tarfile.open(fileobj=io.BytesIO(done.stdout))
