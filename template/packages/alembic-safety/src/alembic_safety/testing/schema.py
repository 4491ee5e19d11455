"""Comparison of schemas in tests."""

from sqlalchemy import Connection

from alembic_safety.plan.fingerprint import FingerprintReader


def read_schema(connection: Connection) -> frozenset[str]:
    """Return lines that describe the schema of a database; equal schemas have equal lines.

    Alembic's and the library's own tables are left out. The order of columns does not count.

    Args:
        connection: a connection to the database, whose transaction is rolled back: Alembic would
            not commit in one that was begun before.
    """
    reader = FingerprintReader(connection)
    reader.read()
    connection.rollback()
    return reader.fingerprint
