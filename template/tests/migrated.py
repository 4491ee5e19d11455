"""The migrated database that the databases of the tests are copies of.

Its name ends in a digest of what decides what the migrations make, so that a later run finds it.
On the project's own server it stays, beside a few earlier ones: switching between branches is
quick, too. On any other server, whoever used it last drops it.

Who makes it and who uses it hold advisory locks in the database `postgres`, which end with their
connections: what a run left that was killed is dropped by the next one.
"""

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.rows import TupleRow

import alembic_safety
from core.project import ROOT, load_project

Connection = psycopg.Connection[TupleRow]

# PostgreSQL cuts a name after 63 bytes: what stands behind this, `_migrated_<digest>_new` at most,
# has room.
PREFIX = f"{load_project().name[:32]}_test_"
KEPT = 3
"""How many stay on the project's own server."""

_UNFINISHED = "_new"
# Keys of advisory locks.
_MAKING = "hashtextextended(%s, 1)"
_USING = "hashtextextended(%s, 2)"
_IMPORT = re.compile(rb"^.*\bimport.*$", re.MULTILINE)


def migrated_name(connection: Connection, config: Config, *, src: Path = ROOT / "src") -> str:
    """Return the name of the database that the migrations of `config` make on this server.

    It covers, by content: the folder of env.py and those of the revisions; `src/core`, and all of
    `src` where one of those files imports more of it; alembic-safety; pyproject.toml and
    alembic.ini; what makes the database, in `tests`. And the versions of the server and of each installed package. It does
    not cover what a revision reads from elsewhere, variables of the environment for example.
    """
    script = ScriptDirectory.from_config(config)
    contents: dict[Path, bytes] = {}
    for folder in (Path(script.dir), *script._version_locations):  # noqa: SLF001
        contents |= _read(folder)
    others = {entry.stem.encode() for entry in src.iterdir()} - {b"core", b"__pycache__"}
    others.add(b"models")  # of core, which has all tables
    imports_more = any(_imports(text, others) for text in contents.values())
    contents |= _read(src if imports_more else src / "core")
    contents |= _read(Path(alembic_safety.__file__).parent)
    tests = Path(__file__).parent
    made_by = [Path(__file__), tests / "conftest.py", tests / "support.py"]
    for file in (*made_by, ROOT / "pyproject.toml", ROOT / "alembic.ini"):
        if file.exists():
            contents[file] = file.read_bytes()

    digest = hashlib.sha256()
    packages = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
    server = [load_project().name, connection.info.user, str(connection.info.server_version)]
    digest.update("\0".join([*server, *sorted(path.name for path in packages)]).encode())
    for file, text in sorted(contents.items()):
        digest.update(f"\0{os.path.relpath(file, ROOT)}\0{len(text)}\0".encode() + text)
    return f"{PREFIX}migrated_{digest.hexdigest()[:12]}"


def _read(folder: Path) -> dict[Path, bytes]:
    """Return what is in the files below `folder`."""
    contents = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            file = Path(parent, name)
            if file.is_file():  # no link to nowhere, as editors make them
                contents[file] = file.read_bytes()
    return contents


def _imports(text: bytes, names: set[bytes]) -> bool:
    # The apps' modules as names of their own, and `core.models`; not `core.apps`.
    pattern = rb"(?<![\w.])\w+|(?<=core\.)models\b"
    return any(not names.isdisjoint(re.findall(pattern, line)) for line in _IMPORT.findall(text))


@contextmanager
def migrated_database(
    connection: Connection, name: str, migrate: Callable[[str], None], *, keep: int
) -> Iterator[None]:
    """Have the database `name`, and see that nobody drops it meanwhile; then drop unused ones.

    Args:
        connection: to the server's database `postgres`, in autocommit.
        name: see `migrated_name`.
        migrate: is given the name of an empty database, where there is none of that name yet. What
            it raises is raised here, and nothing is left.
        keep: how many of the project's may stay on the server.
    """
    # Waiting for a lock is a snapshot held, for which CREATE INDEX CONCURRENTLY waits; but only
    # for those of its own database, and the migrations run in another one than `connection`.
    connection.execute(f"SELECT pg_advisory_lock({_MAKING})", [name])
    try:
        if not _exists(connection, name):
            _make(connection, name, migrate)
        connection.execute(f"SELECT pg_advisory_lock_shared({_USING})", [name])
    finally:
        connection.execute(f"SELECT pg_advisory_unlock({_MAKING})", [name])
    try:
        yield
    finally:
        connection.execute(f"SELECT pg_advisory_unlock_shared({_USING})", [name])
        drop_unused(connection, keep=keep)


def _exists(connection: Connection, name: str) -> bool:
    query = "SELECT FROM pg_database WHERE datname = %s"
    return connection.execute(query, [name]).rowcount > 0


def _make(connection: Connection, name: str, migrate: Callable[[str], None]) -> None:
    """Make the database under another name: what has the right name is whole."""
    unfinished = name + _UNFINISHED
    _drop(connection, unfinished)
    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(unfinished)))
    try:
        migrate(unfinished)
    except BaseException:
        _drop(connection, unfinished)
        raise
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    connection.execute(rename.format(sql.Identifier(unfinished), sql.Identifier(name)))


def _drop(connection: Connection, name: str) -> None:
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    connection.execute(drop.format(sql.Identifier(name)))


def drop_unused(connection: Connection, *, keep: int) -> None:
    """Drop the project's migrated databases but for the `keep` newest and those in use."""
    pattern = f"^{re.escape(PREFIX)}migrated_[0-9a-f]{{12}}({_UNFINISHED})?$"
    query = "SELECT datname FROM pg_database WHERE datname ~ %s ORDER BY oid DESC"
    names = [str(row[0]) for row in connection.execute(query, [pattern])]
    finished = [name for name in names if not name.endswith(_UNFINISHED)]
    for name in set(names) - set(finished[:keep]):
        with suppress(psycopg.Error), _unused(connection, name.removesuffix(_UNFINISHED)) as unused:
            if unused:
                _drop(connection, name)


@contextmanager
def _unused(connection: Connection, name: str) -> Iterator[bool]:
    """Keep others from making or using `name`; False where one does so already."""
    locks = f"SELECT pg_try_advisory_lock({_MAKING}), pg_try_advisory_lock({_USING})"
    making, using = connection.execute(locks, [name, name]).fetchone() or (False, False)
    try:
        yield making and using
    finally:
        for key, locked in ((_MAKING, making), (_USING, using)):
            if locked:
                connection.execute(f"SELECT pg_advisory_unlock({key})", [name])
