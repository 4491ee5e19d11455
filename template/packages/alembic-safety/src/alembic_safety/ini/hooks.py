"""Post-write hooks: a section of an ini, an array of tables in TOML."""

import re
from collections.abc import Sequence

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.table import Table
from alembic_safety.ini.values import ValueConverter

SECTION = "post_write_hooks"


def hooks_from_ini(converter: ValueConverter) -> list[Table] | None:
    """Return the hooks in their order; None if the ini has no section for them."""
    ini = converter.ini
    if not ini.parser.has_section(SECTION):
        return None
    options = ini.options(SECTION)
    names = ini.get(SECTION, "hooks") if "hooks" in options else ""
    hooks = []
    for name in filter(None, re.split(r", *|(?: +)", names)):
        prefix = f"{name}."
        hook = {
            option.removeprefix(prefix): converter.text(ini.get(SECTION, option))
            for option in options
            if option.startswith(prefix)
        }
        if "type" not in hook:
            where = ini.location(SECTION, "hooks")
            converter.notes.append(
                f"{where}: hook {name} has no {name}.type; Alembic rejects the hook"
            )
        hooks.append({"name": name, **hook})
    return hooks


def hooks_to_ini(hooks: Sequence[Table], shown: str) -> dict[str, str]:
    """Return the options of the section for hooks.

    Raises:
        ConversionError: a hook's name cannot stand in an ini.
    """
    names = [hook["name"] for hook in hooks]
    options = {"hooks": ", ".join(names)}
    for name, hook in zip(names, hooks, strict=True):
        if names.count(name) > 1 or re.search(r"[\s,=:A-Z]", name):
            raise ConversionError(
                f"{shown}: [[tool.alembic.post_write_hooks]]: the name {name!r} must be unique, in "
                "lower case and without spaces in an ini; rename the hook first"
            )
        options |= {f"{name}.{key}": value for key, value in hook.items() if key != "name"}
    return options
