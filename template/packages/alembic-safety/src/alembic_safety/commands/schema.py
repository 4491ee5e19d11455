"""Commands on the state and the history of the schema."""

import sys
from contextlib import redirect_stdout

import click
from alembic import command
from sqlalchemy import Connection

from alembic_safety import cancellation
from alembic_safety.database import history
from alembic_safety.database.connection import create_engine
from alembic_safety.database.leftovers import find_leftovers
from alembic_safety.database.pooler import connect_directly
from alembic_safety.project import Project
from alembic_safety.run.confirm import confirm
from alembic_safety.state import Revisions, SchemaReader, SchemaState, State


def read_state(project: Project, revisions: Revisions) -> SchemaState:
    """Return the state of the project's database."""
    engine = create_engine(project.target.url)
    return cancellation.run(SchemaReader(engine, revisions).read())


def print_status(project: Project) -> int:
    """Print the current revision, the head and each pending revision; return 1 if unreachable."""
    url = project.target.url
    revisions = Revisions.load(project.make_config())

    async def read() -> tuple[SchemaState, list[str]]:
        engine = create_engine(url)
        state = await SchemaReader(engine, revisions).read()
        if state.state is State.UNREACHABLE:
            return state, []
        async with engine.connect() as connection:
            return state, await find_leftovers(connection, url.database)

    state, leftovers = cancellation.run(read())
    if state.state is State.UNREACHABLE:
        print(state.reason, file=sys.stderr)
        return 1

    def label(ids: tuple[str, ...]) -> str:
        known = set(ids) if state.state is not State.AHEAD else set()
        names = [f"{item} ({revisions[item].message})" if item in known else item for item in ids]
        return ", ".join(names) or "none"

    print(f"database: {url.database}")
    print(f"current:  {label(state.current)}")
    print(f"head:     {', '.join(f'{i} ({revisions[i].message})' for i in state.heads) or 'none'}")
    for revision in state.pending:
        pending = click.style("pending:", fg="yellow")
        click.echo("  ".join(filter(None, [pending, revision.id, revision.date, revision.message])))
    hint = "; run `alembic upgrade head`" if state.pending else ""
    if len(state.heads) > 1:
        hint = "; there are several heads, so run `alembic merge heads -m Merge`"
    sentence = state.describe()
    print(f"{sentence[0].upper()}{sentence[1:]}{hint}.")
    if leftovers:
        print(f"Left by killed commands: {', '.join(leftovers)}; run `alembic-safety cleanup`.")
    return 0


def verify(project: Project) -> int:
    """Return 0 if the database is at head; otherwise print the status, and return 1."""
    state = read_state(project, Revisions.load(project.make_config()))
    if state.state is State.AT_HEAD:
        return 0
    with redirect_stdout(sys.stderr):
        print_status(project)
    return 1


def print_history(project: Project) -> int:
    """Print the rows of the history, and the revisions that were applied before it began."""
    url = project.target.url
    revisions = Revisions.load(project.make_config())

    async def read() -> tuple[SchemaState, list[history.Entry]]:
        engine = create_engine(url)
        state = await SchemaReader(engine, revisions).read()
        async with engine.connect() as connection:
            return state, await connection.run_sync(history.read)

    state, entries = cancellation.run(read())
    for entry in entries:
        when = entry.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        code = f"  code {entry.code_version}" if entry.code_version else ""
        message = f"  {revisions[entry.revision].message}" if entry.revision in revisions else ""
        print(
            f"{when}  {entry.direction:<9}  {entry.revision}  {entry.seconds:.2f} s  "
            f"{entry.who}@{entry.host}{code}{message}"
            f"{f'  backup {entry.backup}' if entry.backup else ''}"
            f"{f'  FAILED: {entry.error}' if entry.error else ''}"
        )
    moves = {history.Direction.UPGRADE, history.Direction.DOWNGRADE, history.Direction.STAMP}
    recorded = {
        entry.revision for entry in entries if entry.error is None and entry.direction in moves
    }
    for revision in state.current:
        if revision not in recorded:
            print(f"{revision}: applied before the history began; time and user are unknown")
    if not entries and not state.current:
        print(f"No revision was ever applied to the database {url.database}.")
    return 0


def reset(project: Project, confirmation: str) -> int:
    """Downgrade to base, after confirmation.

    Args:
        project: the project.
        confirmation: the name of the database; an empty string prompts for it.

    Raises:
        NotConfirmedError: the name is missing or another one.
    """
    database = project.target.url.database
    confirm(
        database,
        f"reset deletes all data of the database {database}",
        confirmation,
        how=f"run `alembic-safety reset --confirm={database}`",
    )
    command.downgrade(project.make_config(confirm=database), "base")
    print(f"The database {database} is at base: no revision is applied.")
    return 0


def record_rollout(project: Project, version: str) -> int:
    """Record the rollout of a code version, if the history table exists."""
    state = read_state(project, Revisions.load(project.make_config()))
    event = history.Event(
        revision="+".join(state.current), direction=history.Direction.ROLLOUT, code_version=version
    )

    def write(connection: Connection) -> None:
        if history.exists(connection):
            history.write(connection, event)
        connection.commit()

    async def run() -> None:
        async with connect_directly(project.target.url) as (_, connection):
            await connection.run_sync(write)

    cancellation.run(run())
    return 0
