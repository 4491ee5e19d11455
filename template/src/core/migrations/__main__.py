"""The commands behind `make migrate-status`, `make migrate-history` and `make migrate-reset`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from alembic import command
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from core.config import SettingsError, get_settings
from core.database import DatabaseUnavailableError, create_engine
from core.embedded_postgres import EmbeddedPostgresError
from core.migrations import record
from core.migrations.config import AlembicConfigError, load_alembic_config, make_config
from core.migrations.errors import MigrationError
from core.migrations.state import Revisions, SchemaReader, SchemaState, State


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.migrations", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="say where the database is")
    status.set_defaults(run=lambda _: _status())
    history = commands.add_parser("history", help="say what was applied and reverted, and when")
    history.set_defaults(run=lambda _: _history())
    reset = commands.add_parser("reset", help="downgrade to base; the data are lost")
    reset.add_argument(
        "--confirm", default="", help="the database's name, where nobody can be asked"
    )
    reset.set_defaults(run=lambda given: _reset(given.confirm))
    given = parser.parse_args(arguments)
    try:
        load_alembic_config()  # a wrong option is said by every command
        code: int = given.run(given)
    except (
        AlembicConfigError,
        CommandError,
        DatabaseUnavailableError,
        EmbeddedPostgresError,
        MigrationError,
        SettingsError,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _status() -> int:
    url = get_settings().url
    revisions = Revisions.load()
    reader = SchemaReader(create_engine(url, poolclass=NullPool), revisions)
    state = asyncio.run(reader.read())
    if state.state is State.UNREACHABLE:
        print(state.reason, file=sys.stderr)
        return 1

    def named(ids: tuple[str, ...]) -> str:
        known = set(ids) if state.state is not State.AHEAD else set()
        names = [f"{item} ({revisions[item].message})" if item in known else item for item in ids]
        return ", ".join(names) or "none"

    print(f"database: {url.database}")
    print(f"current:  {named(state.current)}")
    print(f"head:     {', '.join(f'{i} ({revisions[i].message})' for i in state.heads) or 'none'}")
    for revision in state.pending:
        print(f"pending:  {revision.id}  {revision.date}  {revision.message}")
    hint = "; run `make migrate-up`" if state.pending else ""
    if len(state.heads) > 1:
        hint = "; there are several heads: `uv run alembic merge heads -m Merge` joins them"
    sentence = state.describe()
    print(f"{sentence[0].upper()}{sentence[1:]}{hint}.")
    return 0


def _history() -> int:
    url = get_settings().url
    revisions = Revisions.load()

    async def read() -> tuple[SchemaState, list[record.Entry]]:
        engine = create_engine(url, poolclass=NullPool)
        state = await SchemaReader(engine, revisions).read()
        async with engine.connect() as connection:
            return state, await connection.run_sync(record.read)

    state, entries = asyncio.run(read())
    for entry in entries:
        when = entry.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        message = f"  {revisions[entry.revision].message}" if entry.revision in revisions else ""
        print(
            f"{when}  {entry.direction:<9}  {entry.revision}  {entry.seconds:.2f} s  "
            f"{entry.who}@{entry.host}  code {entry.code_version}{message}"
        )
    recorded = {entry.revision for entry in entries}
    for revision in state.current:
        if revision not in recorded:
            print(f"{revision}: applied before the record began; when, and by whom, is not known")
    if not entries and not state.current:
        print(f"Nothing was ever applied to the database {url.database}.")
    return 0


def _reset(confirmation: str) -> int:
    database = get_settings().url.database
    if not confirmation:
        if not sys.stdin.isatty():
            print(
                f"reset deletes all data of the database {database}; "
                f"to confirm, give its name: make migrate-reset CONFIRM={database}",
                file=sys.stderr,
            )
            return 1
        print(f"This deletes all data of the database {database}.")
        try:
            confirmation = input("Type its name to go on: ").strip()
        except (EOFError, KeyboardInterrupt):
            confirmation = ""
            print()
    if confirmation != database:
        print(
            f"{confirmation!r} is not the name of the database ({database}); nothing was changed",
            file=sys.stderr,
        )
        return 1
    command.downgrade(make_config(), "base")
    print(f"The database {database} is at base: no revision is applied.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
