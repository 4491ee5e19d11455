"""`[tool.alembic]` of pyproject.toml, typed and checked."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from alembic.config import Config
from pydantic import ConfigDict, Field, ValidationError

from alembic_safety.errors import AlembicConfigError
from alembic_safety.options import SafetyOptions, Table, describe_problem

_DEFAULT = "pyproject.toml"


class PostWriteHook(Table):
    """`[[tool.alembic.post_write_hooks]]`: a program that runs on the file of a new revision."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str
    type: Literal["console_scripts", "exec", "module"]
    options: str = ""


class AlembicConfig(Table):
    """`[tool.alembic]`, with the defaults of Alembic; `%` is escaped as in the file.

    https://alembic.sqlalchemy.org/en/latest/tutorial.html#using-pyproject-toml-for-configuration
    """

    script_location: str | None = None
    file_template: str = "%%(rev)s_%%(slug)s"
    timezone: str | None = None
    truncate_slug_length: int = 40
    revision_environment: bool = False
    sourceless: bool = False
    version_locations: list[str] = Field(default_factory=list)
    recursive_version_locations: bool = False
    output_encoding: str = "utf-8"
    prepend_sys_path: list[str] = Field(default_factory=list)
    post_write_hooks: list[PostWriteHook] = Field(default_factory=list)
    safety: SafetyOptions = Field(default_factory=SafetyOptions)

    @classmethod
    def from_pyproject(cls, document: Mapping[str, Any]) -> Self:
        """Return `[tool.alembic]` of a pyproject.toml.

        Args:
            document: the file as `tomllib` loads it.

        Raises:
            AlembicConfigError: a key is unknown or its value is invalid; one line per key.
        """
        table = document.get("tool", {}).get("alembic", {})
        if not isinstance(table, dict):
            raise AlembicConfigError("[tool.alembic]: expected a table")
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise AlembicConfigError(_describe(error)) from None


def make_config(folder: Path, **attributes: object) -> Config:
    """Return a configuration for the functions of `alembic.command`.

    Args:
        folder: the folder of pyproject.toml. An alembic.ini there takes precedence, as in Alembic.
        attributes: options of `[tool.alembic.safety]`, and other values for `config.attributes`.
    """
    ini = folder / "alembic.ini"
    return Config(
        ini if ini.exists() else None, toml_file=folder / "pyproject.toml", attributes=attributes
    )


def toml_file(config: Config) -> Path:
    """Return the pyproject.toml of an Alembic configuration.

    It is the one that `-c` names, else the one next to the ini, else that of the current folder.
    """
    name = config.toml_file_name or _DEFAULT
    named = name != _DEFAULT or _DEFAULT in (getattr(config.cmd_opts, "config", None) or [])
    ini = config.config_file_name and Path(config.config_file_name)
    if ini and ini.exists() and not named:
        return ini.absolute().with_name(_DEFAULT)
    return Path(name).absolute()


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        *tables, key = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            known = list((SafetyOptions if tables == ["safety"] else AlembicConfig).model_fields)
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            message = f"unknown key; {hint}"
        else:
            message = describe_problem(problem)
        lines.append(f"[tool.alembic]: {'.'.join([*tables, key])}: {message}")
    return "\n".join(lines)
