"""The configuration of Alembic: `[tool.alembic]` of pyproject.toml, read and checked."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from alembic.config import Config
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from core.project import ROOT

PYPROJECT = ROOT / "pyproject.toml"
ENVIRONMENT_PREFIX = "MIGRATION_"

_BYTES = {"B": 1, "kB": 1000, "MB": 1_000_000, "GB": 1_000_000_000}
_UNITS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}


class AlembicConfigError(Exception):
    """The configuration is wrong. Each line of the message names a key and what is expected."""


def _parse_duration(value: object) -> object:
    if isinstance(value, str):
        if value.strip().lower() == "off":
            return 0
        match = re.fullmatch(r"(\d+)\s*(ms|s|min|h)", value.strip())
        if match:
            return int(match[1]) * _UNITS[match[2]]
    raise ValueError("expected a duration such as '500ms', '2s', '1min', '1h' or 'off'")


def parse_milliseconds(value: object, place: str) -> int:
    """Return the milliseconds of a duration such as "2s".

    Raises:
        AlembicConfigError: it is none; the message begins with `place`.
    """
    try:
        return TypeAdapter(Milliseconds).validate_python(value)
    except ValidationError as error:
        raise AlembicConfigError(f"{place}: {_message(error.errors()[0])}") from None


def _parse_count(value: object) -> object:
    """Let the environment and the command line, which have text only, give a number."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _parse_bytes(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*(B|kB|MB|GB)", value.strip())
        if match:
            return int(match[1]) * _BYTES[match[2]]
    raise ValueError("expected a size such as '500kB', '10MB' or '1GB'")


Bytes = Annotated[int, BeforeValidator(_parse_bytes)]
Milliseconds = Annotated[int, BeforeValidator(_parse_duration)]


