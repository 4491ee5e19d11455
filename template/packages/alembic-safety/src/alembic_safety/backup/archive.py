"""A dump read by pg_restore: the SQL of its database, and its content."""

import codecs
import logging
import re
import subprocess
import tempfile
from pathlib import Path

from alembic_safety.backup.clients import find_clients, major_version, run_client
from alembic_safety.backup.same_server import psql_next_to
from alembic_safety.database.maintenance import maintenance_url
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.sql import IDENTIFIER, quote_identifier

logger = logging.getLogger(__name__)

JOBS = 4
CREATE_DATABASE = re.compile(r"^CREATE DATABASE .*?;\n", re.MULTILINE | re.DOTALL)
# The entries of a dump that are about the database itself; restoring into another leaves them out.
_OF_THE_DATABASE = re.compile(
    r"\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) - DATABASE) "
)
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


class Archive:
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
            self._set_properties(CREATE_DATABASE.sub("", script))
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
            run_client(
                command, self.url, progress=lambda seconds: log_progress("restoring", seconds)
            )
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
            maintenance_url(self.url),
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


def log_progress(what: str, seconds: float) -> None:
    """Log how long a program has been running."""
    logger.info("%s: after %.0f s", what, seconds)
