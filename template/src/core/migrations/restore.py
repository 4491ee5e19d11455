"""The way back: a backup becomes a new database, or takes the place of the present one.

Either way it is restored into a database of its own first. The present one is touched only after
that succeeded, and is renamed then, not dropped.
"""

import asyncio
import codecs
import logging
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from core.database import DatabaseUnavailableError, create_engine
from core.database_url import DatabaseURL
from core.migrations.backup import Backup, check_readable, format_size, server_major
from core.migrations.config import BackupKind
from core.migrations.errors import MigrationError
from core.migrations.lock import lock_holder
from core.migrations.same_server import psql_next_to, require_same_server
from core.migrations.sql import (
    IDENTIFIER,
    LONGEST_IDENTIFIER,
    SQLState,
    get_sqlstate,
    quote_identifier,
)
from core.postgres_client import (
    ClientProgramError,
    find_client,
    find_clients,
    major_version,
    run_client,
)

logger = logging.getLogger(__name__)

JOBS = 4
_TICK = 0.1

_EXISTS = text("SELECT 1 FROM pg_database WHERE datname = :name")
_TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = :name AND pid <> pg_backend_pid()"
)
_NO_SUCH_LOCALE = {
    SQLState.INVALID_PARAMETER_VALUE,
    SQLState.WRONG_OBJECT_TYPE,
    SQLState.FEATURE_NOT_SUPPORTED,
}

# The entries of a dump that are about the database itself; restoring into another leaves them out.
_OF_THE_DATABASE = re.compile(
    r"\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) - DATABASE) "
)
_CREATE = re.compile(r"^CREATE DATABASE .*?;\n", re.MULTILINE | re.DOTALL)
_ENCODING = re.compile(r"ENCODING = '\w+'")
_CLIENT_ENCODING = re.compile(rb"^SET client_encoding = '(\w+)';$", re.MULTILINE)
# Comments, literals and other names are matched, too: what looks like a statement in one is none.
_NAMES_THE_DATABASE = re.compile(
    rf"""
    --[^\n]* | '(?:[^']|'')*'
    | (?P<statement>
        ^(?:CREATE | ALTER | ALTER\ ROLE\ {IDENTIFIER}\ IN | COMMENT\ ON
           | SECURITY\ LABEL\ .*ON | (?:GRANT|REVOKE)\ [A-Z,\ ]+\ ON)
        \ DATABASE\ )
      {IDENTIFIER}
    | "(?:[^"]|"")*"
    """,
    re.MULTILINE | re.VERBOSE,
)


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
    if len(target.encode()) > LONGEST_IDENTIFIER:
        raise RestoreError(f"{target}: longer than the {LONGEST_IDENTIFIER} bytes of a name")
    async with maintenance(url) as server:
        if replace:
            await _refuse_while_migrating(server, url.database)
        size = format_size(backup.path.stat().st_size)
        logger.info("restoring %s (%s) into %s", backup.path.name, size, target)
        try:
            program = find_client("pg_restore", None)
            await asyncio.to_thread(check_readable, program, backup.path, _say_reading)
            await restore_file(url, backup.path, target)
        except ClientProgramError as error:
            raise RestoreError(
                f"{backup.path.name} was not restored: {error}\n"
                f"The database {url.database} is as it was, and no other one was left."
            ) from error
        return await _swap(server, url, target) if replace else target


async def restore_file(
    url: DatabaseURL, file: Path | None, target: str, *, analyze: bool = True
) -> None:
    """Make the database `target` on the server of `url`, out of a dump, or empty.

    Args:
        url: a database of the server.
        file: the dump; None for an empty database.
        target: the new database's name.
        analyze: let the server know how many rows there are now.

    Raises:
        ClientProgramError: the dump can't be restored; no database was left.
        RestoreError: there is one of that name, or no right to make it.
    """
    async with maintenance(url) as server:
        if file is None:
            await _create(server, "", target)
            return
        dump = _Dump(file, url, await server.run_sync(server_major), analyze=analyze)
        # Checked before the database is made: no other server has one of that name to be filled.
        await server.run_sync(require_same_server, _maintenance_url(url), dump.program)
        if not await _fill(server, dump, target, owners=True):
            await _fill(server, dump, target, owners=False)