Count = Annotated[int, BeforeValidator(_parse_count), Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BackupKind(StrEnum):
    """What is backed up before revisions run."""

    OFF = "off"
    SCHEMA = "schema"
    FULL = "full"


def _parse_backup_kind(value: object) -> object:
    kinds = [kind.value for kind in BackupKind]
    if value in kinds:
        return BackupKind(value)
    raise ValueError(f"expected one of {', '.join(kinds)}")


class SafetyOptions(_Table):
    """`[tool.alembic.safety]`: the options of this project's own, besides Alembic's."""

    lock_wait: Milliseconds = 60_000
    """How long a runner waits for another one that migrates the same database."""
    lock_timeout: Milliseconds = 2_000
    """How long a statement of a migration waits for a lock, and all later queries behind it."""
    lock_retries: Count = 10
    """How often a revision is tried again that met a lock which was held too long."""
    statement_timeout: Milliseconds = 0
    """How long one statement of a migration may run; 0 is without end."""
    backup: Annotated[BackupKind | None, BeforeValidator(_parse_backup_kind)] = None
    """What is backed up before revisions run; None is full in prod, and off in dev and test."""
    backup_folder: Annotated[str, Field(min_length=1)] = "backups"
    """Where backups go: an absolute path, or one in the project."""
    backup_keep: Annotated[Count, Field(ge=1)] = 10
    """How many backups of a database stay."""
    plan_small_rows: Count = 10_000
    """Tables of fewer rows, and of fewer bytes, are small to `make migrate-plan`."""
    plan_small_bytes: Bytes = 10_000_000


class PostWriteHook(_Table):
    """`[[tool.alembic.post_write_hooks]]`: what is run on a new revision's file."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str
    type: Literal["console_scripts", "exec", "module"]
    options: str = ""


class AlembicConfig(_Table):
    """`[tool.alembic]`, with Alembic's own defaults; `%` still escaped as the file has it."""

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


def load_alembic_config(
    path: str | os.PathLike[str] | None = None,
    *,
    attributes: Mapping[str, Any] = MappingProxyType({}),
    x_arguments: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AlembicConfig:
    """Read `[tool.alembic]` of a pyproject.toml and return it, typed.

    An option of `[tool.alembic.safety]` can be given in five places; the first that has it wins:

    1. `attributes`: what a program put into `Config(toml_file=..., attributes={...})`,
    2. `x_arguments`: `key=value` of the command line's `-x`,
    3. `environment`: the variable `MIGRATION_<KEY>`,
    4. the file,
    5. the default.

    Args:
        path: the pyproject.toml; by default, or where there is none, the project's own.
        attributes: `alembic.config.Config.attributes`; other keys than options are not touched.
        x_arguments: what `context.get_x_argument()` returns.
        environment: by default that of the process.

    Raises:
        AlembicConfigError: an unknown key or a wrong type, named with what is expected.
    """
    file = Path(path) if path is not None and Path(path).exists() else PYPROJECT
    table = _read_table(file)
    places = [
        (_from_environment(os.environ if environment is None else environment), "environment"),
        (_from_x_arguments(x_arguments), "-x"),
        ({key: attributes[key] for key in attributes if key in _OPTIONS}, "attributes"),
    ]
    safety = table.get("safety", {})
    if isinstance(safety, dict):
        for options, place in places:
            _check_place(options, place)
            safety = {**safety, **options}
        table = {**table, "safety": safety}
    try:
        return AlembicConfig.model_validate(table)
    except ValidationError as error:
        raise AlembicConfigError(_describe(error, f"{file}: [tool.alembic]")) from None


def make_config(**attributes: object) -> Config:
    """Return what `alembic.command` functions take, for a program; see `load_alembic_config`."""
    # An alembic.ini, where a project went back to it, goes before the table for Alembic too.
    ini = ROOT / "alembic.ini"
    return Config(ini if ini.exists() else None, toml_file=PYPROJECT, attributes=attributes)


_OPTIONS = tuple(SafetyOptions.model_fields)


def _read_table(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            document = tomllib.load(opened)
    except tomllib.TOMLDecodeError as error:
        raise AlembicConfigError(f"{file}: not valid TOML: {error}") from None
    except OSError as error:
        raise AlembicConfigError(f"{file}: {error.strerror}") from None
    table = document.get("tool", {}).get("alembic", {})
    if not isinstance(table, dict):
        raise AlembicConfigError(f"{file}: [tool.alembic]: expected a table")
    return table


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key in _OPTIONS
        if (value := environment.get(ENVIRONMENT_PREFIX + key.upper(), ""))
    }


def _from_x_arguments(arguments: Iterable[str]) -> dict[str, str]:
    """Return the options among `-x key=value`; other keys are for the project's own revisions."""
    options = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in _OPTIONS:
            options[key] = value
        elif close := difflib.get_close_matches(key, _OPTIONS, n=1, cutoff=0.8):
            raise AlembicConfigError(f"-x {key}: no such option; did you mean {close[0]}?")
    return options


def _check_place(options: Mapping[str, Any], place: str) -> None:
    """Refuse a wrong option by the place where it stands."""
    for key, value in options.items():
        shown = {"-x": f"-x {key}", "environment": ENVIRONMENT_PREFIX + key.upper()}
        try:
            SafetyOptions.model_validate({key: value})
        except ValidationError as error:
            name = shown.get(place, f"attributes[{key!r}]")
            raise AlembicConfigError(f"{name}: {_message(error.errors()[0])}") from None


def _describe(error: ValidationError, prefix: str) -> str:
    lines = []
    for problem in error.errors():
        *tables, key = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            known = list((SafetyOptions if tables == ["safety"] else AlembicConfig).model_fields)
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            message = f"unknown key; {hint}"
        else:
            message = _message(problem)
        lines.append(f"{prefix}: {'.'.join([*tables, key])}: {message}")
    return "\n".join(lines)


def _message(problem: Any) -> str:
    text: str = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "expected").replace("Field required", "missing")
    return f"{text}, not {problem['input']!r}" if problem["type"] != "missing" else text
