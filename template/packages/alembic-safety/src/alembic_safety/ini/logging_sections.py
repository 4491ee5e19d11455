"""The sections of an ini that `logging.config.fileConfig` reads."""

import re

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.ini_file import HERE, IniFile
from alembic_safety.ini.table import Table

_KINDS = ("loggers", "handlers", "formatters")
_NAME = re.compile(r"loggers|handlers|formatters|(logger|handler|formatter)_.+")


def is_logging_section(name: str) -> bool:
    """Return whether `fileConfig` reads a section of this name."""
    return _NAME.fullmatch(name) is not None


def is_raw(section: str) -> bool:
    """Return whether `fileConfig` reads the values of a section without interpolation."""
    return section.startswith("formatter_")


def read_logging(ini: IniFile) -> dict[str, Table]:
    """Return the logging sections with the values that `fileConfig` sees.

    Raises:
        ConversionError: `fileConfig` would fail.
    """
    sections: dict[str, Table] = {}
    for kind in _KINDS:
        _require(ini, kind, ini.shown)
        keys = ini.get(kind, "keys") if "keys" in ini.options(kind) else ""
        names = [f"{kind[:-1]}_{key.strip()}" for key in keys.split(",") if key.strip()]
        for name in names:
            _require(ini, name, ini.location(kind, "keys"))
        for name in [kind, *names]:
            sections[name] = _read_section(ini, name)
    return sections


def _require(ini: IniFile, section: str, where: str) -> None:
    if not ini.parser.has_section(section):
        raise ConversionError(f"{where}: section [{section}] is missing")


def _read_section(ini: IniFile, section: str) -> Table:
    options = ini.own_options(section)
    values = {name: ini.get(section, name, raw=is_raw(section)) for name in options}
    for name, value in values.items():
        if HERE in value:
            raise ConversionError(
                f"{ini.location(section, name)}: {name}: fileConfig does not support %(here)s; "
                "write the path itself"
            )
    return values
