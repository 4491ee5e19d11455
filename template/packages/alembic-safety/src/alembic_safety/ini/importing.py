"""Import: from alembic.ini to `[tool.alembic]`."""

import os
import re
from pathlib import Path

from alembic_safety.ini.change import Change, Invocation, Options, carry_out
from alembic_safety.ini.contents import convert
from alembic_safety.ini.env_editor import EnvEditor
from alembic_safety.ini.env_file import EnvFile, read_env_file
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
    ini = _read_ini(path, ini_path, section)
    pyproject = Path(options.pyproject).absolute() if options.pyproject else _find_pyproject(path)
    root = pyproject.parent
    if not path.is_relative_to(root):
        raise ConversionError(
            f"{ini_path} is not in {root}, the folder of pyproject.toml: copy the file there first"
        )
    text = read_text(pyproject, pyproject.name) if pyproject.exists() else ""
    present = read_table(text, pyproject.name)
    run_from, migrations = _find_migrations(ini, section, present, root)
    env = None
    if migrations:
        env = read_env_file(migrations, str((migrations / "env.py").relative_to(root)))

    notes: list[str] = []
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
        change.files |= _edited_scripts(migrations, env, converted, notes)
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
    return notes + _mentions(root, path, {*change.files, backup})


def invocation_with(pyproject: Path) -> Invocation:
    """Return how Alembic is run with a pyproject.toml."""
    options = [] if pyproject.name == "pyproject.toml" else ["-c", pyproject.name]
    return Invocation(pyproject.parent, options)


def _read_ini(path: Path, shown: str, section: str) -> IniFile:
    ini = read_ini(path, shown)
    if not ini.parser.has_section(section):
        sections = ", ".join(f"[{name}]" for name in ini.parser.sections()) or "no section"
        raise ConversionError(
            f"{shown}:1: there is no section [{section}]; the file has {sections}: choose one with "
            "--name"
        )
    return ini


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


def _find_migrations(
    ini: IniFile, section: str, present: Table, root: Path
) -> tuple[Path, Path | None]:
    """Return the folder that Alembic is run in, and the folder of env.py.

    The latter is None if env.py is not in the project.
    """
    here = ini.path.parent
    location = _script_location(ini, section, present).replace(HERE, str(here))
    for run_from in (root, here):
        if found := _find_env(location, run_from, root):
            return run_from, found
    return here, None


def _find_env(location: str, run_from: Path, root: Path) -> Path | None:
    """Return the folder of env.py from `script_location`, a path or `package:path`."""
    folders = [run_from, run_from / "src"] if ":" in location else [run_from]
    if ":" in location and not Path(location).is_absolute():
        package, *parts = location.split(":")
        location = os.path.join(*package.split("."), *parts)  # noqa: PTH118
    for folder in folders:
        found = Path(os.path.normpath(folder / location))
        if (found / "env.py").is_file() and found.is_relative_to(root):
            return found
    return None


def _edited_scripts(
    migrations: Path, env: EnvFile, converted: ConvertedIni, notes: list[str]
) -> dict[Path, str]:
    """Return the new texts of env.py and script.py.mako, where they change."""
    text = EnvEditor(env, converted, notes).edit()
    mako = env.mako.replace("config.get_main_option(", "config.get_alembic_option(")
    edited = {"env.py": (env.text, text), "script.py.mako": (env.mako, mako)}
    return {migrations / name: new for name, (old, new) in edited.items() if new != old}


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
