"""Alembic migrations on PostgreSQL that can be trusted in production."""

from alembic_safety.batches import in_batches
from alembic_safety.config import AlembicConfig, make_config, toml_file
from alembic_safety.database.url import DatabaseURL
from alembic_safety.environment import run_migrations
from alembic_safety.errors import DatabaseUnavailableError, MigrationError
from alembic_safety.options import SafetyOptions
from alembic_safety.project import Project, Target
from alembic_safety.state import Revisions, SchemaReader, SchemaState, State

__all__ = [
    "AlembicConfig",
    "DatabaseURL",
    "DatabaseUnavailableError",
    "MigrationError",
    "Project",
    "Revisions",
    "SafetyOptions",
    "SchemaReader",
    "SchemaState",
    "State",
    "Target",
    "in_batches",
    "make_config",
    "run_migrations",
    "toml_file",
]
