"""Migrated databases of a test suite, kept from one run to the next."""

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from alembic.config import Config
from psycopg.rows import TupleRow

from alembic_safety.config import toml_file
from alembic_safety.sql import quote_identifier
from alembic_safety.testing.sources import read_sources

_UNFINISHED = "_new"
# Keys of advisory locks. They are held in the database `postgres` and end with their connections,
# so what a killed run left behind is known to be unused.
_MAKING = "hashtextextended(%s, 1)"
_USING = "hashtextextended(%s, 2)"


class MigratedDatabases:
    """Databases that are made by the migrations, to be copied by tests.

    The name of a database ends in a digest of what its migrations depend on, so that a later run
    finds it. Any number of runs may share a server.

    Args:
        connection: a connection to the server's database `postgres`, in autocommit.
        prefix: beginning of the name of each database, at most 40 bytes.
        keep: number of databases that stay on the server, besides those in use.
    """

    def __init__(self, connection: psycopg.Connection[TupleRow], *, prefix: str, keep: int) -> None:
        self._connection = connection
        self._prefix = prefix
        self._keep = keep

    def name_for(self, config: Config, *, src: Path, also: Iterable[Path] = ()) -> str:
        """Return the name of the database that the migrations of `config` make on this server.

        The digest covers the sources (see `read_sources`), the versions of the server and of all
        installed packages, and the user. Variables of the environment are not covered.

        Args:
            config: the configuration of Alembic.
            src: the folder from which revisions and env.py import the project's modules.
            also: more files that decide how the database is made, such as conftest.py.
        """
        info = self._connection.info
        packages = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
        versions = [info.user, str(info.server_version), *sorted(path.name for path in packages)]
        digest = hashlib.sha256("\0".join(versions).encode())
        contents = read_sources(config, src) | {file: file.read_bytes() for file in also}
        for file, text in sorted(contents.items()):
            path = os.path.relpath(file, toml_file(config).parent)
            digest.update(f"\0{path}\0{len(text)}\0".encode() + text)
        return f"{self._prefix}migrated_{digest.hexdigest()[:12]}"

    @contextmanager
    def use(self, name: str, migrate: Callable[[str], None]) -> Iterator[None]:
        """Provide the database `name` until the context ends, then drop unused databases.

        Args:
            name: see `name_for`.
            migrate: migrates the empty database whose name it is given. It is called if there is no
                database `name` yet. If it raises, nothing is left behind.
        """
        # A session that waits for a lock holds a snapshot, for which CREATE INDEX CONCURRENTLY
        # waits, but only in the session's own database. Migrations run in another one.
        self._execute(f"SELECT pg_advisory_lock({_MAKING})", name)
        try:
            if not self._exists(name):
                self._make(name, migrate)
            self._execute(f"SELECT pg_advisory_lock_shared({_USING})", name)
        finally:
            self._execute(f"SELECT pg_advisory_unlock({_MAKING})", name)
        try:
            yield
        finally:
            self._execute(f"SELECT pg_advisory_unlock_shared({_USING})", name)
            self.drop_unused()

    def drop_unused(self) -> None:
        """Drop all databases except the newest `keep` and those in use."""
        pattern = f"^{re.escape(self._prefix)}migrated_[0-9a-f]{{12}}({_UNFINISHED})?$"
        query = "SELECT datname FROM pg_database WHERE datname ~ %s ORDER BY oid DESC"
        names = [str(row[0]) for row in self._execute(query, pattern)]
        finished = [name for name in names if not name.endswith(_UNFINISHED)]
        for name in set(names) - set(finished[: self._keep]):
            with suppress(psycopg.Error), self._locked(name.removesuffix(_UNFINISHED)) as unused:
                if unused:
                    self._drop(name)

    def drop_abandoned(self) -> None:
        """Drop the databases `<prefix><pid>...` of processes that ended.

        Only for a server that no other machine uses.
        """
        pattern = f"^{re.escape(self._prefix)}([0-9]+)"
        query = "SELECT datname, (regexp_match(datname, %s))[1] FROM pg_database WHERE datname ~ %s"
        for name, pid in self._execute(query, pattern, pattern):
            if not _is_running(int(pid)):
                with suppress(psycopg.Error):
                    quoted = quote_identifier(name)
                    self._execute(f"ALTER DATABASE {quoted} IS_TEMPLATE false")
                    self._execute(f"DROP DATABASE {quoted}")

    def _execute(self, query: str, *values: str) -> psycopg.Cursor[TupleRow]:
        return self._connection.execute(query.encode(), values or None)

    def _exists(self, name: str) -> bool:
        return self._execute("SELECT FROM pg_database WHERE datname = %s", name).rowcount > 0

    def _make(self, name: str, migrate: Callable[[str], None]) -> None:
        """Make the database under another name, so that one with the right name is complete."""
        unfinished = name + _UNFINISHED
        self._drop(unfinished)
        self._execute(f"CREATE DATABASE {quote_identifier(unfinished)}")
        try:
            migrate(unfinished)
        except BaseException:
            self._drop(unfinished)
            raise
        self._execute(
            f"ALTER DATABASE {quote_identifier(unfinished)} RENAME TO {quote_identifier(name)}"
        )

    def _drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)")

    @contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Keep others from making or using `name`; yield False if someone already does."""
        locks = f"SELECT pg_try_advisory_lock({_MAKING}), pg_try_advisory_lock({_USING})"
        making, using = self._execute(locks, name, name).fetchone() or (False, False)
        try:
            yield making and using
        finally:
            for key, locked in ((_MAKING, making), (_USING, using)):
                if locked:
                    self._execute(f"SELECT pg_advisory_unlock({key})", name)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
