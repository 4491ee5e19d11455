"""Files that the result of the migrations depends on."""

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from alembic_safety.alembic_internals import version_locations
from alembic_safety.config import AlembicConfig, toml_file

_LIBRARY = Path(__file__).parents[1]
_IMPORT = re.compile(
    r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import\b[ \t]*(\([^)]*\)|.*)$|^(.*\bimport.*)$", re.MULTILINE
)


def read_sources(config: Config, src: Path) -> dict[Path, bytes]:
    """Return the contents of the files that the result of the migrations depends on.

    These are the configuration, this library, the folders of env.py and of the revisions, and each
    package in `src` from which one of them imports a module, directly or through other modules.
    All of `src` counts if one of them imports the models' metadata. A file that a revision opens
    elsewhere does not count.
    """
    script, toml = ScriptDirectory.from_config(config), toml_file(config)
    contents: dict[Path, bytes] = {}
    for folder in (Path(script.dir), *version_locations(script)):
        contents |= _read(folder)
    names = {name for text in contents.values() for name in _imported_names(text)}
    contents |= _read_modules(names, src, _metadata_module(toml))
    contents |= _read(_LIBRARY)
    files = (toml, toml.with_name("alembic.ini"))
    return contents | {file: file.read_bytes() for file in files if file.exists()}


def _metadata_module(toml: Path) -> str:
    document = tomllib.loads(toml.read_text(encoding="utf-8"))
    place = AlembicConfig.from_pyproject(document).safety.metadata or ""
    return place.partition(":")[0]


def _read_modules(names: set[str], src: Path, metadata_module: str) -> dict[Path, bytes]:
    """Return the packages of the modules `names`, and of those that the modules import."""
    contents: dict[Path, bytes] = {}
    pending, seen = set(names), set[str]()
    while pending:
        name = pending.pop()
        if name == metadata_module:
            return _read(src)
        seen.add(name)
        folder, files = _find_module(name, src)
        for file in files:
            contents[file] = file.read_bytes()
            package = ".".join(file.parent.relative_to(src).parts)
            pending |= {*_imported_names(contents[file], package)} - seen
        if folder != src:
            contents |= _read(folder)
    return contents


def _find_module(name: str, src: Path) -> tuple[Path, list[Path]]:
    """Return the package that a module is in, and the files that run when it is imported."""
    folder, files = src, list[Path]()
    for part in name.split("."):
        files += filter(Path.is_file, (folder / part / "__init__.py", folder / f"{part}.py"))
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder, files


def _imported_names(text: bytes, package: str = "") -> Iterator[str]:
    """Yield the dotted names on the lines of `text` that import something."""
    for module, members, other in _IMPORT.findall(text.decode(errors="replace")):
        if module:
            with suppress(ImportError):  # relative, in a file outside any package
                absolute = resolve_name(module, package)
                yield absolute
                yield from (f"{absolute}.{name}" for name in re.findall(r"\w+", members))
        else:
            yield from re.findall(r"\w[\w.]*", other)


def _read(folder: Path) -> dict[Path, bytes]:
    """Return the contents of the files below `folder`, but for hidden ones and byte code."""
    contents = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():
                contents[file] = file.read_bytes()
    return contents
