"""`[tool.alembic.safety]`: the options of the library, and where each can be set."""

import difflib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from alembic_safety.errors import AlembicConfigError

ENVIRONMENT_PREFIX = "MIGRATION_"

_BYTES = {"B": 1, "kB": 1000, "MB": 1_000_000, "GB": 1_000_000_000}
_UNITS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}
_LONGEST = 2**31 - 1
"""Milliseconds; lock_timeout and statement_timeout are 32-bit integers in PostgreSQL."""


def _parse_duration(value: object) -> object:
    if isinstance(value, str):
        if value.strip().lower() == "off":
            return 0
        match = re.fullmatch(r"(\d+)\s*(ms|s|min|h)", value.strip())
        if match:
            milliseconds = int(match[1]) * _UNITS[match[2]]
            if milliseconds > _LONGEST:
                raise ValueError("expected at most 596h, PostgreSQL's limit")
            return milliseconds
    raise ValueError("expected a duration such as '500ms', '2s', '1min', '1h' or 'off'")


def _parse_count(value: object) -> object:
    """Convert digits to a number, because the environment and the command line are text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _parse_bytes(value: object) -> object:
    if isinstance(value, str):
        if value.strip() == "0":
            return 0
        match = re.fullmatch(r"(\d+)\s*(B|kB|MB|GB)", value.strip())
        if match:
            return int(match[1]) * _BYTES[match[2]]
    raise ValueError("expected a size such as '500kB', '10MB' or '1GB'")


class BackupKind(StrEnum):
    """Content of a backup."""

    OFF = "off"
    SCHEMA = "schema"
    FULL = "full"


def _parse_backup_kind(value: object) -> object:
    kinds = [kind.value for kind in BackupKind]
    if value in kinds:
        return BackupKind(value)
    raise ValueError(f"expected one of {', '.join(kinds)}")


Bytes = Annotated[int, BeforeValidator(_parse_bytes)]
Milliseconds = Annotated[int, BeforeValidator(_parse_duration)]
Count = Annotated[int, BeforeValidator(_parse_count), Field(ge=0)]


class Table(BaseModel):
    """A table of pyproject.toml that accepts no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SafetyOptions(Table):
    """`[tool.alembic.safety]`."""

    metadata: str | None = None
    """`module:name` of the models' metadata: a MetaData, or a function that returns one or
    several. Only autogenerate, `alembic check` and the plan need it."""
    lock_wait: Milliseconds = 60_000
    """Time to wait for another runner that is migrating the same database; 0 means not at all."""
    lock_timeout: Milliseconds = 2_000
    """Time a statement waits for a lock, while later queries queue behind it; 0 means no limit."""
    lock_retries: Count = 10
    """Number of retries of a revision after a lock timeout."""
    statement_timeout: Milliseconds = 0
    """Time a single statement may run; 0 means no limit."""
    backup: Annotated[BackupKind | None, BeforeValidator(_parse_backup_kind)] = None
    """Content of the backup before revisions run; None means full in production, off elsewhere."""
    backup_folder: Annotated[str, Field(min_length=1)] = "backups"
    """Folder of the backups: an absolute path, or one relative to the project."""
    backup_keep: Annotated[Count, Field(ge=1)] = 10
    """Number of backups of each kind to keep for a database."""
    plan_small_rows: Count = 10_000
    """The plan treats a table with fewer rows and fewer bytes than these limits as small."""
    plan_small_bytes: Bytes = 10_000_000

    def overridden(
        self,
        *,
        environment: Mapping[str, str],
        x_arguments: Iterable[str] = (),
        attributes: Mapping[str, Any],
    ) -> "SafetyOptions":
        """Return the options, overridden from the other places where they can be set.

        In order of precedence, lowest first: the file, the variable `MIGRATION_<KEY>`, `-x
        key=value` on the command line, `Config(attributes={...})`.

        Raises:
            AlembicConfigError: an option is invalid; the message names the place where it is set.
        """
        places = [
            (_from_environment(environment), f"{ENVIRONMENT_PREFIX}{{upper}}"),
            (_from_x_arguments(x_arguments), "-x {key}"),
            (
                {key: attributes[key] for key in attributes if key in OPTIONS},
                "attributes['{key}']",
            ),
        ]
        overrides = {}
        for options, place in places:
            for key, value in options.items():
                name = place.format(key=key, upper=key.upper())
                overrides[key] = _validate(key, value, name)
        return self.model_copy(update=overrides) if overrides else self


OPTIONS = tuple(name for name in SafetyOptions.model_fields if name != "metadata")
"""Names of the options that can also be set outside of the file."""


def declared_timeouts(module: object) -> dict[str, int]:
    """Return the timeouts that the module of a revision declares, in milliseconds.

    Raises:
        AlembicConfigError: one is not a duration such as "2s"; the message begins with the file.
    """
    declared = {}
    for name in ("lock_timeout", "statement_timeout"):
        if (value := getattr(module, name, None)) is not None:
            declared[name] = _parse_milliseconds(
                value, f"{getattr(module, '__file__', '')}: {name}"
            )
    return declared


def _parse_milliseconds(value: object, place: str) -> int:
    try:
        return TypeAdapter(Milliseconds).validate_python(value)
    except ValidationError as error:
        raise AlembicConfigError(f"{place}: {describe_problem(error.errors()[0])}") from None


def describe_problem(problem: Any) -> str:
    """Return a message for an error of pydantic: `expected a duration ..., not 'soon'`."""
    text: str = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "expected").replace("Field required", "missing")
    return f"{text}, not {problem['input']!r}" if problem["type"] != "missing" else text


def _validate(key: str, value: object, name: str) -> object:
    try:
        return getattr(SafetyOptions.model_validate({key: value}), key)
    except ValidationError as error:
        raise AlembicConfigError(f"{name}: {describe_problem(error.errors()[0])}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key in OPTIONS
        if (value := environment.get(ENVIRONMENT_PREFIX + key.upper(), ""))
    }


def _from_x_arguments(arguments: Iterable[str]) -> dict[str, str]:
    """Return the options among `-x key=value`; the project may use other keys."""
    options = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in OPTIONS:
            options[key] = value
        elif close := difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.8):
            raise AlembicConfigError(f"-x {key}: unknown option; did you mean {close[0]}?")
    return options
