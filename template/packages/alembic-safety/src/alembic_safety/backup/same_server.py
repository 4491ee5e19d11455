"""Check that client programs reach the same server as a connection."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from alembic_safety.backup.clients import find_client, libpq_environment
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.programs import run_program

_MAY_READ_IDENTIFIER = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"
_IDENTIFIER = "SELECT 'system identifier ' || system_identifier FROM pg_control_system()"
# A standby and a copied data directory share the identifier of their origin, so the start time is
# compared as well.
_SERVER = """
    SELECT 'started ' || to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC',
                                 'YYYY-MM-DD HH24:MI:SS.US')
        || ' UTC, port ' || current_setting('port') || ', database oid ' || oid
    FROM pg_database WHERE datname = current_database()
"""
_NO_TIMEOUTS = """
    SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""


def require_same_server(connection: Connection, url: DatabaseURL, program: str) -> None:
    """Check that a client program reaches the server and database of a connection.

    A host name, a proxy or a list of hosts may lead two connections to different servers. The check
    runs psql from the folder of the program, with the same URL and environment.

    Args:
        connection: a connection to the database of `url`, outside of a transaction.
        url: the URL that is passed to the program.
        program: path of pg_dump or pg_restore.

    Raises:
        ClientProgramError: psql reaches another server or database, or can't connect.
    """
    readable = connection.exec_driver_sql(_MAY_READ_IDENTIFIER).scalar()
    queries = [_IDENTIFIER, _SERVER] if readable else [_SERVER]
    ours = ", ".join(str(connection.exec_driver_sql(query).scalar()) for query in queries)
    connection.rollback()
    theirs = ", ".join(_ask_psql(url, psql_next_to(program, url), queries))
    if ours != theirs:
        raise ClientProgramError(
            f"{url} leads to two servers: this process is connected to one ({ours}), "
            f"{Path(program).name} to another ({theirs}); use a URL of a single server"
        )


@contextmanager
def exported_snapshot(connection: Connection) -> Iterator[str]:
    """Export a snapshot and yield its name; its transaction stays open, without timeouts.

    `pg_dump --snapshot` fails on any other server or database, which does not have the snapshot.
    """
    try:
        connection.exec_driver_sql(_NO_TIMEOUTS)
        yield str(connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar())
    finally:
        connection.rollback()


def psql_next_to(program: str, url: DatabaseURL) -> str:
    """Return the path of psql in the folder of a program, or of the newest psql.

    Raises:
        ClientProgramError: psql is not installed.
    """
    neighbor = Path(program).with_name("psql")
    return str(neighbor) if os.access(neighbor, os.X_OK) else find_client("psql", url)


def _ask_psql(url: DatabaseURL, psql: str, queries: list[str]) -> list[str]:
    """Return one line for each query. Only a failure of the last query raises."""
    command = [psql, "-XAtqw", "-d", url.without_password]
    for query in queries:
        command += ["-c", query]
    done = run_program(command, env=libpq_environment(url, LC_ALL="C"))
    if done.returncode != 0:
        raise ClientProgramError(done.stderr.decode(errors="replace").strip())
    return done.stdout.decode(errors="replace").splitlines()
