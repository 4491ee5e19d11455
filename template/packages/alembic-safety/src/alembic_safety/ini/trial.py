"""Runs of Alembic in a copy of the project, before and after a change."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import is_skipped
from alembic_safety.ini.redaction import hide_passwords

OPTIONS = "reading the options"
HEADS = "alembic heads"

_OLDEST_ALEMBIC = (1, 16, 5)
"""The first version that reads booleans and integers of `[tool.alembic]` correctly."""
_VERSION_CODE = "import alembic; print(alembic.__version__)"
_ALEMBIC_CODE = "from alembic.config import main; main(prog='alembic')"
# Runs with the project's Alembic, which may be another version than this environment's. No command
# prints the options. `_inis_from_config` tells which file `--config` names, and
# `_version_locations` resolves folders of packages.
_OPTIONS_CODE = """
import json, os, sys
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from alembic.util import asbool
given = CommandLine().parser.parse_args([*sys.argv[1:], "heads"])
toml, ini = CommandLine()._inis_from_config(given) if hasattr(CommandLine, "_inis_from_config") else (
    "pyproject.toml", given.config or "alembic.ini")
config = Config(file_=ini, toml_file=toml, ini_section=given.name)
script = ScriptDirectory.from_config(config)
options = {name: getattr(script, name) for name in (
    "file_template", "truncate_slug_length", "sourceless", "output_encoding", "timezone",
    "recursive_version_locations")}
options["hooks"] = [dict(hook) for hook in script.hooks]
options["revision_environment"] = asbool(config.get_alembic_option("revision_environment"))
options["script_location"] = os.path.realpath(script.dir)
options["version_locations"] = [os.path.realpath(path) for path in script._version_locations]
options["prepend_sys_path"] = [os.path.realpath(p) for p in config.get_prepend_sys_paths_list() or []]
print(*(f"{key} = {json.dumps(options[key])}" for key in sorted(options)), sep="\\n")
"""
_COMMANDS = {
    OPTIONS: (_OPTIONS_CODE, ()),
    HEADS: (_ALEMBIC_CODE, ("heads",)),
    "alembic history": (_ALEMBIC_CODE, ("history",)),
    "alembic upgrade base:heads --sql": (_ALEMBIC_CODE, ("upgrade", "base:heads", "--sql")),
}


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    error: str

    @property
    def reason(self) -> str:
        """The last line of the errors, without passwords."""
        lines = [line for line in self.error.splitlines() if line.strip(" ^~")]
        lines = [line for line in lines if not line.startswith("(Background on this error")]
        return hide_passwords(lines[-1].strip()) if lines else f"exit code {self.code}"


def run_python(
    python: str, code: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Result:
    """Run Python code in a subprocess, without the current folder on the import path."""
    prologue = "import sys; sys.path[:] = filter(None, sys.path)"
    done = subprocess.run(
        [python, "-W", "ignore", "-c", f"{prologue}\n{code}", *arguments],
        cwd=folder,
        env=dict(variables),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def find_python(given: str, root: Path) -> str:
    """Return the Python that has the project's Alembic.

    Args:
        given: the Python that the user named; if empty, environments and PATH are searched.
        root: the project.

    Raises:
        ConversionError: no Alembic was found, or it is too old for `[tool.alembic]`.
    """
    for python in [given] if given else _candidates(root):
        if not shutil.which(python):
            continue
        result = run_python(python, _VERSION_CODE, (), root, os.environ)
        if result.code:
            continue
        version = result.out.strip()
        if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < _OLDEST_ALEMBIC:
            oldest = ".".join(map(str, _OLDEST_ALEMBIC))
            raise ConversionError(
                f"{python} has Alembic {version}; [tool.alembic] requires {oldest} or later: "
                "upgrade Alembic first"
            )
        return python
    searched = given or "the project's .venv, the active environment and PATH"
    raise ConversionError(
        f"no Alembic found in {searched}; name the project's Python: --python PATH"
    )


def _candidates(root: Path) -> list[str]:
    folder = "Scripts" if os.name == "nt" else "bin"
    homes: list[str | Path] = [os.environ.get("UV_PROJECT_ENVIRONMENT", "")]
    homes += [root / ".venv", root / "venv"]
    homes += [parent / ".venv" for parent in root.parents]
    homes.append(os.environ.get("VIRTUAL_ENV", ""))
    found = [str(root / home / folder / "python") for home in homes if home]
    return [*found, sys.executable, *filter(None, map(shutil.which, ("python3", "python")))]


@dataclass(frozen=True)
class Trial:
    """A copy of the project in which Alembic is run."""

    root: Path
    copied: Path
    python: str
    variables: Mapping[str, str]
    """Additional environment variables."""

    def run(self, folder: Path, options: Sequence[str]) -> dict[str, Result]:
        """Run the commands to compare in the copy of a folder.

        Args:
            folder: the folder, in the project.
            options: Alembic's options before the command, such as `-c`.
        """
        folder = self.copied / folder.relative_to(self.root)
        path = os.environ.get("PYTHONPATH", "")
        places = [self._in_copy(place) for place in path.split(os.pathsep)] if path else []
        variables = {**os.environ, **self.variables, "PYTHONHASHSEED": "0"}
        variables |= {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
        variables.pop("ALEMBIC_CONFIG", None)
        results = {}
        for name, (code, arguments) in _COMMANDS.items():
            files = set(folder.iterdir())
            done = run_python(self.python, code, [*options, *arguments], folder, variables)
            # Alembic's multidb template writes the SQL of each database to a file.
            written = sorted(path for path in set(folder.iterdir()) - files if path.is_file())
            out = "".join([done.out, *(f"{p.name}:\n{p.read_text('utf-8')}" for p in written)])
            for file in written:
                file.unlink()
            results[name] = Result(done.code, out, done.error)
        return results

    def _in_copy(self, place: str) -> str:
        path = Path(place)
        inside = place and path.is_absolute() and path.is_relative_to(self.root)
        return str(self.copied / path.relative_to(self.root)) if inside else place


def copy_project(root: Path, target: Path) -> None:
    """Copy a project without its history, environments and caches.

    Raises:
        ConversionError: a file cannot be copied.
    """

    def ignore(folder: str, names: list[str]) -> set[str]:
        paths = {name: Path(folder, name) for name in names}
        return {
            name
            for name, path in paths.items()
            if is_skipped(path) or not (path.is_symlink() or path.is_dir() or path.is_file())
        }

    try:
        shutil.copytree(root, target, symlinks=True, ignore=ignore)
    except (OSError, shutil.Error) as error:
        raise ConversionError(f"cannot copy {root} to try the change there: {error}") from None
