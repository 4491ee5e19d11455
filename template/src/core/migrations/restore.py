"""The way back: a backup becomes a new database, or takes the place of the present one.

Either way it is restored into a database of its own first. The present one is touched only after
that succeeded, and is renamed then, not dropped.
"""

import asyncio
import logging
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from core.database import create_engine
from core.database_url import DatabaseURL
from core.migrations.backup import Backup, format_size, server_major
from core.migrations.config import BackupKind
from core.migrations.errors import MigrationError, describe_error
from core.migrations.lock import lock_holder
from core.postgres_client import (
    ClientProgramError,
    find_client,
    find_clients,
    major_version,
    run_client,
)

logger = logging.getLogger(__name__)

MAINTENANCE_DATABASE = "postgres"
JOBS = 4
_LONGEST_NAME = 63
"""Bytes of an identifier: NAMEDATALEN - 1."""

_EXISTS = text("SELECT 1 FROM pg_database WHERE datname = :name")
_TERMINATE = text(
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"
)
# The entries of a dump that are about the database itself; restoring into another leaves them out.
_OF_THE_DATABASE = re.compile(
    r"^\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) - DATABASE) ",
    re.MULTILINE,
)
# Comments, literals and other names are matched, too: what looks like a statement in one is none.
_NAMES_THE_DATABASE = re.compile(
    r"""
    --[^\n]* | '(?:[^']|'')*'
    | (?P<statement>
        ^(?:CREATE|ALTER|COMMENT\ ON|SECURITY\ LABEL\ .*ON|(?:GRANT|REVOKE)\ [A-Z,\ ]+\ ON)\ DATABASE\ )
      (?:"(?:[^"]|"")+"|[\w$]+)
    | "(?:[^"]|"")*"
    """,
    re.MULTILINE | re.VERBOSE,
)
_UNKNOWN_ROLE = re.compile(r'role "(?P<role>.*)" does not exist')
_UNKNOWN_LOCALE = re.compile(r"locale|collation|LOCALE|ICU")


class RestoreError(MigrationError):
    """The backup was not restored. The message says why; the present database is as it was."""


async def restore(
    url: DatabaseURL, backup: Backup, *, into: str | None = None, replace: bool = False
) -> str:
    """Restore a backup; return the name of the database that now has its content.

    Args:
        url: the present database, on whose server it is restored.
        backup: what to restore.
        into: the new database's name; by default one made of the backup's.
        replace: put it in the present database's place, which is renamed.

    Raises:
        RestoreError: it can't be read, there is no right to make databases, a name is taken, or
            the present database can't be renamed.
        DatabaseUnavailableError: the server can't be reached.
    """
    if replace and backup.kind is BackupKind.SCHEMA:
        raise RestoreError(
            f"{backup.path.name} holds the schema alone: in the place of {url.database} it would "
            "leave no rows. Restore it into a new database: leave CONFIRM out."
        )
    stamp = datetime.now(UTC) if replace else backup.taken_at
    target = into or _name(backup.database, "restored", stamp)
    if len(target.encode()) > _LONGEST_NAME:
        raise RestoreError(f"{target}: longer than the {_LONGEST_NAME} bytes of a name")
    async with _maintenance(url) as server:
        if replace:
            await _refuse_while_migrating(server, url.database)
        if await server.scalar(_EXISTS, {"name": target}):
            raise RestoreError(
                f"there is a database {target} already; name another one (DATABASE=...), or drop it"
            )
        size = format_size(backup.path.stat().st_size)
        logger.info("restoring %s (%s) into %s", backup.path.name, size, target)
        try:
            major = await server.run_sync(server_major)
            await asyncio.to_thread(_Restoration(url, backup, target, major).run)
        except BaseException as error:
            await server.exec_driver_sql(f"DROP DATABASE IF EXISTS {_quote(target)} WITH (FORCE)")
            if isinstance(error, ClientProgramError):
                raise RestoreError(
                    f"{backup.path.name} was not restored: {error}\n"
                    f"The database {url.database} is as it was, and no other one was left."
                ) from error
            raise
        return await _swap(server, url.database, target) if replace else target


