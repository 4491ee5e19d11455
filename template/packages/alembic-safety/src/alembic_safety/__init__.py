"""Alembic migrations on PostgreSQL that can be trusted in production."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic_safety.batches import in_batches as in_batches
    from alembic_safety.config import AlembicConfig as AlembicConfig
    from alembic_safety.config import make_config as make_config
    from alembic_safety.config import toml_file as toml_file
    from alembic_safety.database.url import DatabaseURL as DatabaseURL
    from alembic_safety.environment import run_migrations as run_migrations
    from alembic_safety.errors import DatabaseUnavailableError as DatabaseUnavailableError
    from alembic_safety.errors import MigrationError as MigrationError
    from alembic_safety.options import SafetyOptions as SafetyOptions
    from alembic_safety.project import Project as Project
    from alembic_safety.project import Target as Target
    from alembic_safety.state import Revisions as Revisions
    from alembic_safety.state import SchemaReader as SchemaReader
    from alembic_safety.state import SchemaState as SchemaState
    from alembic_safety.state import State as State
else:
    _MODULES = {
        "AlembicConfig": "config",
        "DatabaseURL": "database.url",
        "DatabaseUnavailableError": "errors",
        "MigrationError": "errors",
        "Project": "project",
        "Revisions": "state",
        "SafetyOptions": "options",
        "SchemaReader": "state",
        "SchemaState": "state",
        "State": "state",
        "Target": "project",
        "in_batches": "batches",
        "make_config": "config",
        "run_migrations": "environment",
        "toml_file": "config",
    }

    def __getattr__(name: str) -> Any:
        """Import a public name when it is used: https://peps.python.org/pep-0562/.

        The program handles signals before it imports Alembic, and the embedded server needs none of it.
        """
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
