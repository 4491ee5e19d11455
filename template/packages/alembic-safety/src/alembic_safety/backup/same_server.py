"""Comparison of the server that a connection reaches with the one that client programs reach."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from alembic_safety.backup.clients import find_client, libpq_environment
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError

_MAY_READ_IDENTIFIER = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"
_IDENTIFIER = "SELECT 'system identifier ' || system_identifier FROM pg_control_system()"
# A standby and a copied data directory have the identifier of their origin, so the time of the
# start always counts.
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

    psql is asked in the program's place: the psql in the same folder, with the same URL and
    environment. A host name, a proxy or a list of hosts may lead two connections to two servers.

    Args:
        connection: a connection to the database of `url`, outside of a transaction.
        url: the URL that the program gets.
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
            f"{Path(program).name} to another ({theirs}); name a single server in the URL"
        )


@contextmanager
def exported_snapshot(connection: Connection) -> Iterator[str]:
    """Yield the name of a snapshot; the transaction that exports it stays open, without a timeout.

    `pg_dump --snapshot` fails on another server and in another database, which don't have it.
    """
    try:
        connection.exec_driver_sql(_NO_TIMEOUTS)
        yield str(connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar())
    finally:
        connection.rollback()


def psql_next_to(program: str, url: DatabaseURL) -> str:
    """Return the path of the psql in the folder of a program, or else of the newest psql.

    Raises:
        ClientProgramError: there is none.
    """
    neighbor = Path(program).with_name("psql")
    return str(neighbor) if os.access(neighbor, os.X_OK) else find_client("psql", url)


def _ask_psql(url: DatabaseURL, psql: str, queries: list[str]) -> list[str]:
    """Return the answers to the queries; none to one that fails, but for the last."""
    command = [psql, "-XAtqw", "-d", url.without_password]
    for query in queries:
        command += ["-c", query]
    done = subprocess.run(
        command,
        env=libpq_environment(url, LC_ALL="C"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClientProgramError(done.stderr.strip())
    return done.stdout.splitlines()
