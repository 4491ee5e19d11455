"""Removal of the library from a project."""

import difflib
import re
from pathlib import Path
from string import Template

import click
from alembic.script import ScriptDirectory

from alembic_safety.alembic_internals import version_locations
from alembic_safety.boundary import short_path
from alembic_safety.errors import NotConfirmedError
from alembic_safety.project import Project

_LOST = """\
These measures end: the lock against other runners, timeouts, retries, backups before migrations, the
resumption of interrupted revisions, the history, the plan and the gate.
[tool.alembic.safety] in pyproject.toml and the table alembic_version_history have no use any more.
"""
_ENV = Template("""\
import asyncio
import os

from alembic import context
from sqlalchemy import Connection, make_url, pool
from sqlalchemy.ext.asyncio import create_async_engine

$metadata

def include_name(name: str | None, kind: str, parents: object) -> bool:
    # Tables of alembic-safety, which autogenerate would drop.
    return kind != "table" or name not in {"alembic_version_history", "alembic_backfill"}


def get_url() -> str:
    section = context.config.get_section(context.config.config_ini_section, {})
    url = make_url(section.get("sqlalchemy.url") or os.environ["$variable"])
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def run_migrations_offline() -> None:
    context.configure(
        dialect_name="postgresql",
        target_metadata=target_metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


def do_run_migrations(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=target_metadata, include_name=include_name
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_async_migrations() -> None:
    connectable = create_async_engine(get_url(), poolclass=pool.NullPool)
    async with connectable.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await connectable.dispose()


if context.is_offline_mode():
    run_migrations_offline()
else:
    asyncio.run(run_async_migrations())
""")
_METADATA = Template("""\
import $module

target_metadata = $module.$path
if callable(target_metadata):
    target_metadata = target_metadata()
""")


def eject(project: Project, *, variable: str, yes: bool, dry_run: bool) -> int:
    """Replace env.py with a stock asynchronous one; print what is lost.

    Args:
        project: the project.
        variable: environment variable with the URL, for a project without `sqlalchemy.url`.
        yes: do not ask.
        dry_run: print the change only.

    Raises:
        NotConfirmedError: the question was answered with no.
    """
    script = ScriptDirectory.from_config(project.make_config())
    env = Path(script.env_py_location)
    module, _, path = (project.options.metadata or "").partition(":")
    metadata = (
        _METADATA.substitute(module=module, path=path) if module else "target_metadata = None\n"
    )
    before, after = env.read_text("utf-8"), _ENV.substitute(metadata=metadata, variable=variable)
    name = str(short_path(env))
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    click.echo("".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")))
    click.echo(_LOST)
    users = [
        f"  {short_path(file)}:{number}"
        for folder in version_locations(script)
        for file in sorted(folder.rglob("*.py"))
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.search(r"\bimport\b.*\balembic_safety\b|\balembic_safety\b.*\bimport\b", line)
    ]
    if users:
        click.echo("These revisions need the library: keep it installed, or rewrite them.")
        click.echo("\n".join(users))
    if dry_run:
        return 0
    if not yes and not click.confirm(f"Replace {name}?"):
        raise NotConfirmedError("nothing was changed")
    env.write_text(after, "utf-8")
    click.echo(f"{name} is a stock env.py now.")
    return 0