async def _fill(server: AsyncConnection, dump: "_Dump", target: str, *, owners: bool) -> bool:
    """Make the database `target` out of a dump; return False where it may do without owners.

    Raises:
        ClientProgramError: it can't be made; there is no such database then.
        RestoreError: there is one already, or no right to make it.
    """
    script = await asyncio.to_thread(dump.script_of_the_database, target)
    await _create(server, script, target)
    try:
        await asyncio.to_thread(dump.restore_into, target, script, owners=owners)
    except BaseException as error:
        await server.exec_driver_sql(
            f"DROP DATABASE IF EXISTS {quote_identifier(target)} WITH (FORCE)"
        )
        if not (owners and isinstance(error, ClientProgramError)):
            raise
        logger.warning("trying without owners and privileges, as they can't be set: %s", error)
        return False
    return True


async def _create(server: AsyncConnection, script: str, target: str) -> None:
    """Create the database as the dump's script does, in the server's locale if need be."""
    found = _CREATE.search(script)
    statement = (
        found[0] if found else f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0"
    )
    try:
        await server.exec_driver_sql(statement)
    except DBAPIError as error:
        sqlstate = get_sqlstate(error)
        if sqlstate == SQLState.DUPLICATE_DATABASE:
            raise RestoreError(
                f"there is a database {target} already; name another one (DATABASE=...), or drop it"
            ) from error
        if sqlstate not in _NO_SUCH_LOCALE:
            raise RestoreError(
                f"no database could be made: {error.orig} (the right to make databases: "
                "ALTER ROLE ... CREATEDB)"
            ) from error
        logger.warning(
            "the database gets the server's own locale, so that text may sort differently: %s",
            error.orig,
        )
        encoding = _ENCODING.search(statement)
        await server.exec_driver_sql(
            f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0 {encoding[0] if encoding else ''}"
        )


