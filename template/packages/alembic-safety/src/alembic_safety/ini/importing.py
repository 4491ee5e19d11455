"""Import: from alembic.ini to `[tool.alembic]`."""

import os
import re
from pathlib import Path

from alembic_safety.ini.change import Change, Invocation, Options, carry_out
from alembic_safety.ini.contents import convert
from alembic_safety.ini.env_editor import EnvEditor
from alembic_safety.ini.env_file import read_env_file
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import first_free_name, read_text, source_files
from alembic_safety.ini.ini_file import HERE, IniFile, read_ini
from alembic_safety.ini.pyproject import add_table, read_table
from alembic_safety.ini.redaction import hide_passwords
from alembic_safety.ini.table import ConvertedIni, Table
from alembic_safety.ini.values import ValueConverter

_MOST_MENTIONS = 20


def import_ini(ini_path: str, options: Options, *, section: str = "alembic") -> list[str]:
    """Move an ini into pyproject.toml and return notes for the user.

    Args:
        ini_path: the ini.
        options: options of the conversion.
        section: the main section, as `alembic --name`.

    Raises:
        ConversionError: the ini cannot be moved. Nothing was changed.
    """
    path = Path(os.path.normpath(Path(ini_path).absolute()))
    ini = read_ini(path, ini_path)
    if not ini.parser.has_section(section):
        sections = ", ".join(f"[{name}]" for name in ini.parser.sections()) or "no section"
        raise ConversionError(
            f"{ini_path}:1: there is no section [{section}]; the file has {sections}: choose one "
            "with --name"
        )
    given = options.pyproject
    pyproject = Path(given).absolute() if given else _find_pyproject(path)
    root = pyproject.parent
    if not path.is_relative_to(root):
        raise ConversionError(
            f"{ini_path} is not in {root}, the folder of pyproject.toml: copy the file there first"
        )
    notes: list[str] = []
    text = read_text(pyproject, pyproject.name) if pyproject.exists() else ""
    present = read_table(text, pyproject.name)
    location = _script_location(ini, section, present)
    run_from = next(
        (f for f in (root, path.parent) if _find_migrations(location, f, path.parent, root)),
        path.parent,
    )
    migrations = _find_migrations(location, run_from, path.parent, root)
    env = (
        read_env_file(migrations, str((migrations / "env.py").relative_to(root)))
        if migrations
        else None
    )
    converter = ValueConverter(ini, section, root, run_from, notes)
    converted = convert(converter, env, options.url_variable)
    if converted.hooks == [] and "post_write_hooks" in present:
        notes.append(
            f"{ini.location('post_write_hooks')}: the section has no hooks and overrides those of "
            f"{pyproject.name}, which are removed"
        )
    change = Change(root, {**present, **converted.options})
    change.files[pyproject] = add_table(text, converted, pyproject.name)
    if env and migrations:
        new = EnvEditor(env, converted, notes).edit()
        change.files |= {migrations / "env.py": new} if new != env.text else {}
        mako = env.mako.replace("config.get_main_option(", "config.get_alembic_option(")
        change.files |= {migrations / "script.py.mako": mako} if mako != env.mako else {}
    else:
        notes.append(
            f"{ini.location(section, 'script_location')}: env.py is not in the project; what it "
            "reads of the ini is not imported"
        )
    backup = first_free_name(path)
    change.renamed[path] = backup
    notes += carry_out(
        change,
        options,
        before=Invocation(run_from, ["-c", os.path.relpath(path, run_from), "-n", section]),
        after=invocation_with(pyproject),
        variables={secret.variable: secret.value for secret in converted.secrets if secret.value},
    )
    notes += _environment_notes(converted, backup)
    notes.append(
        f"{ini_path} becomes {backup.name}, which Alembic does not read; do not commit the file if "
        "it holds a password, and delete it once all is well"
    )
    if run_from != root:
        notes.append(f"run Alembic in {root} instead of {run_from}, or with -c {pyproject}")
    notes += _mentions(root, path, {*change.files, backup})
    return notes


def invocation_with(pyproject: Path) -> Invocation:
    """Return how Alembic is run with a pyproject.toml."""
    options = [] if pyproject.name == "pyproject.toml" else ["-c", pyproject.name]
    return Invocation(pyproject.parent, options)


def _find_pyproject(ini: Path) -> Path:
    """Return the pyproject.toml next to an ini, or the first one above it in the repository."""
    for folder in ini.parents:
        if (folder / "pyproject.toml").is_file():
            return folder / "pyproject.toml"
        if (folder / ".git").exists():
            break
    return ini.with_name("pyproject.toml")


def _script_location(ini: IniFile, section: str, present: Table) -> str:
    if ini.parser.has_option(section, "script_location"):
        return ini.get(section, "script_location")
    if "script_location" in present:
        return str(present["script_location"]).replace("%(here)s", HERE).replace("%%", "%")
    raise ConversionError(f"{ini.location(section)}: script_location is missing in [{section}]")


def _find_migrations(location: str, run_from: Path, here: Path, root: Path) -> Path | None:
    """Return the folder of env.py; None if it is not in the project.

    Args:
        location: `script_location`, a path or `package:path`.
        run_from: the folder that Alembic is run in.
        here: the folder of the ini.
        root: the project.
    """
    place = location.replace(HERE, str(here))
    folders = [run_from, run_from / "src"] if ":" in place else [run_from]
    if ":" in place and not Path(place).is_absolute():
        package, *parts = place.split(":")
        place = os.path.join(*package.split("."), *parts)  # noqa: PTH118
    for folder in folders:
        found = Path(os.path.normpath(folder / place))
        if (found / "env.py").is_file() and found.is_relative_to(root):
            return found
    return None


def _environment_notes(converted: ConvertedIni, backup: Path) -> list[str]:
    notes = []
    for secret in converted.secrets:
        if secret.value:
            shown = hide_passwords(secret.value) if "://" in secret.value else "***"
            notes.append(
                f"set {secret.variable}={shown} in the environment: {secret.option} is now in no "
                f"file but {backup.name}"
            )
    return notes


def _mentions(root: Path, ini: Path, changed: set[Path]) -> list[str]:
    """Return notes on other files of the project that name the ini."""
    notes = []
    named = re.compile(rf"(?<![\w.=,-]){re.escape(ini.name)}(?![\w.-])")
    for path in source_files(root):
        if path in changed:
            continue
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if named.search(line) and not line.lstrip().startswith("#"):
                notes.append(f"{path.relative_to(root)}:{number} still names {ini.name}")
    return notes[:_MOST_MENTIONS]
