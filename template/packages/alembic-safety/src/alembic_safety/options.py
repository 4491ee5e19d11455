"""`[tool.alembic.safety]`: the library's options, and the places where each can be given."""

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


def _parse_duration(value: object) -> object:
    if isinstance(value, str):
        if value.strip().lower() == "off":
            return 0
        match = re.fullmatch(r"(\d+)\s*(ms|s|min|h)", value.strip())
        if match:
            return int(match[1]) * _UNITS[match[2]]
    raise ValueError("expected a duration such as '500ms', '2s', '1min', '1h' or 'off'")


def _parse_count(value: object) -> object:
    """Accept digits: the environment and the command line have text only."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _parse_bytes(value: object) -> object:
    if isinstance(value, str):
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
    """A table of pyproject.toml whose keys are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SafetyOptions(Table):
    """`[tool.alembic.safety]`."""

    metadata: str | None = None
    """Where the models' metadata is, `module:name`: a MetaData, or a function that returns one or
    several. Needed by autogenerate and `alembic check` only."""
    lock_wait: Milliseconds = 60_000
    """How long a runner waits for another one that migrates the same database."""
    lock_timeout: Milliseconds = 2_000
    """How long a statement of a migration waits for a lock, and all later queries behind it."""
    lock_retries: Count = 10
    """How often a revision is tried again after a lock timeout."""
    statement_timeout: Milliseconds = 0
    """How long one statement of a migration may run; 0 means no limit."""
    backup: Annotated[BackupKind | None, BeforeValidator(_parse_backup_kind)] = None
    """What is backed up before revisions run; None is full in production, and off elsewhere."""
    backup_folder: Annotated[str, Field(min_length=1)] = "backups"
    """Where backups are written: an absolute path, or one in the project."""
    backup_keep: Annotated[Count, Field(ge=1)] = 10
    """How many backups of a database are kept."""
    plan_small_rows: Count = 10_000
    """A table with fewer rows, and fewer bytes, is small to the plan."""
    plan_small_bytes: Bytes = 10_000_000

    def overridden(
        self,
        *,
        environment: Mapping[str, str],
        x_arguments: Iterable[str] = (),
        attributes: Mapping[str, Any],
    ) -> "SafetyOptions":
        """Return the options with those given in other places.

        The last place that has an option wins: the file, the variable `MIGRATION_<KEY>`, `-x
        key=value` of the command line, `Config(attributes={...})`.

        Raises:
            AlembicConfigError: an option is wrong; the message names the place.
        """
        places = [
            (_from_environment(environment), f"{ENVIRONMENT_PREFIX}{{upper}}"),
            (_from_x_arguments(x_arguments), "-x {key}"),
            (
                {key: attributes[key] for key in attributes if key in OPTIONS},
                "attributes['{key}']",
            ),
        ]
        given = {}
        for options, place in places:
            for key, value in options.items():
                name = place.format(key=key, upper=key.upper())
                given[key] = _check(key, value, name)
        return self.model_copy(update=given) if given else self


OPTIONS = tuple(name for name in SafetyOptions.model_fields if name != "metadata")
"""The options that can be given in other places than the file."""


def parse_milliseconds(value: object, place: str) -> int:
    """Return the milliseconds of a duration such as "2s".

    Raises:
        AlembicConfigError: not a duration; the message begins with `place`.
    """
    try:
        return TypeAdapter(Milliseconds).validate_python(value)
    except ValidationError as error:
        raise AlembicConfigError(f"{place}: {describe_problem(error.errors()[0])}") from None


def describe_problem(problem: Any) -> str:
    """Return what one of pydantic's errors says: `expected a duration ..., not 'soon'`."""
    text: str = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "expected").replace("Field required", "missing")
    return f"{text}, not {problem['input']!r}" if problem["type"] != "missing" else text


def _check(key: str, value: object, name: str) -> object:
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
    """Return the options among `-x key=value`; other keys are for the project's own revisions."""
    options = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in OPTIONS:
            options[key] = value
        elif close := difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.8):
            raise AlembicConfigError(f"-x {key}: no such option; did you mean {close[0]}?")
    return options