class _Dump:
    """A dump, and the programs that read it and fit the server."""

    def __init__(self, file: Path, url: DatabaseURL, server_major: int, *, analyze: bool) -> None:
        self.file = file
        self.analyze = analyze
        self.url = url
        self.server_major = server_major
        self.program = self._that_reads_it()
        self.psql = psql_next_to(self.program, url)

    def script_of_the_database(self, target: str) -> str:
        """Return the SQL that makes the database itself, under the name `target`."""
        listed = self._output("--list", "--create").split(b"\n")
        wanted = [line for line in listed if _OF_THE_DATABASE.match(line.decode(errors="replace"))]
        with tempfile.NamedTemporaryFile() as chosen:
            chosen.write(b"\n".join(wanted))
            chosen.flush()
            script = self._output("--create", f"--use-list={chosen.name}", "--file=-")
        self.encoding = _python_encoding(script)
        # No connecting to it, and nothing that an older server does not know.
        unwanted = ("\\connect", "SET transaction_timeout")
        lines = script.decode(self.encoding, errors="surrogateescape").split("\n")
        text = "\n".join(line for line in lines if not line.startswith(unwanted))

        def renamed(match: re.Match[str]) -> str:
            return match["statement"] + quote_identifier(target) if match["statement"] else match[0]

        return _NAMES_THE_DATABASE.sub(renamed, text)

    def restore_into(self, target: str, script: str, *, owners: bool) -> None:
        """Fill the database `target`, which is there and empty."""
        if owners:
            self._set_properties(_CREATE.sub("", script))
        # A newer pg_restore sets what an older server does not know, and goes on: that error, and
        # no other, is passed over.
        newer = major_version(self.program) > self.server_major
        command = [
            self.program,
            "--no-password",
            *([] if newer else ["--exit-on-error"]),
            f"--jobs={JOBS}",
            f"--dbname={self.url.with_database(target).without_password}",
            *([] if owners else ["--no-owner", "--no-privileges"]),
            str(self.file),
        ]
        try:
            run_client(command, self.url, progress=lambda seconds: _say("restoring", seconds))
        except ClientProgramError as error:
            errors = [line for line in str(error).splitlines() if "pg_restore: error: " in line]
            real = [line for line in errors if '"transaction_timeout"' not in line]
            if not (newer and errors) or real:
                raise ClientProgramError("\n".join(real[:3]) or str(error)) from None
        if self.analyze:
            self._sql(self.url.with_database(target), b"ANALYZE;")

    def _set_properties(self, script: str) -> None:
        """Set the database's owner, settings, comment and privileges, each if it can be."""
        said = self._sql(
            _maintenance_url(self.url),
            script.encode(self.encoding, errors="surrogateescape"),
            stop=False,
        )
        if said:
            logger.warning("not all properties of the database could be set: %s", said)

    def _that_reads_it(self) -> str:
        """Return the pg_restore of the server's version, or a newer one if that made the dump."""
        programs = find_clients("pg_restore", self.url, server_major=self.server_major)
        for program in programs[:-1]:
            try:
                run_client([program, "--list", str(self.file)], None)
            except ClientProgramError:
                continue
            return program
        return programs[-1]

    def _output(self, *arguments: str) -> bytes:
        done = subprocess.run(
            [self.program, *arguments, str(self.file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise ClientProgramError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def _sql(self, url: DatabaseURL, script: bytes, *, stop: bool = True) -> str:
        command = [self.psql, "-XAtq", "-w", "-d", url.without_password, "-f", "-"]
        if stop:
            command += ["-v", "ON_ERROR_STOP=1"]
        return run_client(command, url, script=script)


def _python_encoding(script: bytes) -> str:
    """Return Python's name for the encoding of a dump's script."""
    found = _CLIENT_ENCODING.search(script)
    name = found[1].decode() if found else "UTF8"
    name = name.replace("WIN", "cp").replace("SQL_ASCII", "ascii")
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def _say_reading(seconds: float) -> None:
    _say("reading", seconds)


def _say(what: str, seconds: float) -> None:
    logger.info("%s: after %.0f s", what, seconds)


def _maintenance_url(url: DatabaseURL) -> DatabaseURL:
    """Return the address of a database from which others are made, renamed and dropped."""
    return url.with_database("postgres" if url.database != "postgres" else "template1")


async def _swap(server: AsyncConnection, url: DatabaseURL, restored: str) -> str:
    """Put `restored` in the place of the present database; return the name that it then has."""
    present = url.database
    rename = f"ALTER DATABASE {quote_identifier(restored)} RENAME TO {quote_identifier(present)}"
    if not await server.scalar(_EXISTS, {"name": present}):
        await server.exec_driver_sql(rename)
        return present
    kept = _name(present, "before_restore", datetime.now(UTC))
    try:
        # While it waits for the database's sessions to end, the renaming keeps new ones out. What
        # is not committed, the server takes back, whatever happens to this process.
        await server.exec_driver_sql("BEGIN")
        async with _sessions_ended(url):
            await server.exec_driver_sql(
                f"ALTER DATABASE {quote_identifier(present)} RENAME TO {quote_identifier(kept)}"
            )
        await server.exec_driver_sql(rename)
        await server.exec_driver_sql("COMMIT")
    except (DBAPIError, RestoreError) as error:
        reason = f"{error.orig}" if isinstance(error, DBAPIError) else str(error)
        if get_sqlstate(error) == SQLState.OBJECT_IN_USE:
            reason += "; stop what uses it"
        raise RestoreError(
            f"the database {present} could not be replaced, and is as it was; the backup is in "
            f"the database {restored}: {reason}"
        ) from error
    logger.info("what was the database %s is now %s; drop it when you are sure", present, kept)
    return present


@asynccontextmanager
async def _sessions_ended(url: DatabaseURL) -> AsyncIterator[None]:
    """Meanwhile, end the sessions on the database of `url`, unless it is being migrated."""

    async def end() -> None:
        async with maintenance(url) as other:
            await asyncio.sleep(_TICK)  # let the renaming close the door first
            await _refuse_while_migrating(other, url.database)
            while True:
                await other.execute(_TERMINATE, {"name": url.database})
                await asyncio.sleep(_TICK)

    ending = asyncio.create_task(end())
    try:
        yield
    except DBAPIError:
        if ending.done() and (error := ending.exception()) is not None:
            raise error from None
        raise
    finally:
        ending.cancel()
        with suppress(asyncio.CancelledError, DatabaseUnavailableError, DBAPIError, RestoreError):
            await ending


async def _refuse_while_migrating(server: AsyncConnection, database: str) -> None:
    if (holder := await server.run_sync(lock_holder, database=database)) is not None:
        raise RestoreError(f"{holder} is migrating the database {database}; wait until it ends")


@asynccontextmanager
async def maintenance(url: DatabaseURL) -> AsyncIterator[AsyncConnection]:
    """Connect to the server's maintenance database, outside of a transaction."""
    engine = create_engine(_maintenance_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection


def _name(database: str, what: str, moment: datetime) -> str:
    """Return `<database>_<what>_<time>`, the database's name cut where that is too long."""
    tail = f"_{what}_{moment:%Y%m%d_%H%M%S}"
    return database.encode()[: LONGEST_IDENTIFIER - len(tail)].decode(errors="ignore") + tail
