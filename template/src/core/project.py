"""Name and version of the project, from pyproject.toml."""

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds pyproject.toml."""


@dataclass(frozen=True, kw_only=True)
class ProjectNames:
    """Names from `[project]` and `[tool.service]`."""

    name: str
    title: str
    description: str
    version: str


@cache
def load_project() -> ProjectNames:
    """Return the names, which are read once."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        document = tomllib.load(file)
    project = document["project"]
    service = document.get("tool", {}).get("service", {})
    name = service.get("name", project["name"])
    return ProjectNames(
        name=name,
        title=service.get("title", name),
        description=project.get("description", ""),
        version=project["version"],
    )


def code_version() -> str:
    """Return `CODE_VERSION` (usually the commit) or the version of the project."""
    return os.environ.get("CODE_VERSION") or load_project().version