class _Restoration:
    """Makes a database out of a dump."""

    def __init__(self, url: DatabaseURL, backup: Backup, target: str, server_major: int) -> None:
        self.url = url
        self.file = str(backup.path)
        self.target = target
        self.server_major = server_major
        self.program = self._that_reads_it(server_major)
        beside = Path(self.program).with_name("psql")
        self.psql = str(beside) if beside.exists() else find_client("psql", url)

    def _that_reads_it(self, server_major: int) -> str:
        """Return the pg_restore of the server's version, or a newer one if that made the dump."""
        programs = find_clients("pg_restore", self.url, server_major=server_major)
        for program in programs[:-1]:
            try:
                run_client([program, "--list", self.file], self.url)
            except ClientProgramError:
                continue
            return program
        return programs[-1]

    def run(self) -> None:
        try:
            self._run(owners=True)
        except ClientProgramError as error:
            if (unknown := _UNKNOWN_ROLE.search(str(error))) is None:
                raise
            logger.warning(
                "there is no role %s on this server: owners and privileges are left out",
                unknown["role"],
            )
            self._drop()
            self._run(owners=False)
        self._sql(self.url.with_database(self.target), "ANALYZE;")

    def _run(self, *, owners: bool) -> None:
        self._create(owners=owners)
        # A newer pg_restore sets what an older server does not know (transaction_timeout): such
        # errors, and no others, are passed over.
        newer = major_version(self.program) > self.server_major
        command = [
            self.program,
            "--no-password",
            *([] if newer else ["--exit-on-error"]),
            f"--jobs={JOBS}",
            f"--dbname={self.url.with_database(self.target).without_password}",
            *([] if owners else ["--no-owner", "--no-privileges"]),
            self.file,
        ]
        try:
            run_client(command, self.url, progress=_say_how_long)
        except ClientProgramError as error:
            errors = [line for line in str(error).splitlines() if "pg_restore: error: " in line]
            real = [line for line in errors if "unrecognized configuration parameter" not in line]
            if not (newer and errors) or real:
                raise ClientProgramError("\n".join(real[:3]) or str(error)) from None

    def _create(self, *, owners: bool) -> None:
        """Make the database with the dump's encoding, locale, settings, comment and privileges."""
        script = self._script(owners=owners)
        try:
            self._sql(self._server, script)
        except ClientProgramError as error:
            if not _UNKNOWN_LOCALE.search(str(error)):
                raise
            logger.warning(
                "the database gets the server's own locale, so that text may sort differently: %s",
                error,
            )
            self._sql(self._server, f"CREATE DATABASE {_quote(self.target)} TEMPLATE template0;")

    def _script(self, *, owners: bool) -> str:
        listed = self._output("--list", "--create", self.file)
        wanted = [line for line in listed.splitlines() if _OF_THE_DATABASE.match(line)]
        if not owners:
            wanted = wanted[:1]
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as chosen:
            chosen.write("\n".join(wanted))
            chosen.flush()
            options = [] if owners else ["--no-owner"]
            script = self._output(
                "--create", f"--use-list={chosen.name}", "--file=-", *options, self.file
            )
        # No connecting to it, and nothing that an older server does not know.
        unwanted = ("\\connect", "SET transaction_timeout")
        lines = [line for line in script.splitlines() if not line.startswith(unwanted)]
        name = _quote(self.target)

        def renamed(match: re.Match[str]) -> str:
            return match["statement"] + name if match["statement"] else match[0]

        return _NAMES_THE_DATABASE.sub(renamed, "\n".join(lines))

    def _output(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise ClientProgramError(done.stderr.strip())
        return done.stdout

    def _drop(self) -> None:
        self._sql(self._server, f"DROP DATABASE IF EXISTS {_quote(self.target)};")

    def _sql(self, url: DatabaseURL, script: str) -> None:
        command = [self.psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-w", "-d", url.without_password]
        run_client([*command, "-f", "-"], url, script=script)

    @property
    def _server(self) -> DatabaseURL:
        return self.url.with_database(MAINTENANCE_DATABASE)


def _say_how_long(seconds: float) -> None:
    logger.info("restoring: after %.0f s", seconds)


async def _swap(server: AsyncConnection, present: str, restored: str) -> str:
    """Put `restored` in the place of `present`; return the name that it then has."""
    rename = f"ALTER DATABASE {_quote(restored)} RENAME TO {_quote(present)}"
    if not await server.scalar(_EXISTS, {"name": present}):
        await server.exec_driver_sql(rename)
        return present
    kept = _name(present, "before_restore", datetime.now(UTC))
    allow = f"ALTER DATABASE {_quote(present)} ALLOW_CONNECTIONS"
    try:
        # Nobody comes back between the end of a session and the renaming.
        await server.exec_driver_sql(f"{allow} false")
        await _refuse_while_migrating(server, present)
        await server.execute(_TERMINATE, {"name": present})
        await server.exec_driver_sql("BEGIN")
        try:
            await server.exec_driver_sql(
                f"ALTER DATABASE {_quote(present)} RENAME TO {_quote(kept)}"
            )
            await server.exec_driver_sql(rename)
            await server.exec_driver_sql("COMMIT")
        except DBAPIError:
            await server.exec_driver_sql("ROLLBACK")
            raise
    except (DBAPIError, RestoreError) as error:
        await server.exec_driver_sql(f"{allow} true")
        raise RestoreError(
            f"the database {present} could not be replaced, and is as it was; the backup is in "
            f"the database {restored}: {describe_error(error)}"
        ) from error
    await server.exec_driver_sql(f"ALTER DATABASE {_quote(kept)} ALLOW_CONNECTIONS true")
    logger.info("what was the database %s is now %s; drop it when you are sure", present, kept)
    return present


async def _refuse_while_migrating(server: AsyncConnection, database: str) -> None:
    if (holder := await server.run_sync(lock_holder, database=database)) is not None:
        raise RestoreError(f"{holder} is migrating the database {database}; wait until it ends")


@asynccontextmanager
async def _maintenance(url: DatabaseURL) -> AsyncIterator[AsyncConnection]:
    """Connect to the server's maintenance database, outside of a transaction."""
    engine = create_engine(
        url.with_database(MAINTENANCE_DATABASE), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        yield connection


def _name(database: str, what: str, moment: datetime) -> str:
    """Return `<database>_<what>_<time>`, the database's name cut where that is too long."""
    tail = f"_{what}_{moment:%Y%m%d_%H%M%S}"
    return database.encode()[: _LONGEST_NAME - len(tail)].decode(errors="ignore") + tail


def _quote(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
