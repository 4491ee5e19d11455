"""The contents of `[tool.alembic]`, and which of its keys are Alembic's own."""

from dataclasses import dataclass, field
from typing import Any

Table = dict[str, Any]

URL_OPTION = "sqlalchemy.url"
LIST_OPTIONS = ("version_locations", "prepend_sys_path")
BOOLEAN_OPTIONS = ("revision_environment", "sourceless", "recursive_version_locations")
SEPARATOR_OPTIONS = ("path_separator", "version_path_separator")
"""Options that only an ini needs: TOML has lists."""
ALEMBIC_OPTIONS = {
    *LIST_OPTIONS, *BOOLEAN_OPTIONS, *SEPARATOR_OPTIONS, "script_location", "file_template",
    "timezone", "output_encoding", "truncate_slug_length",
}  # fmt: skip
SUBTABLES = ("post_write_hooks", "logging", "sections")
"""The tables below `[tool.alembic]` that correspond to sections of an ini."""


@dataclass(frozen=True)
class SecretOption:
    """An option whose value moves to an environment variable."""

    section: str
    """The section; "" is the main one."""
    option: str
    variable: str
    value: str


@dataclass
class ConvertedIni:
    """The contents of an ini in the form that pyproject.toml has."""

    options: Table = field(default_factory=dict)
    hooks: list[Table] | None = None
    """The hooks; None if the ini has no section for them."""
    logging: dict[str, Table] = field(default_factory=dict)
    sections: dict[str, Table] = field(default_factory=dict)
    secrets: list[SecretOption] = field(default_factory=list)
    url_template: str = ""
    """A URL without secrets, whose placeholders env.py fills in. It moves to env.py."""


def convertible_keys(table: Table) -> list[str]:
    """Return the keys of `[tool.alembic]` that an ini can hold, without tables of other tools."""
    return [key for key, value in table.items() if key in SUBTABLES or not isinstance(value, dict)]
