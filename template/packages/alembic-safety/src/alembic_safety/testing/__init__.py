"""Help for test suites that run the migrations of a project (extra `testing`)."""

from alembic_safety.testing.databases import MigratedDatabases
from alembic_safety.testing.schema import read_schema

__all__ = ["MigratedDatabases", "read_schema"]
