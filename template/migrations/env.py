"""Alembic runs this for each command that needs the database, or the models.

What it does is told in docs/handbook.md, "Migrations"; how, in `src/core/migrations`.
"""

import asyncio
import atexit
import gc
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic import context
from sqlalchemy import Connection

from core import tracing
from core.config import get_settings
from core.logging import configure_logging
from core.migrations.autogenerate import comparison_options
from core.migrations.blockers import Blockers
from core.migrations.config import SafetyOptions, load_alembic_config
from core.migrations.errors import readable_errors
from core.migrations.pooler import connect_past_poolers
from core.migrations.runner import OwnConnection, changes_revision, run_revisions, set_timeouts
from core.project import load_project

config = context.config


def run_migrations_offline(options: SafetyOptions) -> None:
    """Print the SQL (`--sql`); no database is asked."""
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
    )
    context.static_output(f"SET lock_timeout = {options.lock_timeout};")
    context.static_output(f"SET statement_timeout = {options.statement_timeout};")
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_on(
    connection: Connection, options: SafetyOptions, own: OwnConnection | None = None
) -> None:
    """Run the command on `connection`, each revision in a transaction of its own."""
    context.configure(
        connection=connection,
        transaction_per_migration=True,
        **comparison_options(
            connection,
            # A program that has a revision written gives it a message; `check` has none.
            autogenerating=lambda script: getattr(
                config.cmd_opts, "autogenerate", script.message is not None
            ),
        ),
    )
    with context.begin_transaction():
        if changes_revision():
            run_revisions(connection, options, own)
        else:
            context.run_migrations()


async def run_migrations_online(options: SafetyOptions) -> None:
    """Connect to the configured database and run the command there."""
    url = get_settings().migration_url
    name = f"{load_project().name} migrations"
    own = OwnConnection(url=url, blockers=Blockers())
    with tracing.span("migrations"):
        async with (
            connect_past_poolers(url, server_settings={"application_name": name}) as connected,
            own.blockers.watched(*connected),
        ):
            _, connection = connected
            await connection.run_sync(set_timeouts, options)
            await connection.run_sync(run_migrations_on, options, own)


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Run `coroutine` to its end, in a thread of its own where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
    else:
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, coroutine).result()


if config.cmd_opts is not None:
    # The process ends with the command. Python would look through all that it made, in order to free
    # it piece by piece: that takes a fifth of the time of `alembic current`.
    atexit.register(gc.freeze)

on_command_line = config.cmd_opts is not None and not config.cmd_opts.raiseerr
with readable_errors(command_line=on_command_line):
    # With an alembic.ini, Alembic's toml_file_name is whatever stands in the current folder.
    has_ini = config.config_file_name is not None and Path(config.config_file_name).exists()
    alembic_config = load_alembic_config(
        None if has_ini else config.toml_file_name,
        attributes=config.attributes,
        x_arguments=context.get_x_argument(),
    )
    if context.is_offline_mode():
        run_migrations_offline(alembic_config.safety)
    else:
        configure_logging(get_settings())
        if (given := config.attributes.get("connection")) is not None:
            # The program that gave it owns its transaction and its timeouts.
            run_migrations_on(given, alembic_config.safety)
        else:
            if changes_revision():
                tracing.start()
            run(run_migrations_online(alembic_config.safety))
