"""Help for test suites that run the migrations of a project (extra `testing`)."""

from alembic_safety.testing.databases import MigratedDatabases

__all__ = ["MigratedDatabases"]
