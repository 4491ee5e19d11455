"""What pyproject.toml says about this project."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds pyproject.toml."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """The names of the project, as `[project]` and `[tool.service]` give them."""

    name: str
    title: str
    description: str
    version: str


@cache
def load_project() -> Project:
    """Return the project's names; they are read once."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        document = tomllib.load(file)
    project = document["project"]
    service = document.get("tool", {}).get("service", {})
    name = service.get("name", project["name"])
    return Project(
        name=name,
        title=service.get("title", name),
        description=project.get("description", ""),
        version=project["version"],
    )
