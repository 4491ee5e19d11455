"""Alembic runs this for each command that needs the database, or the models.

What it does is told in README.md, "Migrations"; how, in `src/core/migrations`.
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from core.config import get_settings
from core.database import create_engine
from core.logging import configure_logging
from core.migrations.autogenerate import comparison_options
from core.migrations.config import AlembicConfig, load_alembic_config
from core.migrations.errors import readable_errors
from core.project import load_project

config = context.config


def run_migrations_offline() -> None:
    """Print the SQL (`--sql`); no database is asked."""
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_on(connection: Connection) -> None:
    """Run the command on `connection`, each revision in a transaction of its own."""
    context.configure(
        connection=connection,
        transaction_per_migration=True,
        **comparison_options(
            connection, autogenerating=lambda: getattr(config.cmd_opts, "autogenerate", False)
        ),
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_migrations_online(options: AlembicConfig) -> None:
    """Connect to the configured database and run the command there."""
    engine = create_engine(
        get_settings().url,
        poolclass=NullPool,
        server_settings={
            "application_name": f"{load_project().name} migrations",
            "lock_timeout": str(options.safety.lock_timeout),
            "statement_timeout": str(options.safety.statement_timeout),
        },
    )
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations_on)


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Run `coroutine` to its end, in a thread of its own where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
    else:
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, coroutine).result()


with readable_errors():
    configure_logging(get_settings())
    alembic_config = load_alembic_config(
        config.toml_file_name,
        attributes=config.attributes,
        x_arguments=context.get_x_argument(),
    )
    if context.is_offline_mode():
        run_migrations_offline()
    elif (given := config.attributes.get("connection")) is not None:
        run_migrations_on(given)  # the program that gave it owns its transaction and its timeouts
    else:
        run(run_migrations_online(alembic_config))
