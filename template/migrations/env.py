"""Alembic runs this file for each command that needs the database or the models."""

import tomllib

from alembic import context

from alembic_safety import AlembicConfig, Target, run_migrations, toml_file
from core import tracing
from core.apps import AppImportError
from core.config import Environment, SettingsError, get_settings, start_own_server
from core.logging import configure_logging
from core.project import code_version, load_project


def load_alembic_config() -> AlembicConfig:
    """Return `[tool.alembic]` of pyproject.toml."""
    with toml_file(context.config).open("rb") as file:
        return AlembicConfig.from_pyproject(tomllib.load(file))


def get_target() -> Target:
    """Return the database to migrate; not called for `--sql`."""
    settings = get_settings()
    configure_logging(settings)
    return Target(
        url=settings.migration_url,
        plan_url=settings.plan_database_url,
        production=settings.environment is Environment.PROD,
        application=load_project().name,
        code_version=code_version(),
        scratch_server=start_own_server,
        start_tracing=tracing.start,
    )


run_migrations(load_alembic_config, target=get_target, readable=(AppImportError, SettingsError))
