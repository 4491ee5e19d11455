"""The commands behind `make migrate-status` and `make migrate-reset`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from alembic import command
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from core.config import SettingsError, get_settings
from core.database import create_engine
from core.embedded_postgres import EmbeddedPostgresError
from core.migrations.config import make_config
from core.migrations.state import Revisions, SchemaReader, SchemaState, State


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.migrations", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="say where the database is")
    status.set_defaults(run=lambda _: _status())
    reset = commands.add_parser("reset", help="downgrade to base; the data are lost")
    reset.add_argument(
        "--confirm", default="", help="the database's name, where nobody can be asked"
    )
    reset.set_defaults(run=lambda given: _reset(given.confirm))
    given = parser.parse_args(arguments)
    try:
        code: int = given.run(given)
    except (CommandError, EmbeddedPostgresError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _status() -> int:
    url = get_settings().url

    async def read() -> tuple[SchemaState, Revisions]:
        engine = create_engine(url, poolclass=NullPool)
        reader = SchemaReader(engine)
        return await reader.read(), reader.revisions

    state, revisions = asyncio.run(read())
    if state.state is State.UNREACHABLE:
        print(f"{url}: {state.describe()}", file=sys.stderr)
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
    sentence = state.describe()
    print(f"{sentence[0].upper()}{sentence[1:]}{hint}.")
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
        confirmation = input("Type its name to go on: ").strip()
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
