"""The releases of this template, as its history has them, and what updates from one to another."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.support import ROOT, Completed, Env, Project

FIRST = (1, 0, 0)
_VERSION = re.compile(r'^version = "(\d+)\.(\d+)\.(\d+)"$', re.MULTILINE)
NEWEST = "v99.0.0"
"""The tag of the working tree, in `upstream`."""
Answers = Mapping[str, str]
DEFAULTS: Answers = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Release:
    """A commit that changed the version."""

    version: tuple[int, ...]
    commit: str

    @property
    def tag(self) -> str:
        return "v" + ".".join(map(str, self.version))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""


def find_releases() -> list[Release]:
    """Return the releases from 1.0.0 on, oldest first; none where there is no history."""
    found: dict[tuple[int, ...], Release] = {}
    commits = _git("log", "--reverse", "--format=%H", "-G^version = ", "--", "pyproject.toml")
    for commit in commits.split():
        match = _VERSION.search(_git("show", f"{commit}:pyproject.toml"))
        version = tuple(map(int, match.groups())) if match else ()
        if version >= FIRST:
            found.setdefault(version, Release(version=version, commit=commit))
    return list(found.values())


def make_upstream(folder: Path, template: Path) -> Project:
    """Return a repository with a tag for each release, and the working tree as the newest."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    upstream = Project(folder)
    for tag in upstream.run("git", "tag").stdout.split():
        upstream.run("git", "tag", "--delete", tag)
    for release in find_releases():
        upstream.run("git", "tag", release.tag, release.commit)
    upstream.run("git", "rm", "-r", "--quiet", ".")
    shutil.copytree(template, folder, dirs_exist_ok=True)
    upstream.run("git", "add", "--all")
    upstream.run("git", "commit", "--quiet", "--allow-empty", "--message=The working tree")
    upstream.run("git", "tag", NEWEST)
    return upstream


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Makes projects of a release, and brings them up to the working tree."""

    upstream: Project
    folder: Path
    environment: Env

    def copy(
        self, name: str, tag: str, answers: Answers = DEFAULTS, upstream: Project | None = None
    ) -> Project:
        """Copy with plain commands, as a person would, and commit."""
        data = [f"--data={key}={value}" for key, value in answers.items()]
        template = str((upstream or self.upstream).path)
        Project(self.folder).run(
            "copier", "copy", "--quiet", "--defaults", f"--vcs-ref={tag}", *data, template, name
        )
        project = Project(self.folder / name, **self.environment)
        project.commit("Start from the template")
        return project

    @staticmethod
    def update(project: Project, *arguments: str, expect: int = 0) -> Completed:
        return project.run("copier", "update", "--defaults", *arguments, expect=expect)
