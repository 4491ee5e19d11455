"""The releases of this template, as its history has them, and what updates from one to another."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from tests.support import ROOT, Completed, Env, MakeOnce, Project

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
    make_once: MakeOnce

    def copy(self, name: str, tag: str, answers: Answers = DEFAULTS) -> Project:
        """Return a project that was copied and committed, in a folder of the test's own."""

        def make(folder: Path) -> None:
            replace(self, folder=folder).copy_of(self.upstream, tag, answers)

        return self._own(name, self.make_once(_folder("copied", tag, answers), make))

    def copy_of(self, upstream: Project, tag: str, answers: Answers = DEFAULTS) -> Project:
        """Copy with plain commands, as a person would, and commit."""
        data = [f"--data={key}={value}" for key, value in answers.items()]
        command = ("copier", "copy", "--quiet", "--defaults", f"--vcs-ref={tag}", *data)
        Project(self.folder).run(*command, str(upstream.path), "project")
        project = Project(self.folder / "project", **self.environment)
        project.commit("Start from the template")
        return project

    def updated(self, name: str, tag: str, answers: Answers = DEFAULTS) -> Project:
        """Return a project that was copied and committed, and then updated."""

        def make(folder: Path) -> None:
            project = self.copy("project", tag, answers)
            self.update(project)
            project.path.rename(folder / "project")

        return self._own(name, self.make_once(_folder("updated", tag, answers), make))

    def _own(self, name: str, made: Path) -> Project:
        target = shutil.copytree(made / "project", self.folder / name, symlinks=True)
        return Project(target, **self.environment)

    @staticmethod
    def update(project: Project, *arguments: str, expect: int = 0) -> Completed:
        return project.run("copier", "update", "--defaults", *arguments, expect=expect)


def _folder(kind: str, tag: str, answers: Answers) -> str:
    digest = hashlib.sha256(repr(sorted(answers.items())).encode()).hexdigest()[:8]
    return f"{kind} {tag.replace('.', '-')} {digest}"
