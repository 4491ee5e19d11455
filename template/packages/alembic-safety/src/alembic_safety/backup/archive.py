"""Archives of pg_dump: the SQL of the database itself, and the restore of its content."""

import codecs
import logging
import re
import tempfile
from pathlib import Path

from alembic_safety.backup.clients import find_clients, major_version, run_client
from alembic_safety.backup.same_server import psql_next_to
from alembic_safety.database.maintenance import maintenance_url
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.programs import run_program
from alembic_safety.sql import IDENTIFIER, quote_identifier

logger = logging.getLogger(__name__)

JOBS = 4
"""Parallel jobs of pg_restore."""
CREATE_DATABASE = re.compile(r"^CREATE DATABASE .*?;\n", re.MULTILINE | re.DOTALL)
# Entries of the database itself, which pg_restore ignores when it restores into another database.
_OF_THE_DATABASE = re.compile(
    r"\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) - DATABASE) "
)
_CLIENT_ENCODING = re.compile(rb"^SET client_encoding = '(\w+)';$", re.MULTILINE)
# Comments, literals and quoted names are matched first, so that no statement is found in them.
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


class Archive:
    """An archive of pg_dump, with the client programs for the archive and the server.

    Args:
        file: the archive.
        url: a database on the server to restore to.
        server_major: major version of that server.
        analyze: whether to run ANALYZE after the restore.
    """

    def __init__(self, file: Path, url: DatabaseURL, server_major: int, *, analyze: bool) -> None:
        self.file = file
        self.analyze = analyze
        self.url = url
        self.server_major = server_major
        self.pg_restore = self._find_pg_restore()
        self.psql = psql_next_to(self.pg_restore, url)

    def database_script(self, target: str) -> str:
        """Return the SQL that creates the database `target` and sets its properties."""
        entries = self._run("--list", "--create").split(b"\n")
        wanted = [line for line in entries if _OF_THE_DATABASE.match(line.decode(errors="replace"))]
        with tempfile.NamedTemporaryFile() as use_list:
            use_list.write(b"\n".join(wanted))
            use_list.flush()
            script = self._run("--create", f"--use-list={use_list.name}", "--file=-")
        self.encoding = _python_encoding(script)
        # Stay connected to the maintenance database, and skip settings that older servers lack.
        unwanted = ("\\connect", "SET transaction_timeout")
        lines = script.decode(self.encoding, errors="surrogateescape").split("\n")
        text = "\n".join(line for line in lines if not line.startswith(unwanted))

        def rename(match: re.Match[str]) -> str:
            return match["statement"] + quote_identifier(target) if match["statement"] else match[0]

        return _NAMES_THE_DATABASE.sub(rename, text)

    def restore_into(self, target: str, script: str, *, owners: bool) -> None:
        """Restore the content into the empty database `target`.

        Args:
            target: name of the database.
            script: the result of `database_script`.
            owners: whether to restore owners, privileges and the properties of the database.

        Raises:
            ClientProgramError: pg_restore failed.
        """
        if owners:
            self._set_properties(CREATE_DATABASE.sub("", script))
        # A newer pg_restore sets transaction_timeout, which an older server does not have. Ignore
        # that error only.
        newer = major_version(self.pg_restore) > self.server_major
        command = [
            self.pg_restore,
            "--no-password",
            *([] if newer else ["--exit-on-error"]),
            f"--jobs={JOBS}",
            f"--dbname={self.url.with_database(target).without_password}",
            *([] if owners else ["--no-owner", "--no-privileges"]),
            str(self.file),
        ]
        try:
            run_client(
                command, self.url, progress=lambda seconds: log_progress("restoring", seconds)
            )
        except ClientProgramError as error:
            errors = [line for line in str(error).splitlines() if "pg_restore: error: " in line]
            real = [line for line in errors if '"transaction_timeout"' not in line]
            if not (newer and errors) or real:
                raise ClientProgramError("\n".join(real[:3]) or str(error)) from None
        if self.analyze:
            self._execute(self.url.with_database(target), b"ANALYZE;")

    def _set_properties(self, script: str) -> None:
        """Set owner, settings, comment and privileges of the database; log the ones that fail."""
        errors = self._execute(
            maintenance_url(self.url),
            script.encode(self.encoding, errors="surrogateescape"),
            stop=False,
        )
        if errors:
            logger.warning("some properties of the database could not be set: %s", errors)

    def _find_pg_restore(self) -> str:
        """Return the oldest pg_restore that can read the archive, from the server's version on."""
        programs = find_clients("pg_restore", self.url, server_major=self.server_major)
        for program in programs[:-1]:
            try:
                run_client([program, "--list", str(self.file)], None)
            except ClientProgramError:
                continue
            return program
        return programs[-1]

    def _run(self, *arguments: str) -> bytes:
        done = run_program([self.pg_restore, *arguments, str(self.file)])
        if done.returncode != 0:
            raise ClientProgramError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def _execute(self, url: DatabaseURL, script: bytes, *, stop: bool = True) -> str:
        command = [self.psql, "-XAtq", "-w", "-d", url.without_password, "-f", "-"]
        if stop:
            command += ["-v", "ON_ERROR_STOP=1"]
        return run_client(command, url, script=script)


def _python_encoding(script: bytes) -> str:
    """Return Python's name for the client encoding of a script."""
    found = _CLIENT_ENCODING.search(script)
    name = found[1].decode() if found else "UTF8"
    name = name.replace("WIN", "cp").replace("SQL_ASCII", "ascii")
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def log_progress(action: str, seconds: float) -> None:
    """Log that an action is still running."""
    logger.info("%s: after %.0f s", action, seconds)
