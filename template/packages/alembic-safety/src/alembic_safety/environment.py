"""Entry point of migrations/env.py, which runs a command of Alembic."""

import asyncio
import atexit
import gc
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from alembic import context
from alembic.config import Config
from sqlalchemy import Connection

from alembic_safety import alembic_internals, cancellation, telemetry
from alembic_safety.autogenerate.compare import comparison_options
from alembic_safety.boundary import readable_errors
from alembic_safety.cancellation import handled_signals, interruptible
from alembic_safety.config import AlembicConfig
from alembic_safety.database.session import open_session
from alembic_safety.errors import MigrationError
from alembic_safety.project import Project, Target
from alembic_safety.run.blockers import Blockers
from alembic_safety.run.runner import (
    changes_revision,
    run_revisions,
    set_timeouts,
)


def run_migrations(
    load_config: Callable[[], AlembicConfig],
    *,
    target: Callable[[], Target],
    readable: Sequence[type[Exception]] = (),
) -> None:
    """Run the current command of Alembic. Call this function in migrations/env.py.

    A connection in `config.attributes["connection"]` is used as it is. Its caller owns the
    transaction and the timeouts, so nothing is retried or backed up.
    https://alembic.sqlalchemy.org/en/latest/cookbook.html#connection-sharing

    Args:
        load_config: returns `[tool.alembic]`.
        target: returns the database to migrate. Not called for `--sql`.
        readable: exceptions of the project whose messages are shown without a traceback.

    Raises:
        CommandError: the command failed with a known cause. On the command line, the message is
            printed and the process exits with 1 instead.
    """
    config = context.config
    on_command_line = config.cmd_opts is not None and not config.cmd_opts.raiseerr
    with readable_errors(command_line=on_command_line):
        alembic_internals.check()
        _refuse_multidb(config)
    project = Project(config, load_config, target, readable, list(context.get_x_argument()))
    if project.hand_over():
        return
    if on_command_line:
        # Skip the last garbage collection: the process ends with the command. Measured by "current"
        # in benchmarks/migrations.py of the template.
        atexit.register(gc.freeze)
    with ExitStack() as stack:
        if on_command_line:
            stack.enter_context(readable_errors(command_line=True))
            stack.enter_context(handled_signals())
        else:
            stack.enter_context(readable_errors())
        _run_command(project)


def _run_command(project: Project) -> None:
    options = project.options
    if context.is_offline_mode():
        _run_offline(lock_timeout=options.lock_timeout, statement=options.statement_timeout)
    elif (given := context.config.attributes.get("connection")) is not None:
        project.target  # noqa: B018 - checks the settings and sets up logging
        _run_on(given, project)
    else:
        if changes_revision():
            project.target.start_tracing()
            with interruptible():
                context.script.get_heads()  # imports the revisions
        _run(_run_online(project))


def _refuse_multidb(config: Config) -> None:
    if databases := config.file_config.get(config.config_ini_section, "databases", fallback=""):
        raise MigrationError(
            f"{config.config_file_name}: databases = {databases}: a multidb project is not supported. "
            "Give the section of each database its own script_location and sqlalchemy.url, remove "
            "`databases`, and run `alembic -n <section>` for each"
        )


def _run_offline(*, lock_timeout: int, statement: int) -> None:
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
    )
    context.static_output(f"SET lock_timeout = {lock_timeout};")
    context.static_output(f"SET statement_timeout = {statement};")
    with context.begin_transaction():
        context.run_migrations()


def _run_on(connection: Connection, project: Project, blockers: Blockers | None = None) -> None:
    comparison = {}
    if alembic_internals.is_comparing():
        comparison = comparison_options(connection, project.load_metadata())
    context.configure(connection=connection, transaction_per_migration=True, **comparison)
    with context.begin_transaction():
        if changes_revision():
            run_revisions(connection, project, blockers)
        else:
            context.run_migrations()


async def _run_online(project: Project) -> None:
    target = project.target
    name = f"{target.application} migrations"
    blockers = Blockers()
    with telemetry.span("migrations"):
        async with (
            open_session(target.url, application=name, refuse_poolers=True) as session,
            blockers.watched(session),
        ):
            await session.run(set_timeouts, project.options)
            await session.run(_run_on, project, blockers)


def _run(coroutine: Coroutine[None, None, None]) -> None:
    """Run `coroutine`; use a new thread if an event loop is running in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        cancellation.run(coroutine)
    else:
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, coroutine).result()
